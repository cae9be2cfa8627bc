"""Many processors, one thread: the software of each runs until its guest does, or until it waits.

QEMU runs guests side by side, each on a thread of its own; what serves their stops is Python, of which only
one thread runs at a time anyway.  With a thread for each processor every stop costs a hand-over: a thread is
woken, and waits for the interpreter's lock.  Here it costs a switch of stacks (``greenlet``), and one loop
looks at all mailboxes.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from greenlet import getcurrent, greenlet

from swtdx.machine.engine.protocol import Wakeup
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.port import NAP, SPIN, SPIN_LEAST, WORTH_SPINNING, Port, Software

_DONE: Final = at.MB_DONE >> 2
_RING: Final = at.MB_RING >> 2
#: Rounds of looking between two looks at the clock, where a program waits for a time.
_CLOCK_EVERY: Final = 16


class Program(greenlet):
    """The software of one processor: a stack of its own."""

    def __init__(self, hub: Hub, port: Port, body: Callable[[], None]) -> None:
        super().__init__(body)
        self.port = port
        self._hub = hub
        #: What it waits for besides its guest, and until when (``time.monotonic``); no Wakeup: for its guest.
        self.woken: Wakeup | None = None
        self.until = math.inf

    def wait_for_guest(self) -> None:
        """Let the others run until the port's latest command has been carried out."""
        self._hub.switch()

    def idle(self, woken: Wakeup, seconds: float | None) -> bool:
        """:meth:`wait`; meanwhile its guest wants no core."""
        self._hub.wakes(-1)
        try:
            return self.wait(woken, seconds)
        finally:
            self._hub.wakes(1)

    def wait(self, woken: Wakeup, seconds: float | None) -> bool:
        """Let the others run until ``woken`` is set (True), or ``seconds`` have passed (False)."""
        self.until = math.inf if seconds is None else time.monotonic() + seconds
        self.woken = woken
        woken.told = self._hub.poke
        try:
            self._hub.switch()
        finally:
            self.woken = None
        return woken.is_set()


def current(port: Port) -> Software | None:
    """The program of ``port`` if it is what calls."""
    program = port.program
    here: object = getcurrent()
    return program if program is here else None


class Hub:
    """Runs the programs of some processors to their ends, on the caller's thread."""

    def __init__(self) -> None:
        self._loop = getcurrent()
        self.switch: Callable[[], object] = self._loop.switch
        self._blocked = False
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        #: Rounds of looking that have paid off.
        self._rounds = SPIN
        self._failure: BaseException | None = None
        self._ports: list[Port] = []
        #: How many of the guests are awake.
        self._awake = 0

    def wakes(self, change: int) -> None:
        """So many guests more are awake."""
        self._awake += change
        for port in self._ports:
            port.others(self._awake)

    def poke(self) -> None:
        """Something has happened that a program may wait for.  Any thread."""
        if self._blocked:
            with contextlib.suppress(OSError):
                self._mouth.send(b"!")

    def run(
        self,
        ports: list[Port],
        bodies: Mapping[int, Callable[[], None]],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Run ``bodies``, by index of the processor, until all have returned.

        ``failed`` is told of an exception in one of them, or between them, and has to make the others
        return; the first one is raised in the end.
        """
        programs = [Program(self, ports[index], body) for index, body in bodies.items()]
        self._ports = [program.port for program in programs]
        self._awake = len(programs)
        try:
            for program in programs:
                program.port.program = program
                program.port.guests = program.port.awake = len(programs)
                program.port.look()
            for program in programs:
                self._resume(program, failed)
            while alive := [program for program in programs if not program.dead]:
                try:
                    self._serve(alive, failed)
                except BaseException as error:  # Ctrl-C, say: they have to end in order
                    self._failure = self._failure or error
                    failed(error)
        finally:
            for program in programs:
                program.port.program = None
                program.port.guests = program.port.awake = 1
            self._ear.close()
            self._mouth.close()
        if self._failure is not None:
            raise self._failure

    def _resume(self, program: Program, failed: Callable[[BaseException], None]) -> None:
        try:
            program.switch()
        except BaseException as error:
            self._failure = self._failure or error
            failed(error)

    # ------------------------------------------------------------------ the loop
    def _serve(self, programs: list[Program], failed: Callable[[BaseException], None]) -> None:
        """Let programs go on whose wait is over, until one of them has come to its end."""
        idle = 0
        limit = max(SPIN_LEAST, self._rounds // (1 + len(programs)))
        while True:
            served = False
            now = 0.0 if idle % _CLOCK_EVERY else time.monotonic()
            for program in programs:
                woken = program.woken
                if woken is None:
                    port = program.port
                    if port.w[_DONE] != port.seq:
                        continue
                elif not woken.is_set() and now < program.until:
                    continue
                served = True
                self._resume(program, failed)
                if program.dead:
                    return
            if served:
                idle = 0
                continue
            idle += 1
            if idle >= limit:
                self._block(programs)
                limit = max(SPIN_LEAST, self._rounds // (1 + len(programs)))
                idle = 0

    def _block(self, programs: list[Program]) -> None:
        """Sleep until something happens."""
        before = time.monotonic()
        self._blocked = True
        ports = [program.port for program in programs if program.woken is None]
        for port in ports:
            port.w[_RING] = 1
            with port.fence:
                pass
        timeout = NAP
        for program in programs:
            woken = program.woken
            if woken is None:
                if program.port.w[_DONE] == program.port.seq:
                    timeout = 0.0
            elif woken.is_set():
                timeout = 0.0
            else:
                timeout = max(0.0, min(timeout, program.until - before))
        heard: list[socket.socket] = []
        if timeout:
            heard, _, _ = select.select([self._ear, *(port.bell for port in ports)], [], [], timeout)
        self._blocked = False
        for port in ports:
            port.w[_RING] = 0
            with port.fence:
                pass
            if port.bell in heard:
                port.hush()
        if self._ear in heard:
            with contextlib.suppress(BlockingIOError):
                self._ear.recv(4096)
        passed = time.monotonic() - before
        if passed >= NAP:
            for port in ports:
                port.check()
        if passed < WORTH_SPINNING:
            self._rounds = SPIN
        else:
            self._rounds = max(SPIN_LEAST, self._rounds >> 1)
