"""TDH.MEM.PAGE.*: a TD's private pages."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from swtdx.arch import sept
from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, RCX, RDX
from swtdx.arch.states import OpState, PageType
from swtdx.arch.units import NULL_PA, PAGE
from swtdx.machine.memory import SEAM
from swtdx.module.call import HostCall
from swtdx.module.checks import open_td, shared_buffer
from swtdx.module.errors import LeafFailed
from swtdx.module.objects import measurement
from swtdx.module.objects.pamt import NDA, REG, SIZES
from swtdx.module.objects.sept import (
    SeptEntry,
    check_tracked,
    find,
    find_for,
    lock_entry,
    lock_tree,
    page_info,
    require,
    walk,
)
from swtdx.module.register import host_leaf

_EPT: Final = int(PageType.EPT)
_MERGEABLE: Final = (sept.MAPPED, sept.PENDING_STATE)
_POST_IMPORT: Final = int(OpState.POST_IMPORT)


@host_leaf("TDH.MEM.PAGE.ADD")
def page_add(call: HostCall) -> int:
    """Copy a page into the TD before it runs, and measure that it was added."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states, exclusive=True)
    gpa, _ = page_info(td, i[RCX], 0, 0)
    entry = find(module.keyhole, td, gpa, 0)
    require(entry, call.leaf.sept_states)
    shared_buffer(module, i[R9], PAGE, OperandId.R9)
    page = module.pamt.page(i[R8], OperandId.R8, NDA, exclusive=True, held=((td.tdr_hpa, 0),))
    content = module.memory.read(i[R9], PAGE, SEAM)
    module.memory.direct_store(module.private(td, i[R8]), content, SEAM)
    entry.store(sept.leaf_entry(sept.MAPPED, i[R8]))
    measurement.page_added(td.tdcs, gpa)
    td.add_children(1)
    page.set(REG, td.tdr_hpa)
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.PAGE.AUG")
def page_aug(call: HostCall) -> int:
    """Give the TD a page that it has to accept."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 0, 1)
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=False)
    page = module.pamt.free_range(i[R8], OperandId.R8, level, held=((td.tdr_hpa, 0),))
    entry.store(sept.leaf_entry(sept.PENDING_STATE, i[R8]))
    td.add_children(SIZES[level] // PAGE)
    page.set(REG, td.tdr_hpa)
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.PAGE.REMOVE")
def page_remove(call: HostCall) -> int:
    """Take a page away from the TD."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 0, 2)
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=False)
    hpa = entry.hpa & -SIZES[level]
    page = module.pamt.owned(hpa, level)
    if not page.ownable:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    check_tracked(td, entry, entry.state, page.bepoch)
    # Of the states of import, this is the only one in which pages can be removed.
    importing = TDCS.op_state.get(td.tdcs) == _POST_IMPORT
    entry.store(sept.REMOVED.bits | bits.SUPPRESS_VE if importing else sept.FREE_ENTRY)
    td.add_children(-(SIZES[level] // PAGE))
    page.free()
    call.gpr[RCX] = hpa
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.PAGE.RELOCATE")
def page_relocate(call: HostCall) -> int:
    """Move a page's content to another physical page."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, _ = page_info(td, i[RCX], 0, 0)
    entry = find_for(module.keyhole, td, gpa, 0, call.leaf.sept_states, exclusive=False)
    state = entry.state
    old_hpa, new_hpa = entry.hpa, i[R8]
    if new_hpa == old_hpa:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R8)
    old = module.pamt.owned(old_hpa, 0)
    if not old.ownable:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    check_tracked(td, entry, state, old.bepoch)
    new = module.pamt.page(new_hpa, OperandId.R8, NDA, exclusive=True, held=((td.tdr_hpa, 0),))
    if not state.pending:
        content = bytes(module.keyhole.map(old_hpa, td.hkid))
        module.memory.direct_store(module.private(td, new_hpa), content, SEAM)
    raw = sept.unblock(entry.raw)
    entry.store(raw & ~bits.HPA | new_hpa)
    new.set(REG, td.tdr_hpa)
    old.free()
    call.gpr[RCX] = old_hpa
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.PAGE.DEMOTE")
def page_demote(call: HostCall) -> int:
    """Split a 2-MiB or 1-GiB page into 512 smaller ones under a new Secure EPT page."""
    module, i = call.module, call.inputs
    if i[RDX] & 0xFFE:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    td = open_td(module, i[RDX] & -PAGE, OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 1, 2)
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=False)
    state = entry.state
    hpa = entry.hpa & -SIZES[level]
    large = module.pamt.owned(hpa, level)
    check_tracked(td, entry, state, large.bepoch)
    table = module.pamt.page(i[R8], OperandId.R8, NDA, exclusive=True, held=((td.tdr_hpa, 0),))
    if not large.ownable:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    target = sept.PENDING_STATE if state.pending else sept.MAPPED
    size = SIZES[level - 1]
    first = sept.leaf_entry(target, hpa)
    children = np.uint64(first) + np.arange(512, dtype=np.uint64) * np.uint64(size)
    module.memory.direct_store(module.private(td, i[R8]), children.tobytes(), SEAM)
    entry.store(sept.non_leaf_entry(i[R8]))
    # PAMT: the large leaf becomes 512 leaves of the next size, none of them blocked.
    large.free()
    if level == 1:
        _set_small(call, hpa, td.tdr_hpa, REG)
    else:
        for offset in range(0, SIZES[2], SIZES[1]):
            module.pamt.owned(hpa + offset, 1).set(REG, td.tdr_hpa)
    table.set(_EPT, td.tdr_hpa)
    td.add_children(1)
    return st.TDX_SUCCESS


def _set_small(call: HostCall, hpa: int, owner: int, page_type: int) -> None:
    """Rewrite the 512 4-KiB PAMT entries of a 2-MiB range."""
    word = struct.pack("<QQ", page_type << 16 | owner >> 12 << 24, 0)
    for view in call.module.pamt.children(hpa):
        view[:] = word * 256


@host_leaf("TDH.MEM.PAGE.PROMOTE")
def page_promote(call: HostCall) -> int:
    """Merge 512 pages of the same kind into one, and free their Secure EPT page."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 1, 2)
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=False)
    table_hpa = entry.hpa
    table = module.pamt.owned(table_hpa, 0)
    if not table.ownable:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    check_tracked(td, entry, entry.state, table.bepoch)
    children = np.frombuffer(module.keyhole.map(table_hpa, td.hkid), dtype="<u8")
    _check_children(entry, children, level)
    first = int(children[0])
    hpa, small = first & bits.HPA, sept.state_of(first)
    large = module.pamt.owned(hpa, level)
    if not large.ownable:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    entry.store(sept.leaf_entry(small, hpa))
    if level == 1:
        _set_small(call, hpa, td.tdr_hpa, NDA)
    else:
        for offset in range(0, SIZES[2], SIZES[1]):
            module.pamt.owned(hpa + offset, 1).free()
    large.set(REG, td.tdr_hpa)
    table.free()
    td.add_children(-1)
    call.gpr[RCX] = table_hpa
    return st.TDX_SUCCESS


def _check_children(entry: SeptEntry, children: np.ndarray, level: int) -> None:
    """All 512 entries map pages of one kind that lie one behind the other.

    They are locked and looked at one by one, so that the first that is held or wrong decides.

    Raises:
        LeafFailed: OPERAND_BUSY|RCX, EPT_INVALID_PROMOTE_CONDITIONS|RCX, with the entry that would be merged.
    """
    first = int(children[0]) & ~bits.TDHP
    step = np.arange(512, dtype=np.uint64) * np.uint64(SIZES[level - 1])
    wrong = (children & np.uint64(~bits.TDHP & NULL_PA)) != np.uint64(first & ~bits.TDEL) + step
    held = (children & np.uint64(bits.TDEL)) != 0
    if first & bits.HPA & SIZES[level] - 1 or sept.state_of(first) not in _MERGEABLE:
        wrong[0] = True
    stop = np.flatnonzero(wrong | held)
    if not stop.size:
        return
    if held[stop[0]]:
        children[stop[0]] |= np.uint64(bits.TDHP)
        raise entry.failed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    raise entry.failed(st.TDX_EPT_INVALID_PROMOTE_CONDITIONS | OperandId.RCX)


def _debug_leaf(call: HostCall) -> tuple[memoryview, int]:
    """The page that TDH.MEM.RD/WR address, and the HPA in it."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    if not td.debug:
        raise LeafFailed(st.TDX_TD_NON_DEBUG)
    gpa = i[RCX]
    if gpa & 7:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    lock_tree(td, exclusive=False)
    if gpa >= td.shared_bit:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    entry = walk(module.keyhole, td, gpa, 0)
    if not entry.is_present_leaf:
        raise entry.failed(st.TDX_EPT_ENTRY_NOT_PRESENT | OperandId.RCX)
    lock_entry(entry)
    require(entry, call.leaf.sept_states)
    hpa = entry.hpa & -SIZES[entry.level] | gpa & SIZES[entry.level] - 1
    return module.keyhole.map(hpa & -PAGE, td.hkid), hpa


@host_leaf("TDH.MEM.RD")
def mem_rd(call: HostCall) -> int:
    """Read 8 bytes of a debuggable TD's memory."""
    view, hpa = _debug_leaf(call)
    call.gpr[R8] = struct.unpack_from("<Q", view, hpa & PAGE - 1)[0]
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.WR")
def mem_wr(call: HostCall) -> int:
    """Write 8 bytes of a debuggable TD's memory."""
    view, hpa = _debug_leaf(call)
    call.gpr[R8] = struct.unpack_from("<Q", view, hpa & PAGE - 1)[0]
    struct.pack_into("<Q", view, hpa & PAGE - 1, call.inputs[R8])
    call.module.memory_written(hpa, 8)
    return st.TDX_SUCCESS
