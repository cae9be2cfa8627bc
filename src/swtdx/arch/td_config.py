"""What a TD may be: ATTRIBUTES, XFAM, CONFIG_FLAGS, EPTP_CONTROLS and the control fields of TDCS.

Sources: ``td_control_structures.h``, include/tdx_api_defs.h and the checks ``verify_td_attributes``,
``check_xfam``, ``verify_and_set_td_eptp_controls`` in ``helpers.c`` of the TDX module 1.5.01; newer
bits from structures.md §5.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.bits import BitField, Bits, Register


class ATTRIBUTES(Register):
    """What a TD is allowed and denied; bits of newer modules included."""

    DEBUG = BitField(0)
    HGS_PLUS_PROF = BitField(4)
    PERF_PROF = BitField(5)
    PMT_PROF = BitField(6)
    ICSSD = BitField(16)
    SERVTD_EXT = BitField(17)
    LASS = BitField(27)
    SEPT_VE_DISABLE = BitField(28)
    MIGRATABLE = BitField(29)
    PKS = BitField(30)
    KL = BitField(31)
    TPA = BitField(62)
    PERFMON = BitField(63)


ATTR_DEBUG: Final = ATTRIBUTES.DEBUG.mask
ATTR_SEPT_VE_DISABLE: Final = ATTRIBUTES.SEPT_VE_DISABLE.mask
ATTR_MIGRATABLE: Final = ATTRIBUTES.MIGRATABLE.mask
ATTR_PKS: Final = ATTRIBUTES.PKS.mask
ATTR_KL: Final = ATTRIBUTES.KL.mask
ATTR_PERFMON: Final = ATTRIBUTES.PERFMON.mask

#: Bit number and name of every ATTRIBUTES bit that has a name, also in newer modules.
ATTRIBUTE_NAMES: Final[dict[int, str]] = ATTRIBUTES.flags()
#: The groups that verifiers look at: TD under debug, security, other.
ATTRIBUTE_GROUPS: Final = (Bits("TUD", 7, 0), Bits("SEC", 31, 8), Bits("OTHER", 63, 32))
#: FIXED0 and FIXED1 of module 1.5.01: a bit that is 0 in FIXED0 must be 0, one that is 1 in FIXED1 1.
ATTRIBUTES_FIXED0: Final = ATTR_DEBUG | ATTR_SEPT_VE_DISABLE | ATTR_MIGRATABLE | ATTR_PKS | ATTR_PERFMON
ATTRIBUTES_FIXED1: Final = 0
#: Attributes that exclude each other: (a bit, bits that must then be 0).
ATTRIBUTE_CONFLICTS: Final = ((ATTR_MIGRATABLE, ATTR_DEBUG | ATTR_PERFMON),)


class XFAM(Register):
    """The state components that a TD may use, in the format of XCR0 | IA32_XSS."""

    X87 = BitField(0)
    SSE = BitField(1)
    AVX = BitField(2)
    BNDREGS = BitField(3)
    BNDCSR = BitField(4)
    AVX512_K = BitField(5)
    AVX512_ZMM_HI256 = BitField(6)
    AVX512_HI16_ZMM = BitField(7)
    PT = BitField(8)
    PKRU = BitField(9)
    PASID = BitField(10)
    CET_U = BitField(11)
    CET_S = BitField(12)
    HDC = BitField(13)
    UINTR = BitField(14)
    LBR = BitField(15)
    HWP = BitField(16)
    AMX_TILECFG = BitField(17)
    AMX_TILEDATA = BitField(18)


XFAM_X87: Final = XFAM.X87.mask
XFAM_SSE: Final = XFAM.SSE.mask
XFAM_AVX: Final = XFAM.AVX.mask
XFAM_AVX512: Final = XFAM.AVX512_K.mask | XFAM.AVX512_ZMM_HI256.mask | XFAM.AVX512_HI16_ZMM.mask
XFAM_PT: Final = XFAM.PT.mask
XFAM_PKRU: Final = XFAM.PKRU.mask
XFAM_CET: Final = XFAM.CET_U.mask | XFAM.CET_S.mask
XFAM_UINTR: Final = XFAM.UINTR.mask
XFAM_LBR: Final = XFAM.LBR.mask
XFAM_AMX: Final = XFAM.AMX_TILECFG.mask | XFAM.AMX_TILEDATA.mask

#: Bit number and name of every state component.
XFAM_NAMES: Final[dict[int, str]] = XFAM.flags()
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


class CONFIG_FLAGS(Register):
    """How a TD is configured (EXEC_CONTROLS in module 1.0)."""

    GPAW = BitField(0)
    FLEXIBLE_PENDING_VE = BitField(1)
    NO_RBP_MOD = BitField(2)


CONFIG_GPAW: Final = CONFIG_FLAGS.GPAW.mask
CONFIG_FLEXIBLE_PENDING_VE: Final = CONFIG_FLAGS.FLEXIBLE_PENDING_VE.mask
CONFIG_NO_RBP_MOD: Final = CONFIG_FLAGS.NO_RBP_MOD.mask
CONFIG_FLAGS_FIXED0: Final = CONFIG_GPAW | CONFIG_FLEXIBLE_PENDING_VE | CONFIG_NO_RBP_MOD
CONFIG_FLAGS_FIXED1: Final = 0


class EPTP(Register):
    """EPTP_CONTROLS, and the EPTP made of it by filling in the root's HPA."""

    memory_type = BitField(2, 0)
    walk_length_minus_1 = BitField(5, 3)
    enable_ad = BitField(6)
    enable_sss = BitField(7)
    reserved = BitField(11, 8)
    base = BitField(51, 12)
    reserved2 = BitField(63, 52)


EPTP_WB: Final = 6
EPTP_4_LEVELS: Final = EPTP_WB | 3 << 3
EPTP_5_LEVELS: Final = EPTP_WB | 4 << 3
#: MAXPA from which on a 5-level Secure EPT may be asked for.
MIN_MAXPA_FOR_5_LEVELS: Final = 49


class TD_CTLS(Register):
    """What a TD may turn on for itself by TDG.VM.WR; only the first bit in module 1.5.01."""

    PENDING_VE_DISABLE = BitField(0)
    ENUM_TOPOLOGY = BitField(1)
    VIRT_CPUID2 = BitField(2)
    REDUCE_VE = BitField(3)
    LOCK = BitField(63)


# Control fields of TDCS and TDVPS
TD_CTLS_PENDING_VE_DISABLE: Final = TD_CTLS.PENDING_VE_DISABLE.mask
TD_CTLS_ENUM_TOPOLOGY: Final = TD_CTLS.ENUM_TOPOLOGY.mask
TD_CTLS_VIRT_CPUID2: Final = TD_CTLS.VIRT_CPUID2.mask
TD_CTLS_REDUCE_VE: Final = TD_CTLS.REDUCE_VE.mask
TD_CTLS_LOCK: Final = TD_CTLS.LOCK.mask
NOTIFY_EPT_FAULTS: Final = 1 << 0
VM_CTLS_EPT_VIOLATION_ON_L2_WALK: Final = 1 << 0
CPUID_CONTROL_SUPERVISOR: Final = 1 << 0
CPUID_CONTROL_USER: Final = 1 << 1


#: The shared bit of a TD with a GPA width of 48.
SHARED_BIT_48: Final = 1 << 47


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
    return ATTRIBUTES(attributes).names()


def xfam_names(xfam: int) -> list[str]:
    """Names of the XFAM bits that are 1 (``bit 20`` for one without a name)."""
    return XFAM(xfam).names()
