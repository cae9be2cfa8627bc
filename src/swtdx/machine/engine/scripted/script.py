"""A program that is running on a vCPU: the generator, where it is, and what has happened to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final

from swtdx.arch.exits import TYPE_HARDWARE_EXCEPTION
from swtdx.arch.x86 import RFLAGS_IF, RFLAGS_RF
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import GuestFault, ScriptError
from swtdx.machine.engine.scripted.operation import Operation

_LOG: Final = logging.getLogger(__name__)
#: Bytes of fake code addresses that a script has.
WINDOW: Final = 0x1000
_LONGEST: Final = 15
_XMM: Final = 160
_XSTATE_BV: Final = 512

#: What a program's generator yields, is sent, and returns.
Running = Generator[Operation, Any, Any]
#: A guest: called with its :class:`Script` when its vCPU runs for the first time.
Program = Callable[["Script"], Running]


class _Frame:
    """A generator and the instruction that it is at.  Interrupt handlers lie on top of the program."""

    __slots__ = ("at", "code", "left", "operation", "result", "retired", "running", "saved")

    def __init__(self, running: Running, saved: tuple[bytes, int] | None) -> None:
        self.running = running
        #: The registers and RFLAGS to restore when a handler returns.
        self.saved = saved
        self.operation: Operation | None = None
        self.code = b""
        #: RIP where the instruction stopped, None when it is not under way.
        self.at: int | None = None
        #: Cycles that are left of a pause.
        self.left = 0
        #: Whether the instruction is done and its result waits to be handed over.
        self.retired = True
        self.result: Any = None


def _nothing() -> Running:
    """A handler that does nothing."""
    yield from ()


class Script:
    """One program on one vCPU.

    The program gets this object.  RIP ties it to its vCPU: a script has 4 KiB of code addresses of its
    own, from ``base``, and RIP walks through them and starts over.  RIP is saved in the VMCS, so the
    script follows the vCPU through VMCLEAR, other processors and new contexts.
    """

    def __init__(self, program: Program, base: int, bits: int) -> None:
        self._program = program
        self.base = base
        #: 64: start in 64-bit code; 32: start in whatever mode the vCPU is in.
        self.bits = bits
        #: Vectors of the interrupts that the vCPU has taken.
        self.interrupts: list[int] = []
        #: Called with the vector of each; may be a generator function that yields operations, during
        #: which interrupts are off and after which the registers are restored.
        self.on_interrupt: Callable[[int], Running | None] | None = None
        #: The registers, once the program has started.
        self.context = ScriptedContext()
        self.started = False
        self.done = False
        #: A handler has come to its end: IRET is the next instruction.
        self.returning = False
        #: Why the program ended, if it did not end well.
        self.error: BaseException | None = None
        self._value: Any = None
        self._frames: list[_Frame] = []

    def result(self) -> Any:
        """What the program returned.

        Raises:
            RuntimeError: it has not ended yet.
            BaseException: whatever ended it: a failed assertion, a :class:`GuestFault` not caught.
        """
        if self.error is not None:
            raise self.error
        if not self.done:
            raise RuntimeError("the program has not ended" if self.started else "the program never ran")
        return self._value

    # ------------------------------------------------------------------ for the program
    @property
    def gpr(self) -> Any:
        """The 16 registers, readable and writable by number."""
        return self.context.gpr

    def xmm(self, number: int) -> int:
        """The 128 bits of an XMM register."""
        start = _XMM + 16 * number
        return int.from_bytes(self.context.read_xstate()[start : start + 16], "little")

    def set_xmm(self, number: int, value: int) -> None:
        """Load an XMM register."""
        image = bytearray(self.context.read_xstate())
        start = _XMM + 16 * number
        image[start : start + 16] = value.to_bytes(16, "little")
        image[_XSTATE_BV] |= 2
        self.context.write_xstate(bytes(image))

    # ------------------------------------------------------------------ for the engine
    def attach(self, context: ScriptedContext) -> None:
        """Go on in ``context``; the program starts at the first call."""
        self.context = context
        context.interrupts = self.interrupts
        if self.started:
            context.code = self.frame.code if self._frames else None
            return
        self.started = True
        if self.bits == 64:
            context.enter_long_mode()
        context.rip = self.base
        self._frames.append(_Frame(self._program(self), None))

    @property
    def frame(self) -> _Frame:
        """Where the program, or the handler on top of it, is."""
        return self._frames[-1]

    def settle(self) -> None:
        """Find out whether the handler of the stop has done the instruction that stopped."""
        context = self.context
        if self.done:
            return
        frame = self.frame
        if frame.at is not None:
            assert frame.operation is not None
            if context.rip != frame.at:
                context.shadow = False
                self._retire(frame)
            frame.at = None
        self._wrap()

    def _wrap(self) -> None:
        """Code addresses start over before they run out."""
        if self.context.rip & WINDOW - 1 >= WINDOW - 2 * _LONGEST:
            self.context.rip = self.base

    def _retire(self, frame: _Frame) -> None:
        assert frame.operation is not None
        frame.result = frame.operation.result(self.context)
        frame.retired = True

    def complete(self) -> None:
        """The engine has done the instruction itself: RIP moves on."""
        context, frame = self.context, self.frame
        context.rip += len(frame.code)
        context.rflags &= ~RFLAGS_RF
        self._wrap()
        self._retire(frame)

    def next_operation(self) -> None:
        """Hand the result of the last instruction over and load the next one."""
        frame = self.frame
        result, frame.result = frame.result, None
        self._advance(partial(frame.running.send, result))

    def deliver(self, vector: int, kind: int, error_code: int | None) -> None:
        """An event that was injected: an exception for the program, or an interrupt or NMI."""
        if kind != TYPE_HARDWARE_EXCEPTION:
            self.interrupt(vector)
            return
        if self.frame.retired:
            self.next_operation()
        if not self.done:
            self.fault(GuestFault(vector, error_code))

    def fault(self, fault: GuestFault) -> None:
        """Raise an exception at the instruction under way, which is given up."""
        context, frame = self.context, self.frame
        context.shadow = False
        context.rflags &= ~RFLAGS_RF
        context.rip += len(frame.code)
        self._wrap()
        self._advance(partial(frame.running.throw, fault))

    def misuse(self, error: ScriptError) -> None:
        """Raise an author's mistake where it was made."""
        frame = self.frame
        self._advance(partial(frame.running.throw, error))

    def interrupt(self, vector: int) -> None:
        """Take an interrupt at this instruction boundary."""
        context = self.context
        context.shadow = False
        self.interrupts.append(vector)
        saved = bytes(context.gpr_bytes), context.rflags
        handler = None
        try:
            handler = self.on_interrupt and self.on_interrupt(vector)
        except Exception as error:
            self._end(error)
        if handler is None and context.nmi_blocked:
            # It ends by IRET, even if it does nothing else.
            handler = _nothing()
        if handler is not None:
            context.rflags &= ~RFLAGS_IF
            self._frames.append(_Frame(handler, saved))

    def _advance(self, step: Callable[[], Operation]) -> None:
        """Take one step of the generator on top, until it yields an instruction that can be loaded."""
        while True:
            frame = self.frame
            try:
                operation = step()
            except StopIteration as end:
                self._return(frame, end.value)
                return
            except Exception as error:
                self._end(error)
                return
            frame.operation = operation
            frame.retired = False
            frame.at = None
            try:
                if not isinstance(operation, Operation):
                    raise ScriptError(f"a script yields operations, not {operation!r}")
                frame.code = operation.encode(self._code_bits())
                operation.load(self.context)
            except ScriptError as wrong:
                step = partial(frame.running.throw, wrong)
                continue
            frame.left = getattr(operation, "time", 0)
            self.context.code = frame.code
            return

    def _code_bits(self) -> int:
        bits = self.context.code_bits
        if bits == 16:
            raise ScriptError("the vCPU is in 16-bit code, which the scripted engine does not know")
        return bits

    def _return(self, frame: _Frame, value: Any) -> None:
        """A generator has ended: the program itself, or a handler, which will execute IRET."""
        if frame.saved is None:
            self._frames.pop()
            self._value = value
            self.done = True
            self.context.code = None
        else:
            self.returning = True

    def leave_handler(self) -> None:
        """IRET of a handler: the registers and flags are those of before."""
        self.returning = False
        saved = self._frames.pop().saved
        assert saved is not None
        registers, rflags = saved
        self.context.gpr_bytes[:] = registers
        self.context.rflags = rflags
        if self._frames:
            self.context.code = self.frame.code

    def _end(self, error: Exception) -> None:
        """The program failed: its vCPU is lost; the engine's caller gets the reason."""
        self.error = error
        self.done = True
        self.context.code = None
        for frame in reversed(self._frames):
            frame.running.close()
        self._frames.clear()
        if isinstance(error, GuestFault):
            _LOG.info("a scripted guest did not catch %s at RIP %#x", error, self.context.rip)
        else:
            _LOG.error("a scripted guest failed at RIP %#x", self.context.rip, exc_info=error)
