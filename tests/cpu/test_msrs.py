"""The MSR file: reset values of the SDM and structures.md §10-11, and #GP where hardware faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swtdx.machine.cpu.msr_table import MSRS
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.machine import Machine
from swtdx.machine.processor import LogicalProcessor, Mode

from .conftest import MIB, Make

LOCK, VALID = 1 << 10, 1 << 11
TME_ON = 0x0003_0016_0000_0003  # XTS-128 and its MAC, 1 TDX bit of 6, enabled, locked


def faults(lp: LogicalProcessor, index: int, value: int) -> str:
    """WRMSR raises #GP and changes nothing."""
    before = {number: lp.msrs.peek(number) for number in MSRS}
    with pytest.raises(GeneralProtection) as fault:
        lp.wrmsr(index, value)
    assert {number: lp.msrs.peek(number) for number in MSRS} == before
    return str(fault.value)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x3A, 0),  # IA32_FEATURE_CONTROL: unlocked
        (0x3B, 0),  # IA32_TSC_ADJUST
        (0x87, 0),  # IA32_MKTME_KEYID_PARTITIONING, before TME is activated
        (0x8B, 0x03000362 << 32),  # microcode revision in the upper half
        (0xBC, 0),
        (0xBD, 0),
        (0x277, 0x0007040600070406),  # IA32_PAT, SDM table 12-12
        (0x2FF, 0),  # MTRRs disabled
        (0x982, 0),
        (0x983, 0),
        (0x1400, 0),
        (0x1401, 0),
        (0xC0000080, 0),
        (0x6E0, 0),
        (0x480, 0x01D8_0800_0000_005D),  # 2 KiB WB VMCS, I/O info, TRUE_ controls, events without code
        (0x486, 0x80000021),  # CR0_FIXED0: PE, NE, PG
        (0x488, 0x2000),  # CR4_FIXED0: VMXE
    ],
)
def test_reset_values(lp: LogicalProcessor, index: int, value: int) -> None:
    assert lp.rdmsr(index) == value


def test_apic_base_marks_the_bootstrap_processor(machine: Machine) -> None:
    values = [lp.rdmsr(0x1B) for lp in machine.processors]
    assert values == [0xFEE00900, 0xFEE00800, 0xFEE00800, 0xFEE00800]


def test_capabilities_that_a_tdx_module_needs(lp: LogicalProcessor) -> None:
    """MTRRcap, ARCH_CAPABILITIES and TME_CAPABILITY, by the bits of structures.md §10-11 and the SDM."""
    mtrr = lp.rdmsr(0xFE)
    assert mtrr & 0xFF >= 8
    assert all(mtrr >> bit & 1 for bit in (8, 11, 14, 15))  # fixed ranges, SMRR, SMRR lock, SEAMRR
    arch = lp.rdmsr(0x10A)
    # RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, IF_PSCHANGE_NO, TAA_NO, MISC_PACKAGE_CTLS, ENERGY_FILTERING,
    # DOITM, XAPIC_DISABLE_STATUS
    assert all(arch >> bit & 1 for bit in (0, 1, 3, 5, 6, 8, 10, 11, 12, 21))
    tme = lp.rdmsr(0x981)
    assert tme & 3 == 3  # AES-XTS-128 without and with integrity
    assert (tme >> 32 & 0xF, tme >> 36 & 0x7FFF) == (7, 127)


@pytest.mark.parametrize("index", [0x2, 0x9999, 0xC0010015, 0x40000000, 0xFFFFFFFF, 0xFD])
def test_registers_that_do_not_exist(lp: LogicalProcessor, index: int) -> None:
    with pytest.raises(GeneralProtection, match="no such MSR"):
        lp.rdmsr(index)
    with pytest.raises(GeneralProtection, match="no such MSR"):
        lp.wrmsr(index, 0)


@pytest.mark.parametrize("index", [0xFE, 0x10A, 0x981, 0x87, 0x480, 0x48C, 0xBD, 0xCE, 0x345, 0x503])
def test_read_only_registers(lp: LogicalProcessor, index: int) -> None:
    value = lp.rdmsr(index)
    assert "read-only" in faults(lp, index, value)
    assert lp.rdmsr(index) == value


@pytest.mark.parametrize("index", [0x49, 0x10B, 0x1402, 0x80B, 0x83F])
def test_command_registers_cannot_be_read(lp: LogicalProcessor, index: int) -> None:
    with pytest.raises(GeneralProtection, match="write-only"):
        lp.rdmsr(index)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0xC0000080, 1 << 1),  # EFER: reserved
        (0xC0000080, 1 << 16),
        (0x3A, 1 << 40),
        (0x48, 1 << 20),  # SPEC_CTRL
        (0x49, 2),  # PRED_CMD
        (0x10B, 2),  # FLUSH_CMD
        (0x2FF, 1 << 8),
        (0x2FF, 2),  # memory type 2 is reserved
        (0x200, 3),
        (0x201, 1),
        (0x250, 0x0606060606060602),
        (0x277, 0x0007040600070402),
        (0x174, 1 << 32),
        (0x1400, 1 << 24),  # SEAMRR granularity is 32 MiB
        (0x1400, 1 << 52),
        (0x1401, 1),
        (0x1F2, 0x100),
        (0x983, 1),
        (0xBC, 2),
        (0xC0000084, 1 << 32),
    ],
)
def test_reserved_bits(lp: LogicalProcessor, index: int, value: int) -> None:
    faults(lp, index, value)


@pytest.mark.parametrize("index", [0x175, 0x176, 0x600, 0xC0000082, 0xC0000100, 0xC0000101, 0xC0000102])
def test_addresses_must_be_canonical(lp: LogicalProcessor, index: int) -> None:
    for good in (0, (1 << 47) - 1, 0xFFFF800000000000, (1 << 64) - 1):
        lp.wrmsr(index, good)
        assert lp.rdmsr(index) == good
    for bad in (1 << 47, 0xFFFF7FFFFFFFFFFF, 1 << 63):
        assert "canonical" in faults(lp, index, bad)


def test_values_have_64_bits(lp: LogicalProcessor) -> None:
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64 bits"):
            lp.wrmsr(0xC0000082, value)


def test_scopes(machine: Machine) -> None:
    """Package-scope registers are shared inside a package only; thread-scope ones are each processor's."""
    first, sibling, other = machine.processors[0], machine.processors[1], machine.processors[2]
    first.wrmsr(0xBC, 1)
    assert (sibling.rdmsr(0xBC), other.rdmsr(0xBC)) == (1, 0)
    first.wrmsr(0xC0000103, 7)
    assert sibling.rdmsr(0xC0000103) == 0


# ---------------------------------------------------------------------- locks
def lock_feature_control(lp: LogicalProcessor) -> None:
    lp.wrmsr(0x3A, 5)


def lock_smrr(lp: LogicalProcessor) -> None:
    lp.wrmsr(0x1F2, 64 * MIB | 6)
    lp.wrmsr(0x1F3, 0xFF800000 | VALID | LOCK)


def lock_seamrr(lp: LogicalProcessor) -> None:
    lp.wrmsr(0x1400, 64 * MIB | 8)
    lp.wrmsr(0x1401, (1 << 52) - 32 * MIB | LOCK)


def lock_tme(lp: LogicalProcessor) -> None:
    lp.wrmsr(0x982, TME_ON)


@pytest.mark.parametrize(
    ("lock", "index", "value"),
    [
        (lock_feature_control, 0x3A, 5),
        (lock_feature_control, 0x3A, 0),
        (lock_smrr, 0x1F2, 0),
        (lock_smrr, 0x1F3, 0),
        (lock_smrr, 0x1F3, 0xFF800000 | VALID | LOCK),
        (lock_seamrr, 0x1400, 64 * MIB | 8),
        (lock_seamrr, 0x1401, 0),
        (lock_seamrr, 0x1401, (1 << 52) - 32 * MIB | LOCK | VALID),
        (lock_tme, 0x982, TME_ON),
        (lock_tme, 0x982, 0),
        (lock_tme, 0x983, VALID),
        (lock_tme, 0x984, 0x1000),
    ],
)
def test_locked_registers(
    lp: LogicalProcessor, lock: Callable[[LogicalProcessor], None], index: int, value: int
) -> None:
    lock(lp)
    assert "locked" in faults(lp, index, value)


def test_software_cannot_make_seamrr_valid(lp: LogicalProcessor) -> None:
    """VALID belongs to MCHECK, and to an ACM that changes nothing else."""
    lp.wrmsr(0x1400, 64 * MIB | 8)
    mask = (1 << 52) - 32 * MIB
    assert "MCHECK" in faults(lp, 0x1401, mask | VALID)
    lp.wrmsr(0x1401, mask | LOCK)
    lp.mode = Mode.ACM
    lp.wrmsr(0x1401, mask | LOCK | VALID)
    assert "VALID only" in faults(lp, 0x1401, mask | VALID)
    assert "VALID only" in faults(lp, 0x1401, mask & ~(1 << 25) | LOCK)


def test_seamextend_is_for_seam_and_acms(lp: LogicalProcessor) -> None:
    for value in (0x1000, 0x1001):
        assert "SEAM mode" in faults(lp, 0x1402, value)
    lp.mode = Mode.ACM
    lp.machine.memory.write(0x1000, bytes(range(136)))
    lp.wrmsr(0x1402, 0x1000)
    lp.wrmsr(0x1402, 0x2001)
    moved = lp.machine.memory.read(0x2000, 136)
    # The SE SVN byte of TEE_TCB_SVN is the processor's own.
    assert moved[:10] + moved[11:] == bytes(range(10)) + bytes(range(11, 136))
    assert moved[10] == 2


# ---------------------------------------------------------------------- TME
def test_activation(machine: Machine) -> None:
    """It locks itself, splits KeyIDs, and memory is encrypted from then on."""
    lp = machine.processors[0]
    machine.memory.write(0x1000, b"left from before")
    lp.wrmsr(0x982, TME_ON & ~1)  # bit 0 is set by the write itself
    assert lp.rdmsr(0x982) == TME_ON
    assert lp.rdmsr(0x87) == 32 << 32 | 31
    assert machine.processors[1].rdmsr(0x87) == 32 << 32 | 31
    assert machine.processors[2].rdmsr(0x87) == 0  # the other package has not been activated
    assert machine.memory.addresses.hpa_bits == 46
    assert machine.memory.read(0x1000, 16) == bytes(16)


@pytest.mark.parametrize(
    ("bits", "tdx", "shared", "private"),
    [(6, 1, 31, 32), (6, 3, 7, 56), (7, 7, 0, 127), (2, 0, 3, 0), (1, 1, 0, 1)],
)
def test_keyid_split(make: Make, bits: int, tdx: int, shared: int, private: int) -> None:
    """NUM_MKTME_KIDS without KeyID 0, and NUM_TDX_PRIV_KIDS (structures.md §10)."""
    machine = make()
    machine.processors[0].wrmsr(0x982, 3 << 48 | tdx << 36 | bits << 32 | 3)
    assert machine.processors[0].rdmsr(0x87) == private << 32 | shared
    addresses = machine.memory.addresses
    assert (addresses.shared_keyids, addresses.private_keyids) == (shared, private)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3 << 48 | 8 << 32 | 3, "8 KeyID bits; the part has 7"),
        (3 << 48 | 7 << 36 | 6 << 32 | 3, "7 TDX KeyID bits of 6"),
        (6 << 32 | 3, "without an algorithm"),
        (7 << 48 | 6 << 32 | 3, "algorithms 0x7"),
        (3 << 48 | 6 << 32 | 1, "need TME enabled"),
        (3 << 48 | 6 << 32 | 2 << 4 | 3, "policy 2"),
        (1 << 40, "reserved"),
        (1 << 52, "reserved"),
    ],
)
def test_impossible_activations(lp: LogicalProcessor, value: int, words: str) -> None:
    assert words in faults(lp, 0x982, value)
    lp.wrmsr(0x982, TME_ON)


def test_tme_may_be_locked_off(lp: LogicalProcessor) -> None:
    lp.wrmsr(0x982, 0)
    assert (lp.rdmsr(0x982), lp.rdmsr(0x87)) == (1, 0)
    assert "locked" in faults(lp, 0x982, TME_ON)


# ---------------------------------------------------------------------- APIC, TSC
def test_apic_modes(lp: LogicalProcessor) -> None:
    base = 0xFEE00100
    assert "needs the APIC enabled" in faults(lp, 0x1B, base | 1 << 10)
    lp.wrmsr(0x1B, base)
    assert "entered from xAPIC" in faults(lp, 0x1B, base | 3 << 10)
    lp.wrmsr(0x1B, base | 1 << 11)
    with pytest.raises(GeneralProtection, match="only in x2APIC mode"):
        lp.rdmsr(0x802)
    lp.wrmsr(0x1B, base | 3 << 10)
    assert lp.rdmsr(0x802) == 0
    assert "cannot go back to xAPIC" in faults(lp, 0x1B, base | 1 << 11)


def test_x2apic_stays_on_once_xapic_is_disabled(enabled: Machine) -> None:
    lp = enabled.processors[3]
    assert lp.rdmsr(0x802) == 3
    assert "legacy xAPIC is disabled" in faults(lp, 0x1B, 0xFEE00000)


def test_interprocessor_interrupts(enabled: Machine) -> None:
    sender, target = enabled.processors[0], enabled.processors[2]
    sender.wrmsr(0x830, target.x2apic_id << 32 | 0x55)
    assert target.pending == {0x55}
    assert target.rdmsr(0x820 + (0x55 >> 5)) == 1 << (0x55 & 31)
    assert target.rdmsr(0x9A) == 1  # IA32_INTR_PENDING
    assert sender.rdmsr(0x9A) == 0
    sender.wrmsr(0x830, 3 << 18 | 0x60)  # all but itself
    assert [0x60 in lp.pending for lp in enabled.processors] == [False, True, True, True]
    sender.wrmsr(0x830, 2 << 18 | 0x61)  # all
    sender.wrmsr(0x83F, 0x62)
    assert sender.pending == {0x61, 0x62}
    for index, value in ((0x830, 0x0F), (0x83F, 0x0F), (0x80B, 1)):
        faults(sender, index, value)


def test_tsc_adjust_moves_the_counter(lp: LogicalProcessor) -> None:
    """SDM volume 3, 18.17.3: what is added to one is added to the other."""
    before = lp.rdmsr(0x10)
    lp.wrmsr(0x3B, 1 << 40)
    assert lp.rdmsr(0x10) - before >= 1 << 40
    lp.wrmsr(0x10, 0)
    assert lp.rdmsr(0x10) < 1 << 40
    assert lp.rdmsr(0x3B) >> 63  # set back


def test_wbinvdp_writes_the_cache_back(enabled: Machine) -> None:
    """Reading says how many sub-blocks there are; after all of them nothing is cached any more."""
    lp, memory = enabled.processors[0], enabled.memory
    lp.machine.memory.keys.program(3, 1, 1)
    memory.write(3 << 46 | 0x5000, b"dirty line")
    blocks = lp.rdmsr(0x98)
    assert blocks == lp.rdmsr(0x99) > 0
    for block in range(blocks):
        lp.wrmsr(0x98, block)
    assert not memory.pages.valid[5]
    faults(lp, 0x98, blocks)
