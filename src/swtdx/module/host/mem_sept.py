"""TDH.MEM.SEPT.*: pages of the Secure EPT itself."""

from __future__ import annotations

from typing import Final

import numpy as np

from swtdx.arch import sept
from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, R10, R11, RCX, RDX
from swtdx.arch.states import PageType
from swtdx.arch.units import NULL_PA, PAGE, PAGE_NOT_USED
from swtdx.machine.memory import SEAM
from swtdx.module.call import HostCall
from swtdx.module.checks import open_td
from swtdx.module.errors import LeafFailed
from swtdx.module.objects.pamt import NDA
from swtdx.module.objects.sept import (
    FREE_PAGE,
    check_tracked,
    find,
    find_for,
    lock_entry,
    lock_tree,
    page_info,
    top_level,
)
from swtdx.module.register import host_leaf

_EPT: Final = int(PageType.EPT)
_L2_REGISTERS: Final = (R9, R10, R11)
_L2_ATTRIBUTES: Final = 1 << 0
_PAGES: Final = (R8, *_L2_REGISTERS)
#: Of RDX, which holds a TDR's HPA and a flag in bit 0.
_FLAGS_RESERVED: Final = 0xFFF0_0000_0000_0FFE


def _flagged(call: HostCall, register: int) -> int:
    """A page operand as version 1 gives it back if it is not used: bit 63 of an input is ignored."""
    value = call.inputs[register]
    return value if value == NULL_PA else value & ~PAGE_NOT_USED


@host_leaf("TDH.MEM.SEPT.ADD")
def sept_add(call: HostCall) -> int:
    """Add a Secure EPT page under an entry."""
    module, i = call.module, call.inputs
    if call.version:
        for register in _PAGES:
            call.gpr[register] = _flagged(call, register)
    if i[RDX] & _FLAGS_RESERVED:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    td = open_td(module, i[RDX] & -PAGE, OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 1, top_level(td))
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=False)
    hpa = _flagged(call, R8)
    page = None
    if hpa == NULL_PA:
        if not call.version:
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R8)
        if entry.state is not sept.NL_MAPPED:
            raise entry.failed(st.TDX_EPT_ENTRY_STATE_INCORRECT | OperandId.RCX)
    elif entry.state is sept.FREE:
        page = module.pamt.page(hpa, OperandId.R8, NDA, exclusive=True, held=((td.tdr_hpa, 0),))
    elif not i[RDX] & 1:
        raise entry.failed(st.TDX_EPT_ENTRY_STATE_INCORRECT | OperandId.RCX)
    elif call.version:
        call.gpr[R8] = hpa | PAGE_NOT_USED
    if call.version:
        for register in _L2_REGISTERS:
            # The TD has no L2 VMs that could use a page.
            if i[register] != NULL_PA:
                raise LeafFailed(st.TDX_OPERAND_INVALID | register)
    if page is not None:
        module.memory.direct_store(module.private(td, hpa), FREE_PAGE, SEAM)
        entry.store(sept.non_leaf_entry(hpa))
        td.add_children(1)
        page.set(_EPT, td.tdr_hpa)
        if call.version:
            call.gpr[R8] = NULL_PA
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.SEPT.REMOVE")
def sept_remove(call: HostCall) -> int:
    """Free a Secure EPT page that maps nothing."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 1, top_level(td))
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=True)
    hpa = entry.hpa
    page = module.pamt.owned(hpa, 0)
    if not page.ownable:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    check_tracked(td, entry, entry.state, page.bepoch)
    children = np.frombuffer(module.keyhole.map(hpa, td.hkid), dtype="<u8")
    if not bool(((children & np.uint64(sept.STATE_MASK)) == np.uint64(sept.FREE.bits)).all()):
        raise entry.failed(st.TDX_EPT_PAGE_NOT_FREE | OperandId.RCX)
    entry.store(sept.FREE_ENTRY)
    td.add_children(-1)
    page.free()
    call.gpr[RCX] = hpa
    if call.version:
        for register in _L2_REGISTERS:
            call.gpr[register] = NULL_PA
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.SEPT.RD")
def sept_rd(call: HostCall) -> int:
    """Show an entry to the host, without what it must not see."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX] & ~_L2_ATTRIBUTES, OperandId.RDX, call.leaf.op_states)
    if i[RDX] & _L2_ATTRIBUTES and not td.debug:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    gpa, level = page_info(td, i[RCX], 0, top_level(td))
    lock_tree(td, exclusive=False)
    entry = find(module.keyhole, td, gpa, level)
    lock_entry(entry)
    if i[RDX] & _L2_ATTRIBUTES:
        call.gpr[R8] = 0  # of no L2 VMs
    call.gpr[RCX] = sept.architectural_view(entry.raw & ~bits.TDHP)
    call.gpr[RDX] = sept.info(entry.raw, level)
    return st.TDX_SUCCESS
