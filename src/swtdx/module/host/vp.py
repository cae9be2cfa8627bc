"""TDH.VP.*: vCPUs, but for TDH.VP.ENTER."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import (
    TDCS,
    TDCS_MIN_PAGES,
    TDCS_X2APIC_PAGE,
    TDR,
    TDVPS,
    TDVPS_MAX_PAGES,
    X2APIC_PAGE,
)
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, RCX, RDX
from swtdx.arch.states import LastTdExit, Lifecycle, PageType, VcpuState
from swtdx.arch.units import MASK32, NULL_PA, PAGE
from swtdx.machine.memory import SEAM
from swtdx.module import td_vmcs
from swtdx.module.call import HostCall
from swtdx.module.checks import disassociate, map_vp_pages, open_td, open_vp, vp_page
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import LP_DATA
from swtdx.module.objects.pamt import NDA
from swtdx.module.objects.td import Td
from swtdx.module.register import host_leaf
from swtdx.module.vcpu import flush_translations, save_state

_TDVPR: Final = int(PageType.TDVPR)
_TDCX: Final = int(PageType.TDCX)


@host_leaf("TDH.VP.CREATE")
def vp_create(call: HostCall) -> int:
    """Make a vCPU out of a free page."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    page = module.pamt.page(i[RCX], OperandId.RCX, NDA, exclusive=True, held=((td.tdr_hpa, 0),))
    tdvps = TDVPS.new()
    TDVPS.vcpu_state.set(tdvps, VcpuState.UNINITIALIZED)
    TDVPS.assoc_lpid.set(tdvps, 0xFFFFFFFF)
    TDVPS.num_tdvps_pages.set(tdvps, 1)
    TDVPS.tdvps_page_pa.set(tdvps, 0, module.private(td, i[RCX]))
    module.memory.direct_store(module.private(td, i[RCX]), bytes(tdvps), SEAM)
    td.add_children(1)
    page.set(_TDVPR, td.tdr_hpa)
    module.forget(i[RCX])
    return st.TDX_SUCCESS


@host_leaf("TDH.VP.ADDCX")
def vp_addcx(call: HostCall) -> int:
    """Add a page to a vCPU."""
    module, i = call.module, call.inputs
    vp = open_vp(module, i[RDX], OperandId.RDX, call.leaf.op_states, exclusive=True)
    main, td = vp.main, vp.td
    if TDVPS.vcpu_state.get(main) != VcpuState.UNINITIALIZED:
        raise LeafFailed(st.TDX_VCPU_STATE_INCORRECT)
    count = TDVPS.num_tdvps_pages.get(main)
    if count >= TDVPS_MAX_PAGES:
        raise LeafFailed(st.TDX_TDCX_NUM_INCORRECT)
    held = (vp.hpa, 0), (td.tdr_hpa, 0)
    page = module.pamt.page(i[RCX], OperandId.RCX, NDA, exclusive=True, held=held)
    module.memory.direct_zero(module.private(td, i[RCX]), PAGE, SEAM)
    TDVPS.tdvps_page_pa.set(main, count, module.private(td, i[RCX]))
    TDVPS.num_tdvps_pages.set(main, count + 1)
    td.add_children(1)
    page.set(_TDCX, td.tdr_hpa)
    return st.TDX_SUCCESS


def _x2apic_id(td: Td, index: int, x2apic_id: int) -> None:
    """Note the x2APIC id of vCPU ``index``.

    Raises:
        LeafFailed: OPERAND_INVALID | R8, X2APIC_ID_NOT_UNIQUE.
    """
    if x2apic_id > MASK32:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R8)
    if any(td.x2apic_id(other) == x2apic_id for other in range(index)):
        raise LeafFailed(st.TDX_X2APIC_ID_NOT_UNIQUE | x2apic_id)
    X2APIC_PAGE.x2apic_ids.set(td.pages[TDCS_X2APIC_PAGE], index, x2apic_id)


@host_leaf("TDH.VP.INIT")
def vp_init(call: HostCall) -> int:
    """Set a vCPU's initial state; it stays associated with this processor."""
    module, lp, i = call.module, call.lp, call.inputs
    vp = open_vp(
        module, i[RCX], OperandId.RCX, call.leaf.op_states, exclusive=True, exclusive_td=bool(call.version)
    )
    map_vp_pages(module, vp)
    main, tdcs = vp.main, vp.td.tdcs
    if TDVPS.vcpu_state.get(main) != VcpuState.UNINITIALIZED:
        raise LeafFailed(st.TDX_VCPU_STATE_INCORRECT)
    index = TDCS.num_vcpus.get(tdcs)
    if index >= TDCS.max_vcpus.get(tdcs):
        raise LeafFailed(st.TDX_MAX_VCPUS_EXCEEDED)
    if call.version:
        _x2apic_id(vp.td, index, i[R8])
    elif module.features.topology:
        TDCS.topology_enum_configured.set(tdcs, 0)
    # The index is taken before the last check, and lost if that fails.
    TDCS.num_vcpus.set(tdcs, index + 1)
    TDVPS.vcpu_index.set(main, index)
    module.check_tsc_adjust(lp)
    TDVPS.last_exit_tsc.set(main, lp.machine.tsc())
    TDVPS.xfam.set(main, TDCS.xfam.get(tdcs))
    td_vmcs.initial_registers(module, vp, i[RDX], index)
    TDVPS.vcpu_state.set(main, VcpuState.READY)
    TDVPS.last_td_exit.set(main, LastTdExit.ASYNC_FAULT)
    TDVPS.assoc_lpid.set(main, lp.index)
    TDCS.num_assoc_vcpus.set(tdcs, TDCS.num_assoc_vcpus.get(tdcs) + 1)
    td_vmcs.initialise(module, lp, vp)
    return st.TDX_SUCCESS


@host_leaf("TDH.VP.FLUSH")
def vp_flush(call: HostCall) -> int:
    """Take a vCPU off this processor: translations, VMCS and registers go back to its pages."""
    module, lp, i = call.module, call.lp, call.inputs
    vp, _, _ = vp_page(module, i[RCX], OperandId.RCX, exclusive=True)
    td = vp.td
    if TDR.lifecycle_state.get(td.tdr) != Lifecycle.KEYS_CONFIGURED:
        raise LeafFailed(st.TDX_TD_KEYS_NOT_CONFIGURED)
    if TDR.num_tdcx.get(td.tdr) < TDCS_MIN_PAGES:
        raise LeafFailed(st.TDX_TDCS_NOT_ALLOCATED)
    if not td.pages:
        td.map_tdcs(module.keyhole)
    map_vp_pages(module, vp)
    if TDVPS.assoc_lpid.get(vp.main) != lp.index:
        raise LeafFailed(st.TDX_VCPU_NOT_ASSOCIATED)
    flush_translations(lp, td)
    vmcs = lp.vmx.active.get(vp.vmcs_pa)
    if vmcs is not None:
        save_state(lp, vp, vmcs)
        lp.vmx.clear(vmcs.pa)
    disassociate(vp)
    view, at = module.data.lp(lp.index)
    LP_DATA.last_tdvpr.set(view, NULL_PA, at)
    return st.TDX_SUCCESS
