"""TDMRs by the rules that the TDX module checks (structures.md section 3) and Linux's own."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from swtdx.vmm.errors import ConfigError, OutOfMemory
from swtdx.vmm.memory import PageAllocator
from swtdx.vmm.tdmr import Tdmr, build_tdmrs, convertible_memory, pamt_sizes

GIB, MIB, PAGE = 1 << 30, 1 << 20, 4096
Range = tuple[int, int]


def build(usable: list[Range], cmrs: list[Range], max_tdmrs: int = 64, max_reserved: int = 16) -> list[Tdmr]:
    memory = convertible_memory(usable, cmrs)
    allocator = PageAllocator(lambda _hpa, _size: None)
    for base, size in memory:
        allocator.add(base, size)
    return build_tdmrs(
        memory,
        cmrs,
        lambda size, where: allocator.contiguous(size, "PAMT", where),
        max_tdmrs=max_tdmrs,
        max_reserved=max_reserved,
        entry_size=16,
    )


def decode(data: bytes) -> tuple[list[int], list[Range]]:
    """TDMR_INFO: 8 words, then 16 pairs of offset and size; the pairs in use."""
    assert len(data) == 512
    words = struct.unpack_from("<40Q", data)
    assert not any(data[320:])
    pairs = list(zip(words[8::2], words[9::2], strict=True))
    used = [pair for pair in pairs if pair[1]]
    assert pairs[: len(used)] == used, "a gap in the reserved areas"
    return list(words[:8]), used


def check(tdmrs: list[Tdmr], usable: list[Range], cmrs: list[Range], max_reserved: int = 16) -> None:
    """What TDH.SYS.CONFIG checks, byte ranges as sets of pages of the interesting boundaries."""
    ends = 0
    managed: list[Range] = []
    pamts: list[Range] = []
    reserved: list[Range] = []
    for tdmr in tdmrs:
        words, areas = decode(tdmr.encode())
        base, size = words[:2]
        assert base % GIB == size % GIB == 0
        assert size
        assert base >= ends, "TDMRs overlap or are not ascending"
        ends = base + size
        assert len(areas) <= max_reserved
        at = 0
        for offset, length in areas:
            assert offset % PAGE == length % PAGE == 0
            assert offset >= at, "reserved areas overlap or are not ascending"
            assert offset + length <= size
            if offset > at:
                managed.append((base + at, base + offset))
            reserved.append((base + offset, base + offset + length))
            at = offset + length
        if at < size:
            managed.append((base + at, base + size))
        for granule, (start, length) in zip(
            (GIB, 2 * MIB, PAGE), zip(words[2::2], words[3::2], strict=True), strict=True
        ):
            assert start % PAGE == length % PAGE == 0
            assert length >= size // granule * 16
            pamts.append((start, start + length))
    for low, high in managed:
        assert any(cmr <= low and high <= cmr + size for cmr, size in joined(cmrs)), "outside every CMR"
        assert not any(start < high and low < stop for start, stop in pamts), "a PAMT is managed memory"
    for low, high in pamts:
        assert any(cmr <= low and high <= cmr + size for cmr, size in joined(cmrs)), "a PAMT outside CMRs"
        assert any(base <= low and high <= base + size for base, size in joined(usable)), "not ours to take"
    pamts.sort()
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(pamts)), "PAMTs overlap"
    # Every usable and convertible page above 1 MiB is managed or a PAMT, once.
    taken = sorted([*managed, *pamts])
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(taken))
    for base, size in usable:
        for cmr, cmr_size in cmrs:
            low = (max(base, cmr, MIB) + PAGE - 1) // PAGE * PAGE
            high = min(base + size, cmr + cmr_size) // PAGE * PAGE
            for start, stop in taken:
                if start <= low < stop:
                    low = stop
            assert low >= high, f"{low:#x} is not managed"


def joined(ranges: list[Range]) -> list[Range]:
    out: list[Range] = []
    for base, size in sorted(ranges):
        if out and out[-1][0] + out[-1][1] == base:
            out[-1] = (out[-1][0], out[-1][1] + size)
        else:
            out.append((base, size))
    return out


def test_a_server_as_linux_lays_it_out() -> None:
    usable = [(0, 0xA0000), (MIB, 2 * GIB - MIB), (4 * GIB, 6 * GIB)]
    cmrs = [(MIB, 2 * GIB - MIB), (4 * GIB, 6 * GIB)]
    tdmrs = build(usable, cmrs)
    check(tdmrs, usable, cmrs)
    assert [(tdmr.base, tdmr.size) for tdmr in tdmrs] == [(0, 2 * GIB), (4 * GIB, 6 * GIB)]
    # 1/256 of the memory and a little.
    assert sum(size for _, size in tdmrs[1].pamts) == 6 * GIB // 256 + 6 * GIB // (2 * MIB) * 16 + PAGE
    assert tdmrs[0].reserved[0] == (0, MIB)


def test_pamt_sizes_are_whole_pages() -> None:
    assert pamt_sizes(GIB, 16) == (PAGE, 512 * 16, 262144 * 16)


def test_memory_that_shares_a_gib() -> None:
    """Two ranges in one GiB: one TDMR, the hole reserved."""
    ranges = [(GIB + 4 * MIB, 256 * MIB), (GIB + 512 * MIB, GIB)]
    tdmrs = build(ranges, ranges)
    check(tdmrs, ranges, ranges)
    assert [(tdmr.base, tdmr.size) for tdmr in tdmrs] == [(GIB, GIB), (2 * GIB, GIB)]


def test_too_scattered() -> None:
    ranges = [(2 * n * GIB, 64 * MIB) for n in range(1, 6)]
    with pytest.raises(ConfigError, match="scattered over 5 ranges; this TDX module manages at most 4"):
        build(ranges, ranges, max_tdmrs=4)
    holes = [(GIB + n * 64 * MIB, 32 * MIB) for n in range(8)]
    with pytest.raises(ConfigError, match="reserved areas; this TDX module allows 4"):
        build(holes, holes, max_reserved=4)


def test_neighbours_are_joined_when_there_are_too_many() -> None:
    ranges = [(n * GIB + 16 * MIB, 900 * MIB) for n in range(1, 7)]
    tdmrs = build(ranges, ranges, max_tdmrs=1)
    check(tdmrs, ranges, ranges)
    assert [(tdmr.base, tdmr.size) for tdmr in tdmrs] == [(GIB, 6 * GIB)]


def test_pamt_elsewhere() -> None:
    """A TDMR without room for its own PAMT takes a neighbour's memory."""
    ranges = [(GIB, 1 * MIB), (2 * GIB, GIB)]
    tdmrs = build(ranges, ranges)
    check(tdmrs, ranges, ranges)
    assert tdmrs[0].pamts[0][0] >= 2 * GIB
    with pytest.raises(OutOfMemory):
        build(ranges[:1], ranges)


@settings(max_examples=150, deadline=None)
@given(
    pieces=some.lists(
        some.tuples(
            some.integers(0, 1500), some.integers(64, 3000), some.sampled_from([0, PAGE, MIB - PAGE, 0x800])
        ),
        min_size=1,
        max_size=5,
    ),
    cuts=some.lists(some.tuples(some.integers(0, 4000), some.integers(1, 300)), max_size=3),
)
def test_any_memory_map(pieces: list[tuple[int, int, int]], cuts: list[tuple[int, int]]) -> None:
    """``pieces``: MiB of hole, MiB of memory, odd bytes; ``cuts``: what is usable but not convertible."""
    usable: list[Range] = []
    at = 0
    for hole, size, odd in pieces:
        at += hole * MIB
        usable.append((at + odd, size * MIB))
        at += size * MIB + MIB
    # CMRs cover all but the cuts, on 4 KiB boundaries.
    edges = [(0, at + GIB)]
    for start, length in cuts:
        low, high = start * MIB, (start + length) * MIB
        edges = [
            part
            for one, two in edges
            for part in ((one, min(two, low)), (max(one, high), two))
            if part[0] < part[1]
        ]
    cmrs = [(one, two - one) for one, two in edges]
    # Room for the PAMTs of all the GiBs that are touched.
    assume(max((size for _, size in convertible_memory(usable, cmrs)), default=0) >= 128 * MIB)
    check(build(usable, cmrs), usable, cmrs)
