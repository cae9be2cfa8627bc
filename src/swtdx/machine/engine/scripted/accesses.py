"""Accesses to guest memory.

Addresses are guest-physical.  With paging off that is what a guest's linear addresses are; in 64-bit
code the engine stands for a guest whose page tables map everything to the same address, the shared
half included (it walks no page tables of the guest).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from swtdx.arch import regs
from swtdx.machine.engine.protocol import Access, Stop
from swtdx.machine.engine.scripted.context import ScriptedContext
from swtdx.machine.engine.scripted.faults import ScriptError
from swtdx.machine.engine.scripted.operation import Core, Operation, load_registers, set_accumulator

#: Prefixes of MOV with the accumulator and an absolute address, by operand size in bytes.
_PREFIX: Final = {1: b"", 2: b"\x66", 4: b"", 8: b"\x48"}


def _moffs(opcode: int, gpa: int, size: int, bits: int) -> bytes:
    """MOV between the accumulator and an absolute address (opcodes A0-A3, SDM volume 2)."""
    if size not in _PREFIX:
        raise ScriptError(f"one instruction accesses 1, 2, 4 or 8 bytes, not {size}; see read_bytes")
    if bits == 32 and (size == 8 or gpa >> 32):
        raise ScriptError(f"32-bit code cannot access {size} bytes at {gpa:#x}")
    if gpa < 0 or gpa >> 64:
        raise ScriptError(f"{gpa:#x} is no address")
    return _PREFIX[size] + bytes((opcode if size == 1 else opcode + 1,)) + gpa.to_bytes(bits // 8, "little")


@dataclass(frozen=True, slots=True)
class Read(Operation):
    """MOV from memory to AL, AX, EAX or RAX: the value at ``gpa``, ``size`` (1, 2, 4, 8) bytes."""

    gpa: int
    size: int = 8

    def encode(self, bits: int) -> bytes:
        """MOV AL..RAX, moffs."""
        return _moffs(0xA0, self.gpa, self.size, bits)

    def execute(self, core: Core) -> Stop | None:
        """Load it, or miss."""
        data = core.memory.read(core.space, self.gpa, self.size, core.context.event)
        if data is None:
            return Stop.MISS
        set_accumulator(core.context, int.from_bytes(data, "little"), self.size)
        return None

    def result(self, context: ScriptedContext) -> int:
        """The value."""
        return context.gpr[regs.RAX] & (1 << 8 * self.size) - 1


@dataclass(frozen=True, slots=True)
class Write(Operation):
    """MOV of ``value`` from AL, AX, EAX or RAX to memory: ``size`` (1, 2, 4, 8) bytes at ``gpa``."""

    gpa: int
    value: int
    size: int = 8

    def load(self, context: ScriptedContext) -> None:
        """The value goes through the accumulator."""
        set_accumulator(context, self.value, self.size)

    def encode(self, bits: int) -> bytes:
        """MOV moffs, AL..RAX."""
        return _moffs(0xA2, self.gpa, self.size, bits)

    def execute(self, core: Core) -> Stop | None:
        """Store it, or miss."""
        value = core.context.gpr[regs.RAX] & (1 << 8 * self.size) - 1
        data = value.to_bytes(self.size, "little")
        return None if core.memory.write(core.space, self.gpa, data, core.context.event) else Stop.MISS


@dataclass(frozen=True, slots=True)
class Fetch(Operation):
    """An instruction fetch at ``gpa``, as by JMP RAX; after it the script goes on where it was."""

    gpa: int

    def load(self, context: ScriptedContext) -> None:
        """The target is in RAX."""
        load_registers(context, rax=self.gpa)

    def encode(self, bits: int) -> bytes:
        """JMP EAX or RAX."""
        return b"\xff\xe0"

    def execute(self, core: Core) -> Stop | None:
        """Fetch a byte, or miss."""
        data = core.memory.read(core.space, self.gpa, 1, core.context.event, Access.FETCH)
        return Stop.MISS if data is None else None


def _steps(gpa: int, count: int) -> list[tuple[int, int]]:
    """(address, size) of the aligned accesses of at most 8 bytes that cover a range."""
    steps = []
    while count:
        size = min(count, 8, gpa & -gpa or 8)
        size = 1 << size.bit_length() - 1
        steps.append((gpa, size))
        gpa += size
        count -= size
    return steps


def read_bytes(gpa: int, count: int) -> Generator[Operation, Any, bytes]:
    """``data = yield from read_bytes(gpa, count)``: any number of bytes, by aligned accesses."""
    parts = []
    for at, size in _steps(gpa, count):
        value = yield Read(at, size)
        parts.append(int(value).to_bytes(size, "little"))
    return b"".join(parts)


def write_bytes(gpa: int, data: bytes) -> Generator[Operation, Any, None]:
    """``yield from write_bytes(gpa, data)``: any number of bytes, by aligned accesses."""
    for at, size in _steps(gpa, len(data)):
        yield Write(at, int.from_bytes(data[at - gpa : at - gpa + size], "little"), size)
