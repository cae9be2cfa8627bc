"""MCHECK: what it accepts, what it writes, and every way to set a platform up wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from swtdx.firmware import mcheck
from swtdx.firmware.bios import BiosConfig
from swtdx.firmware.errors import McheckError
from swtdx.machine.cpu.cpuid import Cpuid
from swtdx.machine.cpu.model import MODELS
from swtdx.machine.cpu.topology import Topology
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.machine import Machine
from swtdx.machine.memory import Integrity

from .conftest import Bare
from .support import MIB, PAGE, SEAM, u

# Registers by their numbers in structures.md §11 and the SDM, not by the names of our tables.
FEATURE_CONTROL, XAPIC_STATUS, APIC_BASE = 0x3A, 0xBD, 0x1B
SMRR_BASE, SMRR_MASK, MTRR0_BASE, MTRR0_MASK, MTRR_DEF = 0x1F2, 0x1F3, 0x200, 0x201, 0x2FF
TME_ACTIVATE, EXCLUDE_MASK, SEAMRR_BASE, SEAMRR_MASK = 0x982, 0x983, 0x1400, 0x1401
VALID, LOCK = 1 << 11, 1 << 10
#: The default machine of 256 MiB: SMRAM in the top 8 MiB, the SEAM range 32 MiB below.
CMRS = [(1 * MIB, 191 * MIB)]
SEAM_BASE = 192 * MIB

Change = Callable[[Machine], None]


def everywhere(index: int, change: Callable[[int], int]) -> Change:
    """Change a register on all processors, past its lock."""

    def apply(machine: Machine) -> None:
        for lp in machine.processors:
            lp.msrs.poke(index, change(lp.msrs.peek(index)))

    return apply


def only(processor: int, index: int, change: Callable[[int], int]) -> Change:
    def apply(machine: Machine) -> None:
        lp = machine.processors[processor]
        lp.msrs.poke(index, change(lp.msrs.peek(index)))

    return apply


def set_bits(mask: int) -> Callable[[int], int]:
    return lambda value: value | mask


def clear_bits(mask: int) -> Callable[[int], int]:
    return lambda value: value & ~mask


def to(value: int) -> Callable[[int], int]:
    return lambda _: value


def another_part(machine: Machine) -> None:
    """A processor of another generation in the second socket."""
    for lp in machine.processors[2:]:
        lp._cpuid = Cpuid(MODELS["emerald-rapids"], Topology(2, 2), lambda: 2e9)


def nine_packages(machine: Machine) -> None:
    machine.config = replace(machine.config, packages=9)


def uncached_over_seam(machine: Machine) -> None:
    everywhere(MTRR0_BASE + 2, to(SEAM_BASE))(machine)
    everywhere(MTRR0_MASK + 2, to((1 << 52) - (64 * MIB) | VALID))(machine)


def split_otherwise(machine: Machine) -> None:
    """The registers agree with each other, but the memory controllers were activated otherwise."""
    everywhere(TME_ACTIVATE, lambda value: value & ~(0xF << 36) | 2 << 36)(machine)


WRONG: list[tuple[str, Change, str, str]] = [
    ("nine-packages", nine_packages, "packages", "supports 8"),
    ("another-part", another_part, "CPUID", "package 1 is 0xc06f0, package 0 is 0xa06f0"),
    ("tme-unlocked", everywhere(TME_ACTIVATE, clear_bits(1)), "IA32_TME_ACTIVATE", "not locked"),
    ("tme-off", everywhere(TME_ACTIVATE, clear_bits(2)), "IA32_TME_ACTIVATE", "not enabled"),
    ("no-keyids", everywhere(TME_ACTIVATE, clear_bits(0xF << 32)), "IA32_TME_ACTIVATE", "no KeyIDs"),
    ("no-tdx-keyids", everywhere(TME_ACTIVATE, clear_bits(0xF << 36)), "IA32_TME_ACTIVATE", "for TDX"),
    ("tme-differs", only(2, TME_ACTIVATE, lambda v: v ^ 1 << 36), "IA32_TME_ACTIVATE", "on processor 2"),
    ("split-differs", split_otherwise, "IA32_TME_ACTIVATE", "memory controllers"),
    ("xapic", everywhere(XAPIC_STATUS, to(0)), "IA32_XAPIC_DISABLE_STATUS", "enable x2APIC in the BIOS"),
    ("xapic-one", only(2, XAPIC_STATUS, to(0)), "IA32_XAPIC_DISABLE_STATUS", "on processor 2"),
    ("no-x2apic", only(3, APIC_BASE, to(0xFEE00800)), "IA32_APIC_BASE", "processor 3"),
    ("feature", everywhere(FEATURE_CONTROL, clear_bits(1)), "IA32_FEATURE_CONTROL", "not locked"),
    ("feature-one", only(1, FEATURE_CONTROL, to(0)), "IA32_FEATURE_CONTROL", "on processor 1"),
    ("smrr-invalid", everywhere(SMRR_MASK, clear_bits(VALID)), "SMRR", "not valid"),
    ("smrr-unlocked", everywhere(SMRR_MASK, clear_bits(LOCK)), "SMRR", "not locked"),
    ("smrr-holes", everywhere(SMRR_MASK, clear_bits(1 << 24)), "SMRR", "power-of-two"),
    ("smrr-empty", everywhere(SMRR_MASK, to(VALID | LOCK)), "SMRR", "power-of-two"),
    ("smrr-unaligned", everywhere(SMRR_BASE, lambda v: v + MIB), "SMRR", "not a multiple of the size"),
    ("smrr-differs", only(1, SMRR_BASE, lambda v: v + 8 * MIB), "IA32_SMRR_PHYSBASE", "on processor 1"),
    ("seamrr-unset", everywhere(SEAMRR_BASE, clear_bits(8)), "SEAMRR", "not configured"),
    ("seamrr-unlocked", everywhere(SEAMRR_MASK, clear_bits(LOCK)), "SEAMRR", "not locked"),
    ("seamrr-holes", everywhere(SEAMRR_MASK, clear_bits(1 << 26)), "SEAMRR", "power-of-two"),
    ("seamrr-empty", everywhere(SEAMRR_MASK, to(LOCK)), "SEAMRR", "power-of-two"),
    ("seamrr-unaligned", everywhere(SEAMRR_MASK, clear_bits(0x3 << 25)), "SEAMRR", "not a multiple"),
    ("seamrr-low", everywhere(SEAMRR_BASE, to(8)), "SEAMRR", "first MiB"),
    ("seamrr-keyid", everywhere(SEAMRR_BASE, set_bits(1 << 50)), "SEAMRR", "KeyID bits"),
    ("seamrr-no-memory", everywhere(SEAMRR_BASE, to(1 << 33 | 8)), "SEAMRR", "no memory behind it"),
    ("seamrr-over-smrr", everywhere(SEAMRR_BASE, to(224 * MIB | 8)), "SEAMRR", "overlaps SMRR"),
    ("seamrr-differs", only(3, SEAMRR_BASE, to(160 * MIB | 8)), "IA32_SEAMRR_PHYS_BASE", "on processor 3"),
    ("seamrr-mask-differs", only(1, SEAMRR_MASK, to(0)), "IA32_SEAMRR_PHYS_MASK", "on processor 1"),
    ("mtrrs-off", everywhere(MTRR_DEF, clear_bits(1 << 11)), "IA32_MTRR_DEF_TYPE", "not enabled"),
    ("default-uc", everywhere(MTRR_DEF, clear_bits(0xFF)), "IA32_MTRR_DEF_TYPE", "memory type 0"),
    ("mtrr-uc", uncached_over_seam, "MTRRs", "memory type 0"),
    ("mtrr-differs", only(2, MTRR0_BASE, lambda v: v + (1 << 30)), "IA32_MTRR_PHYSBASE0", "on processor 2"),
    ("mtrr-holes", everywhere(MTRR0_MASK, clear_bits(1 << 40)), "IA32_MTRR_PHYSMASK0", "power-of-two"),
    ("tme-exclude", everywhere(EXCLUDE_MASK, set_bits(VALID)), "IA32_TME_EXCLUDE", "excluded"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "thing", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_a_wrong_register_is_refused_by_name(bare: Bare, change: Change, thing: str, words: str) -> None:
    machine = bare()
    change(machine)
    with pytest.raises(McheckError) as refusal:
        mcheck.run(machine, CMRS)
    assert refusal.value.thing == thing
    assert words in str(refusal.value)
    lp = machine.processors[0]
    lp.write_cr4(1 << 13)
    if thing != "IA32_FEATURE_CONTROL":
        lp.vmxon()
        with pytest.raises(GeneralProtection):
            lp.seamcall()
    assert not lp.rdmsr(SEAMRR_MASK) & VALID
    assert machine.memory.read(SEAM_BASE + 32 * MIB - PAGE, PAGE) == bytes(PAGE)


@pytest.mark.parametrize(
    ("cmrs", "thing", "words"),
    [
        ([], "CMRs", "empty"),
        ([(MIB + number * PAGE, PAGE) for number in range(33)], "CMRs", "33 ranges"),
        ([(MIB, 0)], "CMR 0", "empty or not aligned"),
        ([(MIB, -PAGE)], "CMR 0", "empty or not aligned"),
        ([(MIB + 1, PAGE)], "CMR 0", "empty or not aligned"),
        ([(MIB, PAGE + 1)], "CMR 0", "empty or not aligned"),
        ([(MIB, 2 * MIB), (2 * MIB, MIB)], "CMR 1", "overlaps the CMR before it"),
        ([(8 * MIB, MIB), (2 * MIB, MIB)], "CMR 1", "out of order"),
        ([(MIB, MIB), (1 << 32, MIB)], "CMR 1", "not wholly backed by memory"),
        ([(255 * MIB, 2 * MIB)], "CMR 0", "not wholly backed by memory"),
        ([(MIB, MIB), (SEAM_BASE - PAGE, 2 * PAGE)], "CMR 1", "overlaps SEAMRR"),
        ([(SEAM_BASE + 32 * MIB - PAGE, PAGE)], "CMR 0", "overlaps SEAMRR"),
        ([(248 * MIB, PAGE)], "CMR 0", "overlaps SMRR"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_cmr_is_refused_by_number(
    bare: Bare, cmrs: list[tuple[int, int]], thing: str, words: str
) -> None:
    machine = bare()
    with pytest.raises(McheckError) as refusal:
        mcheck.run(machine, cmrs)
    assert refusal.value.thing == thing
    assert words in str(refusal.value)
    assert machine.memory.seamrr is None


def test_it_runs_once(bare: Bare) -> None:
    machine = bare()
    mcheck.run(machine, CMRS)
    with pytest.raises(McheckError, match="run already"):
        mcheck.run(machine, CMRS)


def test_an_mtrr_may_make_the_range_write_back(bare: Bare) -> None:
    """Default type UC, and a variable MTRR that covers the low 256 MiB with WB."""
    machine = bare()
    everywhere(MTRR_DEF, clear_bits(0xFF))(machine)
    everywhere(MTRR0_BASE + 2, to(6))(machine)
    everywhere(MTRR0_MASK + 2, to((1 << 52) - 256 * MIB | VALID))(machine)
    mcheck.run(machine, CMRS)
    assert machine.memory.seamrr == (SEAM_BASE, 32 * MIB)


@pytest.mark.parametrize("integrity", list(Integrity))
def test_p_sys_info_table(bare: Bare, integrity: Integrity) -> None:
    """The MCHECK half of the table, at the offsets of structures.md §12."""
    machine = bare(bios=BiosConfig(integrity=integrity))
    before = [lp.rdmsr(SEAMRR_MASK) for lp in machine.processors]
    machine.memory.write(SEAM_BASE + 0x1000, b"left by the BIOS")
    cmrs = [(MIB, 3 * MIB), (16 * MIB, 100 * MIB)]
    mcheck.run(machine, cmrs)
    assert machine.memory.seamrr == (SEAM_BASE, 32 * MIB)
    table = machine.memory.read(SEAM_BASE + 32 * MIB - PAGE, PAGE, SEAM)
    assert u(table, 0, 8) == 0  # version
    assert (u(table, 8, 4), u(table, 12, 4)) == (4, 2)  # processors, sockets
    assert [u(table, 16 + 4 * socket, 4) for socket in range(8)] == [0xA06F3, 0xA06F3, 0, 0, 0, 0, 0, 0]
    assert (u(table, 48, 8), u(table, 56, 8)) == (SEAM_BASE + 30 * MIB, 2 * MIB)
    assert table[64] == 1  # there is no SMRR2
    assert table[65] == (integrity is Integrity.LOGICAL)
    assert not any(table[66:128])
    numbers = [u(table, 128 + 8 * index, 8) for index in range(64)]
    assert numbers == [MIB, 3 * MIB, 16 * MIB, 100 * MIB, *[0] * 60]
    assert not any(table[640:])
    # The rest of the range is clear, and the range is closed.
    assert machine.memory.frames_are_zero(SEAM_BASE, 32 * MIB - PAGE)
    assert machine.memory.read(SEAM_BASE + 0x1000, 16) == b"\xff" * 16
    assert [lp.rdmsr(SEAMRR_MASK) for lp in machine.processors] == [value | VALID for value in before]
