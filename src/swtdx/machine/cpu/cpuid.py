"""CPUID of a logical processor outside a TD.

Feature words come from :mod:`swtdx.machine.cpu.features`; identity and sizes from the processor model;
topology from the machine.  Leaves that describe what this machine does not have (performance
monitoring 0xA and 0x23, resource director 0xF/0x10, SGX 0x12, processor trace 0x14, LBR 0x1C, AMX
0x1D/0x1E, key locker 0x19) are zero, as the SDM asks of unsupported leaves.  Leaf 0x21 is zero too: it
identifies a TD to its guest, and the TDX Module makes it.  Source: Intel SDM volume 2, CPUID.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from swtdx.arch.units import CACHE_LINE
from swtdx.arch.x86 import CPUID_1_ECX_OSXSAVE, CPUID_7_ECX_OSPKE, CR4_OSXSAVE, CR4_PKE
from swtdx.machine.cpu.features import feature_word
from swtdx.machine.cpu.model import ProcessorModel
from swtdx.machine.cpu.topology import Topology

#: EAX, EBX, ECX, EDX.
Regs = tuple[int, int, int, int]
ZERO: Final[Regs] = (0, 0, 0, 0)

LAST_BASIC: Final = 0x23
LAST_EXTENDED: Final = 0x80000008
#: Frequency of the crystal that leaf 0x15 reports, Hz (25 MHz, as the TDX Module assumes for TDs).
CRYSTAL_HZ: Final = 25_000_000
#: Bytes of the standard XSAVE area up to PKRU, and where AVX and PKRU lie in it (offset, size).
XSAVE_AREA: Final = 0xA88
_XSAVE_COMPONENTS: Final = {2: (0x240, 0x100), 9: (0xA80, 0x8)}


def _text(text: str, size: int) -> list[int]:
    data = text.encode("ascii").ljust(size, b"\0")
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, size, 4)]


class Cpuid:
    """The CPUID instruction for processors of one machine.

    ``tsc_hz`` is asked each time leaf 0x15 or 0x16 is read (an engine may dictate the frequency).
    """

    def __init__(self, model: ProcessorModel, topology: Topology, tsc_hz: Callable[[], float]) -> None:
        self._model = model
        self._topology = topology
        self._tsc_hz = tsc_hz
        words = _text(model.brand, 48)
        self._brand = [tuple(words[i : i + 4]) for i in (0, 4, 8)]
        self._leaves: dict[int, Callable[[int, int], Regs]] = {
            0x1: self._version,
            0x4: self._caches,
            0x7: self._extended_features,
            0xB: self._topology_leaf,
            0xD: self._xsave,
            0x15: self._tsc,
            0x16: self._frequencies,
            0x1F: self._topology_leaf,
        }
        self._constant: dict[int, Regs] = {
            0x0: (LAST_BASIC, 0x756E6547, 0x6C65746E, 0x49656E69),  # "GenuineIntel"
            0x2: (0x00FEFF01, 0xF0, 0, 0),  # TLBs and caches: see leaves 4 and 0x18
            0x5: (CACHE_LINE, CACHE_LINE, 3, 0),  # MONITOR line size; no C-states by MWAIT
            0x6: (feature_word(6, 0, "eax"), 0, 0, 0),
            0x80000000: (LAST_EXTENDED, 0, 0, 0),
            0x80000001: (
                0, 0, feature_word(0x80000001, 0, "ecx"), feature_word(0x80000001, 0, "edx"),
            ),
            0x80000006: (0, 0, (model.l2 >> 10) << 16 | 7 << 12 | CACHE_LINE, 0),
            0x80000007: (0, 0, 0, feature_word(0x80000007, 0, "edx")),
            0x80000008: (
                model.linear_bits << 8 | model.maxpa, feature_word(0x80000008, 0, "ebx"), 0, 0,
            ),
        }  # fmt: skip
        for number, brand in enumerate(self._brand):
            self._constant[0x80000002 + number] = (brand[0], brand[1], brand[2], brand[3])

    def execute(self, apic_id: int, cr4: int, leaf: int, subleaf: int = 0) -> Regs:
        """EAX, EBX, ECX, EDX of CPUID on the processor with this x2APIC id and CR4.

        A basic leaf beyond the last gives what the last basic leaf gives, as the SDM says.
        """
        leaf &= 0xFFFFFFFF
        subleaf &= 0xFFFFFFFF
        if LAST_BASIC < leaf < 0x80000000 or leaf > LAST_EXTENDED:
            leaf = LAST_BASIC
        constant = self._constant.get(leaf)
        if constant is not None:
            return constant
        dynamic = self._leaves.get(leaf)
        if dynamic is None:
            return ZERO
        result = dynamic(apic_id, subleaf)
        if leaf == 1 and cr4 & CR4_OSXSAVE:
            return (result[0], result[1], result[2] | CPUID_1_ECX_OSXSAVE, result[3])
        if leaf == 7 and subleaf == 0 and cr4 & CR4_PKE:
            return (result[0], result[1], result[2] | CPUID_7_ECX_OSPKE, result[3])
        return result

    # ------------------------------------------------------------------ leaves
    def _version(self, apic_id: int, _subleaf: int) -> Regs:
        ids = min(self._topology.ids_per_package, 0xFF)
        ebx = (apic_id & 0xFF) << 24 | ids << 16 | CACHE_LINE // 8 << 8
        return (self._model.signature, ebx, feature_word(1, 0, "ecx"), feature_word(1, 0, "edx"))

    def _caches(self, _apic_id: int, subleaf: int) -> Regs:
        model = self._model
        # (type, level, size, ways, ids sharing, EDX): L1D, L1I, L2, L3 of the package.
        ids = self._topology.ids_per_package
        rows = (
            (1, 1, model.l1d, model.l1d_ways, 1, 0),
            (2, 1, model.l1i, 8, 1, 0),
            (3, 2, model.l2, 16, min(model.l2_cores, ids), 0),
            (3, 3, model.l3, model.l3_ways, ids, 0x4),
        )
        if subleaf >= len(rows):
            return ZERO
        kind, level, size, ways, sharing, edx = rows[subleaf]
        eax = kind | level << 5 | 1 << 8 | (sharing - 1) << 14 | min(ids - 1, 63) << 26
        ebx = (CACHE_LINE - 1) | (ways - 1) << 22
        return (eax, ebx, size // (CACHE_LINE * ways) - 1, edx)

    def _extended_features(self, _apic_id: int, subleaf: int) -> Regs:
        if subleaf > 2:
            return ZERO
        highest = 2 if subleaf == 0 else feature_word(7, subleaf, "eax")
        return (
            highest,
            feature_word(7, subleaf, "ebx"),
            feature_word(7, subleaf, "ecx"),
            feature_word(7, subleaf, "edx"),
        )

    def _topology_leaf(self, apic_id: int, subleaf: int) -> Regs:
        """Leaves 0xB and 0x1F: the level of the core (one thread), then the package."""
        if subleaf == 0:
            return (0, 1, 1 << 8, apic_id)
        if subleaf == 1:
            return (self._topology.package_shift, self._topology.per_package, 1 | 2 << 8, apic_id)
        return (0, 0, subleaf & 0xFF, apic_id)

    def _xsave(self, _apic_id: int, subleaf: int) -> Regs:
        if subleaf == 0:
            return (feature_word(0xD, 0, "eax"), XSAVE_AREA, XSAVE_AREA, 0)
        if subleaf == 1:
            return (feature_word(0xD, 1, "eax"), 0, 0, 0)
        if subleaf in _XSAVE_COMPONENTS and feature_word(0xD, 0, "eax") >> subleaf & 1:
            offset, size = _XSAVE_COMPONENTS[subleaf]
            return (size, offset, 0, 0)
        return ZERO

    def _tsc(self, _apic_id: int, _subleaf: int) -> Regs:
        """TSC frequency = crystal * EBX / EAX, to within 1 kHz."""
        khz, crystal = round(self._tsc_hz() / 1000), CRYSTAL_HZ // 1000
        common = math.gcd(khz, crystal)
        return (crystal // common, khz // common, CRYSTAL_HZ, 0)

    def _frequencies(self, _apic_id: int, _subleaf: int) -> Regs:
        mhz = round(self._tsc_hz() / 1e6)
        return (mhz, max(mhz, self._model.turbo_mhz), 100, 0)
