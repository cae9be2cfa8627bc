"""Names of what a record holds, out of the tables of :mod:`swtdx.arch`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from swtdx.arch import exits, regs
from swtdx.arch import status as st
from swtdx.arch.bits import Bits
from swtdx.arch.leaf import Input, Output
from swtdx.arch.status_notes import decode
from swtdx.arch.x86 import EXCEPTIONS
from swtdx.trace.event import Part, Value

#: Register names in capitals, x86 order.
REGISTERS: Final = tuple(name.upper() for name in regs.NAMES)


def number_of(register: str) -> int | None:
    """The number of a general-purpose register; None for another operand."""
    try:
        return REGISTERS.index(register)
    except ValueError:
        return None


def status_text(status: int) -> str:
    """``TDX_OPERAND_BUSY | TDR``; what the details are comes from the status's declaration."""
    name = st.name_of(status)
    known = decode(status)
    if known is None or not known.text:
        return name
    if known.status.details == "reason":
        return f"{name} ({exits.reason_name(known.details)})"
    return f"{name} | {known.text.removeprefix('operand ')}"


def selected(mask: int) -> list[int]:
    """The general-purpose registers of a TDVMCALL mask."""
    return [number for number in range(16) if mask >> number & 1]


def mask_text(mask: int) -> str:
    """``R10, R11 and XMM0``."""
    names = [REGISTERS[number] for number in selected(mask)]
    names += [f"XMM{number}" for number in range(16) if mask >> 16 + number & 1]
    return ", ".join(names) or "none"


def bits_of(ranges: tuple[Bits, ...], value: int) -> tuple[Part, ...]:
    """The ranges of a value that are not zero."""
    return tuple(Part(r.name, r.of(value), r.high == r.low) for r in ranges if r.of(value))


def qualification_bits(reason: int, qualification: int) -> tuple[Part, ...]:
    """The bits of an exit qualification, where its format is declared."""
    return bits_of(exits.QUALIFICATION_BITS.get(reason & 0xFFFF, ()), qualification)


def event_name(info: int) -> str:
    """The event of interruption information: ``#VE``, ``NMI``, ``interrupt 0x40``."""
    vector, kind = info & 0xFF, info >> 8 & 7
    if kind == exits.InterruptionType.EXTERNAL:
        return f"interrupt {vector:#x}"
    return EXCEPTIONS.get(vector, f"exception {vector}")


def inputs(declared: Iterable[Input], gpr: Sequence[int], version: int) -> tuple[Value, ...]:
    """The declared input registers of a call of ``version``."""
    found = []
    for each in declared:
        number = number_of(each.register)
        if number is not None and each.since <= version:
            found.append(Value(each.register, gpr[number], each.meaning, bits_of(each.bits, gpr[number])))
    return tuple(found)


def outputs(declared: Iterable[Output], gpr: Sequence[int], version: int) -> tuple[Value, ...]:
    """The declared output registers of a call of ``version``."""
    found = []
    for each in declared:
        number = number_of(each.register)
        if number is not None and each.since <= version:
            found.append(Value(each.register, gpr[number], each.meaning))
    return tuple(found)
