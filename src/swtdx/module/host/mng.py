"""TDH.MNG.*: a TD as a whole."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS, TDCS_MAX_PAGES, TDCS_MIN_PAGES, TDCS_RTMRS, TDR
from swtdx.arch.operands import OperandId
from swtdx.arch.platform_structs import TD_PARAMS
from swtdx.arch.regs import RCX, RDX
from swtdx.arch.states import KotState, Lifecycle, OpState, PageType
from swtdx.arch.units import PAGE
from swtdx.machine.memory import SEAM
from swtdx.module import locks
from swtdx.module.call import HostCall
from swtdx.module.checks import open_td, shared_buffer, tdr_page
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import KOT_ENTRY, SYS
from swtdx.module.host.platform_checks import check_boot_nt4
from swtdx.module.objects import measurement
from swtdx.module.objects.pamt import NDA
from swtdx.module.objects.sept import FREE_PAGE
from swtdx.module.objects.td import TDCS_MSR_BITMAPS, TDCS_SEPT_ROOT
from swtdx.module.register import host_leaf
from swtdx.module.td_config import configure

_TDR: Final = int(PageType.TDR)
_TDCX: Final = int(PageType.TDCX)


def _own_kot(call: HostCall) -> None:
    """Raises LeafFailed when the KOT is in use."""
    if not locks.can_own(call.module.data.sys, SYS.kot_lock.offset):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.KOT)


@host_leaf("TDH.MNG.CREATE")
def mng_create(call: HostCall) -> int:
    """Make a TD out of a free page and a free HKID."""
    module, i = call.module, call.inputs
    sys = module.data.sys
    hkid = i[RDX]
    first = SYS.first_private_hkid.get(sys)
    if not first <= hkid < first + SYS.num_private_hkids.get(sys):
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    page = module.pamt.page(i[RCX], OperandId.RCX, NDA, exclusive=True)
    _own_kot(call)
    view, at = module.data.kot(hkid)
    if KOT_ENTRY.state.get(view, at) != KotState.FREE:
        raise LeafFailed(st.TDX_HKID_NOT_FREE)
    tdr = TDR.new()
    TDR.hkid.set(tdr, hkid)
    TDR.lifecycle_state.set(tdr, Lifecycle.HKID_ASSIGNED)
    TDR.td_uuid.set(tdr, module.machine.random.bytes(32))
    module.memory.direct_store(i[RCX] | module.global_keyid_bits, bytes(tdr), SEAM)
    KOT_ENTRY.state.set(view, KotState.ASSIGNED, at)
    page.set(_TDR, 0)  # a TDR has no owner; it is one
    module.forget(i[RCX])
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.KEY.CONFIG")
def mng_key_config(call: HostCall) -> int:
    """Program the TD's key on this package."""
    module, i = call.module, call.inputs
    td, _ = tdr_page(module, i[RCX], OperandId.RCX, exclusive=True)
    if TDR.fatal.get(td.tdr):
        raise LeafFailed(st.TDX_TD_FATAL)
    if TDR.lifecycle_state.get(td.tdr) != Lifecycle.HKID_ASSIGNED:
        raise LeafFailed(st.TDX_LIFECYCLE_STATE_INCORRECT)
    done = TDR.pkg_config_bitmap.get(td.tdr)
    if done >> call.lp.package & 1:
        raise LeafFailed(st.TDX_KEY_CONFIGURED)
    module.program_key(call.lp, td.hkid)
    done |= 1 << call.lp.package
    TDR.pkg_config_bitmap.set(td.tdr, done)
    if done == (1 << SYS.num_packages.get(module.data.sys)) - 1:
        TDR.lifecycle_state.set(td.tdr, Lifecycle.KEYS_CONFIGURED)
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.ADDCX")
def mng_addcx(call: HostCall) -> int:
    """Add a page to the TDCS."""
    module, i = call.module, call.inputs
    td, _ = tdr_page(module, i[RDX], OperandId.RDX, exclusive=True)
    if TDR.fatal.get(td.tdr):
        raise LeafFailed(st.TDX_TD_FATAL)
    if TDR.lifecycle_state.get(td.tdr) != Lifecycle.KEYS_CONFIGURED:
        raise LeafFailed(st.TDX_TD_KEYS_NOT_CONFIGURED)
    index = TDR.num_tdcx.get(td.tdr)
    if index >= TDCS_MAX_PAGES:
        raise LeafFailed(st.TDX_TDCX_NUM_INCORRECT)
    page = module.pamt.page(i[RCX], OperandId.RCX, NDA, exclusive=True, held=((td.tdr_hpa, 0),))
    if index >= TDCS_MIN_PAGES:
        if not td.pages:
            td.map_tdcs(module.keyhole)
        if not call.leaf.op_states >> TDCS.op_state.get(td.tdcs) & 1:
            raise LeafFailed(st.TDX_OP_STATE_INCORRECT)
    if index == TDCS_MSR_BITMAPS:
        content = b"\xff" * PAGE
    elif index == TDCS_SEPT_ROOT:
        content = FREE_PAGE
    else:
        content = bytes(PAGE)
    module.memory.direct_store(module.private(td, i[RCX]), content, SEAM)
    TDR.tdcx_pa.set(td.tdr, index, module.private(td, i[RCX]))
    TDR.num_tdcx.set(td.tdr, index + 1)
    td.add_children(1)
    page.set(_TDCX, td.tdr_hpa)
    module.forget(td.tdr_hpa)
    if index + 1 == TDCS_MIN_PAGES:
        td = module.td(td.tdr_hpa)
        td.map_tdcs(module.keyhole)
        # The migration encryption key is drawn here, although no TD of ours migrates.
        TDCS.mig_enc_key.set(td.tdcs, module.machine.random.bytes(32))
        TDCS.op_state.set(td.tdcs, OpState.UNINITIALIZED)
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.VPFLUSHDONE")
def mng_vpflushdone(call: HostCall) -> int:
    """No vCPU of the TD is held by a processor: its key may be retired."""
    module, i = call.module, call.inputs
    td, _ = tdr_page(module, i[RCX], OperandId.RCX, exclusive=True)
    _own_kot(call)
    lifecycle = TDR.lifecycle_state.get(td.tdr)
    if lifecycle not in (Lifecycle.HKID_ASSIGNED, Lifecycle.KEYS_CONFIGURED):
        raise LeafFailed(st.TDX_LIFECYCLE_STATE_INCORRECT)
    if lifecycle == Lifecycle.KEYS_CONFIGURED and TDR.num_tdcx.get(td.tdr) >= TDCS_MIN_PAGES:
        if not td.pages:
            td.map_tdcs(module.keyhole)
        if TDCS.op_state.get(td.tdcs) != OpState.UNINITIALIZED and TDCS.num_assoc_vcpus.get(td.tdcs):
            raise LeafFailed(st.TDX_FLUSHVP_NOT_DONE)
    view, at = module.data.kot(td.hkid)
    KOT_ENTRY.wbinvd.set(view, (1 << SYS.num_packages.get(module.data.sys)) - 1, at)
    KOT_ENTRY.state.set(view, KotState.FLUSHED, at)
    TDR.lifecycle_state.set(td.tdr, Lifecycle.BLOCKED)
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.KEY.FREEID")
def mng_key_freeid(call: HostCall) -> int:
    """The caches are written back on all packages: the HKID is free again."""
    module, i = call.module, call.inputs
    td, _ = tdr_page(module, i[RCX], OperandId.RCX, exclusive=True)
    if TDR.lifecycle_state.get(td.tdr) != Lifecycle.BLOCKED:
        raise LeafFailed(st.TDX_LIFECYCLE_STATE_INCORRECT)
    _own_kot(call)
    view, at = module.data.kot(td.hkid)
    if KOT_ENTRY.wbinvd.get(view, at):
        raise LeafFailed(st.TDX_WBCACHE_NOT_COMPLETE)
    KOT_ENTRY.state.set(view, KotState.FREE, at)
    TDR.lifecycle_state.set(td.tdr, Lifecycle.TEARDOWN)
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.KEY.RECLAIMID")
def mng_key_reclaimid(call: HostCall) -> int:
    """Deprecated: does nothing."""
    del call
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.INIT")
def mng_init(call: HostCall) -> int:
    """Configure the TD by TD_PARAMS."""
    module, lp, i = call.module, call.lp, call.inputs
    check_boot_nt4(lp)
    td = open_td(module, i[RCX], OperandId.RCX, call.leaf.op_states, exclusive=True)
    shared_buffer(module, i[RDX], TD_PARAMS.size, OperandId.RDX)
    params = module.memory.read(i[RDX], TD_PARAMS.size, SEAM)
    tdcs = td.tdcs
    before = [bytes(page) for page in td.pages]
    TDCS.num_vcpus.set(tdcs, 0)
    TDCS.num_assoc_vcpus.set(tdcs, 0)
    TDCS.td_epoch.set(tdcs, 1)
    TDCS.refcount.set(tdcs, 0, 0)
    TDCS.refcount.set(tdcs, 1, 0)
    try:
        configure(module, lp, td, params)
    except LeafFailed:
        # Intel's module leaves the fields that it had set by then, where they cannot be seen.
        for page, content in zip(td.pages, before, strict=True):
            page[:] = content
        raise
    measurement.start(tdcs)
    for field in TDCS_RTMRS:
        field.set(tdcs, bytes(48))
    TDCS.op_state.set(tdcs, OpState.INITIALIZED)
    return st.TDX_SUCCESS
