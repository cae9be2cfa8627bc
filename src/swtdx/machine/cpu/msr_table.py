"""The MSRs of a logical processor, one row each.

A row says at which scope the register exists, what it holds after reset, which bits software may write
(WRMSR of any other bit that differs from the register raises #GP if the bit is reserved, as the SDM
asks), and by which rule of :mod:`swtdx.machine.cpu.msr_rules` reading or writing it does more than move
bits.  Registers that are not here do not exist: RDMSR and WRMSR raise #GP.

Sources, by letter in the rows: S Intel SDM volume 4 (and volume 3 for layouts); T structures.md §10-11
and ``msr_defs.h`` of the TDX module 1.5.01; L intel/seam-loader ``msr.h``; X SDM volume 3 table 11-6
(x2APIC).  Reset values of capability registers are those of the modelled part (:mod:`.model`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from swtdx.machine.cpu.vmx_capabilities import VMX_MSRS

ALL: Final = (1 << 64) - 1


class Scope(enum.Enum):
    """Which logical processors share a register."""

    THREAD = "thread"
    PACKAGE = "package"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Msr:
    """One register.  ``writable`` 0 means read-only; ``readable`` False means a command."""

    address: int
    name: str
    scope: Scope
    reset: int
    writable: int
    rule: str = ""
    source: str = "S"
    readable: bool = True


THREAD, PACKAGE, PLATFORM = Scope.THREAD, Scope.PACKAGE, Scope.PLATFORM

# Addresses that other code names.
TSC: Final = 0x10
APIC_BASE: Final = 0x1B
FEATURE_CONTROL: Final = 0x3A
TSC_ADJUST: Final = 0x3B
SPEC_CTRL: Final = 0x48
KEYID_PARTITIONING: Final = 0x87
WBINVDP: Final = 0x98
WBNOINVDP: Final = 0x99
INTR_PENDING: Final = 0x9A
MISC_PACKAGE_CTLS: Final = 0xBC
XAPIC_DISABLE_STATUS: Final = 0xBD
MTRR_CAP: Final = 0xFE
ARCH_CAPABILITIES: Final = 0x10A
BIOS_DONE: Final = 0x151
MCG_STATUS: Final = 0x17A
MISC_ENABLE: Final = 0x1A0
SMRR_BASE: Final = 0x1F2
SMRR_MASK: Final = 0x1F3
SMRR2_BASE: Final = 0x1F6
SMRR2_MASK: Final = 0x1F7
MTRR_PHYSBASE0: Final = 0x200
MTRR_DEF_TYPE: Final = 0x2FF
SGX_DEBUG_MODE: Final = 0x503
TSC_DEADLINE: Final = 0x6E0
X2APIC_ID: Final = 0x802
TME_CAPABILITY: Final = 0x981
TME_ACTIVATE: Final = 0x982
TME_EXCLUDE_MASK: Final = 0x983
TME_EXCLUDE_BASE: Final = 0x984
SEAMRR_BASE: Final = 0x1400
SEAMRR_MASK: Final = 0x1401
SEAMEXTEND: Final = 0x1402
EFER: Final = 0xC0000080

# IA32_ARCH_CAPABILITIES: bits that must be set for a TDX Module to load (virt_msr_helpers.h), and those
# by which a guest's kernel knows that no mitigation is needed.  This processor does not speculate, so
# every "NO" is true; there is no TSX, so TSX_CTRL is clear.
_ARCH_CAPABILITIES: Final = sum(
    1 << bit
    for bit in (
        0,  # RDCL_NO
        1,  # IBRS_ALL
        3,  # SKIP_L1DFL_VMENTRY
        4,  # SSB_NO
        5,  # MDS_NO
        6,  # IF_PSCHANGE_MC_NO
        8,  # TAA_NO
        10,  # MISC_PACKAGE_CTLS
        11,  # ENERGY_FILTERING_CTL
        12,  # DOITM
        13,  # SBDR_SSDP_NO
        14,  # FBSDP_NO
        15,  # PSDP_NO
        20,  # BHI_NO
        21,  # XAPIC_DISABLE_STATUS
        24,  # PBRSB_NO
        26,  # GDS_NO
        27,  # RFDS_NO
        62,  # ITS_NO
    )
)
#: Variable-range MTRRs, and machine-check banks.
MTRR_COUNT: Final = 10
MCA_BANKS: Final = 22
# VCNT, fixed ranges, WC, SMRR, PRMRR, SMRR_LOCK, SEAMRR; there is no SMRR2 (bit 13).
_MTRR_CAP: Final = MTRR_COUNT | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15
# Fast strings, BTS and PEBS unavailable, MONITOR enabled.
_MISC_ENABLE: Final = 1 | 1 << 11 | 1 << 12 | 1 << 18
# IBRS, STIBP, SSBD, IPRED_DIS_U/S, RRSBA_DIS_U/S, PSFD, BHI_DIS_S.
_SPEC_CTRL: Final = 0x4FF
_PAT_RESET: Final = 0x0007040600070406
#: The fixed-range MTRRs.
MTRR_FIXED: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MAXPA_MASK: Final = (1 << 52) - 1
_SEAMRR_ADDRESS: Final = _MAXPA_MASK & ~((1 << 25) - 1)
_PAGE_ADDRESS: Final = _MAXPA_MASK & ~0xFFF

_ROWS: Final = (
    Msr(0x0, "IA32_P5_MC_ADDR", THREAD, 0, ALL),
    Msr(0x1, "IA32_P5_MC_TYPE", THREAD, 0, ALL),
    Msr(0x6, "IA32_MONITOR_FILTER_SIZE", THREAD, 0x40, ALL),
    Msr(TSC, "IA32_TIME_STAMP_COUNTER", THREAD, 0, ALL, "tsc"),
    Msr(0x17, "IA32_PLATFORM_ID", PACKAGE, 4 << 50, 0),
    Msr(APIC_BASE, "IA32_APIC_BASE", THREAD, 0xFEE00000, _PAGE_ADDRESS | 0xC00, "apic_base"),
    Msr(FEATURE_CONTROL, "IA32_FEATURE_CONTROL", THREAD, 0, 0x10FF07, "feature_control"),
    Msr(TSC_ADJUST, "IA32_TSC_ADJUST", THREAD, 0, ALL),
    Msr(SPEC_CTRL, "IA32_SPEC_CTRL", THREAD, 0, _SPEC_CTRL),
    Msr(0x49, "IA32_PRED_CMD", THREAD, 0, 0x1, "command", readable=False),
    Msr(0x79, "IA32_BIOS_UPDT_TRIG", THREAD, 0, ALL, "command", readable=False),
    Msr(KEYID_PARTITIONING, "IA32_MKTME_KEYID_PARTITIONING", PACKAGE, 0, 0, source="T"),
    Msr(0x8B, "IA32_BIOS_SIGN_ID", THREAD, 0, ALL, "microcode"),
    Msr(WBINVDP, "IA32_WBINVDP", PACKAGE, 0, ALL, "wbinvdp", "T"),
    Msr(WBNOINVDP, "IA32_WBNOINVDP", PACKAGE, 0, ALL, "wbinvdp", "T"),
    Msr(INTR_PENDING, "IA32_INTR_PENDING", THREAD, 0, 0, "intr_pending", "T"),
    Msr(0x9B, "IA32_SMM_MONITOR_CTL", THREAD, 0, 0),
    Msr(MISC_PACKAGE_CTLS, "IA32_MISC_PACKAGE_CTLS", PACKAGE, 0, 0x1, source="T"),
    Msr(XAPIC_DISABLE_STATUS, "IA32_XAPIC_DISABLE_STATUS", PACKAGE, 0, 0, source="T"),
    Msr(0xCE, "MSR_PLATFORM_INFO", PACKAGE, 0, 0, "platform_info"),
    Msr(0xCF, "IA32_CORE_CAPABILITIES", THREAD, 0, 0, source="T"),
    Msr(0xE1, "IA32_UMWAIT_CONTROL", THREAD, 0, 0xFFFFFFFD),
    Msr(0xE7, "IA32_MPERF", THREAD, 0, ALL),
    Msr(0xE8, "IA32_APERF", THREAD, 0, ALL),
    Msr(MTRR_CAP, "IA32_MTRRCAP", THREAD, _MTRR_CAP, 0, source="T"),
    Msr(ARCH_CAPABILITIES, "IA32_ARCH_CAPABILITIES", THREAD, _ARCH_CAPABILITIES, 0, source="T"),
    Msr(0x10B, "IA32_FLUSH_CMD", THREAD, 0, 0x1, "command", readable=False),
    Msr(BIOS_DONE, "MSR_BIOS_DONE", THREAD, 0, 0x3, "bios_done", "L"),
    Msr(0x174, "IA32_SYSENTER_CS", THREAD, 0, 0xFFFFFFFF),
    Msr(0x175, "IA32_SYSENTER_ESP", THREAD, 0, ALL, "canonical"),
    Msr(0x176, "IA32_SYSENTER_EIP", THREAD, 0, ALL, "canonical"),
    Msr(0x179, "IA32_MCG_CAP", THREAD, 0x0F000C00 | MCA_BANKS, 0),
    Msr(MCG_STATUS, "IA32_MCG_STATUS", THREAD, 0, 0xF),
    Msr(MISC_ENABLE, "IA32_MISC_ENABLE", THREAD, _MISC_ENABLE, 1 | 1 << 18 | 1 << 22 | 1 << 34),
    Msr(0x1D9, "IA32_DEBUGCTL", THREAD, 0, 0xFFC3),
    Msr(SMRR_BASE, "IA32_SMRR_PHYSBASE", THREAD, 0, 0xFFFFF0FF, "smrr"),
    Msr(SMRR_MASK, "IA32_SMRR_PHYSMASK", THREAD, 0, 0xFFFFFC00, "smrr"),
    Msr(0x277, "IA32_PAT", THREAD, _PAT_RESET, ALL, "pat"),
    Msr(MTRR_DEF_TYPE, "IA32_MTRR_DEF_TYPE", THREAD, 0, 0xCFF, "mtrr_default"),
    Msr(0x345, "IA32_PERF_CAPABILITIES", THREAD, 0x2000, 0, source="T"),
    Msr(SGX_DEBUG_MODE, "IA32_SGX_DEBUG_MODE", PACKAGE, 0, 0, source="T"),
    Msr(0x600, "IA32_DS_AREA", THREAD, 0, ALL, "canonical"),
    Msr(TSC_DEADLINE, "IA32_TSC_DEADLINE", THREAD, 0, ALL, "tsc_deadline"),
    Msr(0x6E1, "IA32_PKRS", THREAD, 0, 0xFFFFFFFF),
    Msr(TME_CAPABILITY, "IA32_TME_CAPABILITY", PACKAGE, 0, 0, "tme_capability", "T"),
    Msr(TME_ACTIVATE, "IA32_TME_ACTIVATE", PACKAGE, 0, 0x000F00FF800001FF, "tme_activate", "T"),
    Msr(TME_EXCLUDE_MASK, "IA32_TME_EXCLUDE_MASK", PACKAGE, 0, _PAGE_ADDRESS | 0x800, "tme_locked", "T"),
    Msr(TME_EXCLUDE_BASE, "IA32_TME_EXCLUDE_BASE", PACKAGE, 0, _PAGE_ADDRESS, "tme_locked", "T"),
    Msr(SEAMRR_BASE, "IA32_SEAMRR_PHYS_BASE", THREAD, 0, _SEAMRR_ADDRESS | 0x8, "seamrr_base", "T"),
    Msr(SEAMRR_MASK, "IA32_SEAMRR_PHYS_MASK", THREAD, 0, _SEAMRR_ADDRESS | 0xC00, "seamrr_mask", "T"),
    Msr(SEAMEXTEND, "IA32_SEAMEXTEND", PLATFORM, 0, ALL, "seamextend", "L", readable=False),
    Msr(0x1B01, "IA32_UARCH_MISC_CTL", THREAD, 0, 0x1, source="T"),
    Msr(EFER, "IA32_EFER", THREAD, 0, 0x901),
    Msr(0xC0000081, "IA32_STAR", THREAD, 0, ALL),
    Msr(0xC0000082, "IA32_LSTAR", THREAD, 0, ALL, "canonical"),
    Msr(0xC0000083, "IA32_CSTAR", THREAD, 0, ALL, "canonical"),
    Msr(0xC0000084, "IA32_FMASK", THREAD, 0, 0xFFFFFFFF),
    Msr(0xC0000100, "IA32_FS_BASE", THREAD, 0, ALL, "canonical"),
    Msr(0xC0000101, "IA32_GS_BASE", THREAD, 0, ALL, "canonical"),
    Msr(0xC0000102, "IA32_KERNEL_GS_BASE", THREAD, 0, ALL, "canonical"),
    Msr(0xC0000103, "IA32_TSC_AUX", THREAD, 0, 0xFFFFFFFF),
)

# The local APIC: (address, name, reset, writable).  Reserved addresses in between do not exist.
_X2APIC: Final = (
    (0x803, "VERSION", 0x01060015, 0),
    (0x808, "TPR", 0, 0xFF),
    (0x80A, "PPR", 0, 0),
    (0x80D, "LDR", 0, 0),
    (0x80F, "SIVR", 0xFF, 0x11FF),
    (0x828, "ESR", 0, 0),
    (0x82F, "LVT_CMCI", 0x10000, 0x117FF),
    (0x832, "LVT_TIMER", 0x10000, 0x710FF),
    (0x833, "LVT_THERMAL", 0x10000, 0x117FF),
    (0x834, "LVT_PMI", 0x10000, 0x117FF),
    (0x835, "LVT_LINT0", 0x10000, 0x1F7FF),
    (0x836, "LVT_LINT1", 0x10000, 0x1F7FF),
    (0x837, "LVT_ERROR", 0x10000, 0x110FF),
    (0x838, "INIT_COUNT", 0, 0xFFFFFFFF),
    (0x839, "CUR_COUNT", 0, 0),
    (0x83E, "DIV_CONF", 0, 0xB),
)


def _repeated() -> list[Msr]:
    rows = [Msr(address, f"MSR_{address:#x} (VMX capability)", THREAD, value, 0)
            for address, value in VMX_MSRS.items()]  # fmt: skip
    for number in range(MTRR_COUNT):
        base = MTRR_PHYSBASE0 + 2 * number
        rows.append(Msr(base, f"IA32_MTRR_PHYSBASE{number}", THREAD, 0, _PAGE_ADDRESS | 0xFF, "mtrr_base"))
        rows.append(Msr(base + 1, f"IA32_MTRR_PHYSMASK{number}", THREAD, 0, _PAGE_ADDRESS | 0x800))
    rows.extend(Msr(address, f"IA32_MTRR_FIX_{address:#x}", THREAD, 0, ALL, "mtrr_fixed")
                for address in MTRR_FIXED)  # fmt: skip
    for bank in range(MCA_BANKS):
        rows.append(Msr(0x280 + bank, f"IA32_MC{bank}_CTL2", THREAD, 0, 0x40007FFF))
        rows.extend(
            Msr(0x400 + 4 * bank + part, f"IA32_MC{bank}_{name}", THREAD, 0, ALL)
            for part, name in enumerate(("CTL", "STATUS", "ADDR", "MISC"))
        )
    rows.append(Msr(X2APIC_ID, "IA32_X2APIC_APICID", THREAD, 0, 0, "x2apic_id", "X"))
    rows.extend(Msr(address, f"IA32_X2APIC_{name}", THREAD, reset, writable, "x2apic", "X")
                for address, name, reset, writable in _X2APIC)  # fmt: skip
    rows.extend(
        Msr(address, f"IA32_X2APIC_{name}{number}", THREAD, 0, 0, "x2apic", "X")
        for first, name in ((0x810, "ISR"), (0x818, "TMR"), (0x820, "IRR"))
        for number, address in enumerate(range(first, first + 8))
    )
    rows.append(Msr(0x80B, "IA32_X2APIC_EOI", THREAD, 0, 0, "x2apic_eoi", "X", readable=False))
    rows.append(Msr(0x830, "IA32_X2APIC_ICR", THREAD, 0, 0xFFFFFFFF000CDFFF, "x2apic_icr", "X"))
    rows.append(Msr(0x83F, "IA32_X2APIC_SELF_IPI", THREAD, 0, 0xFF, "x2apic_self", "X", readable=False))
    return rows


#: Every MSR by address.
MSRS: Final[dict[int, Msr]] = {row.address: row for row in (*_ROWS, *_repeated())}
