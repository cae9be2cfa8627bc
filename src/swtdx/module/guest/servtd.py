"""TDG.SERVTD.*: a service TD asks for metadata of a TD that it is bound to.

No leaf of this module binds service TDs, so the way ends at the checks of the binding: with a status
where the TD itself can be wrong, with a "cross-TD" TD exit where the hypervisor has to put things
right.  Source: ``tdg_servtd_rd_wr.c`` of the TDX module 1.5.01.
"""

from __future__ import annotations

from typing import Final, NoReturn

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS, TDR
from swtdx.arch.metadata import NULL_ID
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R10, RAX, RCX, RDX
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import FRAME_MASK
from swtdx.module import locks
from swtdx.module.checks import check_op_state, map_state, tdr_page
from swtdx.module.errors import LeafFailed, TdExit
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu

_SLOT: Final = 0xFFF
_SLOTS: Final = 1
_BINDINGS_LOCK: Final = TDCS.servtd_bindings_lock.offset
_BUSY: Final = frozenset((st.TDX_OPERAND_BUSY, st.TDX_OPERAND_BUSY_HOST_PRIORITY))


@guest_leaf("TDG.SERVTD.RD")
def servtd_rd(vcpu: Vcpu) -> int:
    """Read one field of the target TD."""
    vcpu.gpr[RDX] = NULL_ID
    _bound_target(vcpu)


@guest_leaf("TDG.SERVTD.WR")
def servtd_wr(vcpu: Vcpu) -> int:
    """Write one field of the target TD."""
    _bound_target(vcpu)


def _bound_target(vcpu: Vcpu) -> NoReturn:
    """From the binding handle to the binding, which is never there.

    Raises:
        LeafFailed: OPERAND_INVALID|RCX, OPERAND_BUSY, TARGET_UUID_MISMATCH, TARGET_UUID_UPDATED.
        TdExit: CROSS_TD_TRAP: the target cannot be reached, or has no such binding.
    """
    gpr, module = vcpu.gpr, vcpu.module
    gpr[R8] = 0
    # Its first 8 bytes count; those behind them lie above bit 63.
    own_uuid = int.from_bytes(TDR.td_uuid.get(vcpu.td.tdr), "little")
    handle = gpr[RCX] - own_uuid & MASK64
    slot, hpa = handle & _SLOT, handle & FRAME_MASK
    if slot >= _SLOTS:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    try:
        target, _ = tdr_page(module, hpa, OperandId.TDR, exclusive=False)
        map_state(module, target)
        check_op_state(target, vcpu.leaf.op_states)
    except LeafFailed as failed:
        if failed.status & st.CODE_MASK in _BUSY:
            raise
        raise _cross_td(vcpu, failed.status, hpa) from None
    _check_uuid(vcpu, TDR.td_uuid.get(target.tdr), TDCS.preimport_uuid.get(target.tdcs))
    if not locks.hp_guest_can_share(target.tdcs, _BINDINGS_LOCK):
        raise LeafFailed(st.TDX_OPERAND_BUSY_HOST_PRIORITY | OperandId.SERVTD_BINDINGS)
    raise _cross_td(vcpu, st.TDX_SERVTD_NOT_BOUND | slot, hpa)


def _check_uuid(vcpu: Vcpu, uuid: bytes, before_import: bytes) -> None:
    gpr = vcpu.gpr
    given = b"".join(gpr[R10 + number].to_bytes(8, "little") for number in range(4))
    if given == uuid:
        return
    if given != before_import:
        raise LeafFailed(st.TDX_TARGET_UUID_MISMATCH)
    for number in range(4):
        gpr[R10 + number] = int.from_bytes(uuid[8 * number : 8 * number + 8], "little")
    raise LeafFailed(st.TDX_TARGET_UUID_UPDATED)


def _cross_td(vcpu: Vcpu, status: int, hpa: int) -> TdExit:
    """The guest reads ``status`` in RAX when it runs again; the host gets it, and the target's TDR."""
    vcpu.gpr[RAX] = status
    return TdExit(st.TDX_CROSS_TD_TRAP, 0, extended=status, gpa=hpa)
