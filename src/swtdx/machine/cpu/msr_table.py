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

from swtdx.arch import msrs as m
from swtdx.arch import x86
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import FRAME_MASK, LOCAL_APIC_BASE
from swtdx.machine.cpu.vmx_capabilities import VMX_MSRS


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


def _row(
    address: int,
    scope: Scope,
    reset: int,
    writable: int,
    rule: str = "",
    source: str = "S",
    *,
    readable: bool = True,
) -> Msr:
    """The row of an MSR that :mod:`swtdx.arch.msrs` names."""
    return Msr(address, m.NAMES[address], scope, reset, writable, rule, source, readable)


_ROWS: Final = (
    _row(m.IA32_P5_MC_ADDR, THREAD, 0, MASK64),
    _row(m.IA32_P5_MC_TYPE, THREAD, 0, MASK64),
    _row(m.IA32_MONITOR_FILTER_SIZE, THREAD, 0x40, MASK64),
    _row(m.IA32_TIME_STAMP_COUNTER, THREAD, 0, MASK64, "tsc"),
    _row(m.IA32_PLATFORM_ID, PACKAGE, 4 << 50, 0),
    _row(m.IA32_APIC_BASE, THREAD, LOCAL_APIC_BASE, FRAME_MASK | 0xC00, "apic_base"),
    _row(m.IA32_FEATURE_CONTROL, THREAD, 0, 0x10FF07, "feature_control"),
    _row(m.IA32_TSC_ADJUST, THREAD, 0, MASK64),
    _row(m.IA32_SPEC_CTRL, THREAD, 0, _SPEC_CTRL),
    _row(m.IA32_PRED_CMD, THREAD, 0, 0x1, "command", readable=False),
    _row(m.IA32_BIOS_UPDT_TRIG, THREAD, 0, MASK64, "command", readable=False),
    _row(m.IA32_MKTME_KEYID_PARTITIONING, PACKAGE, 0, 0, source="T"),
    _row(m.IA32_BIOS_SIGN_ID, THREAD, 0, MASK64, "microcode"),
    _row(m.IA32_WBINVDP, PACKAGE, 0, MASK64, "wbinvdp", "T"),
    _row(m.IA32_WBNOINVDP, PACKAGE, 0, MASK64, "wbinvdp", "T"),
    _row(m.IA32_INTR_PENDING, THREAD, 0, 0, "intr_pending", "T"),
    _row(m.IA32_SMM_MONITOR_CTL, THREAD, 0, 0),
    _row(m.IA32_MISC_PACKAGE_CTLS, PACKAGE, 0, 0x1, source="T"),
    _row(m.IA32_XAPIC_DISABLE_STATUS, PACKAGE, 0, 0, source="T"),
    _row(m.MSR_PLATFORM_INFO, PACKAGE, 0, 0, "platform_info"),
    _row(m.IA32_CORE_CAPABILITIES, THREAD, 0, 0, source="T"),
    _row(m.IA32_UMWAIT_CONTROL, THREAD, 0, 0xFFFFFFFD),
    _row(m.IA32_MPERF, THREAD, 0, MASK64),
    _row(m.IA32_APERF, THREAD, 0, MASK64),
    _row(m.IA32_MTRRCAP, THREAD, _MTRR_CAP, 0, source="T"),
    _row(m.IA32_ARCH_CAPABILITIES, THREAD, _ARCH_CAPABILITIES, 0, source="T"),
    _row(m.IA32_FLUSH_CMD, THREAD, 0, 0x1, "command", readable=False),
    _row(m.MSR_BIOS_DONE, THREAD, 0, 0x3, "bios_done", "L"),
    _row(m.IA32_SYSENTER_CS, THREAD, 0, 0xFFFFFFFF),
    _row(m.IA32_SYSENTER_ESP, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_SYSENTER_EIP, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_MCG_CAP, THREAD, 0x0F000C00 | MCA_BANKS, 0),
    _row(m.IA32_MCG_STATUS, THREAD, 0, 0xF),
    _row(m.IA32_MISC_ENABLE, THREAD, _MISC_ENABLE, 1 | 1 << 18 | 1 << 22 | 1 << 34),
    _row(m.IA32_DEBUGCTL, THREAD, 0, 0xFFC3),
    _row(m.IA32_SMRR_PHYSBASE, THREAD, 0, 0xFFFFF0FF, "smrr"),
    _row(m.IA32_SMRR_PHYSMASK, THREAD, 0, 0xFFFFFC00, "smrr"),
    _row(m.IA32_PAT, THREAD, _PAT_RESET, MASK64, "pat"),
    _row(m.IA32_MTRR_DEF_TYPE, THREAD, 0, 0xCFF, "mtrr_default"),
    _row(m.IA32_PERF_CAPABILITIES, THREAD, 0x2000, 0, source="T"),
    _row(m.IA32_SGX_DEBUG_MODE, PACKAGE, 0, 0, source="T"),
    _row(m.IA32_DS_AREA, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_TSC_DEADLINE, THREAD, 0, MASK64, "tsc_deadline"),
    _row(m.IA32_PKRS, THREAD, 0, 0xFFFFFFFF),
    _row(m.IA32_TME_CAPABILITY, PACKAGE, 0, 0, "tme_capability", "T"),
    _row(m.IA32_TME_ACTIVATE, PACKAGE, 0, 0x000F00FF800001FF, "tme_activate", "T"),
    _row(m.IA32_TME_EXCLUDE_MASK, PACKAGE, 0, FRAME_MASK | 0x800, "tme_locked", "T"),
    _row(m.IA32_TME_EXCLUDE_BASE, PACKAGE, 0, FRAME_MASK, "tme_locked", "T"),
    _row(m.IA32_SEAMRR_PHYS_BASE, THREAD, 0, _SEAMRR_ADDRESS | 0x8, "seamrr_base", "T"),
    _row(m.IA32_SEAMRR_PHYS_MASK, THREAD, 0, _SEAMRR_ADDRESS | 0xC00, "seamrr_mask", "T"),
    _row(m.IA32_SEAMEXTEND, PLATFORM, 0, MASK64, "seamextend", "L", readable=False),
    _row(m.IA32_UARCH_MISC_CTL, THREAD, 0, 0x1, source="T"),
    _row(m.IA32_EFER, THREAD, 0, 0x901),
    _row(m.IA32_STAR, THREAD, 0, MASK64),
    _row(m.IA32_LSTAR, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_CSTAR, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_FMASK, THREAD, 0, 0xFFFFFFFF),
    _row(m.IA32_FS_BASE, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_GS_BASE, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_KERNEL_GS_BASE, THREAD, 0, MASK64, "canonical"),
    _row(m.IA32_TSC_AUX, THREAD, 0, 0xFFFFFFFF),
)

# The local APIC: (offset in the APIC page, name, reset, writable).  The others do not exist.
_X2APIC: Final = (
    (x86.APIC_VERSION, "VERSION", 0x01060015, 0),
    (x86.APIC_TPR, "TPR", 0, 0xFF),
    (x86.APIC_PPR, "PPR", 0, 0),
    (x86.APIC_LDR, "LDR", 0, 0),
    (x86.APIC_SVR, "SIVR", 0xFF, 0x11FF),
    (x86.APIC_ESR, "ESR", 0, 0),
    (x86.APIC_LVT_CMCI, "LVT_CMCI", 0x10000, 0x117FF),
    (x86.APIC_LVT_TIMER, "LVT_TIMER", 0x10000, 0x710FF),
    (x86.APIC_LVT_THERMAL, "LVT_THERMAL", 0x10000, 0x117FF),
    (x86.APIC_LVT_PERFMON, "LVT_PMI", 0x10000, 0x117FF),
    (x86.APIC_LVT_LINT0, "LVT_LINT0", 0x10000, 0x1F7FF),
    (x86.APIC_LVT_LINT1, "LVT_LINT1", 0x10000, 0x1F7FF),
    (x86.APIC_LVT_ERROR, "LVT_ERROR", 0x10000, 0x110FF),
    (x86.APIC_INITIAL_COUNT, "INIT_COUNT", 0, 0xFFFFFFFF),
    (x86.APIC_CURRENT_COUNT, "CUR_COUNT", 0, 0),
    (x86.APIC_DIVIDE, "DIV_CONF", 0, 0xB),
)


def _repeated() -> list[Msr]:
    rows = [Msr(address, f"MSR_{address:#x} (VMX capability)", THREAD, value, 0)
            for address, value in VMX_MSRS.items()]  # fmt: skip
    for number in range(MTRR_COUNT):
        base = m.IA32_MTRR_PHYSBASE0 + 2 * number
        rows.append(Msr(base, f"IA32_MTRR_PHYSBASE{number}", THREAD, 0, FRAME_MASK | 0xFF, "mtrr_base"))
        rows.append(Msr(base + 1, f"IA32_MTRR_PHYSMASK{number}", THREAD, 0, FRAME_MASK | 0x800))
    rows.extend(Msr(address, f"IA32_MTRR_FIX_{address:#x}", THREAD, 0, MASK64, "mtrr_fixed")
                for address in MTRR_FIXED)  # fmt: skip
    for bank in range(MCA_BANKS):
        rows.append(Msr(m.IA32_MC0_CTL2 + bank, f"IA32_MC{bank}_CTL2", THREAD, 0, 0x40007FFF))
        rows.extend(
            Msr(m.IA32_MC0_CTL + 4 * bank + part, f"IA32_MC{bank}_{name}", THREAD, 0, MASK64)
            for part, name in enumerate(("CTL", "STATUS", "ADDR", "MISC"))
        )
    rows.append(_row(m.IA32_X2APIC_APICID, THREAD, 0, 0, "x2apic_id", "X"))
    rows.extend(Msr(x86.x2apic_msr(offset), f"IA32_X2APIC_{name}", THREAD, reset, writable, "x2apic", "X")
                for offset, name, reset, writable in _X2APIC)  # fmt: skip
    rows.extend(
        Msr(x86.x2apic_msr(first) + number, f"IA32_X2APIC_{name}{number}", THREAD, 0, 0, "x2apic", "X")
        for first, name in ((x86.APIC_ISR, "ISR"), (x86.APIC_TMR, "TMR"), (x86.APIC_IRR, "IRR"))
        for number in range(8)
    )
    rows.append(Msr(m.IA32_X2APIC_EOI, "IA32_X2APIC_EOI", THREAD, 0, 0, "x2apic_eoi", "X", readable=False))
    rows.append(Msr(m.IA32_X2APIC_ICR, "IA32_X2APIC_ICR", THREAD, 0, 0xFFFFFFFF000CDFFF, "x2apic_icr", "X"))
    rows.append(
        Msr(
            m.IA32_X2APIC_SELF_IPI,
            "IA32_X2APIC_SELF_IPI",
            THREAD,
            0,
            0xFF,
            "x2apic_self",
            "X",
            readable=False,
        )
    )
    return rows


#: Every MSR by address.
MSRS: Final[dict[int, Msr]] = {row.address: row for row in (*_ROWS, *_repeated())}
