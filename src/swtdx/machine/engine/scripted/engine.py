"""The scripted engine: see ``docs/engine.md`` and :mod:`swtdx.machine.engine.protocol`."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from swtdx.arch import regs
from swtdx.machine.engine.protocol import EngineError, Event, Stop, Wakeup
from swtdx.machine.engine.scripted.clock import READING, STOP, TSC_HZ, VirtualClock
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import GuestFault, ScriptError
from swtdx.machine.engine.scripted.operation import Core
from swtdx.machine.engine.scripted.script import WINDOW, Program, Script
from swtdx.machine.engine.scripted.space import GuestMemory, Lock, ScriptedSpace
from swtdx.machine.engine.threads import run_threads

#: Code addresses of scripts: below 4 GiB, and away from where BIOSes and reset vectors are.
_CODE: Final = 0x1000_0000
_CODE_END: Final = 0xF000_0000
#: How long (real time) a processor waits for the others before it lets virtual time jump, in seconds.
_LOOK: Final = 0.001
_LOOKS: Final = 20


class ScriptedEngine:
    """Runs guests that are Python generators; nothing but Python is needed.

    ``add_program`` gives the next vCPU something to execute, see there.  For another rule set
    ``program_for`` to a callable that is asked once for every vCPU, with its context (whose registers
    are the initial ones), and returns a program or a script made by ``script``.
    """

    name = "scripted"
    gpa_bits = 52

    def __init__(self, frames: memoryview, lock: Lock, cpus: int) -> None:
        """``frames``: the machine's frames by HPA; ``lock``: held while any of them is taken away."""
        self._memory = GuestMemory(frames, lock)
        self._clock = VirtualClock()
        self._kicked = [False] * cpus
        self._lock = threading.Lock()
        self._idle: dict[int, float] = {}  # processor -> TSC that it waits for
        self._used: set[int] = set()
        self._queue: deque[Script] = deque()
        self._by_rcx: dict[int, Script] = {}
        self._next_base = _CODE
        #: Every script by the base of its code addresses.
        self.scripts: dict[int, Script] = {}
        self.program_for: Callable[[ScriptedContext], Script] = self._choose
        self.runs = 0

    # ------------------------------------------------------------------ programs
    def script(self, program: Program, bits: int = 64) -> Script:
        """A script of ``program`` for exactly one vCPU, which ``program_for`` will return.

        ``bits`` 64 starts in 64-bit code, as a guest's start-up code would reach it; 32 leaves the vCPU
        in the mode that it is in.

        Raises:
            EngineError: there were more than 900,000 scripts on this engine.
            ValueError: ``bits`` is neither.
        """
        if bits not in (32, 64):
            raise ValueError(f"a script starts in 32- or 64-bit code, not {bits}")
        with self._lock:
            base = self._next_base
            if base >= _CODE_END:
                raise EngineError("no code addresses are left for another script; start a new machine")
            self._next_base = base + WINDOW
            made = self.scripts[base] = Script(program, base, bits)
        return made

    def add_program(self, program: Program, *, rcx: int | None = None, bits: int = 64) -> Script:
        """Have a vCPU execute ``program``: that with this initial RCX, or the next that has none.

        TDH.VP.INIT sets a vCPU's initial RCX (and R8).  See :meth:`script` for ``bits``.

        Raises:
            ValueError: another program waits for this RCX.
        """
        if rcx is not None and rcx in self._by_rcx:
            raise ValueError(f"a program waits already for the vCPU with RCX={rcx:#x}")
        script = self.script(program, bits)
        if rcx is None:
            self._queue.append(script)
        else:
            self._by_rcx[rcx] = script
        return script

    def _choose(self, context: ScriptedContext) -> Script:
        script = self._by_rcx.pop(context.gpr[regs.RCX], None)
        if script is not None:
            return script
        if self._queue:
            return self._queue.popleft()
        lost = " (scripts are not saved in snapshots)" if _CODE <= context.rip < _CODE_END else ""
        raise EngineError(
            f"no program for the vCPU with RCX={context.gpr[regs.RCX]:#x} at RIP {context.rip:#x}{lost}; "
            "give it one with machine.engine.add_program(program) before it runs"
        )

    def _script_of(self, context: ScriptedContext) -> Script:
        script = self.scripts.get(context.rip & -WINDOW)
        if script is None or not script.started:
            script = self.program_for(context)
        if script.context is not context:
            script.attach(context)
        return script

    # ------------------------------------------------------------------ contexts and spaces
    def context(self, lp: int) -> ScriptedContext:
        """A fresh context."""
        return ScriptedContext()

    def attend(self, lp: int, context: ScriptedContext) -> None:
        """Nothing: no context is ever put aside."""

    def release(self, context: ScriptedContext) -> None:
        """Nothing: a context is only memory."""

    def space(self, lp: int) -> ScriptedSpace:
        """A fresh translation cache."""
        return ScriptedSpace(self._memory.lock)

    def rewrite(self, hpa: int, size: int) -> None:
        """Nothing: no code is translated."""

    # ------------------------------------------------------------------ running
    def run(self, lp: int, context: ScriptedContext, space: ScriptedSpace, deadline: int | None) -> Event:
        """Execute the vCPU's script until it stops; see the protocol.

        Raises:
            EngineError: this vCPU was given no program.
        """
        self.runs += 1
        self._used.add(lp)
        script = self._script_of(context)
        event = context.event
        event.stop = self._execute(lp, script, Core(context, space, self._memory, self._clock), deadline)
        event.tsc = self._clock.advance(0 if event.stop is Stop.INTERRUPT else STOP)
        return event

    def _execute(self, lp: int, script: Script, core: Core, deadline: int | None) -> Stop:
        context, clock = core.context, self._clock
        script.settle()
        injection = context.withdraw()
        if injection is not None and not script.done:
            script.deliver(*injection)
            if context.stepping and not script.done:
                return Stop.STEP
        while not script.done:
            if self._kicked[lp]:
                self._kicked[lp] = False
                return Stop.INTERRUPT
            if deadline is not None and clock.now >= deadline:
                return Stop.INTERRUPT
            if script.returning:
                if context.nmi_blocked:
                    return Stop.IRET
                script.leave_handler()
                if context.stepping:
                    return Stop.STEP
                continue
            vector = context.take_offered()
            if vector is not None:
                script.interrupt(vector)
            elif script.frame.retired:
                script.next_operation()
            else:
                stop = self._step(script, core, deadline)
                if stop is not None:
                    return stop
        return Stop.SHUTDOWN

    def _step(self, script: Script, core: Core, deadline: int | None) -> Stop | None:
        """Execute the instruction that the script is at."""
        context, clock, frame = core.context, self._clock, script.frame
        operation = frame.operation
        assert operation is not None
        if frame.left:
            # A pause ends early at a deadline, and goes on afterwards.
            step = frame.left if deadline is None else min(frame.left, max(0, deadline - clock.now))
            frame.left -= step
            clock.advance(step)
            if frame.left:
                return None
        clock.advance(operation.cycles)
        in_shadow = context.shadow
        try:
            if operation.ring0 is not None and context.cpl:
                raise GuestFault(operation.ring0, 0 if operation.ring0 == 13 else None)
            stop = operation.execute(core)
        except GuestFault as fault:
            if not context.exceptions_intercepted >> fault.vector & 1:
                script.fault(fault)
                return None
            context.event.vector, context.event.error_code = fault.vector, fault.error_code
            stop = Stop.EXCEPTION
        except ScriptError as wrong:
            script.misuse(wrong)
            return None
        if stop is None:
            if in_shadow:
                context.shadow = False
            script.complete()
            if context.stepping:
                return Stop.STEP
        else:
            frame.at = context.rip
        return stop

    def kick(self, lp: int) -> None:
        """Make processor ``lp`` stop; any thread may call."""
        self._kicked[lp] = True

    # ------------------------------------------------------------------ time
    def tsc(self) -> int:
        """The virtual time-stamp counter; reading it takes a little time, too."""
        return self._clock.advance(READING)

    @property
    def version(self) -> str:
        """There is one only."""
        return "the scripted engine"

    @property
    def tsc_hz(self) -> float:
        """Its nominal frequency, 2 GHz."""
        return float(TSC_HZ)

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run the software of several processors, each on a thread; see the protocol."""
        run_threads(programs, failed)

    def acquire(self, lp: int, lock: threading.Lock) -> None:
        """Take a lock."""
        lock.acquire()

    def pause(self, lp: int, seconds: float) -> None:
        """Let the host's time pass; virtual time does not."""
        time.sleep(seconds)

    def wait(self, lp: int, woken: Wakeup, seconds: float | None) -> bool:
        """Wait for ``woken``, at most ``seconds`` of virtual time; False when they have passed.

        If every other processor that has run a guest waits as well, and for nothing earlier, the time
        passes at once.  Otherwise the others are given a chance to move it.
        """
        until = math.inf if seconds is None else self._clock.now + math.ceil(seconds * TSC_HZ)
        with self._lock:
            self._idle[lp] = until
        try:
            if isinstance(until, float):
                return woken.wait()
            looks, seen = 0, self._clock.now
            while not woken.is_set() and self._clock.now < until:
                if self._all_idle(lp, until) or looks == _LOOKS:
                    self._clock.advance_to(until)
                    return False
                if woken.wait(_LOOK):
                    return True
                looks, seen = (looks + 1 if seen == self._clock.now else 0), self._clock.now
            return woken.is_set()
        finally:
            with self._lock:
                del self._idle[lp]

    def _all_idle(self, lp: int, until: int) -> bool:
        with self._lock:
            return all(other == lp or self._idle.get(other, -1) >= until for other in self._used)

    def close(self) -> None:
        """Nothing is left running.  Idempotent."""
