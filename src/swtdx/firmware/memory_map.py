"""Where things lie in physical memory: DRAM ranges, SMRAM, the SEAM range, CMRs.

A server's DRAM below 4 GiB ends at a hole for devices; the rest starts at 4 GiB.  At the top of low
memory the BIOS takes SMRAM (under SMRR) and, below it, the SEAM range (under SEAMRR).  Both registers
describe a range by a mask, so its size is a power of two and its base a multiple of its size.

What remains above 1 MiB is convertible memory (CMRs); below that, 640 KiB of conventional memory are
usable too, but not convertible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.arch.ranges import Range, without
from swtdx.arch.units import GIB, KIB, MIB, PAGE
from swtdx.firmware.errors import BiosError

#: Where DRAM below 4 GiB ends at most; devices have the rest.
LOW_DRAM: Final = 2 * GIB
HIGH_DRAM: Final = 4 * GIB
CONVENTIONAL: Final = 640 * KIB
EXTENDED: Final = 1 * MIB
#: SEAMRR's granularity (structures.md §11), and the largest that the NP-SEAMLDR takes.
SEAMRR_UNIT: Final = 32 * MIB
SEAMRR_LARGEST: Final = GIB
SMRR_UNIT: Final = PAGE
MINIMUM: Final = 128 * MIB


def dram_ranges(memory_bytes: int) -> list[Range]:
    """The DRAM ranges of a machine with ``memory_bytes`` of memory.

    Raises:
        BiosError: too little for the platform to start, or not a multiple of 2 MiB.
    """
    if memory_bytes < MINIMUM or memory_bytes % (2 * MIB):
        raise BiosError(
            f"memory of {memory_bytes} bytes: give at least {MINIMUM // MIB} MiB, in units of 2 MiB"
        )
    low = min(memory_bytes, LOW_DRAM)
    ranges = [(0, low)]
    if memory_bytes > low:
        ranges.append((HIGH_DRAM, memory_bytes - low))
    return ranges


def overlap(one: Range, other: Range) -> bool:
    """Whether two ranges have a byte in common."""
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]


def show(where: Range) -> str:
    """A range for people."""
    return f"{where[0]:#x}-{where[0] + where[1] - 1:#x}"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the BIOS decided."""

    dram: tuple[Range, ...]
    smrr: Range
    seamrr: Range
    cmrs: tuple[Range, ...]
    usable: tuple[Range, ...]


def _below(top: int, size: int, what: str) -> Range:
    base = (top - size) & -size
    if base < EXTENDED + 16 * MIB:
        raise BiosError(
            f"{what} of {size // MIB} MiB does not fit below {top:#x}; give the machine more memory"
        )
    return base, size


def _check_mask_range(what: str, where: Range, unit: int) -> None:
    base, size = where
    if size < unit or size & size - 1:
        raise BiosError(
            f"{what}: {size:#x} bytes cannot be set by a mask; give a power of two from {unit:#x} up"
        )
    if base % size:
        raise BiosError(f"{what}: base {base:#x} is not a multiple of its size {size:#x}")


def plan(
    dram: Sequence[Range],
    seamrr_size: int,
    smrr_size: int,
    seamrr_base: int | None = None,
    smrr_base: int | None = None,
    cmrs: Sequence[Range] | None = None,
) -> MemoryPlan:
    """Lay out memory; bases and CMRs that are not given are chosen.

    Given ones are taken as they are, sensible or not: MCHECK judges them.

    Raises:
        BiosError: a register cannot express what is asked for, or it does not fit.
    """
    top = dram[0][0] + dram[0][1]
    smrr = _below(top, smrr_size, "SMRAM") if smrr_base is None else (smrr_base, smrr_size)
    _check_mask_range("SMRR", smrr, SMRR_UNIT)
    if seamrr_base is None:
        _check_mask_range("SEAMRR", (0, seamrr_size), SEAMRR_UNIT)
        seamrr = _below(min(top, smrr[0]), seamrr_size, "the SEAM range")
    else:
        seamrr = (seamrr_base, seamrr_size)
    _check_mask_range("SEAMRR", seamrr, SEAMRR_UNIT)
    free = without([(EXTENDED, top - EXTENDED), *dram[1:]], [smrr, seamrr])
    # What lies between the SEAM range and SMRAM is left to the BIOS.
    free = [part for part in free if not seamrr[0] < part[0] < smrr[0]]
    chosen = tuple(free) if cmrs is None else tuple(cmrs)
    usable = ((0, CONVENTIONAL), *free)
    return MemoryPlan(tuple(dram), smrr, seamrr, chosen, usable)
