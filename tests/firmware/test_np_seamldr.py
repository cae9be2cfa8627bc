"""The NP-SEAMLDR: its result codes (status-codes.md §6), what it leaves, and when it may run again."""

from __future__ import annotations

import pytest

from swtdx.firmware import mcheck, np_seamldr
from swtdx.firmware.bios import BiosConfig
from swtdx.firmware.errors import AcmError
from swtdx.firmware.signing import simulated_signer
from swtdx.machine.machine import Machine
from swtdx.machine.processor import Mode

from .conftest import Bare, Boot
from .support import INFO, MIB, PAGE, RAX, SEAM, SHUTDOWN, SUCCESS, call, enter_root, u

CMRS = [(1 * MIB, 191 * MIB)]
PLACE = 2 * MIB
TABLE = 224 * MIB - PAGE
LOADER_BASE = 222 * MIB
SEAMRR_MASK, MISC_ENABLE = 0x1401, 0x1A0
VALID = 1 << 11
EMODBUSY, ELDRINPROG = 0x8000000000000001, 0x8000000000000002
EBADRANGE, EBADPLATF, ENOMEM = 0x8000000000010000, 0x8000000000010001, 0x8000000000010002
EBADPARAM = 0x8000000000000000


def start(machine: Machine, acm: bytes) -> None:
    machine.memory.write(PLACE, acm)
    lp = machine.processors[0]
    lp.write_cr4(1 << 14)
    np_seamldr.start(lp, PLACE, len(acm), simulated_signer().key_hash)


def refused(machine: Machine, acm: bytes) -> AcmError:
    """The loader fails, and leaves the processor and the range as they were."""
    lp = machine.processors[0]
    before = lp.rdmsr(SEAMRR_MASK), lp.rdmsr(MISC_ENABLE), machine.seam.extend, machine.seam.p_seamldr_entry
    with pytest.raises(AcmError) as refusal:
        start(machine, acm)
    assert lp.mode is Mode.LEGACY
    assert before == (
        lp.rdmsr(SEAMRR_MASK), lp.rdmsr(MISC_ENABLE), machine.seam.extend, machine.seam.p_seamldr_entry
    )  # fmt: skip
    return refusal.value


@pytest.fixture
def checked(bare: Bare) -> Machine:
    machine = bare()
    mcheck.run(machine, CMRS)
    return machine


def poke(machine: Machine, offset: int, size: int, value: int) -> None:
    machine.memory.write(TABLE + offset, value.to_bytes(size, "little"), SEAM)


def test_without_mcheck(bare: Bare, acm: bytes) -> None:
    failure = refused(bare(), acm)
    assert failure.status == EBADRANGE
    assert "MCHECK has not run" in str(failure)
    assert "EBADRANGE" in str(failure)


def test_a_range_above_1_gib(bare: Bare, acm: bytes) -> None:
    machine = bare(memory=8 << 30, bios=BiosConfig(seamrr_base=4 << 30, seamrr_size=2 << 30))
    mcheck.run(machine, CMRS)
    failure = refused(machine, acm)
    assert failure.status == EBADRANGE
    assert "2048 MiB" in str(failure)


@pytest.mark.parametrize(
    ("offset", "size", "value", "status", "words"),
    [
        (12, 4, 0, EBADPARAM, "0 sockets"),
        (12, 4, 9, EBADPARAM, "9 sockets"),
        (20, 4, 0xC06F2, EBADPLATF, "socket 1 holds another family or model"),
        (0, 8, 1, EBADPLATF, "version 1"),
        (56, 8, 64 * PAGE, ENOMEM, "needs"),
        (2048, 8, 1, ELDRINPROG, "another NP-SEAMLDR is running"),
    ],
)
def test_a_bad_table(
    checked: Machine, acm: bytes, offset: int, size: int, value: int, status: int, words: str
) -> None:
    poke(checked, offset, size, value)
    failure = refused(checked, acm)
    assert failure.status == status
    assert words in str(failure)
    # It does not take the other's mutex, and it gives its own back.
    assert checked.memory.read_u64(TABLE + 2048, SEAM) == (1 if status == ELDRINPROG else 0)


def test_steppings_may_differ(checked: Machine, acm: bytes) -> None:
    poke(checked, 20, 4, 0xA06F1)
    start(checked, acm)


def test_another_processors_loader(checked: Machine, acm: bytes) -> None:
    poke(checked, 2144, 4, 2)
    poke(checked, 2148, 4, 1)
    failure = refused(checked, acm)
    assert failure.status == EMODBUSY
    assert "x2APIC id 2" in str(failure)


def test_a_second_time(checked: Machine, acm: bytes) -> None:
    start(checked, acm)
    code = checked.memory.read(LOADER_BASE, 2 * MIB - PAGE, SEAM)
    failure = refused(checked, acm)
    assert failure.status == EMODBUSY
    assert "SEAMLDR.SHUTDOWN" in str(failure)
    assert checked.memory.read(LOADER_BASE, 2 * MIB - PAGE, SEAM) == code


def test_what_it_leaves(checked: Machine, acm: bytes) -> None:
    """The second half of P_SYS_INFO_TABLE and SEAMEXTEND, at the offsets of structures.md §12."""
    first_half = checked.memory.read(TABLE, 2048, SEAM)
    start(checked, acm)
    table = checked.memory.read(TABLE, PAGE, SEAM)
    assert table[:2048] == first_half
    names = ("mutex", "code", "code size", "data", "data size", "stack", "stack size", "keyhole",
             "keyhole size", "edit", "edit size", "module region")  # fmt: skip
    found = {name: u(table, 2048 + 8 * number, 8) for number, name in enumerate(names)}
    assert found["mutex"] == 0
    # Bits 46:34 of the linear addresses are random, the same for all; the rest says which region it is.
    regions = ("code", "stack", "keyhole", "data", "edit", "module region")
    assert len({found[name] >> 34 & 0x1FFF for name in regions}) == 1
    assert {found[name] & ~(0x1FFF << 34) for name in regions} == {
        0xFFFF800000000000, 0xFFFF800100000000, 0xFFFF800200000000, 0xFFFF800300000000,
        0x0000000100000000, 0x0000000200000000,
    }  # fmt: skip
    assert all(found[name] % PAGE == 0 and found[name] for name in names if name.endswith("size"))
    assert (u(table, 2144, 4), u(table, 2148, 4)) == (0, 1)  # this processor's x2APIC id is valid
    assert not any(table[2152:])
    extend = checked.seam.extend
    assert len(extend) == 136
    assert [index for index, byte in enumerate(extend) if byte] == [130]  # P_SEAMLDR_READY, nothing else
    # Nothing of this is visible from outside.
    assert checked.memory.read(TABLE, PAGE) == b"\xff" * PAGE


def test_after_a_shutdown_it_may_run_again(boot: Boot, acm: bytes) -> None:
    platform = boot(packages=1, cpus=2)
    enter_root(platform)
    assert call(platform, SHUTDOWN, processor=1)[0] == SUCCESS
    assert call(platform, SHUTDOWN, processor=0)[0] == SUCCESS
    for lp in platform.machine.processors:
        lp.vmxoff()
    start(platform.machine, acm)
    lp = platform.machine.processors[0]
    lp.write_cr4(1 << 13)
    lp.vmxon()
    assert call(platform, INFO, PLACE)[0] == SUCCESS
    lp.gpr[RAX] = 0
    lp.seamcall()
    assert lp.cf  # the module is gone until it is installed again


def test_debug_unlock_shows_in_seamextend(checked: Machine, acm: bytes) -> None:
    for lp in checked.processors:
        lp.msrs.poke(0x503, 2)
    start(checked, acm)
    assert checked.seam.extend[129] == 1
