"""TDG.MR.*: run-time measurement and reports."""

from __future__ import annotations

import hashlib
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS, TDCS_RTMRS
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, RCX, RDX
from swtdx.arch.report_structs import REPORTTYPE, TDINFO
from swtdx.machine import seamops
from swtdx.module import locks
from swtdx.module.errors import LeafFailed, TdExit
from swtdx.module.guest.memory import buffer
from swtdx.module.objects import measurement
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu

_TDX_REPORT: Final = 0x81
_RTMR_LOCK: Final = TDCS.rtmr_lock.offset


def _busy(vcpu: Vcpu) -> LeafFailed:
    """The RTMRs are locked: by another vCPU, or kept free for the host that waits for them."""
    waits = vcpu.tdcs[_RTMR_LOCK] & locks.HOST_PRIORITY
    return LeafFailed((st.TDX_OPERAND_BUSY_HOST_PRIORITY if waits else st.TDX_OPERAND_BUSY) | OperandId.RTMR)


@guest_leaf("TDG.MR.RTMR.EXTEND")
def rtmr_extend(vcpu: Vcpu) -> int:
    """Extend a run-time measurement register by 48 bytes."""
    gpa, index = vcpu.gpr[RCX], vcpu.gpr[RDX]
    if gpa & 63:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    data = buffer(vcpu, gpa, OperandId.RCX, write=False, private_only=True).read(48)
    if index >= len(TDCS_RTMRS):
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    if not locks.hp_guest_can_own(vcpu.tdcs, _RTMR_LOCK):
        raise _busy(vcpu)
    measurement.extend_rtmr(vcpu.tdcs, index, data)
    TDCS.last_teeinfo_hash_valid.set(vcpu.tdcs, 0)
    return st.TDX_SUCCESS


def td_info(tdcs: memoryview) -> bytes:
    """TDINFO of a TD, 512 bytes."""
    info = TDINFO.new()
    TDINFO.attributes.set(info, TDCS.attributes.get(tdcs))
    TDINFO.xfam.set(info, TDCS.xfam.get(tdcs))
    for name in (
        "mrtd",
        "mrconfigid",
        "mrowner",
        "mrownerconfig",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
        "servtd_hash",
    ):
        getattr(TDINFO, name).set(info, getattr(TDCS, name).get(tdcs))
    return bytes(info)


@guest_leaf("TDG.MR.REPORT")
def mr_report(vcpu: Vcpu) -> int:
    """A TDREPORT over 64 bytes of the guest's choice."""
    report_gpa, data_gpa, subtype = vcpu.gpr[RCX], vcpu.gpr[RDX], vcpu.gpr[R8]
    if report_gpa & 1023:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    if data_gpa & 63:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    report_data = buffer(vcpu, data_gpa, OperandId.RDX, write=False, private_only=False).read(64)
    if subtype:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R8)
    tdcs = vcpu.tdcs
    if not locks.hp_guest_can_share(tdcs, _RTMR_LOCK):
        raise _busy(vcpu)
    info = td_info(tdcs)
    digest = hashlib.sha384(info).digest()
    TDCS.last_teeinfo_hash.set(tdcs, digest)
    TDCS.last_teeinfo_hash_valid.set(tdcs, 1)
    kind = REPORTTYPE.new()
    REPORTTYPE.type_.set(kind, _TDX_REPORT)
    try:
        head = seamops.seamreport(vcpu.lp.machine.seam, bytes(kind), report_data, digest)
    except seamops.SeamOpsError:
        raise TdExit(st.TDX_NON_RECOVERABLE_TD_CORRUPTED_MD, 0) from None
    buffer(vcpu, report_gpa, OperandId.RCX, write=True, private_only=False).write(head + info)
    return st.TDX_SUCCESS


@guest_leaf("TDG.MR.VERIFYREPORT")
def mr_verifyreport(vcpu: Vcpu) -> int:
    """Whether a REPORTMACSTRUCT was made by this machine."""
    gpa = vcpu.gpr[RCX]
    if gpa & 255:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    data = buffer(vcpu, gpa, OperandId.RCX, write=False, private_only=True).read(256)
    result = seamops.verify_mac(vcpu.lp.machine.seam, data)
    if result is seamops.Result.SUCCESS:
        return st.TDX_SUCCESS
    if result is seamops.Result.INVALID_CPUSVN:
        return st.TDX_INVALID_CPUSVN
    return st.TDX_INVALID_REPORTMACSTRUCT
