"""IN and OUT.  Encodings: Intel SDM volume 2; exit qualification: volume 3, table 28-5."""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.arch import regs
from swtdx.machine.engine.protocol import Stop
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import ScriptError
from swtdx.machine.engine.scripted.operation import Core, Operation, check_iopl, set_accumulator


def _io_code(opcode: int, port: int, size: int, immediate: bool) -> bytes:
    if size not in (1, 2, 4):
        raise ScriptError(f"a port access has 1, 2 or 4 bytes, not {size}")
    if not 0 <= port < (0x100 if immediate else 0x10000):
        raise ScriptError(f"port {port:#x} cannot be encoded")
    code = bytes((opcode + (size > 1) + (0 if immediate else 8),))
    return (b"\x66" if size == 2 else b"") + code + (bytes((port,)) if immediate else b"")


def _io_stop(core: Core, port: int, size: int, direction: int) -> Stop:
    """Stop with the exit qualification, but for bit 6: the microcode looks at the encoding itself."""
    context = core.context
    check_iopl(context)
    context.event.qualification = size - 1 | direction << 3 | port << 16
    context.event.length = len(context.code or b"")
    return Stop.IO


@dataclass(frozen=True, slots=True)
class In(Operation):
    """IN of ``size`` (1, 2, 4) bytes from a port, in DX or immediate: the value."""

    port: int
    size: int = 1
    immediate: bool = False

    def load(self, context: ScriptedContext) -> None:
        """DX."""
        if not self.immediate:
            context.gpr[regs.RDX] = context.gpr[regs.RDX] & ~0xFFFF | self.port & 0xFFFF

    def encode(self, bits: int) -> bytes:
        """IN AL, AX or EAX."""
        return _io_code(0xE4, self.port, self.size, self.immediate)

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return _io_stop(core, self.port, self.size, 1)

    def result(self, context: ScriptedContext) -> int:
        """AL, AX or EAX."""
        return context.gpr[regs.RAX] & (1 << 8 * self.size) - 1


@dataclass(frozen=True, slots=True)
class Out(Operation):
    """OUT of ``size`` (1, 2, 4) bytes to a port, in DX or immediate."""

    port: int
    value: int
    size: int = 1
    immediate: bool = False

    def load(self, context: ScriptedContext) -> None:
        """DX and the accumulator."""
        set_accumulator(context, self.value, self.size)
        if not self.immediate:
            context.gpr[regs.RDX] = context.gpr[regs.RDX] & ~0xFFFF | self.port & 0xFFFF

    def encode(self, bits: int) -> bytes:
        """OUT from AL, AX or EAX."""
        return _io_code(0xE6, self.port, self.size, self.immediate)

    def execute(self, core: Core) -> Stop:
        """Stop."""
        return _io_stop(core, self.port, self.size, 0)
