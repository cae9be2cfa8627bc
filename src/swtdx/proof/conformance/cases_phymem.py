"""TDH.PHYMEM.*."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.regs import R8, RCX, RDX
from swtdx.arch.states import PageType
from swtdx.arch.units import PAGE
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.kot import busy_kot
from swtdx.proof.conformance.operands import busy_page, checked, outside
from swtdx.proof.conformance.registry import add, provokes
from swtdx.proof.conformance.stages import FIRST, HUGE, block, flush, free_key, retire, track
from swtdx.proof.conformance.world import World

RDMD: Final = Good("TDH.PHYMEM.PAGE.RDMD", "running", lambda w: {"rcx": w.td.tdr})
WBINVD: Final = Good(
    "TDH.PHYMEM.PAGE.WBINVD", "running", lambda w: {"rcx": w.page() | w.td.hkid << w.hpa_bits}
)
for _good in (RDMD, WBINVD):
    checked(_good)
    busy_page(_good, "rcx", exclusive=False) if _good is RDMD else None
    _good.refused(
        s.TDX_OPERAND_INVALID, "not page-aligned", "RCX", rcx=lambda w: w.page() + 64, bits={"rcx": 64}
    )
    _good.refused(
        s.TDX_OPERAND_INVALID, "beyond MAXPA", "RCX", rcx=lambda w: w.page() | 1 << 52, bits={"rcx": 1 << 52}
    )
    outside(_good, "rcx")
RDMD.refused(s.TDX_OPERAND_INVALID, "an HKID", "RCX", rcx=lambda w: w.td.tdr | 1 << 51)
WBINVD.refused(s.TDX_PAGE_METADATA_INCORRECT, "a page that a TD owns", "RCX", rcx=lambda w: w.td.tdr)


@provokes(
    "TDH.PHYMEM.PAGE.WBINVD", s.TDX_OPERAND_BUSY, "another processor holds the page", details="RCX",
    stage="running", reusable=True,
)  # fmt: skip
def _wbinvd_busy(world: World) -> None:
    page = world.page()
    with world.locked_page(page):
        world.provoke(rcx=page)


# ------------------------------------------------------------------ TDH.PHYMEM.PAGE.RECLAIM
def torn_down(world: World) -> int:
    """The stage's TD in life cycle TEARDOWN; one of its pages."""
    if not world.torn:
        flush(world, world.td)
        retire(world, world.td)
        free_key(world, world.td)
        world.torn = True
    return world.td.tdvpr


RECLAIM: Final = Good("TDH.PHYMEM.PAGE.RECLAIM", "running", lambda w: {"rcx": torn_down(w)})
checked(RECLAIM)
outside(RECLAIM, "rcx")
busy_page(RECLAIM, "rcx", exclusive=True)
for _what, _bit in (("not page-aligned", 6), ("an HKID", 51), ("beyond MAXPA", 52)):
    RECLAIM.refused(
        s.TDX_OPERAND_INVALID, _what, "RCX",
        rcx=lambda w, bit=_bit: torn_down(w) | 1 << bit, bits={"rcx": 1 << _bit},  # type: ignore[misc]
    )  # fmt: skip


@provokes(
    "TDH.PHYMEM.PAGE.RECLAIM", s.TDX_OPERAND_INVALID, "inside a 2-MiB page", details="RCX", stage="running",
    outputs=False,
)  # fmt: skip
def _inside(world: World) -> None:
    torn_down(world)
    after = world.provoke(rcx=world.td.pages[HUGE] + PAGE)
    # Type, owner and size say what the page is.
    assert (after[RCX], after[RDX], after[R8]) == (PageType.REG, world.td.tdr, 1)


@provokes("TDH.PHYMEM.PAGE.RDMD", s.TDX_SUCCESS, "a page that a TD had", stage="running")
def _had(world: World) -> None:
    page = world.td.pages[FIRST]
    block(world, world.td, FIRST)
    track(world, world.td)
    world.ok("TDH.MEM.PAGE.REMOVE", rcx=FIRST, rdx=world.td.tdr)
    after = world.provoke(rcx=page)
    assert (after[RCX], after[RDX]) == (PageType.NDA, world.td.tdr)


RECLAIM.refused(s.TDX_PAGE_METADATA_INCORRECT, "a free page", "RCX", rcx=lambda w: w.page())
RECLAIM.refused(
    s.TDX_PAGE_METADATA_INCORRECT, "inside a free 2-MiB page: its type is looked at first", "RCX",
    rcx=lambda w: w.large() + PAGE,
)  # fmt: skip


RECLAIM.held(
    s.TDX_OPERAND_BUSY, "another processor holds the TDR", lambda world, _: world.locked_page(world.td.tdr),
    "TDR", reusable=False, outputs=False,
)  # fmt: skip


for _what, _page in (("a page of a TD that lives", "tdvpr"), ("the TDR of a TD that lives", "tdr")):
    add(
        "TDH.PHYMEM.PAGE.RECLAIM", s.TDX_LIFECYCLE_STATE_INCORRECT, _what,
        lambda w, page=_page: w.provoke(rcx=getattr(w.td, page)),  # type: ignore[misc]
        stage="running", outputs=False,
    )  # fmt: skip


@provokes(
    "TDH.PHYMEM.PAGE.RECLAIM", s.TDX_TD_ASSOCIATED_PAGES_EXIST, "the TDR before its pages",
    stage="running", outputs=False,
)  # fmt: skip
def _tdr_first(world: World) -> None:
    torn_down(world)
    world.provoke(rcx=world.td.tdr)


# ------------------------------------------------------------------ TDH.PHYMEM.CACHE.WB
def _flushed(world: World) -> dict[str, int]:
    """Some HKID waits for the caches."""
    if not world.waiting:
        retire(world, world.td)
        world.waiting = True
    return {"rcx": 0}


CACHE_WB: Final = Good("TDH.PHYMEM.CACHE.WB", "keyed", _flushed)
checked(CACHE_WB)
busy_kot(CACHE_WB)
CACHE_WB.refused(s.TDX_OPERAND_INVALID, "neither start nor resume", "RCX", rcx=2)
CACHE_WB.refused(s.TDX_WBCACHE_RESUME_ERROR, "nothing to resume", rcx=1)
add(
    "TDH.PHYMEM.CACHE.WB", s.TDX_NO_HKID_READY_TO_WBCACHE, "no HKID waits",
    lambda w: w.provoke(rcx=0), stage="keyed",
)  # fmt: skip


CACHE_WB.held(
    s.TDX_OPERAND_BUSY, "another processor of the package is at it",
    lambda world, _: world.poked(world.probe.cache_wb_mutex, 1, 1), "WBCACHE", reusable=False,
)  # fmt: skip
