"""Every instruction-set and platform feature of the parts, and who makes it work here.

A guest must never be shown a feature that then does not work.  So CPUID's feature words are not the
part's own but what is left of them: a bit is reported if the engine executes the feature, or the
machine's own microcode and devices do, or if there is nothing to execute.  The rest is ``ABSENT``, with
the reason.

What the parts have: Intel SDM volume 2 (CPUID) and volume 1, for Sapphire Rapids; for Sierra Forest also
the Instruction Set Extensions programming reference, and what compilers take that part to have.  All that is
shown both have, so that software sees the same features on either.  What the engine executes: QEMU 7.2
``target/i386/cpu.c`` (``TCG_*_FEATURES``); a test marked ``qemu`` compares these rows with what a running
QEMU says.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


class Core(enum.Enum):
    """The two kinds of cores that Xeons have."""

    PERFORMANCE = "P-cores"
    EFFICIENT = "E-cores"


class By(enum.Enum):
    """Who makes a feature work."""

    #: QEMU's TCG executes it.
    ENGINE = "engine"
    #: The machine: its VMX microcode, MSR file, APIC or keys.
    MACHINE = "machine"
    #: Nothing has to be executed: a promise about the hardware, or an encoding that is a NOP.
    NOTHING = "nothing to execute"
    #: Software of the machine, by what it calls; no guest does, so SEAM code is not shown it.
    HOST = "software of the machine"
    #: The part has it; here it is hidden.
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Feature:
    """CPUID(``leaf``, ``subleaf``).``register``[``bit``]."""

    leaf: int
    subleaf: int
    register: str
    bit: int
    name: str
    by: By
    why: str = ""
    #: The parts that have it, if not all do.
    only: Core | None = None

    @property
    def shown(self) -> bool:
        """Whether the module and guests see the bit set."""
        return self.by not in _HIDDEN


_HIDDEN: Final = (By.ABSENT, By.HOST)
E, M, N, H, A = By.ENGINE, By.MACHINE, By.NOTHING, By.HOST, By.ABSENT
_TCG: Final = "TCG does not execute it"

#: (leaf, subleaf, register): rows of (bit, name, by, why).
_ROWS: Final[dict[tuple[int, int, str], tuple[tuple[int, str, By, str], ...]]] = {
    (1, 0, "ecx"): (
        (0, "SSE3", E, ""),
        (1, "PCLMULQDQ", E, ""),
        (2, "DTES64", A, "there is no debug store"),
        (3, "MONITOR", E, "MONITOR and MWAIT exit to SEAM"),
        (4, "DS_CPL", A, "there is no debug store"),
        (5, "VMX", M, "machine.vmx"),
        (6, "SMX", M, "GETSEC[ENTERACCS], firmware.np_seamldr"),
        (7, "EIST", A, "the clock has one speed"),
        (8, "TM2", A, "nothing gets hot"),
        (9, "SSSE3", E, ""),
        (11, "SDBG", A, "no silicon to debug"),
        (12, "FMA", E, ""),
        (13, "CMPXCHG16B", E, ""),
        (14, "XTPR", A, "no xTPR messages"),
        (15, "PDCM", M, "IA32_PERF_CAPABILITIES; the counters themselves: leaf 0xA"),
        (17, "PCID", A, _TCG),
        (18, "DCA", A, "no direct cache access"),
        (19, "SSE4_1", E, ""),
        (20, "SSE4_2", E, ""),
        (21, "X2APIC", M, "the local APIC is the machine's"),
        (22, "MOVBE", E, ""),
        (23, "POPCNT", E, ""),
        (24, "TSC_DEADLINE", M, "the local APIC is the machine's"),
        (25, "AES", E, ""),
        (26, "XSAVE", E, ""),
        # bit 27, OSXSAVE, follows CR4
        (28, "AVX", E, ""),
        (29, "F16C", E, ""),
        (30, "RDRAND", E, ""),
    ),
    (1, 0, "edx"): (
        (0, "FPU", E, ""),
        (1, "VME", A, _TCG),
        (2, "DE", E, ""),
        (3, "PSE", E, ""),
        (4, "TSC", E, ""),
        (5, "MSR", E, ""),
        (6, "PAE", E, ""),
        (7, "MCE", E, ""),
        (8, "CX8", E, ""),
        (9, "APIC", E, ""),
        (11, "SEP", E, ""),
        (12, "MTRR", E, ""),
        (13, "PGE", E, ""),
        (14, "MCA", E, ""),
        (15, "CMOV", E, ""),
        (16, "PAT", E, ""),
        (17, "PSE36", E, ""),
        (19, "CLFSH", E, ""),
        (21, "DS", A, "there is no debug store"),
        (22, "ACPI", A, "no clock modulation"),
        (23, "MMX", E, ""),
        (24, "FXSR", E, ""),
        (25, "SSE", E, ""),
        (26, "SSE2", E, ""),
        (27, "SS", E, ""),
        (28, "HTT", M, "leaf 1 EBX[23:16] is valid"),
        (29, "TM", A, "nothing gets hot"),
        (31, "PBE", A, "nothing to break out of"),
    ),
    (7, 0, "ebx"): (
        (0, "FSGSBASE", E, ""),
        (1, "TSC_ADJUST", M, "IA32_TSC_ADJUST"),
        (2, "SGX", A, "no enclaves"),
        (3, "BMI1", E, ""),
        (4, "HLE", A, _TCG),
        (5, "AVX2", E, ""),
        (6, "FDP_EXCPTN_ONLY", A, "TCG stores the x87 data pointer always"),
        (7, "SMEP", E, ""),
        (8, "BMI2", E, ""),
        (9, "ERMS", A, "TCG moves one byte a step: REP STOSB clears a page 8 times slower than STOSQ"),
        (10, "INVPCID", A, _TCG),
        (11, "RTM", A, _TCG),
        (12, "RDT_M", A, "no cache monitoring"),
        (13, "ZERO_FCS_FDS", A, "TCG stores the x87 code segment"),
        (15, "RDT_A", A, "no cache allocation"),
        (16, "AVX512F", A, _TCG),
        (17, "AVX512DQ", A, _TCG),
        (18, "RDSEED", A, _TCG),
        (19, "ADX", E, ""),
        (20, "SMAP", E, ""),
        (21, "AVX512_IFMA", A, _TCG),
        (23, "CLFLUSHOPT", E, ""),
        (24, "CLWB", E, ""),
        (25, "INTEL_PT", A, _TCG),
        (28, "AVX512CD", A, _TCG),
        (29, "SHA", A, _TCG),
        (30, "AVX512BW", A, _TCG),
        (31, "AVX512VL", A, _TCG),
    ),
    (7, 0, "ecx"): (
        (1, "AVX512_VBMI", A, _TCG),
        (2, "UMIP", E, ""),
        (3, "PKU", E, ""),
        # bit 4, OSPKE, follows CR4
        (5, "WAITPKG", A, _TCG),
        (6, "AVX512_VBMI2", A, _TCG),
        (7, "CET_SS", A, _TCG),
        (8, "GFNI", A, _TCG),
        (9, "VAES", E, ""),
        (10, "VPCLMULQDQ", A, _TCG),
        (11, "AVX512_VNNI", A, _TCG),
        (12, "AVX512_BITALG", A, _TCG),
        (13, "TME_EN", M, "machine.memory"),
        (14, "AVX512_VPOPCNTDQ", A, _TCG),
        (16, "LA57", A, "TCG could; the VMX microcode keeps to 48-bit linear addresses"),
        (22, "RDPID", A, _TCG),
        (23, "KL", A, _TCG),
        (24, "BUS_LOCK_DETECT", A, _TCG),
        (25, "CLDEMOTE", N, "a hint: TCG executes its encoding as a NOP"),
        (27, "MOVDIRI", A, _TCG),
        (28, "MOVDIR64B", H, "machine.memory; Linux's TDX host support insists on it"),
        (29, "ENQCMD", A, _TCG),
        (30, "SGX_LC", A, "no enclaves"),
        (31, "PKS", E, ""),
    ),
    (7, 0, "edx"): (
        (4, "FSRM", A, "REP MOVSB is not fast in TCG"),
        (5, "UINTR", A, _TCG),
        (10, "MD_CLEAR", N, "VERW has no buffers to clear"),
        (14, "SERIALIZE", A, _TCG),
        (16, "TSXLDTRK", A, _TCG),
        (18, "PCONFIG", M, "machine.cpu.pconfig"),
        (19, "ARCH_LBR", A, _TCG),
        (20, "CET_IBT", A, _TCG),
        (22, "AMX_BF16", A, _TCG),
        (23, "AVX512_FP16", A, _TCG),
        (24, "AMX_TILE", A, _TCG),
        (25, "AMX_INT8", A, _TCG),
        (26, "IBRS_IBPB", M, "IA32_SPEC_CTRL, IA32_PRED_CMD"),
        (27, "STIBP", M, "IA32_SPEC_CTRL"),
        (28, "L1D_FLUSH", M, "IA32_FLUSH_CMD"),
        (29, "ARCH_CAPABILITIES", M, "IA32_ARCH_CAPABILITIES"),
        (30, "CORE_CAPABILITIES", M, "IA32_CORE_CAPABILITIES"),
        (31, "SSBD", M, "IA32_SPEC_CTRL"),
    ),
    (7, 1, "eax"): (
        (4, "AVX_VNNI", A, _TCG),
        (5, "AVX512_BF16", A, _TCG),
        (6, "LASS", A, _TCG),
        (7, "CMPCCXADD", A, _TCG),
        (8, "ARCH_PERFMON_EXT", A, "no performance counters"),
        (10, "FZLRM", A, "REP MOVSB is not fast in TCG"),
        (11, "FSRS", A, "REP STOSB is not fast in TCG"),
        (12, "FSRCS", A, "REP CMPSB is not fast in TCG"),
        (19, "WRMSRNS", A, _TCG),
        (23, "AVX_IFMA", A, _TCG),
        (26, "LAM", A, _TCG),
        (27, "MSRLIST", A, _TCG),
    ),
    (7, 1, "edx"): (
        (4, "AVX_VNNI_INT8", A, _TCG),
        (5, "AVX_NE_CONVERT", A, _TCG),
    ),
    (7, 2, "edx"): (
        (0, "PSFD", M, "IA32_SPEC_CTRL"),
        (1, "IPRED_CTRL", M, "IA32_SPEC_CTRL"),
        (2, "RRSBA_CTRL", M, "IA32_SPEC_CTRL"),
        (4, "BHI_CTRL", M, "IA32_SPEC_CTRL"),
    ),
    (0xD, 0, "eax"): (
        (0, "XCR0_X87", E, ""),
        (1, "XCR0_SSE", E, ""),
        (2, "XCR0_AVX", E, ""),
        (5, "XCR0_OPMASK", A, _TCG),
        (6, "XCR0_ZMM_HI256", A, _TCG),
        (7, "XCR0_HI16_ZMM", A, _TCG),
        (9, "XCR0_PKRU", E, ""),
        (17, "XCR0_TILECFG", A, _TCG),
        (18, "XCR0_TILEDATA", A, _TCG),
    ),
    (0xD, 1, "eax"): (
        (0, "XSAVEOPT", E, ""),
        (1, "XSAVEC", A, _TCG),
        (2, "XGETBV_ECX1", E, ""),
        (3, "XSAVES", A, _TCG),
        (4, "XFD", A, _TCG),
    ),
    (0x80000001, 0, "ecx"): (
        (0, "LAHF_LM", E, ""),
        (5, "LZCNT", E, ""),
        (8, "PREFETCHW", N, "a hint: TCG executes its encoding as a NOP"),
    ),
    (0x80000001, 0, "edx"): (
        (11, "SYSCALL", E, ""),
        (20, "NX", E, ""),
        (26, "PDPE1GB", E, ""),
        (27, "RDTSCP", E, ""),
        (29, "LM", E, ""),
    ),
    (0x80000007, 0, "edx"): ((8, "INVARIANT_TSC", M, "the TSC runs at the host's rate"),),
    (0x80000008, 0, "ebx"): ((9, "WBNOINVD", N, "TCG executes it as WBINVD, which exits"),),
    (0xD, 1, "ecx"): (
        (11, "XSS_CET_U", A, _TCG),
        (12, "XSS_CET_S", A, _TCG),
    ),
    (6, 0, "eax"): ((2, "ARAT", M, "the APIC timer never stops"),),
}

#: What only one kind of cores has.
_ONLY: Final = {
    **dict.fromkeys(
        (
            "HLE", "RTM", "TSXLDTRK", "AVX512F", "AVX512DQ", "AVX512_IFMA", "AVX512CD", "AVX512BW",
            "AVX512VL", "AVX512_VBMI", "AVX512_VBMI2", "AVX512_VNNI", "AVX512_BITALG", "AVX512_VPOPCNTDQ",
            "AVX512_FP16", "AVX512_BF16", "AMX_BF16", "AMX_TILE", "AMX_INT8", "XCR0_OPMASK",
            "XCR0_ZMM_HI256", "XCR0_HI16_ZMM", "XCR0_TILECFG", "XCR0_TILEDATA", "XFD",
        ),
        Core.PERFORMANCE,
    ),
    **dict.fromkeys(
        (
            "LASS", "CMPCCXADD", "WRMSRNS", "AVX_IFMA", "LAM", "MSRLIST", "AVX_VNNI_INT8", "AVX_NE_CONVERT",
        ),
        Core.EFFICIENT,
    ),
}  # fmt: skip

#: Leaves of the part that are zero here as a whole, and why.
ABSENT_LEAVES: Final[dict[int, str]] = {
    0xA: "there are no performance counters",
    0x14: "there is no processor trace",
}

#: The whole table, in CPUID order.
FEATURES: Final[tuple[Feature, ...]] = tuple(
    Feature(leaf, subleaf, register, bit, name, by, why, _ONLY.get(name))
    for (leaf, subleaf, register), rows in _ROWS.items()
    for bit, name, by, why in rows
)
BY_NAME: Final[dict[str, Feature]] = {feature.name: feature for feature in FEATURES}

#: CR4 bits that exist only with a feature (SDM volume 3, section 2.5).
_CR4: Final = (
    (0, "VME"), (1, "VME"), (2, "TSC"), (3, "DE"), (4, "PSE"), (5, "PAE"), (6, "MCE"), (7, "PGE"),
    (9, "FXSR"), (10, "SSE"), (11, "UMIP"), (12, "LA57"), (13, "VMX"), (14, "SMX"), (16, "FSGSBASE"),
    (17, "PCID"), (18, "XSAVE"), (19, "KL"), (20, "SMEP"), (21, "SMAP"), (22, "PKU"), (23, "CET_SS"),
    (24, "PKS"), (25, "UINTR"),
)  # fmt: skip
#: CR4.PCE has no feature bit of its own.
_CR4_ALWAYS: Final = 1 << 8


def _word(leaf: int, subleaf: int, register: str, wanted: Callable[[str, By], bool]) -> int:
    rows = _ROWS.get((leaf, subleaf, register), ())
    return sum(1 << bit for bit, name, by, _ in rows if wanted(name, by))


def feature_word(leaf: int, subleaf: int, register: str) -> int:
    """The shown feature bits of one CPUID register (0 if it holds none)."""
    return _word(leaf, subleaf, register, lambda _, by: by not in _HIDDEN)


def host_word(leaf: int, subleaf: int, register: str) -> int:
    """The bits of one CPUID register that only the machine's own software sees."""
    return _word(leaf, subleaf, register, lambda _, by: by is By.HOST)


def absent_word(leaf: int, subleaf: int, register: str, core: Core) -> int:
    """The bits of one CPUID register that a part of such cores has and that are hidden from the module."""
    if leaf in ABSENT_LEAVES:
        return 0xFFFFFFFF
    return _word(leaf, subleaf, register, lambda name, by: by in _HIDDEN and _ONLY.get(name, core) is core)


def has(name: str) -> bool:
    """Whether the processor shows the feature ``name``.

    Raises:
        KeyError: there is no such feature in the table.
    """
    return BY_NAME[name].shown


@functools.cache
def cr4_bits() -> int:
    """The CR4 bits that this processor has: what IA32_VMX_CR4_FIXED1 says, and MOV to CR4 accepts."""
    bits = _CR4_ALWAYS
    for bit, name in _CR4:
        if BY_NAME[name].shown:
            bits |= 1 << bit
    return bits
