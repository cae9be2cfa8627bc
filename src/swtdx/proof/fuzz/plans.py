"""The next right step: what a sensible hypervisor would call to bring a TD up, or to take it down."""

from __future__ import annotations

from typing import Final

from swtdx.arch.control_structs import TDCS_MIN_PAGES, TDVPS_MIN_PAGES
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.regs import RAX, put
from swtdx.arch.sept_bits import LEVEL_BYTES
from swtdx.arch.states import NO_LP, KotState, Lifecycle, OpState, VcpuState
from swtdx.arch.units import LARGE_PAGE, MASK64
from swtdx.proof.conformance.stages import FIRST
from swtdx.proof.fuzz.operands import Call
from swtdx.proof.fuzz.situation import Situation
from swtdx.proof.invariants import TdView

LATER: Final = (0x2000, 0x3000)
VCPUS: Final = 2


def _call(leaf: str, lp: int = 0, **operands: int) -> Call:
    call = Call(lp)
    call.gpr[RAX] = BY_NAME[leaf].number
    put(call.gpr, operands)
    return call


def create(s: Situation) -> Call | None:
    """Make another TD, if there are a page and a key for it."""
    keys = [hkid for hkid in s.hkids if s.picture.keys[hkid].state == KotState.FREE]
    if not keys or not s.free:
        return None
    return _call("TDH.MNG.CREATE", rcx=s.free[0], rdx=keys[0])


def build(s: Situation, td: TdView, lp: int = 0) -> Call | None:
    """The next step towards a TD that runs; None when it does, or never will."""
    if td.fatal or td.lifecycle in (Lifecycle.BLOCKED, Lifecycle.TEARDOWN) or len(s.free) < 2:
        return None
    if td.lifecycle == Lifecycle.HKID_ASSIGNED:
        package = next(n for n in range(s.picture.packages) if not td.packages >> n & 1)
        processor = next(each for each in s.world.lps if each.package == package)
        return _call("TDH.MNG.KEY.CONFIG", processor.index, rcx=td.tdr)
    if len(td.tdcx) < TDCS_MIN_PAGES:
        return _call("TDH.MNG.ADDCX", lp, rcx=s.free[0], rdx=td.tdr)
    if not td.initialised:
        return _call("TDH.MNG.INIT", lp, rcx=td.tdr, rdx=s.params[td.hkid % len(s.params)])
    return _memory(s, td, lp) or _vcpus(s, td, lp) or _finish(s, td, lp)


def _memory(s: Situation, td: TdView, lp: int) -> Call | None:
    for level in (3, 2, 1):
        if _takes(td, 0, level):
            return _call("TDH.MEM.SEPT.ADD", lp, rcx=level, rdx=td.tdr, r8=s.free[0])
    if td.op_state == OpState.INITIALIZED and _takes(td, FIRST, 0):
        return _call("TDH.MEM.PAGE.ADD", lp, rcx=FIRST, rdx=td.tdr, r8=s.free[0], r9=s.sources[0])
    return None


def _takes(td: TdView, gpa: int, level: int) -> bool:
    """Whether the entry is free and the walk gets to it: no entry on the way is missing or blocked."""
    for above in range(level + 1, td.top_level + 1):
        entry = td.mapping(gpa & -LEVEL_BYTES[above], above)
        if entry is None or entry.state is None or entry.state.name != "NL_MAPPED":
            return False
    return td.mapping(gpa, level) is None


def _vcpus(s: Situation, td: TdView, lp: int) -> Call | None:
    if td.op_state != OpState.INITIALIZED:
        return None
    for vcpu in td.vcpus:
        if vcpu.state != VcpuState.UNINITIALIZED:
            continue
        if len(vcpu.pages) < TDVPS_MIN_PAGES:
            return _call("TDH.VP.ADDCX", lp, rcx=s.free[0], rdx=vcpu.tdvpr)
        if td.num_vcpus < td.max_vcpus:
            return _call("TDH.VP.INIT", lp, rcx=vcpu.tdvpr, rdx=0)
    if len(td.vcpus) < min(VCPUS, td.max_vcpus):
        return _call("TDH.VP.CREATE", lp, rcx=s.free[0], rdx=td.tdr)
    return None


def _finish(s: Situation, td: TdView, lp: int) -> Call | None:
    if td.op_state == OpState.INITIALIZED:
        return _call("TDH.MR.FINALIZE", lp, rcx=td.tdr) if td.num_vcpus else None
    for gpa in LATER:
        if _takes(td, gpa, 0):
            return _call("TDH.MEM.PAGE.AUG", lp, rcx=gpa, rdx=td.tdr, r8=s.free[0])
    if s.free_large and _takes(td, LARGE_PAGE, 1):
        return _call("TDH.MEM.PAGE.AUG", lp, rcx=LARGE_PAGE | 1, rdx=td.tdr, r8=s.free_large[0])
    return None


def serve(s: Situation, td: TdView, gpa: int) -> Call | None:
    """Give the TD the page that its guest missed, if there is one and a tree above it."""
    if s.free and _takes(td, gpa & -4096, 0):
        return _call("TDH.MEM.PAGE.AUG", rcx=gpa & -4096, rdx=td.tdr, r8=s.free[0])
    return None


def retire(s: Situation, td: TdView) -> Call | None:
    """The next step towards its end; after the last there is no such TD any more."""
    for vcpu in td.vcpus:
        if td.keyed and vcpu.holder != NO_LP:
            return _call("TDH.VP.FLUSH", vcpu.holder, rcx=vcpu.tdvpr)
    if td.lifecycle in (Lifecycle.HKID_ASSIGNED, Lifecycle.KEYS_CONFIGURED):
        return _call("TDH.MNG.VPFLUSHDONE", rcx=td.tdr)
    if td.lifecycle == Lifecycle.BLOCKED:
        waits = s.picture.keys[td.hkid].flushes
        for lp in s.world.lps:
            if waits >> lp.package & 1:
                return _call("TDH.PHYMEM.CACHE.WB", lp.index, rcx=0)
        return _call("TDH.MNG.KEY.FREEID", rcx=td.tdr)
    owned = [page.hpa for page in s.picture.pages.values() if page.owner == td.tdr]
    return _call("TDH.PHYMEM.PAGE.RECLAIM", rcx=owned[0] if owned else td.tdr)


def blocked(s: Situation, td: TdView, gpa: int, level: int) -> Call | None:
    """The next step towards an entry that is blocked and tracked; None when it is, or cannot be."""
    entry = td.mapping(gpa, level)
    if entry is None or entry.state is None:
        return None
    if not entry.state.blocked:
        return _call("TDH.MEM.RANGE.BLOCK", rcx=gpa | level, rdx=td.tdr)
    page = s.picture.pages.get(entry.hpa)
    if page is not None and page.bepoch >= td.epoch and td.op_state == OpState.RUNNABLE:
        return _call("TDH.MEM.TRACK", rcx=td.tdr)
    return None


def promotion(s: Situation, td: TdView, gpa: int = LARGE_PAGE) -> Call | None:
    """The next step of a large page through its states: block, track, split, and merge again."""
    whole = td.mapping(gpa, 1)
    if whole is None or whole.state is None or not s.free:
        return None
    step = blocked(s, td, gpa, 1)
    if step is not None:
        return step
    if whole.state.is_leaf:
        return _call(
            "TDH.MEM.PAGE.DEMOTE",
            rcx=gpa | 1, rdx=td.tdr, r8=s.free[0], r9=MASK64, r10=MASK64, r11=MASK64,
        )  # fmt: skip
    return _call("TDH.MEM.PAGE.PROMOTE", rcx=gpa | 1, rdx=td.tdr)


#: What may be done to an entry that is blocked and tracked.
ENDINGS: Final = (
    "TDH.MEM.RANGE.UNBLOCK",
    "TDH.MEM.PAGE.REMOVE",
    "TDH.MEM.PAGE.RELOCATE",
    "TDH.MEM.SEPT.REMOVE",
)


def ending(s: Situation, td: TdView, gpa: int, level: int, name: str) -> Call | None:
    """Block and track an entry, and then end its being blocked, one way or another."""
    entry = td.mapping(gpa, level)
    if entry is None or entry.state is None or not s.free:
        return None
    if entry.state.is_leaf == (name == "TDH.MEM.SEPT.REMOVE"):
        name = "TDH.MEM.RANGE.UNBLOCK"
    return blocked(s, td, gpa, level) or _call(name, rcx=gpa | level, rdx=td.tdr, r8=s.free[0])
