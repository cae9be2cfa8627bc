"""Which memory the module manages: TDMRs, PAMTs and reserved areas, to the page (base ABI: TDMR_INFO)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from swtdx.proof.conformance.stages import bring_up, ready, tdmr_info, tdmr_pointers
from swtdx.proof.conformance.world import PAMT_1G, PAMT_2M, PAMT_4K, TDMR, World

PAGE, MIB, GIB = 1 << 12, 1 << 20, 1 << 30
RSVD, NDA = 1, 0
TDMR_OUTSIDE_CMRS, INVALID_PAMT, PAMT_OVERLAP, INVALID_RESERVED = (
    0xC0000A02,
    0xC0000A10,
    0xC0000A12,
    0xC0000A20,
)
INVALID_TDMR, NON_ORDERED_TDMR, OPERAND_RDX = 0xC0000A00, 0xC0000A01, 0xC0000100_00000002


def state(world: World) -> Any:
    """The module's state: what it has read of CMRs and CPUID is put there for a test."""
    return world.machine.seam.module.state


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield bring_up(made, "processors")


def with_reserved(*areas: tuple[int, int], **changes: int) -> bytes:
    info = bytearray(tdmr_info(**changes))
    for number, (offset, size) in enumerate(areas):
        info[64 + 16 * number : 80 + 16 * number] = offset.to_bytes(8, "little") + size.to_bytes(8, "little")
    return bytes(info)


def config(world: World, *infos: bytes) -> int:
    return world.call(
        "TDH.SYS.CONFIG", rcx=tdmr_pointers(world, *infos), rdx=len(infos), r8=world.first_hkid
    )[0]


def page_type(world: World, hpa: int) -> int:
    after = world.call("TDH.PHYMEM.PAGE.RDMD", rcx=hpa)
    assert after[0] == 0, hex(after[0])
    assert (after[2], after[8], after[9]) == (0, 0, 0), "no owner, 4 KiB, never blocked"
    return after[1]


def test_reserved_areas_to_the_page(world: World) -> None:
    """Pages of a reserved area are RSVD, whatever 4 MiB it begins and ends in; their neighbours are free."""
    areas = ((PAGE, PAGE), (3 * MIB, 2 * MIB), (8 * MIB, 4 * MIB), (GIB - 3 * PAGE, 3 * PAGE))
    assert config(world, with_reserved(*areas)) == 0
    for lp in world.lps:
        world.ok("TDH.SYS.KEY.CONFIG", lp=lp.index)
    ready(world)
    for offset, size in areas:
        inside = (offset, offset + size - PAGE, offset + size // 2 & -PAGE)
        outside = [at for at in (offset - PAGE, offset + size) if 0 <= at < GIB]
        assert [page_type(world, TDMR + at) for at in inside] == [RSVD] * 3, hex(offset)
        assert [page_type(world, TDMR + at) for at in outside] == [NDA] * len(outside), hex(offset)
    # What is reserved cannot be given to a TD; the page beside it can.
    assert world.call("TDH.MNG.CREATE", rcx=TDMR + PAGE, rdx=world.first_hkid + 1)[0] >> 63
    assert world.call("TDH.MNG.CREATE", rcx=TDMR + 2 * PAGE, rdx=world.first_hkid + 1)[0] == 0


@pytest.mark.parametrize(
    ("what", "change", "details"),
    [
        ("4 KiB entries: a byte per 256 of it, and no page less", {"pamt_4k_size": 4 * MIB - PAGE}, 0),
        ("2 MiB entries", {"pamt_2m_size": 8 * 1024 - PAGE}, 1),
        ("1 GiB entries", {"pamt_1g_size": 0}, 2),
        ("a PAMT of half a page more", {"pamt_4k_size": 4 * MIB + 2048}, 0),
        ("a PAMT at half a page", {"pamt_1g_base": PAMT_1G + 2048}, 2),
        ("a PAMT beyond the last address", {"pamt_2m_base": (1 << 46) - PAGE}, 1),
    ],
)
def test_pamts_that_do_not_do(world: World, what: str, change: dict[str, int], details: int) -> None:
    status = config(world, tdmr_info(**change))
    assert (status >> 32, status & 0xFFFFFFFF) == (INVALID_PAMT, details << 8), what


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("4K and 2M share the last page", {"pamt_2m_base": PAMT_4K + 4 * MIB - PAGE}),
        ("2M and 1G", {"pamt_1g_base": PAMT_2M + PAGE}),
        ("1G in 4K", {"pamt_1g_base": PAMT_4K + PAGE}),
        ("2M at the TDMR's last page", {"pamt_2m_base": TDMR + GIB - PAGE}),
        ("1G at the TDMR's first page", {"pamt_1g_base": TDMR}),
    ],
)
def test_pamts_that_overlap(world: World, what: str, changes: dict[str, int]) -> None:
    assert config(world, tdmr_info(**changes)) >> 32 == PAMT_OVERLAP, what


def test_pamts_may_touch_and_lie_in_reserved_areas(world: World) -> None:
    """PAMTs one behind the other, and one in the TDMR's own reserved pages."""
    info = with_reserved(
        (GIB - MIB, MIB), pamt_2m_base=PAMT_4K + 4 * MIB, pamt_1g_base=TDMR + GIB - MIB, pamt_1g_size=PAGE
    )
    assert config(world, info) == 0


def test_a_pamt_must_lie_in_the_reserved_area_entirely(world: World) -> None:
    info = with_reserved((GIB - MIB, MIB), pamt_1g_base=TDMR + GIB - MIB - PAGE, pamt_1g_size=2 * PAGE)
    assert config(world, info) >> 32 == PAMT_OVERLAP


@pytest.mark.parametrize(
    ("what", "areas", "details"),
    [
        ("a size that is no multiple of a page", ((0, PAGE + 64),), 0),
        ("an offset that is none", ((2048, PAGE),), 0),
        ("an end one page behind the TDMR's", ((GIB - PAGE, 2 * PAGE),), 0),
        ("an end beyond 64 bits", (((1 << 64) - PAGE, PAGE), (PAGE, PAGE)), 0),
    ],
)
def test_reserved_areas_that_do_not_do(world: World, what: str, areas: Any, details: int) -> None:
    status = config(world, with_reserved(*areas))
    assert (status >> 32, status & 0xFFFFFFFF) == (INVALID_RESERVED, details), what


def test_cmrs_that_touch_are_one(world: World) -> None:
    """A TDMR over two CMRs is convertible memory, unless a page is missing between them."""
    info = state(world).sysinfo
    low = (0, TDMR)
    for gap, expected in ((PAGE, TDMR_OUTSIDE_CMRS), (0, 0)):
        cmrs = (low, (TDMR, GIB // 2), (TDMR + GIB // 2 + gap, GIB // 2 - gap))
        with mock.patch.dict(info.__dict__, {"cmrs": cmrs}):
            assert config(world, tdmr_info()) >> 32 == expected, hex(gap)


def test_a_hole_may_be_reserved(world: World) -> None:
    info = state(world).sysinfo
    cmrs = ((0, TDMR), (TDMR, 512 * MIB), (TDMR + 512 * MIB + PAGE, GIB))
    with mock.patch.dict(info.__dict__, {"cmrs": cmrs}):
        assert config(world, with_reserved((512 * MIB, PAGE))) == 0


def test_pamts_of_two_tdmrs(world: World) -> None:
    """The second TDMR's PAMTs may not lie in the first one's, nor in what either TDMR manages."""
    info = state(world).sysinfo
    second = {
        "tdmr_base": TDMR + GIB,
        "pamt_4k_base": PAMT_4K + 16 * MIB,
        "pamt_2m_base": PAMT_4K + 32 * MIB,
        "pamt_1g_base": PAMT_4K + 33 * MIB,
    }
    with mock.patch.dict(info.__dict__, {"cmrs": ((0, TDMR), (TDMR, 2 * GIB))}):
        for changes, details in (
            ({"pamt_4k_base": PAMT_4K}, (1, 0, 0)),
            ({"pamt_2m_base": PAMT_2M}, (1, 1, 0)),
            ({"pamt_1g_base": PAMT_1G}, (1, 2, 0)),
            ({"pamt_2m_base": TDMR + GIB - 2 * PAGE}, (1, 1, 0)),
        ):
            status = config(world, tdmr_info(), tdmr_info(**(second | changes)))
            assert status >> 32 == PAMT_OVERLAP, changes
            assert tuple(status >> 8 * place & 0xFF for place in range(3)) == details
        status = config(world, tdmr_info(pamt_1g_base=TDMR + GIB), tdmr_info(**second))
        assert status >> 32 == PAMT_OVERLAP
        assert config(world, tdmr_info(), tdmr_info(**second)) == 0


def test_no_tdmr_at_all_is_refused(world: World) -> None:
    pointers = tdmr_pointers(world, tdmr_info())
    assert world.call("TDH.SYS.CONFIG", rcx=pointers, rdx=0, r8=world.first_hkid)[0] == OPERAND_RDX
    assert config(world, tdmr_info()) == 0, "one is enough"


@pytest.mark.parametrize(
    ("end", "status"),
    [((1 << 63), NON_ORDERED_TDMR), ((1 << 64) - GIB, NON_ORDERED_TDMR), (1 << 64, INVALID_TDMR)],
    ids=hex,
)
def test_a_tdmr_whose_end_wraps_is_invalid_before_it_is_out_of_order(
    world: World, end: int, status: int
) -> None:
    """Base plus size must fit into 64 bits; only then is the order looked at, and the size last."""
    wrong = tdmr_info(tdmr_base=GIB, tdmr_size=end - GIB)
    assert config(world, tdmr_info(), wrong) == status << 32 | 1


def test_pages_beside_a_pamt_stay_the_hosts(world: World) -> None:
    """TDH.SYS.TDMR.INIT writes the tables and nothing else; here a free page lies before and behind each."""
    tables = {"pamt_4k": 4 * MIB, "pamt_2m": 2 * PAGE, "pamt_1g": PAGE}
    places = {name: PAMT_4K + number * 16 * MIB for number, name in enumerate(tables)}
    info = tdmr_info(**{f"{name}_base": at for name, at in places.items()})
    beside = [at for name, base in places.items() for at in (base - PAGE, base + tables[name])]
    assert config(world, info) == 0
    for lp in world.lps:
        world.ok("TDH.SYS.KEY.CONFIG", lp=lp.index)
    for at in beside:
        world.memory.write(at, b"the host's own".ljust(PAGE, b"."))
    ready(world)
    for at in beside:
        assert world.memory.read(at, PAGE) == b"the host's own".ljust(PAGE, b"."), hex(at)
