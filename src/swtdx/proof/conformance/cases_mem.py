"""TDH.MEM.* and TDH.MR.*."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDCS
from swtdx.arch.regs import R8, R9, R10, R11
from swtdx.arch.sept_bits import HPA, TDEL
from swtdx.arch.units import NULL_PA, PAGE
from swtdx.proof.conformance import common
from swtdx.proof.conformance.common import Good, Operands
from swtdx.proof.conformance.operands import checked
from swtdx.proof.conformance.registry import Defect, add, provokes
from swtdx.proof.conformance.stages import (
    EMPTY,
    FAR,
    FIRST,
    HUGE,
    PENDING,
    PRODUCTION,
    add_sept,
    add_tdcx,
    block,
    create,
    give_keys,
    initialise,
    make_td,
    track,
)
from swtdx.proof.conformance.world import World
from swtdx.proof.probe import Place


def _td(world: World) -> Operands:
    return {"rdx": world.td.tdr}


def _uninitialised(good: Good, register: str = "rdx") -> None:
    """The common checks of a TD, with another one that is not initialised."""
    common.td_state(good, register, wrong_stage="tdcs")


# ------------------------------------------------------------------ TDH.MEM.SEPT.ADD
SEPT_ADD: Final = Good(
    "TDH.MEM.SEPT.ADD", "running", lambda w: _td(w) | {"rcx": 2 * HUGE | 1, "r8": w.page()}
)
SEPT_ADD_1: Final = Good(
    "TDH.MEM.SEPT.ADD", "running",
    lambda w: _td(w) | {"rcx": 2 * HUGE | 1, "r8": w.page(), "r9": NULL_PA, "r10": NULL_PA,
                          "r11": NULL_PA},
    1,
)  # fmt: skip
checked(SEPT_ADD)
_uninitialised(SEPT_ADD)
common.sept(SEPT_ADD, entry=(2 * HUGE, 1))
SEPT_ADD.refused(s.TDX_OPERAND_INVALID, "reserved bits of RDX", "RDX", rdx=lambda w: w.td.tdr | 2)
SEPT_ADD.refused(s.TDX_OPERAND_INVALID, "no page, in version 0", "R8", r8=NULL_PA)
SEPT_ADD.refused(
    s.TDX_EPT_ENTRY_STATE_INCORRECT,
    "the entry's state is looked at before the page",
    "RCX",
    rcx=0 | 1,
    r8=0x123,
)
add(
    "TDH.MEM.SEPT.ADD", s.TDX_SUCCESS, "version 0: a page is there already, which bit 0 of RDX allows",
    SEPT_ADD.but(rcx=0 | 1, rdx=lambda w: w.td.tdr | 1), stage="running",
)  # fmt: skip
add(
    "TDH.MEM.SEPT.ADD", s.TDX_SUCCESS, "bit 63 of R8 is ignored",
    SEPT_ADD.but(r8=lambda w: w.page() | 1 << 63), stage="running",
)  # fmt: skip
add(
    "TDH.MEM.SEPT.ADD", s.TDX_SUCCESS, "version 1: no page for an entry that has one",
    SEPT_ADD_1.but(rcx=0 | 1, r8=NULL_PA), stage="running",
)  # fmt: skip
SEPT_ADD_1.refused(
    s.TDX_EPT_ENTRY_STATE_INCORRECT, "version 1: no page for an entry that has none", "RCX", r8=NULL_PA
)

SEPT_ADD.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "a page is there already", "RCX", rcx=0 | 1)
SEPT_ADD.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "a 2-MiB page is there", "RCX", rcx=HUGE | 1)
add("TDH.MEM.SEPT.ADD", s.TDX_SUCCESS, "version 1", SEPT_ADD_1.but(), stage="running")
SEPT_ADD_1.refused(
    s.TDX_OPERAND_INVALID, "version 1: reserved bits of RDX", "RDX", rdx=lambda w: w.td.tdr | 2
)
for _n in (9, 10, 11):
    SEPT_ADD_1.refused(
        s.TDX_OPERAND_INVALID, f"a page for an L2 VM in R{_n}", f"R{_n}", at={f"r{_n}": lambda w: w.page()}
    )

# ------------------------------------------------------------------ TDH.MEM.PAGE.ADD, TDH.MR.*
PAGE_ADD: Final = Good(
    "TDH.MEM.PAGE.ADD", "vcpu", lambda w: _td(w) | {"rcx": EMPTY, "r8": w.page(), "r9": w.buffer()}
)
checked(PAGE_ADD)
common.td_state(PAGE_ADD, "rdx", lock=False, wrong_stage="tdcs")
PAGE_ADD.refused(s.TDX_OP_STATE_INCORRECT, "the TD runs", rdx=lambda w: make_td(w, "running").tdr)
common.sept(PAGE_ADD, tree=False)
PAGE_ADD.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "a page is there already", "RCX", rcx=FIRST)

EXTEND: Final = Good("TDH.MR.EXTEND", "vcpu", lambda w: _td(w) | {"rcx": FIRST + 0x100})
checked(EXTEND)
common.td_state(EXTEND, "rdx", lock=False, wrong_stage="tdcs")
EXTEND.refused(s.TDX_OP_STATE_INCORRECT, "the TD runs", rdx=lambda w: make_td(w, "running").tdr)
EXTEND.refused(s.TDX_EPT_ENTRY_NOT_PRESENT, "no Secure EPT page leads there", "RCX", rcx=FAR)
EXTEND.refused(s.TDX_EPT_ENTRY_NOT_PRESENT, "no page is there", "RCX", rcx=EMPTY)


@provokes("TDH.MR.EXTEND", s.TDX_EPT_ENTRY_NOT_PRESENT, "a page that is blocked", details="RCX", stage="vcpu")
def _extend_blocked(world: World) -> None:
    block(world, world.td, FIRST)
    world.provoke(rcx=FIRST, rdx=world.td.tdr)


FINALIZE: Final = Good("TDH.MR.FINALIZE", "vpinit", lambda w: {"rcx": w.td.tdr})
checked(FINALIZE)
common.td_state(FINALIZE, "rcx", lock=False, wrong_stage="tdcs")
FINALIZE.refused(s.TDX_OP_STATE_INCORRECT, "the second time", rcx=lambda w: make_td(w, "running").tdr)
FINALIZE.refused(s.TDX_NO_VCPUS, "no VCPU is initialised", rcx=lambda w: make_td(w, "vpcx").tdr)

# ------------------------------------------------------------------ TDH.MEM.PAGE.AUG
AUG: Final = Good("TDH.MEM.PAGE.AUG", "running", lambda w: _td(w) | {"rcx": EMPTY, "r8": w.page()})
checked(AUG)
_uninitialised(AUG)
common.sept(AUG, entry=(EMPTY, 0))
AUG.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "a page is there already", "RCX", rcx=PENDING)
AUG.refused(
    s.TDX_OPERAND_INVALID, "a 2-MiB page that is not aligned", "R8", rcx=2 * HUGE | 1,
    r8=lambda w: w.large() + PAGE,
)  # fmt: skip
AUG.refused(
    s.TDX_OPERAND_BUSY, "a 2-MiB page around the TDR that the call holds", "R8", rcx=2 * HUGE | 1,
    r8=lambda w: w.td.tdr & -HUGE,
)  # fmt: skip


@provokes(
    "TDH.MEM.PAGE.AUG", s.TDX_PAGE_METADATA_INCORRECT, "a 2-MiB page of which a part is taken", details="R8",
    stage="running",
)  # fmt: skip
def _part_taken(world: World) -> None:
    page = world.large()
    world.ok("TDH.MEM.PAGE.AUG", rcx=EMPTY, rdx=world.td.tdr, r8=page + PAGE)
    world.provoke(rcx=2 * HUGE | 1, rdx=world.td.tdr, r8=page)


# ------------------------------------------------------------------ blocking and tracking
BLOCK: Final = Good("TDH.MEM.RANGE.BLOCK", "running", lambda w: _td(w) | {"rcx": FIRST})
checked(BLOCK)
UNBLOCK: Final = Good("TDH.MEM.RANGE.UNBLOCK", "running", lambda w: _blocked(w, FIRST))


def _blocked(world: World, gpa: int, level: int = 0) -> Operands:
    """The page at ``gpa`` is blocked and tracked."""
    if (gpa, level) not in world.blocked:
        block(world, world.td, gpa, level)
        # No vCPU runs, so one step of the epoch is enough.
        track(world, world.td)
        world.blocked.add((gpa, level))
    return {"rcx": gpa | level, "rdx": world.td.tdr}


checked(UNBLOCK)
for _good in (BLOCK, UNBLOCK):
    _uninitialised(_good)
    common.sept(_good, entry=(FIRST, 0))
    _good.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "nothing is there", "RCX", rcx=EMPTY)
UNBLOCK.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "the page is not blocked", "RCX", rcx=PENDING)


@provokes(
    "TDH.MEM.RANGE.BLOCK", s.TDX_GPA_RANGE_ALREADY_BLOCKED, "the second time", details="RCX",
    stage="running",
)  # fmt: skip
def _blocked_twice(world: World) -> None:
    block(world, world.td, FIRST)
    world.provoke(rcx=FIRST, rdx=world.td.tdr)


@provokes(
    "TDH.MEM.RANGE.UNBLOCK", s.TDX_TLB_TRACKING_NOT_DONE, "not tracked", details="SEPT_TREE",
    stage="running",
)  # fmt: skip
def _untracked(world: World) -> None:
    block(world, world.td, FIRST)
    world.provoke(rcx=FIRST, rdx=world.td.tdr)


TRACK: Final = Good("TDH.MEM.TRACK", "running", lambda w: {"rcx": w.td.tdr})
checked(TRACK)
_uninitialised(TRACK, "rcx")


def _epoch_runs(world: World, operands: Operands) -> AbstractContextManager[None]:
    tdcs = world.probe.tdcs(world.tdr_of("TDH.MEM.TRACK", operands))
    previous = (TDCS.td_epoch.get(tdcs) - 1) & 1
    return world.locked(Place(tdcs, TDCS.refcount.offset + 2 * previous))


TRACK.held(
    s.TDX_OPERAND_BUSY, "a VCPU enters at this moment",
    lambda world, operands: world.poked(
        world.tdcs_field(TDCS.epoch_lock, world.tdr_of("TDH.MEM.TRACK", operands)), 2
    ),
    "TD_EPOCH",
)  # fmt: skip
TRACK.held(s.TDX_PREVIOUS_TLB_EPOCH_BUSY, "a VCPU of the previous epoch runs", _epoch_runs)


# ------------------------------------------------------------------ taking pages away
REMOVE: Final = Good("TDH.MEM.PAGE.REMOVE", "running", lambda w: _blocked(w, FIRST))
RELOCATE: Final = Good("TDH.MEM.PAGE.RELOCATE", "running", lambda w: _blocked(w, FIRST) | {"r8": w.page()})
SEPT_REMOVE: Final = Good("TDH.MEM.SEPT.REMOVE", "running", lambda w: _empty_table(w))
PROMOTE: Final = Good("TDH.MEM.PAGE.PROMOTE", "running", lambda w: _full_table(w))
DEMOTE: Final = Good(
    "TDH.MEM.PAGE.DEMOTE", "running",
    lambda w: _blocked(w, HUGE, 1) | {"r8": w.page(), "r9": NULL_PA, "r10": NULL_PA, "r11": NULL_PA},
)  # fmt: skip
TABLE: Final = 4 * HUGE


def _empty_table(world: World) -> Operands:
    """A Secure EPT page without entries, blocked and tracked."""
    if (TABLE, 1) not in world.blocked:
        add_sept(world, world.td, TABLE, (1,))
    return _blocked(world, TABLE, 1)


def _full_table(world: World, base: int = 0) -> Operands:
    """A Secure EPT page with 512 pending pages that lie in order (from ``base``), blocked and tracked."""
    if (TABLE, 1) not in world.blocked:
        add_sept(world, world.td, TABLE, (1,))
        base = base or world.large()
        for offset in range(0, HUGE, PAGE):
            world.ok("TDH.MEM.PAGE.AUG", rcx=TABLE + offset, rdx=world.td.tdr, r8=base + offset)
    return _blocked(world, TABLE, 1)


for _good, _entry in (
    (REMOVE, (FIRST, 0)),
    (RELOCATE, (FIRST, 0)),
    (SEPT_REMOVE, (TABLE, 1)),
    (PROMOTE, (TABLE, 1)),
    (DEMOTE, (HUGE, 1)),
):
    checked(_good)
    _uninitialised(_good)
    common.sept(_good, entry=_entry)
    _wrong = 6 * HUGE | 1 if _entry[1] else EMPTY
    _good.refused(s.TDX_EPT_ENTRY_STATE_INCORRECT, "nothing is there", "RCX", rcx=_wrong)


def _small(world: World) -> Place:
    """The first Secure EPT entry of the table that PROMOTE frees."""
    table = world.probe.sept_entry(world.td.tdr, TABLE, 1).read(8) & HPA
    return Place(world.private_view(table, world.td.hkid), 0)


PROMOTE.held(
    s.TDX_OPERAND_BUSY, "the guest holds a small entry",
    lambda world, _: world.poked(_small(world), _small(world).read(8) | TDEL, 8), "RCX",
)  # fmt: skip
PROMOTE.held(
    s.TDX_OPERAND_BUSY, "another processor holds the large page",
    lambda world, _: world.locked(world.probe.pamt_entry(_small(world).read(8) & HPA, 1)), "RCX",
)  # fmt: skip

add(
    "TDH.MEM.PAGE.DEMOTE", s.TDX_SUCCESS, "pages for L2 VMs that the TD has not come back as they are",
    DEMOTE.but(r9=lambda w: w.page(), r10=5), stage="running",
)  # fmt: skip

DEMOTE.refused(s.TDX_OPERAND_INVALID, "reserved bits of RDX", "RDX", rdx=lambda w: w.td.tdr | 2)
RELOCATE.refused(
    s.TDX_OPERAND_INVALID, "the page that is mapped already", "R8", r8=lambda w: w.td.pages[FIRST]
)


@provokes(
    "TDH.MEM.PAGE.RELOCATE", s.TDX_OPERAND_INVALID, "the same page, checked before blocking",
    details="R8", stage="running", reusable=True,
)  # fmt: skip
def _same_page_first(world: World) -> None:
    world.provoke(rcx=FIRST, rdx=world.td.tdr, r8=world.td.pages[FIRST])


def _taking(leaf: str, gpa: int, level: int, prepare: str, **operands: int) -> None:
    """A page that is not blocked, or not tracked, or whose PAMT entry is locked."""

    def rest(world: World) -> Operands:
        if prepare == "table":
            add_sept(world, world.td, TABLE, (1,))
        return {"rcx": gpa | level, "rdx": world.td.tdr, "r8": world.page(), **operands}

    def not_blocked(world: World) -> None:
        world.provoke(**rest(world))

    def not_tracked(world: World) -> None:
        given = rest(world)
        block(world, world.td, gpa, level)
        world.provoke(**given)

    def busy(world: World) -> None:
        given = rest(world)
        hpa = world.probe.sept_entry(world.td.tdr, gpa, level).read(8) & HPA
        size = level if prepare == "page" else 0
        if leaf == "TDH.MEM.PAGE.DEMOTE":
            # Here this lock comes last.
            block(world, world.td, gpa, level)
            track(world, world.td)
        with world.locked(world.probe.pamt_entry(hpa, size)):
            world.provoke(**given)

    # What is not blocked cannot have been tracked since.
    add(
        leaf, s.TDX_GPA_RANGE_NOT_BLOCKED, "not blocked", not_blocked, details="RCX", stage="running",
        defect=Defect(mend=lambda world, _: block(world, world.td, gpa, level)),
    )  # fmt: skip
    add(leaf, s.TDX_TLB_TRACKING_NOT_DONE, "not tracked", not_tracked, details="RCX", stage="running")
    add(
        leaf, s.TDX_OPERAND_BUSY, "another processor holds the page that goes", busy, details="RCX",
        stage="running",
    )  # fmt: skip


_taking("TDH.MEM.PAGE.REMOVE", FIRST, 0, "page")
_taking("TDH.MEM.PAGE.RELOCATE", FIRST, 0, "page")
_taking("TDH.MEM.SEPT.REMOVE", TABLE, 1, "table")
_taking("TDH.MEM.PAGE.PROMOTE", TABLE, 1, "table")
_taking("TDH.MEM.PAGE.DEMOTE", HUGE, 1, "page", r9=NULL_PA, r10=NULL_PA, r11=NULL_PA)


@provokes(
    "TDH.MEM.SEPT.REMOVE", s.TDX_EPT_PAGE_NOT_FREE, "pages are below it", details="RCX", stage="running"
)
def _table_in_use(world: World) -> None:
    world.provoke(**_blocked(world, 0, 1))


@provokes(
    "TDH.MEM.PAGE.PROMOTE", s.TDX_EPT_INVALID_PROMOTE_CONDITIONS, "511 pages", details="RCX",
    stage="running",
)  # fmt: skip
def _promote_holes(world: World) -> None:
    world.provoke(**_empty_table(world))


@provokes("TDH.MEM.PAGE.PROMOTE", s.TDX_SUCCESS, "version 1: no pages of L2 VMs come back", stage="running")
def _promote_version_1(world: World) -> None:
    after = world.provoke(version=1, **_full_table(world))
    assert [after[n] for n in (R9, R10, R11)] == [NULL_PA] * 3, "R9 to R11 name no page"


@provokes(
    "TDH.MEM.PAGE.PROMOTE", s.TDX_EPT_INVALID_PROMOTE_CONDITIONS, "pages in order from the middle of 2 MiB",
    details="RCX", stage="running",
)  # fmt: skip
def _promote_unaligned(world: World) -> None:
    base = world.large() + HUGE // 2
    world.large()
    world.provoke(**_full_table(world, base))


# ------------------------------------------------------------------ looking
SEPT_RD: Final = Good("TDH.MEM.SEPT.RD", "running", lambda w: _td(w) | {"rcx": FIRST})
checked(SEPT_RD)
_uninitialised(SEPT_RD)
common.sept(SEPT_RD, entry=(FIRST, 0))


@provokes("TDH.MEM.SEPT.RD", s.TDX_SUCCESS, "L2 attributes of a debug TD, which has none", stage="running")
def _l2_attributes(world: World) -> None:
    assert world.provoke(rcx=FIRST, rdx=world.td.tdr | 1)[R8] == 0


SEPT_RD.refused(
    s.TDX_OPERAND_INVALID, "L2 attributes of a production TD", "RDX", rdx=lambda w: _production_td(w) | 1
)

RD: Final = Good("TDH.MEM.RD", "running", lambda w: _td(w) | {"rcx": FIRST + 8})
WR: Final = Good("TDH.MEM.WR", "running", lambda w: _td(w) | {"rcx": FIRST + 8, "r8": 1})


def _production_td(world: World) -> int:
    td = create(world)
    give_keys(world, td)
    add_tdcx(world, td)
    initialise(world, td, attributes=PRODUCTION)
    return td.tdr


for _good in (RD, WR):
    checked(_good)
    _uninitialised(_good)
    common.sept(_good, entry=(FIRST, 0), walk=None)
    _good.refused(s.TDX_TD_NON_DEBUG, "a production TD", rdx=_production_td)
    _good.refused(s.TDX_EPT_ENTRY_NOT_PRESENT, "no Secure EPT page leads there", "RCX", rcx=FAR)
    _good.refused(s.TDX_EPT_ENTRY_NOT_PRESENT, "no page is there", "RCX", rcx=EMPTY)
    _good.refused(s.TDX_EPT_ENTRY_NOT_PRESENT, "the page is pending", "RCX", rcx=PENDING)
