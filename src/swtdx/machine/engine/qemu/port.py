"""One QEMU processor and its mailbox: commands to it, and how their end is awaited."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from swtdx.arch.units import PAGE
from swtdx.machine.engine.protocol import Wakeup
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.cores import CORES
from swtdx.machine.engine.qemu.ordering import IN_ORDER, fence
from swtdx.machine.engine.qemu.process import QemuProcess

if TYPE_CHECKING:
    from swtdx.machine.engine.qemu.context import QemuContext

#: Polls of the mailbox before going to sleep until the doorbell rings (about 60 ns each): at most, and at
#: least.  In between it is what has paid off after the last kind of stop, so that a host without processors
#: to spare does not wait in vain.
SPIN: Final = 1500
SPIN_LEAST: Final = 50
#: A sleep that took no longer than this, in seconds, would better have been spent polling.
WORTH_SPINNING: Final = 150e-6
#: How long to sleep before looking again whether all is well, in seconds.
NAP: Final = 0.25
#: The first QEMU that keeps other processors from writing to code while it translates it (accel/tcg: "Always
#: lock pages before translation").  In those before, what a processor reads can be replaced before QEMU has
#: noted that it watches the page: it then goes on running what is there no longer.  Linux replaces code
#: under running processors by way of INT3, so that it is an INT3 that stays behind; it has no use for it
#: any more, and dies.
_LOCKS_CODE: Final = (8, 1)
#: Kinds of stops are the values of Stop; undefined instructions (TDCALL) are told apart by RAX[3:0].
CALL: Final = 32
#: How often the stub polls (some 7 ns each) for the answer to a stop before its processor sleeps, on a host
#: with cores to spare and on one without.  There, whoever polls keeps a core from those it waits for, and a
#: wake-up is answered at once (``slices.py``).
_STUB_POLLS: Final = 300_000
_STUB_POLLS_SCARCE: Final = 2_000
#: The same where it is only that all guests of the machine are awake: as long as a wake-up takes.
_STUB_POLLS_SHARED: Final = 8_000
#: Our own polls there, at most.
_SPIN_SCARCE: Final = 100
#: Runs between two looks at the host's load (a mask).
LOOK_EVERY: Final = 63
#: The least time that a guest is given before its timer is due, in nanoseconds.
_LEAST_NS: Final = 20_000
#: A guest that was told to stop is told again after so many seconds.
_IMPATIENCE: Final = 0.01
#: Polls, and then the pause between further ones in seconds, until it has stopped.
_STOP_POLLS: Final = 200
_STOP_PAUSE: Final = 50e-6

_SEQ: Final = at.MB_SEQ >> 2
_DONE: Final = at.MB_DONE >> 2
_CMD: Final = at.MB_CMD >> 2
_RING: Final = at.MB_RING >> 2
_ASLEEP: Final = at.MB_ASLEEP >> 2
_SPIN: Final = at.MB_SPIN >> 2


class Software(Protocol):
    """The software of a processor that shares a thread with others: see ``hub.py``."""

    def wait_for_guest(self) -> None:
        """Let the others run until the port's latest command has been carried out."""

    def wait(self, woken: Wakeup, seconds: float | None) -> bool:
        """Let the others run until ``woken`` is set (True), or ``seconds`` have passed (False)."""

    def idle(self, woken: Wakeup, seconds: float | None) -> bool:
        """:meth:`wait`; meanwhile its guest wants no core."""


class Port:
    """One QEMU processor and its mailbox.

    ``lock`` is held while a command is given and, except for RUN, carried out.  A guest that runs holds no
    lock: entered as a context, a port makes its guest stop first, so that any thread may give a command, or
    change what the processor translates addresses by.  Who runs the guest notices the stop afterwards, and
    takes the lock to see what it was.
    """

    __slots__ = (
        "_process",
        "armed",
        "awake",
        "base",
        "bell",
        "cores",
        "crowded",
        "doubts",
        "fence",
        "guests",
        "index",
        "last",
        "live",
        "lock",
        "locks_code",
        "most_spins",
        "program",
        "q",
        "runs",
        "scarce",
        "seq",
        "spins",
        "stub_polls",
        "w",
    )

    def __init__(self, process: QemuProcess, index: int) -> None:
        self.index = index
        self.lock = threading.RLock()
        self.fence = fence()
        self._process = process
        self.base = at.MAILBOX + index * PAGE
        page = process.memory[self.base : self.base + PAGE]
        self.w = page.cast("I")
        self.q = page.cast("Q")
        self.bell = process.bells[index]
        #: The number of the latest command.
        self.seq = self.w[_DONE]
        self.live: QemuContext | None = None
        #: The deadline that the processor's timer is set to.
        self.armed: int | None = None
        #: The software of this processor, where it shares a thread with others.
        self.program: Software | None = None
        #: The kind of the last stop, and polls by kind of stop before.
        self.last = 0
        self.spins = [SPIN] * (CALL + 16)
        self.runs = 0
        self.stub_polls = _STUB_POLLS
        #: Whether more threads want to run than there are cores, ours and those of all guests here: PAUSE
        #: stops then.
        self.crowded = False
        #: Guests that run side by side with this one's, and it; and those of them that do not wait for an
        #: interrupt now.
        self.guests = 1
        self.awake = 1
        #: Whether others than these want the cores, and how many there are, two at least.
        self.scarce = False
        self.cores = 2
        #: Whether QEMU never goes on running code that is not in memory any more; whether that is in doubt.
        self.locks_code = process.version >= _LOCKS_CODE
        self.doubts = False
        #: Our own polls, at most.
        self.most_spins = SPIN

    def set_times(self, tsc_hz: float) -> None:
        """Tell the stub how long a tick is, and the least time that a guest is given."""
        self.q[at.MB_SCALE >> 3] = int((1 << 32) * 1e9 / tsc_hz)
        self.w[at.MB_LEAST >> 2] = _LEAST_NS

    # ------------------------------------------------------------------ commands
    def start(self, command: int) -> None:
        """Give a command; ``w[MB_DONE] == seq`` says that it has been carried out."""
        words = self.w
        words[_CMD] = command
        words[_SPIN] = self.stub_polls
        self.seq = seq = (self.seq + 1) & 0xFFFFFFFF
        if not IN_ORDER:
            with self.fence:
                pass
        words[_SEQ] = seq
        # The stub says that it sleeps and looks for a command: we the other way round.
        with self.fence:
            pass
        if words[_ASLEEP]:
            self.wake()

    def wake(self) -> None:
        """Wake the processor from its sleep."""
        self._process.wake(self.index, kick=False)

    def command(self, command: int) -> None:
        """Have a command carried out; with the port entered."""
        self.start(command)
        self.wait()

    def look(self) -> None:
        """Look at the host's load: how long the stub may poll, and whether a guest may that only waits."""
        self.scarce = CORES.scarce()
        self.cores = max(CORES.count(), 2)
        self.crowded = self.scarce or self.guests >= self.cores
        self.doubts = self.guests > 1 and not self.locks_code
        self.others(self.awake)

    def others(self, awake: int) -> None:
        """So many guests are awake now, this one among them: poll accordingly."""
        self.awake = awake
        if self.scarce:
            self.stub_polls, self.most_spins = _STUB_POLLS_SCARCE, _SPIN_SCARCE
        elif awake >= self.cores:
            self.stub_polls, self.most_spins = _STUB_POLLS_SHARED, _SPIN_SCARCE
        else:
            self.stub_polls, self.most_spins = _STUB_POLLS, SPIN

    def park(self) -> None:
        """There will be nothing to do for a while: the stub need not poll for it."""
        self.w[_SPIN] = 0

    # ------------------------------------------------------------------ waiting
    def wait(self) -> None:
        """Wait, on a thread of one's own, until the latest command has been carried out."""
        words, sequence = self.w, self.seq
        after, spins = self.last, self.spins
        spin = spins[after]
        for _ in range(min(spin, self.most_spins)):
            if words[_DONE] == sequence:
                if not IN_ORDER:
                    with self.fence:
                        pass
                return
        before = time.perf_counter()
        self._sleep()
        if time.perf_counter() - before < WORTH_SPINNING:
            spins[after] = SPIN
        else:
            spins[after] = max(SPIN_LEAST, spin >> 1)

    def _sleep(self) -> None:
        """Wait for the doorbell."""
        words = self.w
        while words[_DONE] != self.seq:
            words[_RING] = 1
            with self.fence:
                pass
            if words[_DONE] == self.seq:
                break
            readable, _, _ = select.select([self.bell], [], [], NAP)
            if readable:
                self.hush()
            else:
                self.check()
        words[_RING] = 0
        with self.fence:
            pass

    def hush(self) -> None:
        """Take what the doorbell has rung."""
        with contextlib.suppress(BlockingIOError):
            if not self.bell.recv(4096):
                self._process.check_alive()

    def check(self) -> None:
        """Nothing was heard for long: see that QEMU lives, and wake the processor if it sleeps."""
        self._process.check_alive()
        fault = self.w[at.MB_RESULT >> 2] if self.w[_DONE] != self.seq else 0
        if fault == at.STUB_FAULT:
            self._process.report_fault(self.index, self.q[(at.MB_RESULT + 8) >> 3])
        if self.w[_ASLEEP]:
            self._process.wake(self.index, kick=False)

    # ------------------------------------------------------------------ from any thread
    def kick(self) -> None:
        """Make the guest stop, now or as soon as it is entered."""
        self._process.wake(self.index, kick=True)

    def __enter__(self) -> Port:
        self.lock.acquire()
        words = self.w
        if words[_DONE] == self.seq:
            return self
        try:
            self._stop()
        except BaseException:
            self.lock.release()
            raise
        return self

    def _stop(self) -> None:
        """Bring the guest out."""
        words = self.w
        self.kick()
        for _ in range(_STOP_POLLS):
            if words[_DONE] == self.seq:
                return
        told = time.monotonic()
        while words[_DONE] != self.seq:
            time.sleep(_STOP_PAUSE)
            if time.monotonic() - told > _IMPATIENCE:
                self._process.check_alive()
                self.kick()
                told = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
