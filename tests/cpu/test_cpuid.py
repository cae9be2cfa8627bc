"""CPUID of a TDX-capable server part, and topology as software derives it (SDM volume 2 and 3, 10.9)."""

from __future__ import annotations

import itertools
import math

import pytest

from swtdx.machine.cpu.model import find_model
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.machine import Machine
from swtdx.machine.processor import LogicalProcessor

from .conftest import Make


def bit(value: int, number: int) -> int:
    return value >> number & 1


def test_identity(lp: LogicalProcessor) -> None:
    last, ebx, ecx, edx = lp.cpuid(0)
    assert last >= 0x21
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx)) == b"GenuineIntel"
    signature = lp.cpuid(1)[0]
    family, model = signature >> 8 & 0xF, signature >> 4 & 0xF | signature >> 12 & 0xF0
    assert (family, model) == (6, 0xAF)  # Sierra Forest, intel-family.h
    brand = b"".join(word.to_bytes(4, "little") for leaf in (2, 3, 4) for word in lp.cpuid(0x80000000 + leaf))
    assert brand.rstrip(b"\0").startswith(b"Intel(R) Xeon(R) swtdx")


@pytest.mark.parametrize(("name", "model"), [("sapphire-rapids", 0x8F), ("emerald-rapids", 0xCF)])
def test_the_other_models(make: Make, name: str, model: int) -> None:
    lp = make(model=name).processors[0]
    signature = lp.cpuid(1)[0]
    assert signature >> 4 & 0xF | signature >> 12 & 0xF0 == model
    with pytest.raises(ValueError, match="choose one of emerald-rapids, sapphire-rapids, sierra-forest"):
        find_model("pentium")


def test_features_of_the_platform(lp: LogicalProcessor) -> None:
    _, _, ecx, edx = lp.cpuid(1)
    assert bit(ecx, 5)  # VMX
    assert bit(ecx, 6)  # SMX, for GETSEC
    assert bit(ecx, 21)  # x2APIC
    assert bit(ecx, 26)  # XSAVE
    assert bit(edx, 12)  # MTRR
    highest, ebx, ecx, edx = lp.cpuid(7)
    assert highest == 2
    assert bit(ebx, 1)  # TSC_ADJUST
    assert bit(ecx, 13)  # TME
    assert bit(edx, 18)  # PCONFIG
    assert bit(edx, 29)  # ARCH_CAPABILITIES
    assert bit(edx, 30)  # CORE_CAPABILITIES
    assert lp.cpuid(7, 3) == (0, 0, 0, 0)


def test_addresses(lp: LogicalProcessor) -> None:
    eax = lp.cpuid(0x80000008)[0]
    assert (eax & 0xFF, eax >> 8 & 0xFF) == (52, 48)
    assert lp.cpuid(0x80000000)[0] == 0x80000008


def test_tsc_is_a_multiple_of_the_crystal(lp: LogicalProcessor) -> None:
    denominator, numerator, crystal, _ = lp.cpuid(0x15)
    assert crystal == 25_000_000
    assert crystal * numerator // denominator == lp.machine.tsc_hz
    assert lp.cpuid(0x16)[0] == round(lp.machine.tsc_hz / 1e6)
    assert bit(lp.cpuid(0x80000007)[3], 8)  # invariant


def test_xsave_areas_fit(lp: LogicalProcessor) -> None:
    """Leaf 0xD: no component overlaps another, and the largest end is the size of the area."""
    mask, enabled, largest, _ = lp.cpuid(0xD)
    assert mask & 3 == 3
    areas = [(0, 576)]  # legacy region and header
    for component in range(2, 64):
        size, offset, _, _ = lp.cpuid(0xD, component)
        assert bool(size) == bool(mask >> component & 1)
        if size:
            areas.append((offset, size))
    areas.sort()
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(areas))
    assert enabled == largest == max(offset + size for offset, size in areas)


def test_leaf_0x21_belongs_to_tds(lp: LogicalProcessor) -> None:
    """Outside a TD it says nothing: a hypervisor must not take itself for a guest."""
    assert lp.cpuid(0x21) == (0, 0, 0, 0)


@pytest.mark.parametrize("leaf", [0xA, 0xF, 0x10, 0x12, 0x14, 0x19, 0x1C, 0x1D, 0x1E, 0x23, 0x80000005])
def test_leaves_of_what_is_not_there(lp: LogicalProcessor, leaf: int) -> None:
    assert lp.cpuid(leaf) == (0, 0, 0, 0)


def test_beyond_the_last_leaf(lp: LogicalProcessor) -> None:
    last = lp.cpuid(lp.cpuid(0)[0])
    for leaf in (0x24, 0x7FFFFFFF, 0x80000009, 0xFFFFFFFF, 0x40000000):
        assert lp.cpuid(leaf) == last


def test_bits_that_follow_cr4(lp: LogicalProcessor) -> None:
    assert not bit(lp.cpuid(1)[2], 27)
    assert not bit(lp.cpuid(7)[2], 4)
    lp.write_cr4(1 << 18 | 1 << 22)
    assert bit(lp.cpuid(1)[2], 27)  # OSXSAVE
    assert bit(lp.cpuid(7)[2], 4)  # OSPKE


def test_cr4_has_the_bits_that_vmx_says(lp: LogicalProcessor) -> None:
    """IA32_VMX_CR4_FIXED1 lists the bits that exist; all others fault."""
    allowed = lp.rdmsr(0x489)
    for number in range(64):
        if allowed >> number & 1:
            lp.write_cr4(1 << number)
        else:
            with pytest.raises(GeneralProtection):
                lp.write_cr4(1 << number)


# ---------------------------------------------------------------------- topology
def derive(lp: LogicalProcessor, leaf: int) -> tuple[int, int, int]:
    """(package, id in the package, processors in the package) by the SDM's algorithm."""
    shift = count = subleaf = 0
    while True:
        eax, ebx, ecx, edx = lp.cpuid(leaf, subleaf)
        if not ecx >> 8 & 0xFF:  # the invalid level ends the list
            break
        assert ecx & 0xFF == subleaf
        shift, count, subleaf = eax & 0x1F, ebx & 0xFFFF, subleaf + 1
    assert subleaf > 1
    return edx >> shift, edx & (1 << shift) - 1, count


@pytest.mark.parametrize(("packages", "cpus"), [(1, 1), (1, 2), (2, 2), (2, 4), (2, 3), (4, 1), (8, 8)])
@pytest.mark.parametrize("leaf", [0xB, 0x1F])
def test_topology(make: Make, packages: int, cpus: int, leaf: int) -> None:
    machine = make(packages, cpus)
    found = [derive(lp, leaf) for lp in machine.processors]
    assert found == [(package, core, cpus) for package in range(packages) for core in range(cpus)]
    assert [lp.package for lp in machine.processors] == [package for package, _, _ in found]
    ids = [lp.cpuid(leaf)[3] for lp in machine.processors]
    assert ids == [lp.x2apic_id for lp in machine.processors]
    assert len(set(ids)) == packages * cpus
    assert [lp.cpuid(1)[1] >> 24 for lp in machine.processors] == [i & 0xFF for i in ids]


@pytest.mark.parametrize(("packages", "cpus"), [(1, 1), (1, 2), (2, 4), (2, 3)])
def test_the_last_level_cache_is_the_packages(make: Make, packages: int, cpus: int) -> None:
    """Leaf 4: sizes multiply out, and the L3's sharing is as wide as the package field of leaf 0x1F."""
    lp = make(packages, cpus).processors[0]
    caches = []
    for subleaf in range(8):
        eax, ebx, ecx, _ = lp.cpuid(4, subleaf)
        if not eax & 0x1F:
            break
        size = math.prod(((ebx >> 22) + 1, (ebx >> 12 & 0x3FF) + 1, (ebx & 0xFFF) + 1, ecx + 1))
        caches.append((eax & 0x1F, eax >> 5 & 7, size, (eax >> 14 & 0xFFF) + 1))
    assert [(kind, level) for kind, level, _, _ in caches] == [(1, 1), (2, 1), (3, 2), (3, 3)]
    assert [size >> 10 for _, _, size, _ in caches] == [32, 64, 4096, 108 << 10]
    sharing = caches[-1][3]
    shift = lp.cpuid(0x1F, 1)[0]
    assert 1 << (sharing - 1).bit_length() == 1 << shift


@pytest.mark.parametrize(("packages", "cpus"), [(0, 1), (9, 1), (1, 0), (2, 1024)])
def test_impossible_topologies(make: Make, packages: int, cpus: int) -> None:
    with pytest.raises(ValueError, match=r"packages|processors"):
        make(packages, cpus)


def test_processors_share_the_machines_memory(machine: Machine) -> None:
    assert len({id(lp.machine.memory) for lp in machine.processors}) == 1
