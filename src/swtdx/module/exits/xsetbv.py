"""XSETBV: the module loads XCR0 for the guest, if XFAM allows it (``td_other_exits.c`` of 1.5.01).

The scripted engine brings it; QEMU cannot intercept XSETBV (docs/fidelity.md).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.control_structs import TDVPS
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.td_config import XCR0_MASK, XFAM_AVX, XFAM_GROUPS, XFAM_REQUIRES, XFAM_SSE, XFAM_X87
from swtdx.arch.units import MASK32
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.exits.inject import inject_gp
from swtdx.module.vcpu import Vcpu

#: AVX needs SSE; the others are those of XFAM itself.
_REQUIRES: Final = ((XFAM_AVX, XFAM_SSE), *XFAM_REQUIRES)


def xsetbv_exit(vcpu: Vcpu, _out: VmExit) -> None:
    """#GP(0) for another register than XCR0, and for what the processor or XFAM refuses."""
    gpr = vcpu.gpr
    value = gpr[RAX] & MASK32 | (gpr[RDX] & MASK32) << 32
    if gpr[RCX] & MASK32 or not allowed(value, TDVPS.xfam.get(vcpu.main)):
        inject_gp(vcpu)
        return
    vcpu.context.xcr0 = value
    vcpu.advance()


def allowed(xcr0: int, xfam: int) -> bool:
    """Whether a TD with ``xfam`` may load ``xcr0`` (SDM volume 1, section 13.3)."""
    if not xcr0 & XFAM_X87 or xcr0 & ~(xfam & XCR0_MASK):
        return False
    for group in XFAM_GROUPS:
        if xcr0 & group not in (0, group & XCR0_MASK):
            return False
    return all(not xcr0 & bits or xcr0 & needed == needed for bits, needed in _REQUIRES)
