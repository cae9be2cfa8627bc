"""TDH.PHYMEM.*: physical pages and caches, whatever their owner."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDR
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, RCX, RDX
from swtdx.arch.states import KotState, Lifecycle, PageType
from swtdx.module import locks
from swtdx.module.call import HostCall
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import KOT_ENTRY, SYS
from swtdx.module.objects.pamt import NDA, RSVD, SIZES
from swtdx.module.register import host_leaf

_TDR: Final = int(PageType.TDR)
_WITH_BEPOCH: Final = (int(PageType.REG), int(PageType.EPT))


@host_leaf("TDH.PHYMEM.PAGE.RDMD")
def page_rdmd(call: HostCall) -> int:
    """What the PAMT says of a page."""
    module, i = call.module, call.inputs
    module.pamt.check_hpa(i[RCX], OperandId.RCX)
    entry = module.pamt.walk(i[RCX], OperandId.RCX, exclusive=False, exact=False)
    g = call.gpr
    g[RCX], g[RDX], g[R8] = entry.page_type, entry.owner, entry.size
    g[R9] = entry.bepoch if entry.page_type in _WITH_BEPOCH else 0
    return st.TDX_SUCCESS


@host_leaf("TDH.PHYMEM.PAGE.RECLAIM")
def page_reclaim(call: HostCall) -> int:
    """Take back a page of a TD that is being torn down."""
    module, i = call.module, call.inputs
    hpa = i[RCX]
    module.pamt.check_hpa(hpa, OperandId.RCX)
    entry = module.pamt.walk(hpa, OperandId.RCX, exclusive=True, exact=False)
    if entry.page_type in (NDA, RSVD):
        raise LeafFailed(st.TDX_PAGE_METADATA_INCORRECT | OperandId.RCX)
    g = call.gpr
    page_type = entry.page_type
    g[RCX], g[RDX], g[R8] = page_type, entry.owner, entry.size
    call.keep_outputs = True
    if hpa & SIZES[entry.size] - 1:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    if page_type == _TDR:
        td = module.td(hpa)
        if TDR.lifecycle_state.get(td.tdr) != Lifecycle.TEARDOWN:
            raise LeafFailed(st.TDX_LIFECYCLE_STATE_INCORRECT)
        if TDR.chldcnt.get(td.tdr):
            raise LeafFailed(st.TDX_TD_ASSOCIATED_PAGES_EXIST)
    else:
        if not module.pamt.owned(entry.owner, 0).shareable:
            raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.TDR)
        td = module.td(entry.owner)
        if TDR.lifecycle_state.get(td.tdr) != Lifecycle.TEARDOWN:
            raise LeafFailed(st.TDX_LIFECYCLE_STATE_INCORRECT)
        td.add_children(-(SIZES[entry.size] >> 12))
    entry.free()
    module.forget(hpa)
    return st.TDX_SUCCESS


@host_leaf("TDH.PHYMEM.CACHE.WB")
def cache_wb(call: HostCall) -> int:
    """Write this package's caches back, for the HKIDs that wait for it."""
    module, lp = call.module, call.lp
    if call.inputs[RCX] > 1:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    data = module.data
    sys = data.sys
    if SYS.wb_mutex.get(sys, lp.package):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.WBCACHE)
    if not locks.can_share(sys, SYS.kot_lock.offset):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.KOT)
    if call.inputs[RCX] and not SYS.wb_resume.get(sys, lp.package):
        raise LeafFailed(st.TDX_WBCACHE_RESUME_ERROR)
    package = 1 << lp.package
    first = SYS.first_private_hkid.get(sys)
    waiting = []
    for hkid in range(first, first + SYS.num_private_hkids.get(sys)):
        view, at = data.kot(hkid)
        if KOT_ENTRY.state.get(view, at) == KotState.FLUSHED:
            waiting.append((view, at))
    if not waiting:
        return st.TDX_NO_HKID_READY_TO_WBCACHE
    # Bookkeeping first: the flush itself unmaps the pages that these views look at.
    for view, at in waiting:
        KOT_ENTRY.wbinvd.set(view, KOT_ENTRY.wbinvd.get(view, at) & ~package, at)
    SYS.wb_resume.set(sys, lp.package, 0)
    module.memory.wbinvd()
    return st.TDX_SUCCESS


@host_leaf("TDH.PHYMEM.PAGE.WBINVD")
def page_wbinvd(call: HostCall) -> int:
    """Flush the cache lines of a page without an owner; the address carries the HKID it was used with."""
    module, i = call.module, call.inputs
    pa = i[RCX]
    hpa = pa & (1 << module.hpa_bits) - 1
    if pa >> module.max_pa or pa & 0xFFF:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    entry = module.pamt.walk(hpa, OperandId.RCX, exclusive=False)
    if entry.page_type != NDA:
        raise LeafFailed(st.TDX_PAGE_METADATA_INCORRECT | OperandId.RCX)
    module.flush_page(pa)
    return st.TDX_SUCCESS
