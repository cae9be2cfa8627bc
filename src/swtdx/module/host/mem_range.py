"""TDH.MEM.RANGE.*, TDH.MEM.TRACK: taking translations away."""

from __future__ import annotations

from swtdx.arch import sept
from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RCX, RDX
from swtdx.module import locks
from swtdx.module.call import HostCall
from swtdx.module.checks import open_td
from swtdx.module.errors import LeafFailed
from swtdx.module.objects.pamt import SIZES, Entry
from swtdx.module.objects.sept import (
    SeptEntry,
    find,
    find_for,
    is_tracked,
    lock_entry,
    lock_tree,
    page_info,
    require,
    top_level,
    tracking_needed,
)
from swtdx.module.objects.td import Td
from swtdx.module.register import host_leaf


def _metadata(call: HostCall, td: Td, entry: SeptEntry) -> Entry:
    """The PAMT entry that holds BEPOCH: of the page (leaf) or of the Secure EPT page (non-leaf)."""
    del td
    if entry.state.is_leaf:
        return call.module.pamt.owned(entry.hpa & -SIZES[entry.level], entry.level)
    return call.module.pamt.owned(entry.hpa, 0)


@host_leaf("TDH.MEM.RANGE.BLOCK")
def range_block(call: HostCall) -> int:
    """No new translations of a page, or of all that a Secure EPT page maps."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 0, top_level(td))
    lock_tree(td, exclusive=True)
    entry = find(module.keyhole, td, gpa, level)
    lock_entry(entry)
    if entry.state.blocked:
        raise entry.failed(st.TDX_GPA_RANGE_ALREADY_BLOCKED | OperandId.RCX)
    require(entry, call.leaf.sept_states)
    page = _metadata(call, td, entry)
    page.set_bepoch(TDCS.td_epoch.get(td.tdcs))
    entry.store(sept.block(entry.raw, level))
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.RANGE.UNBLOCK")
def range_unblock(call: HostCall) -> int:
    """The reverse of TDH.MEM.RANGE.BLOCK."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 0, top_level(td))
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=True)
    page = _metadata(call, td, entry)
    if tracking_needed(td, entry.state) and not is_tracked(td, page.bepoch):
        raise LeafFailed(st.TDX_TLB_TRACKING_NOT_DONE | OperandId.SEPT_TREE)
    entry.store(sept.unblock(entry.raw))
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.TRACK")
def mem_track(call: HostCall) -> int:
    """Begin a new TLB epoch."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RCX], OperandId.RCX, call.leaf.op_states)
    tdcs = td.tdcs
    if not locks.can_own(tdcs, TDCS.epoch_lock.offset):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.TD_EPOCH)
    epoch = TDCS.td_epoch.get(tdcs)
    if TDCS.refcount.get(tdcs, (epoch - 1) & 1):
        raise LeafFailed(st.TDX_PREVIOUS_TLB_EPOCH_BUSY)
    TDCS.td_epoch.set(tdcs, epoch + 1)
    return st.TDX_SUCCESS
