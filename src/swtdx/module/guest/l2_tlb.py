"""TDG.VP.INVEPT and TDG.VP.INVVPID: translations of L2 VMs, of which this module has none."""

from __future__ import annotations

from swtdx.arch import status as st
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RCX
from swtdx.module.errors import LeafFailed
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu


@guest_leaf("TDG.VP.INVEPT")
def invept(vcpu: Vcpu) -> int:
    """Flush the VMs of a mask; bit 0, the TD itself, is never allowed, and there are no others."""
    if vcpu.gpr[RCX]:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    return st.TDX_SUCCESS


@guest_leaf("TDG.VP.INVVPID")
def invvpid(_vcpu: Vcpu) -> int:
    """Flush linear addresses of an L2 VM: no VM number is valid."""
    raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
