"""The BIOS: where things go, what registers then hold, and what it cannot set up at all."""

from __future__ import annotations

import itertools

import pytest

from swtdx.firmware.bios import Bios, BiosConfig
from swtdx.firmware.errors import BiosError, McheckError
from swtdx.firmware.memory_map import dram_ranges, plan
from swtdx.machine.machine import Machine, MachineConfig
from swtdx.machine.memory import AddressMap, PhysicalMemory

from .conftest import Bare, Boot
from .support import MIB

GIB = 1 << 30
VALID, LOCK = 1 << 11, 1 << 10


def test_registers_after_it(bare: Bare) -> None:
    """IA32_TME_ACTIVATE, SMRR, SEAMRR, MTRRs, x2APIC, by structures.md §10-11 and the SDM."""
    machine = bare()
    for lp in machine.processors:
        activate = lp.rdmsr(0x982)
        assert activate & 3 == 3
        assert (activate >> 32 & 0xF, activate >> 36 & 0xF, activate >> 48 & 0xF) == (6, 1, 3)
        assert lp.rdmsr(0x87) == 32 << 32 | 31
        assert lp.rdmsr(0x3A) == 5  # locked, VMX outside SMX
        assert lp.rdmsr(0x1F2) == 248 * MIB | 6
        assert lp.rdmsr(0x1F3) == 0xFF800000 | VALID | LOCK
        assert lp.rdmsr(0x1400) == 192 * MIB | 8
        assert lp.rdmsr(0x1401) == (1 << 52) - 32 * MIB | LOCK
        assert lp.rdmsr(0x1B) >> 10 & 3 == 3
        assert (lp.rdmsr(0xBC), lp.rdmsr(0xBD)) == (1, 1)


def memory_type(machine: Machine, address: int) -> int:
    """The type that the MTRRs give ``address`` (SDM volume 3, 12.11.4)."""
    lp = machine.processors[0]
    if address < MIB:
        if address < 0x80000:
            return lp.rdmsr(0x250) >> address // 0x10000 * 8 & 0xFF
        if address < 0xC0000:
            first = (address - 0x80000) // 0x20000
            return lp.rdmsr(0x258 + first) >> (address - 0x80000) % 0x20000 // 0x4000 * 8 & 0xFF
        first = (address - 0xC0000) // 0x8000
        return lp.rdmsr(0x268 + first) >> (address - 0xC0000) % 0x8000 // 0x1000 * 8 & 0xFF
    kinds = set()
    for number in range(lp.rdmsr(0xFE) & 0xFF):
        base, mask = lp.rdmsr(0x200 + 2 * number), lp.rdmsr(0x201 + 2 * number)
        if mask & VALID and address & mask & ~0xFFF == base & mask & ~0xFFF:
            kinds.add(base & 0xFF)
    assert len(kinds) < 2
    return kinds.pop() if kinds else lp.rdmsr(0x2FF) & 0xFF


@pytest.mark.parametrize("memory", [256 * MIB, 1538 * MIB, 8 * GIB])
def test_memory_types(bare: Bare, memory: int) -> None:
    """DRAM is write-back, and the hole between low DRAM and 4 GiB uncached, and so is the VGA window."""
    machine = bare(memory=memory)
    top = min(memory, 2 * GIB)
    for address in (0, 0x9FFFF, 0xC0000, 0xFFFFF, MIB, top - 1, 4 * GIB, 6 * GIB):
        assert memory_type(machine, address) == 6, hex(address)
    for address in (0xA0000, 0xBFFFF, top, top + (4 * GIB - top) // 2, 0xFEE00000, 4 * GIB - 1):
        assert memory_type(machine, address) == 0, hex(address)


@pytest.mark.parametrize("memory", [256 * MIB, 512 * MIB, 2 * GIB, 4 * GIB, 64 * GIB])
@pytest.mark.parametrize("seamrr", [32 * MIB, 64 * MIB])
def test_plans_are_whole_and_apart(memory: int, seamrr: int) -> None:
    dram = dram_ranges(memory)
    assert sum(size for _, size in dram) == memory
    made = plan(dram, seamrr, 8 * MIB)
    taken = sorted([*made.cmrs, made.smrr, made.seamrr])
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(taken))
    assert made.seamrr[0] % seamrr == 0
    # All of DRAM above 1 MiB is convertible but for what was taken and what lies between.
    low = sum(size for base, size in made.cmrs if base < 4 * GIB)
    assert low == made.seamrr[0] - MIB
    assert made.usable[0] == (0, 640 << 10)
    assert made.usable[1:] == made.cmrs


@pytest.mark.parametrize(
    ("bios", "words"),
    [
        (BiosConfig(keyid_bits=8), "8 KeyID bits; the part has 7"),
        (BiosConfig(keyid_bits=2, tdx_keyid_bits=3), "3 TDX KeyID bits of 2"),
        (BiosConfig(keyid_bits=22, tdx_keyid_bits=0), "22 KeyID bits; its field holds 0 to 15"),
        (BiosConfig(tdx_keyid_bits=-1), "-1 TDX KeyID bits"),
        (BiosConfig(seamrr_size=48 * MIB), "SEAMRR: 0x3000000 bytes cannot be set by a mask"),
        (BiosConfig(seamrr_size=16 * MIB), "power of two from 0x2000000 up"),
        (BiosConfig(seamrr_base=80 * MIB), "SEAMRR: base 0x5000000 is not a multiple of its size"),
        (BiosConfig(smrr_size=3 * MIB), "SMRR: 0x300000 bytes cannot be set by a mask"),
        (BiosConfig(smrr_base=MIB), "SMRR: base 0x100000 is not a multiple of its size"),
        (BiosConfig(seamrr_size=256 * MIB), "the SEAM range of 256 MiB does not fit below"),
        (BiosConfig(smrr_size=256 * MIB), "SMRAM of 256 MiB does not fit below"),
    ],
)
def test_what_registers_cannot_express(bare: Bare, bios: BiosConfig, words: str) -> None:
    with pytest.raises(BiosError) as refusal:
        bare(bios=bios)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("bios", "words"),
    [
        (BiosConfig(tdx_keyid_bits=0), "no KeyIDs for TDX"),
        (BiosConfig(keyid_bits=0, tdx_keyid_bits=0), "there are no KeyIDs"),
        (BiosConfig(x2apic=False), "enable x2APIC in the BIOS"),
        (BiosConfig(seamrr_base=0), "first MiB"),
        (BiosConfig(seamrr_base=1 << 40), "no memory behind it"),
        (BiosConfig(seamrr_base=1 << 51), "KeyID bits"),
        (BiosConfig(seamrr_base=64 * MIB, smrr_base=72 * MIB), "overlaps SMRR"),
        (BiosConfig(cmrs=[(MIB, 192 * MIB)]), "CMR 0 0x100000-0xc0fffff overlaps SEAMRR"),
        (BiosConfig(cmrs=[]), "the list is empty"),
    ],
)
def test_what_mcheck_makes_of_its_settings(boot: Boot, bios: BiosConfig, words: str) -> None:
    """Told so by the user, programmed by the BIOS, refused by MCHECK: nothing boots."""
    with pytest.raises(McheckError) as refusal:
        boot(bios=bios)
    assert words.replace("CMR 0 ", "CMR 0: ") in str(refusal.value)


@pytest.mark.parametrize("size", [0, 126 * MIB, 129 * MIB, 256 * MIB + 4096])
def test_impossible_amounts_of_memory(size: int) -> None:
    with pytest.raises(BiosError, match="units of 2 MiB"):
        dram_ranges(size)


def test_it_runs_once(bare: Bare) -> None:
    """The registers are locked: a second run is refused by the first of them."""
    machine = bare()
    with pytest.raises(BiosError, match=r"IA32_TME_ACTIVATE.*locked until reset"):
        Bios(machine).run()


def test_a_hole_that_needs_too_many_mtrrs() -> None:
    """Low DRAM that ends at an odd place leaves a hole of many powers of two."""
    top = 128 * MIB + 4096
    memory = PhysicalMemory([(0, top)], bytes(32), AddressMap.without_tme())
    machine = Machine(MachineConfig(1, 1, top, engine="scripted"), memory)
    with machine, pytest.raises(BiosError, match="needs more than 10 MTRRs"):
        Bios(machine).run()
