"""The VMX capability MSRs, 0x480..0x493.

Each control word is given as the controls that must be 1 and those that may be 1.  They are what a
Sapphire Rapids server reports (Intel SDM volume 3, appendix A, for the layout and the default-1
classes), except where a control belongs to a feature that the processor does not show (WAITPKG, PT,
SGX, XSAVES stay available: the TDX Module sets these controls whatever CPUID says).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import msrs
from swtdx.machine.cpu.features import cr4_bits
from swtdx.machine.vmx.vmcs import REVISION


def _controls(must: int, may: int) -> int:
    """Bits 31:0: controls that must be 1; bits 63:32: controls that may be 1."""
    return must | may << 32


# Bits that the SDM calls "default 1" (appendix A.3 to A.5).
_PIN_DEFAULT1: Final = 0x00000016
_PROC_DEFAULT1: Final = 0x0401E172
_EXIT_DEFAULT1: Final = 0x00036DFF
_ENTRY_DEFAULT1: Final = 0x000011FF
# The TRUE_ forms let software clear some of those: CR3 load/store exiting, and the debug controls.
_TRUE_PROC: Final = 0x04006172
_TRUE_EXIT: Final = 0x00036DFB
_TRUE_ENTRY: Final = 0x000011FB

_PIN: Final = 0x000000FF
# All but bits 0 and 18, which are reserved; bit 17 activates the tertiary controls.
_PROC: Final = 0xFFFBFFFE
_EXIT: Final = 0xFF7FFFFF
# No MPX: neither "clear IA32_BNDCFGS" (exit, bit 23) nor "load IA32_BNDCFGS" (entry, bit 16).
_ENTRY: Final = 0x00FEF3FF
_PROC2: Final = 0xFF7FFFFF
_PROC3: Final = 0x000000FF

#: IA32_VMX_BASIC: revision, 2048-byte regions (the TDX Module takes no larger ones), write-back, I/O
#: information, TRUE_ MSRs, events without error code.
_BASIC: Final = REVISION | 2048 << 32 | 6 << 50 | 1 << 54 | 1 << 55 | 1 << 56
#: IA32_VMX_MISC: TSC shift 7, EFER.LMA on exit, HLT/shutdown/wait-for-SIPI, PT in VMX, IA32_SMBASE,
#: 4 CR3 targets, SMM monitor, VMWRITE to any field, injection with length 0.
_MISC: Final = 7 | 1 << 5 | 7 << 6 | 1 << 14 | 1 << 15 | 4 << 16 | 1 << 28 | 1 << 29 | 1 << 30
#: IA32_VMX_EPT_VPID_CAP: execute-only, 4 and 5 levels, UC, WB, 2 MiB, 1 GiB, INVEPT, A/D flags, advanced
#: exit information, supervisor shadow stack, INVEPT and INVVPID types.
_EPT_VPID: Final = (
    1 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 14 | 3 << 16 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23
    | 3 << 25 | 1 << 32 | 0xF << 40
)  # fmt: skip

#: Value by MSR address.
VMX_MSRS: Final[dict[int, int]] = {
    msrs.IA32_VMX_BASIC: _BASIC,
    msrs.IA32_VMX_PINBASED_CTLS: _controls(_PIN_DEFAULT1, _PIN),
    msrs.IA32_VMX_PROCBASED_CTLS: _controls(_PROC_DEFAULT1, _PROC),
    msrs.IA32_VMX_EXIT_CTLS: _controls(_EXIT_DEFAULT1, _EXIT),
    msrs.IA32_VMX_ENTRY_CTLS: _controls(_ENTRY_DEFAULT1, _ENTRY),
    msrs.IA32_VMX_MISC: _MISC,
    msrs.IA32_VMX_CR0_FIXED0: 0x80000021,  # CR0_FIXED0: PE, NE, PG
    msrs.IA32_VMX_CR0_FIXED1: 0xFFFFFFFF,  # CR0_FIXED1
    msrs.IA32_VMX_CR4_FIXED0: 0x2000,  # CR4_FIXED0: VMXE
    msrs.IA32_VMX_CR4_FIXED1: cr4_bits(),  # CR4_FIXED1
    msrs.IA32_VMX_VMCS_ENUM: 0x3E,  # VMCS_ENUM: highest index used, times 2
    msrs.IA32_VMX_PROCBASED_CTLS2: _controls(0, _PROC2),
    msrs.IA32_VMX_EPT_VPID_CAP: _EPT_VPID,
    msrs.IA32_VMX_TRUE_PINBASED_CTLS: _controls(_PIN_DEFAULT1, _PIN),
    msrs.IA32_VMX_TRUE_PROCBASED_CTLS: _controls(_TRUE_PROC, _PROC),
    msrs.IA32_VMX_TRUE_EXIT_CTLS: _controls(_TRUE_EXIT, _EXIT),
    msrs.IA32_VMX_TRUE_ENTRY_CTLS: _controls(_TRUE_ENTRY, _ENTRY),
    msrs.IA32_VMX_VMFUNC: 0x1,  # VMFUNC: EPTP switching
    msrs.IA32_VMX_PROCBASED_CTLS3: _PROC3,
    msrs.IA32_VMX_EXIT_CTLS2: 0x8,  # EXIT_CTLS2
}
