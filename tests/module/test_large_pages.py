"""Pages of 1 GiB: 512 of 2 MiB become one (TDH.MEM.PAGE.PROMOTE), and one becomes 512 (DEMOTE)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swtdx.arch.states import PageType
from swtdx.arch.units import GIB, LARGE_PAGE
from swtdx.proof.conformance.stages import (
    STAGES,
    block,
    bring_up,
    keyed_module,
    tdmr_info,
    tdmr_pointers,
    track,
)
from swtdx.proof.conformance.world import PAMT_1G, TDMR, World
from swtdx.proof.invariants import check

GPA = GIB
SECOND = TDMR + GIB
REG = int(PageType.REG)


@pytest.fixture
def world() -> Iterator[World]:
    """A bench with another TDMR, all of which is free."""
    with World() as made:
        bring_up(made, "processors")
        pamts = PAMT_1G + 0x1000
        other = tdmr_info(
            tdmr_base=SECOND,
            pamt_4k_base=0x2100_0000,
            pamt_2m_base=pamts + 0x1000,
            pamt_1g_base=pamts,
        )
        made.ok("TDH.SYS.CONFIG", rcx=tdmr_pointers(made, tdmr_info(), other), rdx=2, r8=made.first_hkid)
        keyed_module(made)
        for base in (TDMR, SECOND):
            while made.ok("TDH.SYS.TDMR.INIT", rcx=base)[2] < base + GIB:
                pass
        names = list(STAGES)
        for name in names[names.index("created") :]:
            STAGES[name](made)
        yield made


def page_of(world: World, hpa: int) -> tuple[int, int, int]:
    """(type, owner, level) by TDH.PHYMEM.PAGE.RDMD."""
    after = world.ok("TDH.PHYMEM.PAGE.RDMD", rcx=hpa)
    return after[1], after[2], after[8]


def test_there_and_back(world: World) -> None:
    td = world.td
    table = world.page()
    world.ok("TDH.MEM.SEPT.ADD", rcx=GPA | 2, rdx=td.tdr, r8=table)
    for offset in range(0, GIB, LARGE_PAGE):
        world.ok("TDH.MEM.PAGE.AUG", rcx=GPA + offset | 1, rdx=td.tdr, r8=SECOND + offset)
    last = SECOND + GIB - LARGE_PAGE
    assert page_of(world, last) == (REG, td.tdr, 1)
    block(world, td, GPA, 2)
    track(world, td)
    after = world.ok("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 2, rdx=td.tdr)
    assert after[1] == table, "the Secure EPT page is the host's again"
    for hpa in (SECOND, SECOND + LARGE_PAGE, last, last + 0x1000):
        assert page_of(world, hpa) == (REG, td.tdr, 2), hex(hpa)
    assert page_of(world, table)[0] == 0
    check(world.machine)
    block(world, td, GPA, 2)
    track(world, td)
    ones = (1 << 64) - 1
    world.ok("TDH.MEM.PAGE.DEMOTE", rcx=GPA | 2, rdx=td.tdr, r8=table, r9=ones, r10=ones, r11=ones)
    for hpa in (SECOND, SECOND + LARGE_PAGE, last, last + 0x1000):
        assert page_of(world, hpa) == (REG, td.tdr, 1), hex(hpa)
    check(world.machine)
    for offset in (0, LARGE_PAGE, GIB - LARGE_PAGE):
        read = world.ok("TDH.MEM.SEPT.RD", rcx=GPA + offset | 1, rdx=td.tdr)
        assert read[1] & 0xF_FFFF_FFE0_0000 == SECOND + offset
