"""Values of virtual MSRs that a TD is born with: IA32_ARCH_CAPABILITIES and the VMX capabilities.

Source: ``virt_msr_helpers.{h,c}`` and the L2 constants of ``vmcs_defs.h`` of the TDX module 1.5.01.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import msrs
from swtdx.arch.control_structs import CPUID_FLAGS, TDCS
from swtdx.arch.units import MASK64
from swtdx.arch.vmx_controls import (
    ENTRY_PERF,
    ENTRY_PKRS,
    EXIT_PERF,
    PROC2_USER_WAIT_PAUSE,
    PROC_MONITOR_EXITING,
    PROC_MWAIT_EXITING,
    PROC_RDPMC_EXITING,
)
from swtdx.module.state import ModuleState

_FLAG_INDEX: Final = {name: index for index, name in enumerate(CPUID_FLAGS)}

# IA32_ARCH_CAPABILITIES
_SSB_NO: Final = 1 << 4
_TSX_CTRL: Final = 1 << 7
_RRSBA: Final = 1 << 19
_BHI_NO: Final = 1 << 20
_PBRSB_NO: Final = 1 << 24
#: Bits that the host may let through where the processor has them; RRSBA it may set.
_ALLOWED: Final = _SSB_NO | _BHI_NO | _PBRSB_NO
#: MCU_CTLS, MISC_PACKAGE_CTLS, ENERGY_FILTERING_CTL, 16, FB_CLEAR, FB_CLEAR_CTRL, XAPIC_DISABLE_STATUS,
#: 22, OVERCLOCKING_STATUS: always 0 for a TD, as is all above bit 24.
_ZERO: Final = sum(1 << bit for bit in (9, 10, 11, 16, 17, 18, 21, 22, 23)) | ~0x1FFFFFF

# VMX controls: (initial value, bits that L1 may change).
_PIN: Final = (0x00000029, 0x00000000)
_PROC: Final = (0x91220088, 0x48D99A04)
_PROC2: Final = (0x1338B3FA, 0x0C513E0C)
_PROC3: Final = (0x80, 0x0E)
_EXIT: Final = (0x1F3C8204, 0x00000000)
_ENTRY: Final = (0x003EC004, 0x00000200)
_CR0: Final = (0x21, 0x8005001F)
_CR4: Final = (0x2040, 0x3FF1FBF)
_PCONFIG: Final = 1 << 27
#: IA32_VMX_BASIC: I/O information, TRUE_ MSRs, events without error code.
_BASIC: Final = 1 << 54 | 1 << 55 | 1 << 56
#: IA32_VMX_MISC: unrestricted guest, HLT, shutdown, PT in VMX, 4 CR3 targets, VMWRITE, length 0.
_MISC: Final = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 14 | 4 << 16 | 1 << 29 | 1 << 30
#: IA32_VMX_EPT_VPID_CAP: execute-only, 2 MiB, 1 GiB, advanced exit information.
_EPT: Final = 1 | 1 << 16 | 1 << 17 | 1 << 22
_SUPERVISOR_SHADOW_STACK: Final = 1 << 23
_HLAT_PREFIX: Final = 0x3F << 48


def arch_capabilities(native: int, configured: int, *, given: bool, tsx: bool) -> int | None:
    """IA32_ARCH_CAPABILITIES of a TD; None if the host's configuration is not allowed.

    ``configured`` is TD_PARAMS.IA32_ARCH_CAPABILITIES_CONFIG, which must be 0 unless ``given``.
    """
    if (configured and not given) or configured & ~(_ALLOWED | _RRSBA):
        return None
    value = native & ~_ZERO & ~(_ALLOWED & ~configured)
    if not tsx:
        value &= ~_TSX_CTRL
    return (value | configured & _RRSBA) & MASK64


def _allowed(initial: int, variable: int) -> int:
    """A control MSR: bits that must be 1 in 31:0, bits that may be 1 in 63:32."""
    return initial & ~variable & 0xFFFFFFFF | ((initial | variable) & 0xFFFFFFFF) << 32


def vmx_msrs(module: ModuleState, tdcs: memoryview) -> dict[str, int]:
    """The VMX capability MSRs of a TD, by their names in TDCS without ``virt_ia32_vmx_``."""
    attributes, xfam = TDCS.attributes.get(tdcs), TDCS.xfam.get(tdcs)
    debug, pks, perfmon = attributes & 1, attributes >> 30 & 1, attributes >> 63

    def has(name: str) -> int:
        return int(TDCS.cpuid_flags.get(tdcs, _FLAG_INDEX[name]))

    required = module.facts.required_controls
    proc, proc_mask = _PROC[0] | required(msrs.IA32_VMX_TRUE_PROCBASED_CTLS), _PROC[1]
    if not has("monitor_mwait"):
        proc |= PROC_MWAIT_EXITING | PROC_MONITOR_EXITING
    if perfmon:
        proc_mask |= PROC_RDPMC_EXITING
    else:
        proc, proc_mask = proc | PROC_RDPMC_EXITING, proc_mask & ~PROC_RDPMC_EXITING
    proc2, proc2_mask = _PROC2[0] | required(msrs.IA32_VMX_PROCBASED_CTLS2), _PROC2[1]
    for name, bit in (("waitpkg", PROC2_USER_WAIT_PAUSE), ("mktme", _PCONFIG)):
        if has(name):
            proc2, proc2_mask = proc2 | bit, proc2_mask | bit
        else:
            proc2_mask &= ~bit
    exit_controls = _EXIT[0] | required(msrs.IA32_VMX_TRUE_EXIT_CTLS)
    entry_controls = _ENTRY[0] & ~(ENTRY_PERF | ENTRY_PKRS) | required(msrs.IA32_VMX_TRUE_ENTRY_CTLS)
    if perfmon or debug:
        exit_controls, entry_controls = exit_controls | EXIT_PERF, entry_controls | ENTRY_PERF
    if pks or debug:
        entry_controls |= ENTRY_PKRS
    cr4_mask = l2_cr4_write_mask(module, tdcs)
    ept = (
        _EPT | (_SUPERVISOR_SHADOW_STACK if xfam >> 12 & 1 else 0) | module.facts.ept_vpid_cap & _HLAT_PREFIX
    )
    return {
        "basic": _BASIC,
        "misc": _MISC,
        "cr0_fixed0": _CR0[0] & ~_CR0[1],
        "cr0_fixed1": _CR0[0] | _CR0[1],
        "cr4_fixed0": _CR4[0] & ~cr4_mask,
        "cr4_fixed1": _CR4[0] | cr4_mask,
        "procbased_ctls2": _allowed(proc2, proc2_mask),
        "ept_vpid_cap": ept,
        "true_pinbased_ctls": _allowed(_PIN[0] | required(msrs.IA32_VMX_TRUE_PINBASED_CTLS), _PIN[1]),
        "true_procbased_ctls": _allowed(proc, proc_mask),
        "true_exit_ctls": _allowed(exit_controls, _EXIT[1]),
        "true_entry_ctls": _allowed(entry_controls, _ENTRY[1]),
        "vmfunc": 0,
        "procbased_ctls3": _PROC3[0] | _PROC3[1],
    }


def l2_cr4_write_mask(module: ModuleState, tdcs: memoryview) -> int:
    """Bits of an L2 VM's CR4 that the TD's configuration lets vary."""
    xfam, pks = TDCS.xfam.get(tdcs), TDCS.attributes.get(tdcs) >> 30 & 1
    _, _, fixed0, fixed1 = module.cr_fixed
    mask = _CR4[1] & ~fixed0 & fixed1 & ~(1 << 19)
    if not xfam >> 9 & 1:
        mask &= ~(1 << 22)
    if xfam >> 11 & 3 != 3:
        mask &= ~(1 << 23)
    if not xfam >> 14 & 1:
        mask &= ~(1 << 25)
    if not pks:
        mask &= ~(1 << 24)
    return mask
