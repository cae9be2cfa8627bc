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
from swtdx.arch.units import NULL_PA, PAGE
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
_UNUSED: Final = 1 << 63
_L2_REGISTERS: Final = (R9, R10, R11)


@host_leaf("TDH.MEM.SEPT.ADD")
def sept_add(call: HostCall) -> int:
    """Add a Secure EPT page under an entry."""
    module, i = call.module, call.inputs
    existing_allowed = False
    if call.version:
        if i[RDX] & 0xFFE:
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
        existing_allowed = bool(i[RDX] & 1)
    td = open_td(module, i[RDX] & (-PAGE if call.version else -1), OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 1, top_level(td))
    if call.version:
        for register in _L2_REGISTERS:
            # No L2 VMs: their page operands must be unused.
            if i[register] != NULL_PA:
                raise LeafFailed(st.TDX_OPERAND_INVALID | register)
    entry = find_for(module.keyhole, td, gpa, level, call.leaf.sept_states, exclusive=False)
    if entry.state is sept.NL_MAPPED:
        if not existing_allowed:
            raise entry.failed(st.TDX_EPT_ENTRY_STATE_INCORRECT | OperandId.RCX)
    else:
        page = module.pamt.page(i[R8], OperandId.R8, NDA, exclusive=True)
        module.memory.direct_store(module.private(td, i[R8]), FREE_PAGE, SEAM)
        entry.store(sept.non_leaf_entry(i[R8]))
        td.add_children(1)
        page.set(_EPT, td.tdr_hpa)
        if call.version:
            call.gpr[R8] = NULL_PA
            for register in _L2_REGISTERS:
                call.gpr[register] = NULL_PA
        return st.TDX_SUCCESS
    call.gpr[R8] = i[R8] | _UNUSED
    for register in _L2_REGISTERS:
        call.gpr[register] = i[register] | _UNUSED
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
        raise entry.failed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    check_tracked(td, entry, entry.state, page.bepoch)
    children = np.frombuffer(module.keyhole.map(hpa, td.hkid), dtype="<u8")
    if not bool(((children & np.uint64(sept.STATE_MASK)) == np.uint64(sept.FREE.bits)).all()):
        raise entry.failed(st.TDX_EPT_PAGE_NOT_FREE | OperandId.RCX)
    entry.store(sept.FREE_ENTRY)
    td.add_children(-1)
    page.set(NDA, 0)
    call.gpr[RCX] = hpa
    if call.version:
        for register in _L2_REGISTERS:
            call.gpr[register] = NULL_PA
    return st.TDX_SUCCESS


@host_leaf("TDH.MEM.SEPT.RD")
def sept_rd(call: HostCall) -> int:
    """Show an entry to the host, without what it must not see."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states)
    gpa, level = page_info(td, i[RCX], 0, top_level(td))
    lock_tree(td, exclusive=False)
    entry = find(module.keyhole, td, gpa, level)
    lock_entry(entry)
    call.gpr[RCX] = sept.architectural_view(entry.raw & ~bits.TDHP)
    call.gpr[RDX] = sept.info(entry.raw, level)
    return st.TDX_SUCCESS
