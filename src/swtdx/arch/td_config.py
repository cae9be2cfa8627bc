"""What a TD may be: ATTRIBUTES, XFAM, CONFIG_FLAGS, EPTP_CONTROLS and the control fields of TDCS.

Sources: ``td_control_structures.h``, include/tdx_api_defs.h and the checks ``verify_td_attributes``,
``check_xfam``, ``verify_and_set_td_eptp_controls`` in ``helpers.c`` of the TDX module 1.5.01; newer
bits from structures.md §5.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.bits import Bits

# ATTRIBUTES
ATTR_DEBUG: Final = 1 << 0
ATTR_SEPT_VE_DISABLE: Final = 1 << 28
ATTR_MIGRATABLE: Final = 1 << 29
ATTR_PKS: Final = 1 << 30
ATTR_KL: Final = 1 << 31
ATTR_PERFMON: Final = 1 << 63

#: Bit number and name of every ATTRIBUTES bit that has a name, also in newer modules.
ATTRIBUTE_NAMES: Final[dict[int, str]] = {
    0: "DEBUG", 4: "HGS_PLUS_PROF", 5: "PERF_PROF", 6: "PMT_PROF", 16: "ICSSD", 27: "LASS",
    28: "SEPT_VE_DISABLE", 29: "MIGRATABLE", 30: "PKS", 31: "KL", 62: "TPA", 63: "PERFMON",
}  # fmt: skip
#: The groups that verifiers look at: TD under debug, security, other.
ATTRIBUTE_GROUPS: Final = (Bits("TUD", 7, 0), Bits("SEC", 31, 8), Bits("OTHER", 63, 32))
#: FIXED0 and FIXED1 of module 1.5.01: a bit that is 0 in FIXED0 must be 0, one that is 1 in FIXED1 1.
ATTRIBUTES_FIXED0: Final = ATTR_DEBUG | ATTR_SEPT_VE_DISABLE | ATTR_MIGRATABLE | ATTR_PKS | ATTR_PERFMON
ATTRIBUTES_FIXED1: Final = 0
#: Attributes that exclude each other: (a bit, bits that must then be 0).
ATTRIBUTE_CONFLICTS: Final = ((ATTR_MIGRATABLE, ATTR_DEBUG | ATTR_PERFMON),)

# XFAM: the format of XCR0 | IA32_XSS
XFAM_X87: Final = 1 << 0
XFAM_SSE: Final = 1 << 1
XFAM_AVX: Final = 1 << 2
XFAM_AVX512: Final = 7 << 5
XFAM_PT: Final = 1 << 8
XFAM_PKRU: Final = 1 << 9
XFAM_CET: Final = 3 << 11
XFAM_UINTR: Final = 1 << 14
XFAM_LBR: Final = 1 << 15
XFAM_AMX: Final = 3 << 17

#: Bit number and name of every state component.
XFAM_NAMES: Final[dict[int, str]] = {
    0: "X87", 1: "SSE", 2: "AVX", 3: "BNDREGS", 4: "BNDCSR", 5: "AVX512_K", 6: "AVX512_ZMM_HI256",
    7: "AVX512_HI16_ZMM", 8: "PT", 9: "PKRU", 10: "PASID", 11: "CET_U", 12: "CET_S", 13: "HDC",
    14: "UINTR", 15: "LBR", 16: "HWP", 17: "AMX_TILECFG", 18: "AMX_TILEDATA",
}  # fmt: skip
XFAM_FIXED0: Final = 0x6_DBE7  # and what the processor supports
XFAM_FIXED1: Final = 0x3
#: Components that are all there or none is.
XFAM_GROUPS: Final = (XFAM_AVX512, XFAM_CET, XFAM_AMX)
#: Components that need others: (these, need all of these).
XFAM_REQUIRES: Final = ((XFAM_AVX512, XFAM_AVX),)
#: Components managed by XCR0, and by IA32_XSS.
XCR0_MASK: Final = 0x6_02FF
XSS_MASK: Final = 0x1_FD00
XFAM_LAST_BIT: Final = 18

# CONFIG_FLAGS (EXEC_CONTROLS in module 1.0)
CONFIG_GPAW: Final = 1 << 0
CONFIG_FLEXIBLE_PENDING_VE: Final = 1 << 1
CONFIG_NO_RBP_MOD: Final = 1 << 2
CONFIG_FLAGS_FIXED0: Final = CONFIG_GPAW | CONFIG_FLEXIBLE_PENDING_VE | CONFIG_NO_RBP_MOD
CONFIG_FLAGS_FIXED1: Final = 0

#: EPTP_CONTROLS, and the EPTP made of it by filling in the root's HPA.
EPTP_BITS: Final = (
    Bits("memory_type", 2, 0), Bits("walk_length_minus_1", 5, 3), Bits("enable_ad", 6, 6),
    Bits("enable_sss", 7, 7), Bits("reserved", 11, 8), Bits("base", 51, 12), Bits("reserved2", 63, 52),
)  # fmt: skip
EPTP_WB: Final = 6
EPTP_4_LEVELS: Final = EPTP_WB | 3 << 3
EPTP_5_LEVELS: Final = EPTP_WB | 4 << 3
#: MAXPA from which on a 5-level Secure EPT may be asked for.
MIN_MAXPA_FOR_5_LEVELS: Final = 49

# Control fields of TDCS and TDVPS
TD_CTLS_PENDING_VE_DISABLE: Final = 1 << 0
TD_CTLS_ENUM_TOPOLOGY: Final = 1 << 1  # newer modules
TD_CTLS_VIRT_CPUID2: Final = 1 << 2  # newer modules
TD_CTLS_REDUCE_VE: Final = 1 << 3  # newer modules
TD_CTLS_LOCK: Final = 1 << 63  # newer modules
NOTIFY_EPT_FAULTS: Final = 1 << 0
VM_CTLS_EPT_VIOLATION_ON_L2_WALK: Final = 1 << 0
CPUID_CONTROL_SUPERVISOR: Final = 1 << 0
CPUID_CONTROL_USER: Final = 1 << 1


def shared_bit(config_flags: int) -> int:
    """The bit of a GPA that makes it shared: bit 51 with GPAW, else bit 47."""
    return 1 << (51 if config_flags & CONFIG_GPAW else 47)


def attributes_problem(attributes: int, fixed0: int = ATTRIBUTES_FIXED0, fixed1: int = 0) -> str | None:
    """Why TDH.MNG.INIT refuses these ATTRIBUTES; None if it takes them."""
    if wrong := attributes & ~fixed0:
        return f"ATTRIBUTES bits {wrong:#x} are not supported"
    if missing := fixed1 & ~attributes:
        return f"ATTRIBUTES bits {missing:#x} must be 1"
    for bit, excluded in ATTRIBUTE_CONFLICTS:
        if attributes & bit and attributes & excluded:
            return f"{attribute_names(bit)[0]} excludes {' and '.join(attribute_names(excluded))}"
    return None


def xfam_problem(xfam: int, supported: int = XFAM_FIXED0) -> str | None:
    """Why TDH.MNG.INIT refuses this XFAM; None if it takes it.

    ``supported`` are the components that the processor has (XCR0 and IA32_XSS together).
    """
    if wrong := xfam & ~(XFAM_FIXED0 & supported):
        return f"XFAM bits {wrong:#x} are not supported"
    if missing := XFAM_FIXED1 & ~xfam:
        return f"XFAM bits {missing:#x} must be 1"
    for group in XFAM_GROUPS:
        if xfam & group not in (0, group):
            return f"XFAM bits {group:#x} go together"
    for bits, needed in XFAM_REQUIRES:
        if xfam & bits and xfam & needed != needed:
            return f"XFAM bits {bits:#x} need bits {needed:#x}"
    return None


def attribute_names(attributes: int) -> list[str]:
    """Names of the ATTRIBUTES bits that are 1 (``bit 7`` for one without a name)."""
    return [ATTRIBUTE_NAMES.get(bit, f"bit {bit}") for bit in range(64) if attributes >> bit & 1]


def xfam_names(xfam: int) -> list[str]:
    """Names of the XFAM bits that are 1 (``bit 20`` for one without a name)."""
    return [XFAM_NAMES.get(bit, f"bit {bit}") for bit in range(64) if xfam >> bit & 1]
