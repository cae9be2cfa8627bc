"""The checks that leaves share: from an operand to a TD or a vCPU that may be worked on.

Source: ``helpers.c`` of the TDX module 1.5.01; the order is in seamcall.md, "Checks common to TDR".
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS, TDCS_MIN_PAGES, TDR, TDVPS
from swtdx.arch.operands import OperandId
from swtdx.arch.states import NO_LP, Lifecycle, PageType, VcpuState
from swtdx.machine.processor import LogicalProcessor
from swtdx.module import locks
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import SYS
from swtdx.module.objects.pamt import Entry
from swtdx.module.objects.td import Td, Vp
from swtdx.module.state import ModuleState

_TDR: Final = int(PageType.TDR)
_TDVPR: Final = int(PageType.TDVPR)
_KEYS_CONFIGURED: Final = int(Lifecycle.KEYS_CONFIGURED)


def tdr_page(module: ModuleState, hpa: int, operand: int, *, exclusive: bool) -> tuple[Td, Entry]:
    """A TDR that an operand names, locked as asked; no state is checked.

    Raises:
        LeafFailed: operand checks 1-4.
    """
    entry = module.pamt.page(hpa, operand, _TDR, exclusive=exclusive)
    return module.td(hpa), entry


def map_state(module: ModuleState, td: Td) -> None:
    """Fatal flag, keys, TDCS pages (checks 5-7).

    Raises:
        LeafFailed: TD_FATAL, TD_KEYS_NOT_CONFIGURED, TDCS_NOT_ALLOCATED.
    """
    tdr = td.tdr
    if TDR.fatal.get(tdr):
        raise LeafFailed(st.TDX_TD_FATAL)
    if TDR.lifecycle_state.get(tdr) != _KEYS_CONFIGURED:
        raise LeafFailed(st.TDX_TD_KEYS_NOT_CONFIGURED)
    if TDR.num_tdcx.get(tdr) < TDCS_MIN_PAGES:
        raise LeafFailed(st.TDX_TDCS_NOT_ALLOCATED)
    if not td.pages:
        td.map_tdcs(module.keyhole)


def check_op_state(td: Td, allowed: int, *, exclusive: bool = False) -> None:
    """Checks 8 and 9; ``allowed`` has a bit for each OpState.

    Raises:
        LeafFailed: OPERAND_BUSY|OP_STATE, OP_STATE_INCORRECT.
    """
    offset = TDCS.op_state_lock.offset
    if not (
        locks.hp_host_can_own(td.tdcs, offset) if exclusive else locks.hp_host_can_share(td.tdcs, offset)
    ):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.OP_STATE)
    if not allowed >> TDCS.op_state.get(td.tdcs) & 1:
        raise LeafFailed(st.TDX_OP_STATE_INCORRECT)


def open_td(module: ModuleState, hpa: int, operand: int, allowed: int, *, exclusive: bool = False) -> Td:
    """A TD whose control structure can be worked on: all nine common checks.

    Raises:
        LeafFailed: one of them.
    """
    entry = module.pamt.page(hpa, operand, _TDR, exclusive=exclusive)
    del entry
    td = module.td(hpa)
    map_state(module, td)
    check_op_state(td, allowed)
    return td


def vp_page(
    module: ModuleState, hpa: int, operand: int, *, exclusive: bool, exclusive_td: bool = False
) -> tuple[Vp, Entry, Entry]:
    """A TDVPR that an operand names and its TD: (vCPU, TDVPR's entry, TDR's entry).

    ``exclusive`` and ``exclusive_td`` say how TDVPR and TDR are locked.

    Raises:
        LeafFailed: operand checks, OPERAND_BUSY|TDR.
    """
    entry = module.pamt.page(hpa, operand, _TDVPR, exclusive=exclusive)
    tdr_hpa = entry.owner
    tdr_entry = module.pamt.owned(tdr_hpa, 0)
    if not (tdr_entry.ownable if exclusive_td else tdr_entry.shareable):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.TDR)
    td = module.td(tdr_hpa)
    return module.vp(hpa, td), entry, tdr_entry


def open_vp(
    module: ModuleState, hpa: int, operand: int, allowed: int, *, exclusive: bool, exclusive_td: bool = False
) -> Vp:
    """A vCPU of a TD in an allowed state; its pages are not looked at.  Locks as :func:`vp_page`.

    Raises:
        LeafFailed: the common checks.
    """
    vp, _, _ = vp_page(module, hpa, operand, exclusive=exclusive, exclusive_td=exclusive_td)
    map_state(module, vp.td)
    check_op_state(vp.td, allowed)
    return vp


def map_vp_pages(module: ModuleState, vp: Vp) -> None:
    """The vCPU must have all its pages.

    Raises:
        LeafFailed: TDCX_NUM_INCORRECT.
    """
    needed = 6 + 3 * TDCS.num_l2_vms.get(vp.td.tdcs)
    if TDVPS.num_tdvps_pages.get(vp.main) < needed:
        raise LeafFailed(st.TDX_TDCX_NUM_INCORRECT)
    if len(vp.pages) < needed:
        vp.map_pages(module.keyhole)


def associate(lp: LogicalProcessor, vp: Vp, *, allow_disabled: bool) -> bool:
    """Bind the vCPU to this processor; True when it was not bound before.

    Raises:
        LeafFailed: VCPU_STATE_INCORRECT, VCPU_ASSOCIATED.
    """
    state = TDVPS.vcpu_state.get(vp.main)
    if not (state == VcpuState.READY or (allow_disabled and state == VcpuState.DISABLED)):
        raise LeafFailed(st.TDX_VCPU_STATE_INCORRECT)
    holder = TDVPS.assoc_lpid.get(vp.main)
    if holder == lp.index:
        return False
    if holder != NO_LP:
        raise LeafFailed(st.TDX_VCPU_ASSOCIATED)
    TDVPS.assoc_lpid.set(vp.main, lp.index)
    tdcs = vp.td.tdcs
    TDCS.num_assoc_vcpus.set(tdcs, TDCS.num_assoc_vcpus.get(tdcs) + 1)
    return True


def disassociate(vp: Vp) -> None:
    """The vCPU belongs to no processor any more."""
    TDVPS.assoc_lpid.set(vp.main, NO_LP)
    tdcs = vp.td.tdcs
    TDCS.num_assoc_vcpus.set(tdcs, TDCS.num_assoc_vcpus.get(tdcs) - 1)


def shared_buffer(module: ModuleState, pa: int, size: int, operand: int, *, aligned: bool = True) -> None:
    """A buffer in the hypervisor's memory: shared KeyID, outside the SEAM range, aligned to its size.

    Raises:
        LeafFailed: OPERAND_INVALID.
    """
    sys = module.data.sys
    hpa = pa & (1 << module.hpa_bits) - 1
    base, length = SYS.seamrr_base.get(sys), SYS.seamrr_size.get(sys)
    if (
        (aligned and pa & size - 1)
        or pa >> module.max_pa
        or pa >> module.hpa_bits >= SYS.first_private_hkid.get(sys)
        or (hpa < base + length and base < hpa + size)
    ):
        raise LeafFailed(st.TDX_OPERAND_INVALID | operand)
