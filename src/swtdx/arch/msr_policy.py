"""What RDMSR and WRMSR do in a TD: the module's MSR policy, and the bitmap that enforces it.

Sources: ``msr_config_lookup.c``, ``td_msr_access.c`` and ``is_msr_dynamic_bit_cleared`` /
``set_msr_bitmaps`` in ``helpers.c`` of the TDX module 1.5.01; Intel SDM volume 3, "MSR-Bitmap
Address" for the layout of the bitmap page.

An MSR outside the table, or outside the two ranges that bitmaps cover, raises #VE.  "Native" means
that hardware semantics apply: writing a read-only MSR then raises #GP by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple


class Action(IntEnum):
    """What an access does."""

    NATIVE = 0  # no exit
    VE = 1
    GP = 2
    SPECIAL = 3  # the module emulates it


NATIVE: Final = Action.NATIVE
VE: Final = Action.VE
GP: Final = Action.GP
SPECIAL: Final = Action.SPECIAL

# Features of a TD on which the policy depends, as bits of a mask.
PERFMON: Final = 1 << 0
CET: Final = 1 << 1
PT: Final = 1 << 2
UINTR: Final = 1 << 3
LBR: Final = 1 << 4
PKS: Final = 1 << 5
WAITPKG: Final = 1 << 6
XFD: Final = 1 << 7
TSX: Final = 1 << 8
DCA: Final = 1 << 9
TME: Final = 1 << 10
MKTME: Final = 1 << 11
TSC_DEADLINE: Final = 1 << 12
PERF_METRICS: Final = 1 << 13  # PERFMON and native IA32_PERF_CAPABILITIES.PERF_METRICS_AVAILABLE
PERF_CAPABILITIES: Final = 1 << 14  # PERFMON and PT

FEATURE_NAMES: Final = (
    "PERFMON", "CET", "PT", "UINTR", "LBR", "PKS", "WAITPKG", "XFD", "TSX", "DCA", "TME", "MKTME",
    "TSC_DEADLINE", "PERF_METRICS", "PERF_CAPABILITIES",
)  # fmt: skip


class Access(NamedTuple):
    """What reading, or writing, does: ``enabled`` with the feature, ``action`` without it.

    ``feature`` is a bit of the mask; 0 if the action depends on nothing.
    """

    action: Action
    feature: int = 0
    enabled: Action = NATIVE

    def under(self, features: int) -> Action:
        """The action in a TD that has ``features``."""
        return self.enabled if self.feature & features else self.action


class MsrRule(NamedTuple):
    """The policy of the MSRs ``first`` to ``last``."""

    first: int
    last: int
    name: str
    read: Access
    write: Access


_NATIVE: Final = Access(NATIVE)
_VE: Final = Access(VE)
_GP: Final = Access(GP)
_SPECIAL: Final = Access(SPECIAL)


def _if(feature: int, otherwise: Action = GP) -> Access:
    return Access(otherwise, feature, NATIVE)


def _gp_or_ve(feature: int) -> Access:
    return Access(GP, feature, VE)


#: Every rule, by ascending address.
RULES: Final[tuple[MsrRule, ...]] = (
    MsrRule(0x10, 0x10, "IA32_TIME_STAMP_COUNTER", _NATIVE, _VE),
    MsrRule(0x48, 0x48, "IA32_SPEC_CTRL", _NATIVE, _NATIVE),
    MsrRule(0x49, 0x49, "IA32_PRED_CMD", _NATIVE, _NATIVE),
    MsrRule(0x87, 0x87, "IA32_MKTME_PARTITIONING", _gp_or_ve(MKTME), _gp_or_ve(MKTME)),
    MsrRule(0x8C, 0x8F, "IA32_SGXLEPUBKEYHASHx", _GP, _GP),
    MsrRule(0x98, 0x98, "MSR_WBINVDP", _GP, _GP),
    MsrRule(0x99, 0x99, "MSR_WBNOINVDP", _GP, _GP),
    MsrRule(0x9A, 0x9A, "MSR_INTR_PENDING", _GP, _GP),
    MsrRule(0x9B, 0x9B, "IA32_SMM_MONITOR_CTL", _GP, _GP),
    MsrRule(0x9E, 0x9E, "IA32_SMBASE", _GP, _GP),
    MsrRule(0xBC, 0xBC, "IA32_MISC_PACKAGE_CTLS", _NATIVE, _VE),
    MsrRule(0xBD, 0xBD, "IA32_XAPIC_DISABLE_STATUS", _SPECIAL, _NATIVE),
    MsrRule(0xC1, 0xC8, "IA32_PMCx", _if(PERFMON), _if(PERFMON)),
    MsrRule(0xE1, 0xE1, "IA32_UMWAIT_CONTROL", _if(WAITPKG), _if(WAITPKG)),
    MsrRule(0x10A, 0x10A, "IA32_ARCH_CAPABILITIES", _SPECIAL, _NATIVE),
    MsrRule(0x10B, 0x10B, "IA32_FLUSH_CMD", _NATIVE, _NATIVE),
    MsrRule(0x122, 0x122, "IA32_TSX_CTRL", _if(TSX), _if(TSX)),
    MsrRule(0x174, 0x174, "IA32_SYSENTER_CS", _NATIVE, _NATIVE),
    MsrRule(0x175, 0x175, "IA32_SYSENTER_ESP", _NATIVE, _NATIVE),
    MsrRule(0x176, 0x176, "IA32_SYSENTER_EIP", _NATIVE, _NATIVE),
    MsrRule(0x186, 0x18D, "IA32_PERFEVTSELx", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x195, 0x195, "IA32_OVERCLOCKING_STATUS", _GP, _GP),
    MsrRule(0x1A0, 0x1A0, "IA32_MISC_ENABLE", _if(PERFMON, SPECIAL), _VE),
    MsrRule(0x1A6, 0x1A7, "MSR_OFFCORE_RSPx", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x1C4, 0x1C4, "IA32_XFD", _if(XFD), _if(XFD)),
    MsrRule(0x1C5, 0x1C5, "IA32_XFD_ERR", _if(XFD), _if(XFD)),
    MsrRule(0x1D9, 0x1D9, "IA32_DEBUGCTL", _SPECIAL, _SPECIAL),
    MsrRule(0x1F8, 0x1F8, "IA32_PLATFORM_DCA_CAP", _gp_or_ve(DCA), _gp_or_ve(DCA)),
    MsrRule(0x1F9, 0x1F9, "IA32_CPU_DCA_CAP", _gp_or_ve(DCA), _gp_or_ve(DCA)),
    MsrRule(0x1FA, 0x1FA, "IA32_DCA_0_CAP", _gp_or_ve(DCA), _gp_or_ve(DCA)),
    MsrRule(0x276, 0x276, "MSR_SLAM_ENABLE", _GP, _GP),
    MsrRule(0x277, 0x277, "IA32_PAT", _NATIVE, _NATIVE),
    MsrRule(0x309, 0x310, "IA32_FIXED_CTRx", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x329, 0x329, "IA32_PERF_METRICS", _if(PERF_METRICS), _if(PERF_METRICS)),
    MsrRule(0x345, 0x345, "IA32_PERF_CAPABILITIES", _if(PERF_CAPABILITIES, SPECIAL), _if(PERFMON)),
    MsrRule(0x38D, 0x38D, "IA32_FIXED_CTR_CTRL", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x38E, 0x38E, "IA32_PERF_GLOBAL_STATUS", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x38F, 0x38F, "IA32_PERF_GLOBAL_CTRL", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x390, 0x390, "IA32_PERF_GLOBAL_STATUS_RESET", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x391, 0x391, "IA32_PERF_GLOBAL_STATUS_SET", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x392, 0x392, "IA32_PERF_GLOBAL_INUSE", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x3F1, 0x3F1, "IA32_PEBS_ENABLE", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x3F2, 0x3F2, "MSR_PEBS_MATRIX_VECT", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x3F6, 0x3F6, "MSR_PEBS_LD_LATENCY", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x3F7, 0x3F7, "MSR_PEBS_FRONTEND", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x480, 0x480, "IA32_VMX_BASIC", _SPECIAL, _GP),
    MsrRule(0x481, 0x481, "IA32_VMX_PINBASED_CTLS", _VE, _GP),
    MsrRule(0x482, 0x482, "IA32_VMX_PROCBASED_CTLS", _VE, _GP),
    MsrRule(0x483, 0x483, "IA32_VMX_EXIT_CTLS", _VE, _GP),
    MsrRule(0x484, 0x484, "IA32_VMX_ENTRY_CTLS", _VE, _GP),
    MsrRule(0x485, 0x485, "IA32_VMX_MISC", _SPECIAL, _GP),
    MsrRule(0x486, 0x486, "IA32_VMX_CR0_FIXED0", _SPECIAL, _GP),
    MsrRule(0x487, 0x487, "IA32_VMX_CR0_FIXED1", _SPECIAL, _GP),
    MsrRule(0x488, 0x488, "IA32_VMX_CR4_FIXED0", _SPECIAL, _GP),
    MsrRule(0x489, 0x489, "IA32_VMX_CR4_FIXED1", _SPECIAL, _GP),
    MsrRule(0x48A, 0x48A, "IA32_VMX_VMCS_ENUM", _VE, _GP),
    MsrRule(0x48B, 0x48B, "IA32_VMX_PROCBASED_CTLS2", _SPECIAL, _GP),
    MsrRule(0x48C, 0x48C, "IA32_VMX_EPT_VPID_CAP", _SPECIAL, _GP),
    MsrRule(0x48D, 0x48D, "IA32_VMX_TRUE_PINBASED_CTLS", _SPECIAL, _GP),
    MsrRule(0x48E, 0x48E, "IA32_VMX_TRUE_PROCBASED_CTLS", _SPECIAL, _GP),
    MsrRule(0x48F, 0x48F, "IA32_VMX_TRUE_EXIT_CTLS", _SPECIAL, _GP),
    MsrRule(0x490, 0x490, "IA32_VMX_TRUE_ENTRY_CTLS", _SPECIAL, _GP),
    MsrRule(0x491, 0x491, "IA32_VMX_VMFUNC", _SPECIAL, _GP),
    MsrRule(0x492, 0x492, "IA32_VMX_PROCBASED_CTLS3", _SPECIAL, _GP),
    MsrRule(0x4C1, 0x4C8, "IA32_A_PMCx", _if(PERFMON), _if(PERFMON)),
    MsrRule(0x500, 0x500, "IA32_SGX_SVN_STATUS", _GP, _GP),
    MsrRule(0x560, 0x560, "IA32_RTIT_OUTPUT_BASE", _if(PT), _if(PT)),
    MsrRule(0x561, 0x561, "IA32_RTIT_OUTPUT_MASK_PTRS", _if(PT), _if(PT)),
    MsrRule(0x570, 0x570, "IA32_RTIT_CTL", _if(PT), _if(PT)),
    MsrRule(0x571, 0x571, "IA32_RTIT_STATUS", _if(PT), _if(PT)),
    MsrRule(0x572, 0x572, "IA32_RTIT_CR3_MATCH", _if(PT), _if(PT)),
    MsrRule(0x580, 0x580, "IA32_RTIT_ADDR0_A", _if(PT), _if(PT)),
    MsrRule(0x581, 0x581, "IA32_RTIT_ADDR0_B", _if(PT), _if(PT)),
    MsrRule(0x582, 0x582, "IA32_RTIT_ADDR1_A", _if(PT), _if(PT)),
    MsrRule(0x583, 0x583, "IA32_RTIT_ADDR1_B", _if(PT), _if(PT)),
    MsrRule(0x584, 0x584, "IA32_RTIT_ADDR2_A", _if(PT), _if(PT)),
    MsrRule(0x585, 0x585, "IA32_RTIT_ADDR2_B", _if(PT), _if(PT)),
    MsrRule(0x586, 0x586, "IA32_RTIT_ADDR3_A", _if(PT), _if(PT)),
    MsrRule(0x587, 0x587, "IA32_RTIT_ADDR3_B", _if(PT), _if(PT)),
    MsrRule(0x600, 0x600, "IA32_DS_AREA", _NATIVE, _NATIVE),
    MsrRule(0x6A0, 0x6A0, "IA32_U_CET", _if(CET), _if(CET)),
    MsrRule(0x6A2, 0x6A2, "IA32_S_CET", _if(CET), _if(CET)),
    MsrRule(0x6A4, 0x6A4, "IA32_PL0_SSP", _if(CET), _if(CET)),
    MsrRule(0x6A5, 0x6A5, "IA32_PL1_SSP", _if(CET), _if(CET)),
    MsrRule(0x6A6, 0x6A6, "IA32_PL2_SSP", _if(CET), _if(CET)),
    MsrRule(0x6A7, 0x6A7, "IA32_PL3_SSP", _if(CET), _if(CET)),
    MsrRule(0x6A8, 0x6A8, "IA32_INTERRUPT_SSP_TABLE_ADDR", _if(CET), _if(CET)),
    MsrRule(0x6E0, 0x6E0, "IA32_TSC_DEADLINE", _gp_or_ve(TSC_DEADLINE), _gp_or_ve(TSC_DEADLINE)),
    MsrRule(0x6E1, 0x6E1, "IA32_PKRS", _if(PKS), _if(PKS)),
    MsrRule(0x800, 0x801, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x804, 0x807, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x808, 0x808, "IA32_X2APIC_TPR", _NATIVE, _NATIVE),
    MsrRule(0x809, 0x809, "(xAPIC, reserved)", _NATIVE, _NATIVE),
    MsrRule(0x80A, 0x80A, "IA32_X2APIC_PPR", _NATIVE, _NATIVE),
    MsrRule(0x80B, 0x80B, "IA32_X2APIC_EOI", _NATIVE, _NATIVE),
    MsrRule(0x80C, 0x80C, "(xAPIC, reserved)", _NATIVE, _NATIVE),
    MsrRule(0x80E, 0x80E, "(xAPIC, reserved)", _NATIVE, _NATIVE),
    MsrRule(0x810, 0x817, "IA32_X2APIC_ISRx", _NATIVE, _NATIVE),
    MsrRule(0x818, 0x81F, "IA32_X2APIC_TMRx", _NATIVE, _NATIVE),
    MsrRule(0x820, 0x827, "IA32_X2APIC_IRRx", _NATIVE, _NATIVE),
    MsrRule(0x829, 0x82E, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x831, 0x831, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x83F, 0x83F, "IA32_X2APIC_SELF_IPI", _NATIVE, _NATIVE),
    MsrRule(0x840, 0x87F, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x880, 0x8BF, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x8C0, 0x8FF, "(xAPIC, reserved)", _GP, _GP),
    MsrRule(0x981, 0x981, "IA32_TME_CAPABILITY", _gp_or_ve(TME), _gp_or_ve(TME)),
    MsrRule(0x982, 0x982, "IA32_TME_ACTIVATE", _gp_or_ve(TME), _gp_or_ve(TME)),
    MsrRule(0x983, 0x983, "IA32_TME_EXCLUDE_MASK", _gp_or_ve(TME), _gp_or_ve(TME)),
    MsrRule(0x984, 0x984, "IA32_TME_EXCLUDE_BASE", _gp_or_ve(TME), _gp_or_ve(TME)),
    MsrRule(0x985, 0x985, "IA32_UINTR_RR", _if(UINTR), _if(UINTR)),
    MsrRule(0x986, 0x986, "IA32_UINTR_HANDLER", _if(UINTR), _if(UINTR)),
    MsrRule(0x987, 0x987, "IA32_UINTR_STACKADJUST", _if(UINTR), _if(UINTR)),
    MsrRule(0x988, 0x988, "IA32_UINTR_MISC", _if(UINTR), _if(UINTR)),
    MsrRule(0x989, 0x989, "IA32_UINTR_PD", _if(UINTR), _if(UINTR)),
    MsrRule(0x98A, 0x98A, "IA32_UINTR_TT", _if(UINTR), _if(UINTR)),
    MsrRule(0xC80, 0xC80, "IA32_DEBUG_INTERFACE", _NATIVE, _VE),
    MsrRule(0xD90, 0xD90, "IA32_BNDCFGS", _GP, _GP),
    MsrRule(0xD93, 0xD93, "IA32_PASID", _GP, _GP),
    MsrRule(0xDA0, 0xDA0, "IA32_XSS", _NATIVE, _SPECIAL),
    MsrRule(0x1200, 0x12FF, "IA32_LBR_INFO", _if(LBR), _if(LBR)),
    MsrRule(0x14CE, 0x14CE, "IA32_LBR_CTL", _if(LBR), _if(LBR)),
    MsrRule(0x14CF, 0x14CF, "IA32_LBR_DEPTH", _if(LBR), _if(LBR)),
    MsrRule(0x1500, 0x15FF, "IA32_LBR_x_FROM_IP", _if(LBR), _if(LBR)),
    MsrRule(0x1600, 0x16FF, "IA32_LBR_x_TO_IP", _if(LBR), _if(LBR)),
    MsrRule(0x1B01, 0x1B01, "IA32_UARCH_MISC_CTL", _NATIVE, _NATIVE),
    MsrRule(0xC0000080, 0xC0000080, "IA32_EFER", _NATIVE, _SPECIAL),
    MsrRule(0xC0000081, 0xC0000081, "IA32_STAR", _NATIVE, _NATIVE),
    MsrRule(0xC0000082, 0xC0000082, "IA32_LSTAR", _NATIVE, _NATIVE),
    MsrRule(0xC0000084, 0xC0000084, "IA32_FMASK", _NATIVE, _NATIVE),
    MsrRule(0xC0000100, 0xC0000100, "IA32_FSBASE", _NATIVE, _NATIVE),
    MsrRule(0xC0000101, 0xC0000101, "IA32_GSBASE", _NATIVE, _NATIVE),
    MsrRule(0xC0000102, 0xC0000102, "IA32_KERNEL_GS_BASE", _NATIVE, _NATIVE),
    MsrRule(0xC0000103, 0xC0000103, "IA32_TSC_AUX", _NATIVE, _NATIVE),
)

_FIRSTS: Final = [rule.first for rule in RULES]
_LOW_END: Final = 0x1FFF
_HIGH_START: Final = 0xC000_0000
_HIGH_END: Final = 0xC000_1FFF


def lookup(msr: int) -> MsrRule | None:
    """The rule of an MSR; None if the table has none (so that it raises #VE)."""
    position = bisect_right(_FIRSTS, msr) - 1
    if position < 0 or msr > RULES[position].last:
        return None
    return RULES[position]


def covered(msr: int) -> bool:
    """Whether MSR bitmaps have a bit for the MSR; all others exit always, and raise #VE."""
    return 0 <= msr <= _LOW_END or _HIGH_START <= msr <= _HIGH_END


def decide(msr: int, features: int, *, write: bool) -> Action:
    """What RDMSR, or WRMSR, of ``msr`` does in a TD that has ``features`` (a mask)."""
    rule = lookup(msr) if covered(msr) else None
    if rule is None:
        return VE
    return (rule.write if write else rule.read).under(features)


def td_features(
    attributes: int,
    xfam: int,
    *,
    waitpkg: bool = False,
    xfd: bool = False,
    tsx: bool = False,
    dca: bool = False,
    tme: bool = False,
    mktme: bool = False,
    tsc_deadline: bool = False,
    perf_metrics: bool = False,
) -> int:
    """The feature mask of a TD.

    ``attributes`` and ``xfam`` are the TD's; the flags are bits of its virtual CPUID (as
    TDCS.cpuid_flags keeps them), ``perf_metrics`` is native IA32_PERF_CAPABILITIES[15].
    """
    perfmon = bool(attributes >> 63 & 1)
    pt = bool(xfam >> 8 & 1)
    enabled = (
        (PERFMON, perfmon),
        (CET, bool(xfam >> 11 & 3)),
        (PT, pt),
        (UINTR, bool(xfam >> 14 & 1)),
        (LBR, bool(xfam >> 15 & 1)),
        (PKS, bool(attributes >> 30 & 1)),
        (WAITPKG, waitpkg),
        (XFD, xfd),
        (TSX, tsx),
        (DCA, dca),
        (TME, tme),
        (MKTME, mktme),
        (TSC_DEADLINE, tsc_deadline),
        (PERF_METRICS, perfmon and perf_metrics),
        (PERF_CAPABILITIES, perfmon and pt),
    )
    return sum(feature for feature, on in enabled if on)


@lru_cache(maxsize=32)
def bitmap(features: int) -> bytes:
    """The 4-KiB MSR bitmap page of a TD that has ``features``: a bit set means an exit.

    Read bitmap of MSRs 0..0x1FFF at byte 0, of 0xC0000000..0xC0001FFF at 1024; the write bitmaps at
    2048 and 3072.  Within each, MSR n (its low 13 bits) is bit ``n % 8`` of byte ``n // 8``.
    """
    page = bytearray(b"\xff" * 4096)
    for rule in RULES:
        half = 1024 if rule.first >= _HIGH_START else 0
        for access, base in ((rule.read, half), (rule.write, half + 2048)):
            if access.under(features) is not NATIVE:
                continue
            for msr in range(rule.first & _LOW_END, (rule.last & _LOW_END) + 1):
                page[base + msr // 8] &= ~(1 << msr % 8)
    return bytes(page)
