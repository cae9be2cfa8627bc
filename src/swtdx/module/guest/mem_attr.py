"""TDG.MEM.PAGE.ATTR.*: how a private page is mapped for the TD and for its L2 VMs (it has none)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import sept
from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, RCX, RDX
from swtdx.module.errors import LeafFailed
from swtdx.module.exits.ept import refused, to_host
from swtdx.module.objects.sept import SeptEntry, lock_entry_guest, page_info, walk
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu

#: Type of the extended exit qualification of a failed ATTR.WR.
_ATTR_WR: Final = 5
_PENDING: Final = 1 << 62


def _allowed(vcpu: Vcpu, state: sept.SeptState) -> bool:
    return bool(vcpu.leaf.sept_states >> state.index & 1)


def _show(vcpu: Vcpu, gpa: int, entry: SeptEntry, attributes: int) -> int:
    """GPA, level and pending flag in RCX, the attributes of VMs 0..3 in RDX."""
    pending = _PENDING if sept.state_of(entry.raw).pending else 0
    vcpu.gpr[RCX] = gpa & -bits.LEVEL_BYTES[entry.level] | entry.level | pending
    vcpu.gpr[RDX] = attributes
    return st.TDX_SUCCESS


@guest_leaf("TDG.MEM.PAGE.ATTR.RD")
def attr_rd(vcpu: Vcpu) -> int:
    """Read how a page is mapped.  VM 0 (the TD itself) has no attributes: they read as 0."""
    gpr, td = vcpu.gpr, vcpu.td
    gpa = gpr[RCX]
    try:
        if gpa >= td.shared_bit:
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
        entry = walk(vcpu.module.keyhole, td, gpa, 0)
        lock_entry_guest(entry)
    except LeafFailed:
        gpr[RCX] = gpr[RDX] = 0
        raise
    if not _allowed(vcpu, sept.state_of(entry.raw)):
        raise to_host(gpa, 0)
    return _show(vcpu, gpa, entry, 0)


@guest_leaf("TDG.MEM.PAGE.ATTR.WR")
def attr_wr(vcpu: Vcpu) -> int:
    """Set attributes for L2 VMs: there are none, so that only "nothing" can be set."""
    gpr, td = vcpu.gpr, vcpu.td
    try:
        _check_attributes(gpr[RDX], gpr[R8])
        gpa, level = page_info(td, gpr[RCX], 0, 2)
        entry = walk(vcpu.module.keyhole, td, gpa, level)
        if entry.level != level:
            raise refused(gpa, level, entry, _ATTR_WR)
        lock_entry_guest(entry)
        state = sept.state_of(entry.raw)
        if not state.is_leaf and state is not sept.FREE:
            raise LeafFailed(st.TDX_PAGE_SIZE_MISMATCH | level)
    except LeafFailed:
        gpr[RCX] = gpr[RDX] = 0
        raise
    if not _allowed(vcpu, state):
        raise refused(gpa, level, entry, _ATTR_WR)
    return _show(vcpu, gpa, entry, 0)


def _check_attributes(attributes: int, masks: int) -> None:
    """Both must be 0 for the TD itself and for L2 VMs that do not exist: for all.

    Raises:
        LeafFailed: OPERAND_INVALID|RDX or |R8, whichever a lower VM has wrong.
    """
    for vm in range(4):
        if attributes >> 16 * vm & 0xFFFF:
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
        if masks >> 16 * vm & 0xFFFF:
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R8)
