"""TDG.MEM.*: the TD's private pages."""

from __future__ import annotations

from typing import Final

from swtdx.arch import sept
from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch.regs import RCX
from swtdx.machine.memory import SEAM
from swtdx.module.exits.ept import ACCEPT, refused
from swtdx.module.objects.sept import lock_entry_guest, page_info, walk
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu

_READABLE: Final = sept.GUEST_READABLE


@guest_leaf("TDG.MEM.PAGE.ACCEPT")
def page_accept(vcpu: Vcpu) -> int:
    """Take a pending page into use: it is zeroed and becomes the guest's."""
    module, td = vcpu.module, vcpu.td
    gpa, level = page_info(td, vcpu.gpr[RCX], 0, 1)
    entry = walk(module.keyhole, td, gpa, level)
    state = sept.state_of(entry.raw)
    if entry.level != level:
        if state.flags & _READABLE:
            return st.TDX_PAGE_ALREADY_ACCEPTED | entry.level
        raise refused(gpa, level, entry, ACCEPT)
    lock_entry_guest(entry)
    if not state.is_leaf and state is not sept.FREE and state is not sept.REMOVED:
        return st.TDX_PAGE_SIZE_MISMATCH | level
    if state.flags & _READABLE:
        return st.TDX_PAGE_ALREADY_ACCEPTED | level
    if not state.flags & sept.ACCEPTABLE:
        raise refused(gpa, level, entry, ACCEPT)
    size = bits.LEVEL_BYTES[level]
    hpa = entry.raw & bits.HPA & -size
    module.memory.direct_zero(module.private(td, hpa), size, SEAM)
    module.memory_written(hpa, size)
    target = sept.MAPPED if state is sept.PENDING_STATE else sept.EXP_DIRTY
    entry.store(sept.leaf_entry(target, hpa))
    return st.TDX_SUCCESS
