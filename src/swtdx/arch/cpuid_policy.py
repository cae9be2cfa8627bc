"""What CPUID returns in a TD: bit classes, dependences, and the ids of its metadata.

Sources: ``cpuid_configurations.c``, ``tdh_mng_init.c`` (values computed for a TD) and ``td_cpuid.c``
(values computed when the guest executes CPUID) of the TDX module 1.5.01.

The value of a leaf: native, minus ``cleared``, plus ``fixed1``; then the host's configuration, then
XFAM and ATTRIBUTES at TDH.MNG.INIT; then a few bits at each execution.  A leaf beyond the last base
leaf (or extended leaf) behaves as the last base leaf; 0x40000000..0x4FFFFFFF, a leaf that is not in
the table, and a sub-leaf that is not, raise #VE.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from swtdx.arch.cpuid_table import (
    NA,
    OLD_TOPOLOGY_LEAF,
    OLD_TOPOLOGY_SUBLEAVES,
    TOPOLOGY_CPUID,
    TOPOLOGY_LEAF,
    TOPOLOGY_SUBLEAVES,
    CpuidConfigRow,
    CpuidRow,
    Quad,
)

__all__ = [
    "NA", "BitClasses", "CpuidConfigRow", "CpuidRow", "Quad", "ZeroUnless",
    "bit_classes", "effective_leaf", "field_code", "split_field_code",
]  # fmt: skip

#: CPUID(1).EAX of the processors that the TDX Module 1.5.01 knows, newest first: Clearwater Forest, Granite
#: Rapids D and SP, Sierra Forest, Emerald Rapids, Sapphire Rapids (``cpuid_fms.c``).
KNOWN_SIGNATURES: Final = (0xD06D0, 0xA06E0, 0xA06D0, 0xA06F0, 0xC06F2, 0x806F8)
LAST_BASE_LEAF: Final = 0x23
LAST_EXTENDED_LEAF: Final = 0x8000_0008
#: Lowest CPUID(0).EAX of a processor that TDH.SYS.INIT accepts.
MIN_NATIVE_BASE_LEAF: Final = 0x1F
RESERVED: Final = range(0x4000_0000, 0x5000_0000)
#: Bits that the host may set in TD_PARAMS.IA32_ARCH_CAPABILITIES_CONFIG: SSB_NO, RRSBA, BHI_NO, PBRSB_NO.
ARCH_CAPABILITIES_CONFIG_MASK: Final = 1 << 4 | 1 << 19 | 1 << 20 | 1 << 24

#: Bits that exist only with all the XFAM bits of a mask: (leaf, sub-leaf, XFAM mask, bits).
XFAM_BITS: Final[tuple[tuple[int, int, int, Quad], ...]] = (
    (0x1, NA, 1 << 2, (0, 0, 0x3000_1000, 0)),
    (0x7, 0, 1 << 2, (0, 0x20, 0x600, 0)),
    (0x7, 0, 7 << 5, (0, 0xDC23_0000, 0x5842, 0x80_010C)),
    (0x7, 0, 1 << 8, (0, 0x0200_0000, 0, 0)),
    (0x7, 0, 1 << 9, (0, 0, 0x8, 0)),
    (0x7, 0, 3 << 11, (0, 0, 0x80, 0x10_0000)),
    (0x7, 0, 1 << 14, (0, 0, 0, 0x20)),
    (0x7, 0, 1 << 15, (0, 0, 0, 0x8_0000)),
    (0x7, 0, 3 << 17, (0, 0, 0, 0x340_0000)),
    (0x7, 1, 7 << 5, (0x30, 0, 0, 0)),
    (0xD, 0, 1 << 2, (0x4, 0, 0, 0)),
    (0xD, 0, 7 << 5, (0xE0, 0, 0, 0)),
    (0xD, 0, 1 << 9, (0x200, 0, 0, 0)),
    (0xD, 0, 3 << 17, (0x6_0000, 0, 0, 0)),
    (0xD, 1, 1 << 8, (0, 0, 0x100, 0)),
    (0xD, 1, 3 << 11, (0, 0, 0x1800, 0)),
    (0xD, 1, 1 << 14, (0, 0, 0x4000, 0)),
    (0xD, 1, 1 << 15, (0, 0, 0x8000, 0)),
)


class ZeroUnless(NamedTuple):
    """A leaf that is all zero unless the TD has something.

    ``what`` is ``"xfam"`` or ``"attributes"`` with a bit mask of which all bits are needed,
    ``"monitor"`` for virtual CPUID(1).ECX[3], or ``"never"``.
    """

    what: str
    mask: int = 0


#: Whole leaves that depend on the TD, by (leaf, sub-leaf).
ZERO_UNLESS: Final[dict[tuple[int, int], ZeroUnless]] = {
    (0x5, NA): ZeroUnless("monitor"),
    (0xA, NA): ZeroUnless("attributes", 1 << 63),
    **{(0xD, component): ZeroUnless("xfam", 1 << component) for component in range(2, 19)},
    (0x14, 0): ZeroUnless("xfam", 1 << 8),
    (0x14, 1): ZeroUnless("xfam", 1 << 8),
    (0x19, NA): ZeroUnless("never"),
    (0x1C, NA): ZeroUnless("xfam", 1 << 15),
    (0x1D, 0): ZeroUnless("xfam", 3 << 17),
    (0x1D, 1): ZeroUnless("xfam", 3 << 17),
}

#: Bits that TDH.MNG.INIT computes: (leaf, sub-leaf) -> (bits, from what).
COMPUTED: Final[dict[tuple[int, int], tuple[Quad, str]]] = {
    (0x1, NA): ((0x0FFF_3FFF, 0, 0, 0), "family, model, stepping: as configured; native if 0"),
    (0x7, 0): ((0, 0, 0x8080_0000, 0), "PKS as ATTRIBUTES.PKS; no Key Locker"),
    (0xD, 0): ((0, 0, 0xFFFF_FFFF, 0), "XSAVE area of all components in XFAM"),
    (0xD, 1): ((0x10, 0, 0, 0), "XFD if some component in XFAM supports it"),
    (0x15, NA): ((0, 0xFFFF_FFFF, 0, 0), "TD_PARAMS.TSC_FREQUENCY"),
    (0x8000_0008, NA): ((0xFF00, 0, 0, 0), "57 linear-address bits with LA57, else 48"),
    **{
        (OLD_TOPOLOGY_LEAF, subleaf): (
            (0x1F, 0xFFFF, 0xFFFF, 0),
            "threads as in leaf 0x1F; cores: the last level of leaf 0x1F",
        )
        for subleaf in range(OLD_TOPOLOGY_SUBLEAVES)
    },
}

#: Bits that each execution computes: (leaf, sub-leaf) -> (bits, from what).
DYNAMIC: Final[dict[tuple[int, int], tuple[Quad, str]]] = {
    (0x1, NA): (
        (0, 0xFF00_0000, 0x0800_0000, 0),
        "initial APIC id: VCPU_INDEX, or the x2APIC id with TD_CTLS.ENUM_TOPOLOGY; OSXSAVE: CR4",
    ),
    (0x7, 0): ((0, 0x810, 0x10, 0), "HLE, RTM: 0 with IA32_TSX_CTRL[1]; OSPKE: CR4"),
    (0xD, 0): ((0, 0xFFFF_FFFF, 0, 0), "native, under the guest's XCR0"),
    (0xD, 1): ((0, 0xFFFF_FFFF, 0, 0), "native, under the guest's XCR0 and IA32_XSS"),
    (0x8000_0001, NA): ((0, 0, 0, 0x800), "SYSCALL: in 64-bit mode"),
    **{
        (leaf, subleaf): ((0, 0, 0, 0xFFFF_FFFF), "the VCPU's x2APIC id; #VE without TD_CTLS.ENUM_TOPOLOGY")
        for leaf, subleaves in (
            (TOPOLOGY_LEAF, TOPOLOGY_SUBLEAVES),
            (OLD_TOPOLOGY_LEAF, OLD_TOPOLOGY_SUBLEAVES),
        )
        for subleaf in range(subleaves)
    },
}

REGISTERS: Final = ("eax", "ebx", "ecx", "edx")


def effective_leaf(leaf: int) -> int:
    """The leaf that answers for ``leaf``: the last base leaf for one beyond the ends of the ranges."""
    beyond = leaf > LAST_EXTENDED_LEAF or LAST_BASE_LEAF < leaf < 0x8000_0000
    return LAST_BASE_LEAF if beyond and leaf not in RESERVED else leaf


class BitClasses(NamedTuple):
    """How each bit of a leaf comes about, as masks of EAX, EBX, ECX, EDX.

    ``fixed0``, ``fixed1``: constants.  ``direct``: the host's value.  ``allow``: native where the
    host allows.  ``xfam``: only with XFAM bits.  ``computed``: by TDH.MNG.INIT.  ``dynamic``: by
    each execution.  ``native``: all the rest.  ``xfam``, ``computed`` and ``dynamic`` come on top of
    the others; ``fixed0`` to ``native`` are disjoint and cover every bit.
    """

    fixed0: Quad
    fixed1: Quad
    direct: Quad
    allow: Quad
    native: Quad
    xfam: Quad
    computed: Quad
    dynamic: Quad


_NONE: Final[Quad] = (0, 0, 0, 0)


def bit_classes(row: CpuidRow) -> BitClasses:
    """The classes of the bits of a row (of any version: configurable leaves have the same place in each)."""
    config = None if row.config is None else TOPOLOGY_CPUID.configs[row.config]
    direct = config.direct if config else _NONE
    allow = config.allow if config else _NONE
    key = (row.leaf, row.subleaf)
    xfam = [0, 0, 0, 0]
    for leaf, subleaf, _, bits in XFAM_BITS:
        if (leaf, subleaf) == key:
            xfam = [old | new for old, new in zip(xfam, bits, strict=True)]
    computed = COMPUTED.get(key, (_NONE, ""))[0]
    dynamic = DYNAMIC.get(key, (_NONE, ""))[0]

    def each(*quads: list[int]) -> Quad:
        a, b, c, d = quads[0]
        return (a, b, c, d)

    fixed0, native = [], []
    for register in range(4):
        fixed1 = row.fixed1[register]
        given = direct[register] | allow[register]
        zero = row.cleared[register] & ~fixed1 & ~given & ~computed[register] & ~dynamic[register]
        fixed0.append(zero)
        native.append(~(zero | fixed1 | given) & 0xFFFF_FFFF)
    return BitClasses(each(fixed0), row.fixed1, direct, allow, each(native), each(xfam), computed, dynamic)


def field_code(leaf: int, subleaf: int, element: int) -> int:
    """The field code (bits 23:0 of an id) of TDCS.CPUID_VALUES: ``element`` 0 EBX:EAX, 1 EDX:ECX.

    Bit 0 element, 7:1 sub-leaf, 8 no sub-leaf, 15:9 leaf, 16 bit 31 of the leaf.

    Raises:
        ValueError: the leaf, sub-leaf or element does not fit.
    """
    low = leaf & 0x7FFF_FFFF
    if low > 0x7F or element not in (0, 1) or not (subleaf == NA or 0 <= subleaf <= 0x7F):
        raise ValueError(f"no CPUID_VALUES field code for leaf {leaf:#x}, sub-leaf {subleaf:#x}, {element}")
    number = 0x7F | 1 << 7 if subleaf == NA else subleaf
    return element | number << 1 | low << 9 | (leaf >> 31) << 16


def split_field_code(code: int) -> tuple[int, int, int]:
    """Leaf, sub-leaf (:data:`NA` if it has none) and element of a CPUID_VALUES field code."""
    leaf = code >> 9 & 0x7F | (code >> 16 & 1) << 31
    subleaf = NA if code >> 8 & 1 else code >> 1 & 0x7F
    return leaf, subleaf, code & 1
