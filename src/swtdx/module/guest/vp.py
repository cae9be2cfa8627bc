"""TDG.VP.*: the vCPU itself."""

from __future__ import annotations

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS, TDVPS, VE_INFO, VE_INFO_WHOLE
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, R10, R11, RCX, RDX
from swtdx.module.errors import LeafFailed
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu


@guest_leaf("TDG.VP.INFO")
def vp_info(vcpu: Vcpu) -> int:
    """GPAW, attributes, vCPU numbers."""
    tdcs, gpr = vcpu.tdcs, vcpu.gpr
    gpr[RCX] = 52 if TDCS.gpaw.get(tdcs) else 48
    gpr[RDX] = TDCS.attributes.get(tdcs)
    gpr[R8] = TDCS.num_vcpus.get(tdcs) | TDCS.max_vcpus.get(tdcs) << 32
    gpr[R9] = TDVPS.vcpu_index.get(vcpu.main)
    gpr[R10] = 1
    gpr[R11] = 0
    return st.TDX_SUCCESS


@guest_leaf("TDG.VP.VEINFO.GET")
def veinfo_get(vcpu: Vcpu) -> int:
    """What the last #VE was; the next one may come."""
    main, gpr = vcpu.main, vcpu.gpr
    reason, valid, qualification, gla, gpa, _, length, information = VE_INFO_WHOLE.unpack_from(main)
    if not valid:
        for register in (RCX, RDX, R8, R9, R10):
            gpr[register] = 0
        return st.TDX_NO_VALID_VE_INFO
    gpr[RCX], gpr[RDX], gpr[R8], gpr[R9], gpr[R10] = (
        reason,
        qualification,
        gla,
        gpa,
        length | information << 32,
    )
    VE_INFO.valid.set(main, 0)
    return st.TDX_SUCCESS


@guest_leaf("TDG.VP.CPUIDVE.SET")
def cpuidve_set(vcpu: Vcpu) -> int:
    """Whether CPUID gives #VE in supervisor and in user mode."""
    flags = vcpu.gpr[RCX]
    if flags & ~3:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    TDVPS.cpuid_supervisor_ve.set(vcpu.main, flags & 1)
    TDVPS.cpuid_user_ve.set(vcpu.main, flags >> 1)
    return st.TDX_SUCCESS
