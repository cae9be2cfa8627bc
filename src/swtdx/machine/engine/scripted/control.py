"""Instructions that change the state of the processor: control registers, flags, rings, time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from swtdx.arch import regs
from swtdx.arch.x86 import CR4_OSXSAVE, RFLAGS_IF, VECTOR_GP, VECTOR_UD
from swtdx.machine.engine.protocol import Stop
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import GuestFault, ScriptError
from swtdx.machine.engine.scripted.operation import Core, Operation, check_iopl, load_registers, set_edx_eax


def _cr_code(opcode: int, number: int, bits: int) -> bytes:
    """MOV between RAX and a control register."""
    if not 0 <= number <= 8:
        raise ScriptError(f"there is no CR{number}")
    if number == 8 and bits != 64:
        raise ScriptError("CR8 is for 64-bit code")
    return (b"\x44" if number == 8 else b"") + bytes((0x0F, opcode, 0xC0 | (number & 7) << 3))


def _iret(bits: int) -> bytes:
    return b"\x48\xcf" if bits == 64 else b"\xcf"


@dataclass(frozen=True, slots=True)
class MovToCr(Operation):
    """MOV of ``value`` from RAX to a control register."""

    number: int
    value: int
    ring0: ClassVar[int | None] = VECTOR_GP

    def load(self, context: ScriptedContext) -> None:
        """The value is in RAX."""
        load_registers(context, rax=self.value)

    def encode(self, bits: int) -> bytes:
        """MOV CRn, RAX."""
        return _cr_code(0x22, self.number, bits)

    def execute(self, core: Core) -> Stop | None:
        """Stop, except for CR2."""
        if self.number == 2:
            core.context.cr2 = core.context.gpr[regs.RAX]
            return None
        return Stop.CR_ACCESS if self.number in (0, 3, 4, 8) else Stop.UNDEFINED


@dataclass(frozen=True, slots=True)
class MovFromCr(Operation):
    """MOV from a control register to RAX: its value, as the guest sees it."""

    number: int
    ring0: ClassVar[int | None] = VECTOR_GP

    def encode(self, bits: int) -> bytes:
        """MOV RAX, CRn."""
        return _cr_code(0x20, self.number, bits)

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return Stop.CR_ACCESS if self.number in (0, 2, 3, 4, 8) else Stop.UNDEFINED

    def result(self, context: ScriptedContext) -> int:
        """RAX."""
        return context.gpr[regs.RAX]


class Clts(Operation):
    """CLTS."""

    ring0 = VECTOR_GP

    def encode(self, bits: int) -> bytes:
        """CLTS."""
        return b"\x0f\x06"

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return Stop.CR_ACCESS


@dataclass(frozen=True, slots=True)
class Xsetbv(Operation):
    """XSETBV: load an extended control register (only XCR0 exists)."""

    value: int
    index: int = 0
    ring0: ClassVar[int | None] = VECTOR_GP

    def load(self, context: ScriptedContext) -> None:
        """ECX and EDX:EAX."""
        load_registers(context, rcx=self.index)
        set_edx_eax(context, self.value)

    def encode(self, bits: int) -> bytes:
        """XSETBV."""
        return b"\x0f\x01\xd1"

    def execute(self, core: Core) -> Stop:
        """Stop, if it is allowed (SDM volume 3, 26.1.2: it exits whatever its operands are)."""
        if not core.context.cr4 & CR4_OSXSAVE:
            raise GuestFault(VECTOR_UD)
        return Stop.XSETBV


class Sti(Operation):
    """STI: interrupts are taken again, but not before the next instruction."""

    def encode(self, bits: int) -> bytes:
        """STI."""
        return b"\xfb"

    def execute(self, core: Core) -> None:
        """Set RFLAGS.IF."""
        context = core.context
        check_iopl(context)
        context.shadow = not context.rflags & RFLAGS_IF
        context.rflags |= RFLAGS_IF


class Cli(Operation):
    """CLI: no interrupts any more."""

    def encode(self, bits: int) -> bytes:
        """CLI."""
        return b"\xfa"

    def execute(self, core: Core) -> None:
        """Clear RFLAGS.IF."""
        check_iopl(core.context)
        core.context.rflags &= ~RFLAGS_IF


@dataclass(frozen=True, slots=True)
class SetCpl(Operation):
    """Go on in another ring, as by IRET (or SYSCALL): only SS.DPL and CS.DPL change."""

    cpl: int

    def encode(self, bits: int) -> bytes:
        """IRET."""
        return _iret(bits)

    def execute(self, core: Core) -> Stop | None:
        """Change the ring."""
        if core.context.nmi_blocked:
            return Stop.IRET
        if self.cpl not in (0, 1, 2, 3):
            raise ScriptError(f"there is no ring {self.cpl}")
        core.context.cpl = self.cpl
        return None


class Iret(Operation):
    """IRET to the next instruction: it ends blocking by NMI.  A handler that returns executes one anyway."""

    def encode(self, bits: int) -> bytes:
        """IRET."""
        return _iret(bits)

    def execute(self, core: Core) -> Stop | None:
        """Stop, if that is asked for."""
        return Stop.IRET if core.context.nmi_blocked else None


@dataclass(frozen=True, slots=True)
class Pause(Operation):
    """Computing for ``time`` cycles of the TSC, during which interrupts and timers come through."""

    time: int = 0

    def encode(self, bits: int) -> bytes:
        """PAUSE."""
        return b"\xf3\x90"

    def execute(self, core: Core) -> None:
        """Nothing: the engine lets the time pass."""
