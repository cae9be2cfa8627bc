"""What every instruction of a script has: operands, an encoding, an effect, a result."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, ClassVar, Final

from swtdx.arch import regs
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import VECTOR_GP
from swtdx.machine.engine.protocol import Stop
from swtdx.machine.engine.scripted.clock import OPERATION, VirtualClock
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import GuestFault
from swtdx.machine.engine.scripted.space import GuestMemory, ScriptedSpace

_IOPL: Final = 3


class Registers(tuple[int, ...]):
    """The 16 general-purpose registers at one moment, by number (x86 order) or by name (``.rax``)."""

    __slots__ = ()

    def __getattr__(self, name: str) -> int:
        if name not in regs.NAMES:
            raise AttributeError(f"no general-purpose register is called {name!r}")
        return self[regs.number(name)]

    def __repr__(self) -> str:
        return "Registers(" + ", ".join(f"{n}={v:#x}" for n, v in zip(regs.NAMES, self, strict=True)) + ")"


class Core:
    """What an instruction works on: a vCPU's registers, its translations, memory and time."""

    __slots__ = ("clock", "context", "memory", "space")

    def __init__(
        self, context: ScriptedContext, space: ScriptedSpace, memory: GuestMemory, clock: VirtualClock
    ) -> None:
        self.context = context
        self.space = space
        self.memory = memory
        self.clock = clock


class Operation:
    """One instruction.  Immutable, so that a script may yield the same one again and again.

    The engine loads the operands once, with :meth:`load`, and executes the instruction as often as it
    stops without having been done.  The result is what the registers say when it is done, whoever did
    it: the engine, the microcode, or software above that emulated it and moved RIP.
    """

    #: How long it takes, in cycles of the TSC.
    cycles: ClassVar[int] = OPERATION
    #: The exception that it raises outside ring 0, None where every ring may use it.
    ring0: ClassVar[int | None] = None

    def load(self, context: ScriptedContext) -> None:
        """Put the operands where the instruction expects them."""

    def encode(self, bits: int) -> bytes:
        """Its machine code in 64- or 32-bit code.

        Raises:
            ScriptError: it cannot be encoded there.
        """
        raise NotImplementedError

    def execute(self, core: Core) -> Stop | None:
        """Do it (None), or say why not.

        Raises:
            GuestFault: the processor raises an exception.
        """
        raise NotImplementedError

    def result(self, context: ScriptedContext) -> Any:
        """What the ``yield`` returns."""
        return None


def sequence(operations: Iterable[Operation]) -> Generator[Operation, Any, list[Any]]:
    """``results = yield from sequence([...])``: several operations in a row, and what each returned."""
    results = []
    for operation in operations:
        result = yield operation
        results.append(result)
    return results


def load_registers(context: ScriptedContext, **values: int) -> None:
    """Set registers by name, cut to 64 bits."""
    for name, value in values.items():
        context.gpr[regs.number(name)] = value & MASK64


def edx_eax(context: ScriptedContext) -> int:
    """The 64-bit value in EDX:EAX."""
    return context.gpr[regs.RAX] & 0xFFFFFFFF | (context.gpr[regs.RDX] & 0xFFFFFFFF) << 32


def set_edx_eax(context: ScriptedContext, value: int) -> None:
    """Put a 64-bit value into EDX:EAX."""
    context.gpr[regs.RAX] = value & 0xFFFFFFFF
    context.gpr[regs.RDX] = value >> 32 & 0xFFFFFFFF


def set_accumulator(context: ScriptedContext, value: int, size: int) -> None:
    """Load AL, AX, EAX or RAX (``size`` 1, 2, 4, 8 bytes): only EAX clears what is above it."""
    mask = (1 << 8 * size) - 1
    kept = 0 if size >= 4 else context.gpr[regs.RAX] & ~mask
    context.gpr[regs.RAX] = kept | value & mask


def check_iopl(context: ScriptedContext) -> None:
    """I/O and the interrupt flag are for rings up to IOPL (no I/O permission bitmap is consulted).

    Raises:
        GuestFault: #GP(0).
    """
    if context.cpl > context.rflags >> 12 & _IOPL:
        raise GuestFault(VECTOR_GP, 0)
