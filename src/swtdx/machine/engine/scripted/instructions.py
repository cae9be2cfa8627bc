"""Instructions that leave the guest, or that the processor executes by itself.

Encodings: Intel SDM volume 2.  Which of them exit, and how, is not decided here: an operation that
stops only says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from swtdx.arch import regs
from swtdx.arch.msrs import IA32_TSC_AUX
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import CR4_PCE, CR4_TSD, VECTOR_GP, VECTOR_UD
from swtdx.machine.engine.protocol import Stop
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import GuestFault
from swtdx.machine.engine.scripted.operation import (
    Core,
    Operation,
    Registers,
    edx_eax,
    load_registers,
    set_edx_eax,
)

TDCALL_CODE: Final = b"\x66\x0f\x01\xcc"
VMCALL_CODE: Final = b"\x0f\x01\xc1"
UD2_CODE: Final = b"\x0f\x0b"


class Undefined(Operation):
    """An instruction that the engine does not execute: ``code``, with registers set by keyword.

    Without arguments it is UD2.  The result is the registers after it, if it was carried out.
    """

    def __init__(self, code: bytes = UD2_CODE, **registers: int) -> None:
        """Raises ValueError for a register that does not exist, or empty code."""
        if not 0 < len(code) <= 15:
            raise ValueError(f"an instruction has 1 to 15 bytes, not {len(code)}")
        for name in registers:
            regs.number(name)
        self.code = bytes(code)
        self.registers = registers

    def __repr__(self) -> str:
        values = "".join(f", {name}={value:#x}" for name, value in self.registers.items())
        return f"{type(self).__name__}({self.code.hex(' ')}{values})"

    def load(self, context: ScriptedContext) -> None:
        """The registers that were given; the others keep their values."""
        load_registers(context, **self.registers)

    def encode(self, bits: int) -> bytes:
        """Its bytes."""
        return self.code

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return Stop.UNDEFINED

    def result(self, context: ScriptedContext) -> Registers:
        """All registers."""
        return Registers(context.gpr)


class Tdcall(Undefined):
    """TDCALL with registers set by keyword: ``after = yield Tdcall(rax=1)``, then ``after.rax``."""

    def __init__(self, **registers: int) -> None:
        super().__init__(TDCALL_CODE, **registers)


class Vmcall(Undefined):
    """VMCALL with registers set by keyword."""

    def __init__(self, **registers: int) -> None:
        super().__init__(VMCALL_CODE, **registers)


@dataclass(frozen=True, slots=True)
class Cpuid(Operation):
    """CPUID: (EAX, EBX, ECX, EDX)."""

    leaf: int
    subleaf: int = 0

    def load(self, context: ScriptedContext) -> None:
        """EAX and ECX."""
        load_registers(context, rax=self.leaf & 0xFFFFFFFF, rcx=self.subleaf & 0xFFFFFFFF)

    def encode(self, bits: int) -> bytes:
        """CPUID."""
        return b"\x0f\xa2"

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return Stop.CPUID

    def result(self, context: ScriptedContext) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""
        g = context.gpr
        low = 0xFFFFFFFF
        return g[regs.RAX] & low, g[regs.RBX] & low, g[regs.RCX] & low, g[regs.RDX] & low


@dataclass(frozen=True, slots=True)
class Rdmsr(Operation):
    """RDMSR: the MSR's 64 bits."""

    index: int
    ring0: ClassVar[int | None] = VECTOR_GP

    def load(self, context: ScriptedContext) -> None:
        """ECX."""
        load_registers(context, rcx=self.index)

    def encode(self, bits: int) -> bytes:
        """RDMSR."""
        return b"\x0f\x32"

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return Stop.RDMSR

    def result(self, context: ScriptedContext) -> int:
        """EDX:EAX."""
        return edx_eax(context)


@dataclass(frozen=True, slots=True)
class Wrmsr(Operation):
    """WRMSR of 64 bits."""

    index: int
    value: int
    ring0: ClassVar[int | None] = VECTOR_GP

    def load(self, context: ScriptedContext) -> None:
        """ECX and EDX:EAX."""
        load_registers(context, rcx=self.index)
        set_edx_eax(context, self.value)

    def encode(self, bits: int) -> bytes:
        """WRMSR."""
        return b"\x0f\x30"

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return Stop.WRMSR


class _Bare(Operation):
    """An instruction that only stops."""

    ring0: ClassVar[int | None] = VECTOR_GP
    code: ClassVar[bytes]
    stop: ClassVar[Stop]

    def encode(self, bits: int) -> bytes:
        """Its bytes."""
        return self.code

    def execute(self, core: Core) -> Stop | None:
        """Stop."""
        return self.stop

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Hlt(_Bare):
    """HLT."""

    code = b"\xf4"
    stop = Stop.HLT


class Invd(_Bare):
    """INVD."""

    code = b"\x0f\x08"
    stop = Stop.INVD


class Wbinvd(_Bare):
    """WBINVD."""

    code = b"\x0f\x09"
    stop = Stop.WBINVD


class Monitor(_Bare):
    """MONITOR."""

    ring0 = VECTOR_UD
    code = b"\x0f\x01\xc8"
    stop = Stop.MONITOR


class Mwait(_Bare):
    """MWAIT."""

    ring0 = VECTOR_UD
    code = b"\x0f\x01\xc9"
    stop = Stop.MWAIT


class TripleFault(_Bare):
    """The end of the vCPU, as by UD2 without an interrupt table."""

    ring0 = None
    code = UD2_CODE
    stop = Stop.SHUTDOWN


@dataclass(frozen=True, slots=True)
class Rdpmc(Operation):
    """RDPMC: the counter's value."""

    counter: int = 0

    def load(self, context: ScriptedContext) -> None:
        """ECX."""
        load_registers(context, rcx=self.counter & 0xFFFFFFFF)

    def encode(self, bits: int) -> bytes:
        """RDPMC."""
        return b"\x0f\x33"

    def execute(self, core: Core) -> Stop:
        """Stop, unless the ring may not use it."""
        if core.context.cpl and not core.context.cr4 & CR4_PCE:
            raise GuestFault(VECTOR_GP, 0)
        return Stop.RDPMC

    def result(self, context: ScriptedContext) -> int:
        """EDX:EAX."""
        return edx_eax(context)


class Rdtsc(Operation):
    """RDTSC: the guest's time-stamp counter."""

    code: ClassVar[bytes] = b"\x0f\x31"
    stop: ClassVar[Stop] = Stop.RDTSC

    def encode(self, bits: int) -> bytes:
        """Its bytes."""
        return self.code

    def execute(self, core: Core) -> Stop | None:
        """Read it, or stop where the guest's TSC does not tick at the machine's rate."""
        context = core.context
        if context.cpl and context.cr4 & CR4_TSD:
            raise GuestFault(VECTOR_GP, 0)
        if context.tsc_intercepted:
            return self.stop
        set_edx_eax(context, core.clock.now + context.tsc_offset & MASK64)
        return None

    def result(self, context: ScriptedContext) -> int:
        """EDX:EAX."""
        return edx_eax(context)


class Rdtscp(Rdtsc):
    """RDTSCP: the counter and TSC_AUX."""

    code = b"\x0f\x01\xf9"
    stop = Stop.RDTSCP

    def execute(self, core: Core) -> Stop | None:
        """As RDTSC, with TSC_AUX in ECX."""
        stop = super().execute(core)
        if stop is None:
            load_registers(core.context, rcx=core.context.read_msr(IA32_TSC_AUX) or 0)
        return stop

    def result(self, context: ScriptedContext) -> Any:
        """(counter, TSC_AUX)."""
        return edx_eax(context), context.gpr[regs.RCX] & 0xFFFFFFFF
