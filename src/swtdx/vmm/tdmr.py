"""TDMRs: which physical memory the TDX module shall manage, and where its page metadata (PAMT) lies.

The rules are those of structures.md §3; the way is Linux's (arch/x86/virt/vmx/tdx/tdx.c): every range of
usable memory is covered by whole GiBs, each TDMR gets its PAMTs out of memory that it or a neighbour
covers, and what a TDMR covers beside CMRs, as well as every PAMT inside it, is listed as reserved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.arch.platform_structs import MAX_RESERVED_PER_TDMR, TDMR_INFO, TDMR_INFO_ALIGNMENT
from swtdx.arch.ranges import Range
from swtdx.arch.units import GIB, PAGE
from swtdx.vmm.errors import ConfigError, OutOfMemory

#: Bytes covered by one PAMT entry: of 1 GiB, 2 MiB and 4 KiB pages, in the order of TDMR_INFO.
_GRANULES: Final = (GIB, 2 << 20, PAGE)
#: Memory that Linux never gives to TDX, because the BIOS does not list it as convertible.
LOW_MEMORY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Tdmr:
    """One TDMR.  Ranges are (base, bytes); ``reserved`` are (offset in the TDMR, bytes), ascending.

    ``pamts`` are the PAMTs for 1 GiB, 2 MiB and 4 KiB pages.
    """

    base: int
    size: int
    pamts: tuple[Range, Range, Range]
    reserved: tuple[Range, ...]

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.base + self.size

    def encode(self) -> bytes:
        """TDMR_INFO, padded to its alignment of 512 bytes."""
        info = bytearray(TDMR_INFO_ALIGNMENT)
        TDMR_INFO.tdmr_base.set(info, self.base)
        TDMR_INFO.tdmr_size.set(info, self.size)
        for kind, (base, size) in zip(("1g", "2m", "4k"), self.pamts, strict=True):
            getattr(TDMR_INFO, f"pamt_{kind}_base").set(info, base)
            getattr(TDMR_INFO, f"pamt_{kind}_size").set(info, size)
        for index, word in enumerate(itertools.chain.from_iterable(self.reserved)):
            TDMR_INFO.rsvd_areas.set(info, index, word)
        return bytes(info)


def convertible_memory(usable: Sequence[Range], cmrs: Sequence[Range]) -> list[Range]:
    """The parts of ``usable`` memory that lie in CMRs and above 1 MiB, as (base, bytes), ascending."""
    found: list[Range] = []
    for base, size in sorted(usable):
        for cmr_base, cmr_size in cmrs:
            start = (max(base, cmr_base, LOW_MEMORY) + PAGE - 1) & -PAGE
            end = min(base + size, cmr_base + cmr_size) & -PAGE
            if start < end:
                found.append((start, end - start))
    return sorted(found)


def cover(memory: Sequence[Range], limit: int) -> list[Range]:
    """Whole-GiB ranges (base, bytes) that cover ``memory``, each GiB once, ascending.

    Raises:
        ConfigError: there would be more than ``limit`` of them.
    """
    covers: list[list[int]] = []
    for base, size in sorted(memory):
        start, end = base & -GIB, (base + size + GIB - 1) & -GIB
        if covers and start < covers[-1][1]:
            # The GiB is covered; what is beyond it makes a TDMR of its own, as in Linux.
            start = covers[-1][1]
            if start >= end:
                continue
        covers.append([start, end])
    if len(covers) > limit:
        # Linux gives up here.  Neighbours may as well be one TDMR.
        covers = _merge(covers)
    if len(covers) > limit:
        raise ConfigError(
            f"physical memory is scattered over {len(covers)} ranges; this TDX module manages at most {limit}"
        )
    return [(start, end - start) for start, end in covers]


def _merge(covers: Sequence[Sequence[int]]) -> list[list[int]]:
    merged: list[list[int]] = []
    for start, end in covers:
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged


def pamt_sizes(size: int, entry_size: int) -> tuple[int, int, int]:
    """Bytes of the PAMTs for 1 GiB, 2 MiB and 4 KiB pages of a TDMR of ``size`` bytes."""
    one, two, four = (((size // granule * entry_size) + PAGE - 1) & -PAGE for granule in _GRANULES)
    return one, two, four


def build_tdmrs(
    memory: Sequence[Range],
    cmrs: Sequence[Range],
    allocate: Callable[[int, Range], int],
    *,
    max_tdmrs: int,
    max_reserved: int,
    entry_size: int,
) -> list[Tdmr]:
    """TDMRs for ``memory``, which lies in ``cmrs``; both as (base, bytes).

    Args:
        allocate: contiguous memory: bytes, and the [base, end) where it should be; it may be asked again
            with the whole address space when it raises OutOfMemory.
        entry_size: bytes of a PAMT entry, the same for all page sizes.

    Raises:
        ConfigError: the module's limits do not allow it.
        OutOfMemory: there is no room for a PAMT.
    """
    covers = cover(memory, max_tdmrs)
    pamts = []
    for base, size in covers:
        sizes = pamt_sizes(size, entry_size)
        try:
            start = allocate(sum(sizes), (base, base + size))
        except OutOfMemory:
            start = allocate(sum(sizes), (0, 1 << 64))
        first, second, third = sizes
        pamts.append(((start, first), (start + first, second), (start + first + second, third)))
    taken = [(group[0][0], sum(size for _, size in group)) for group in pamts]
    return [
        Tdmr(base, size, group, reserved_areas(base, size, cmrs, taken, max_reserved))
        for (base, size), group in zip(covers, pamts, strict=True)
    ]


def reserved_areas(
    base: int, size: int, cmrs: Sequence[Range], pamts: Sequence[Range], limit: int
) -> tuple[Range, ...]:
    """(offset, bytes) of what a TDMR must not manage: outside every CMR, or a PAMT.

    Raises:
        ConfigError: there are more than ``limit`` such areas.
    """
    end = base + size
    areas: list[Range] = []
    at = base
    for cmr_base, cmr_size in sorted(cmrs):
        start, stop = max(cmr_base, base), min(cmr_base + cmr_size, end)
        if start >= stop:
            continue
        if start > at:
            areas.append((at, start))
        at = max(at, stop)
    if at < end:
        areas.append((at, end))
    for pamt_base, pamt_size in pamts:
        start, stop = max(pamt_base, base), min(pamt_base + pamt_size, end)
        if start < stop:
            areas.append((start, stop))
    joined = _merge(sorted(areas))
    if len(joined) > min(limit, MAX_RESERVED_PER_TDMR):
        raise ConfigError(
            f"the TDMR at {base:#x} would need {len(joined)} reserved areas; this TDX module allows {limit}"
        )
    return tuple((start - base, stop - start) for start, stop in joined)
