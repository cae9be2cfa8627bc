"""PCONFIG, leaf MKTME_KEY_PROGRAM: faults, and every result of structures.md §10."""

from __future__ import annotations

import pytest

from swtdx.machine.faults import GeneralProtection
from swtdx.machine.machine import Machine
from swtdx.machine.memory import ReservedBitFault
from swtdx.machine.processor import LogicalProcessor, Mode

PLACE = 0x10_0000
RAX, RBX = 0, 3
KEYID = 46
SUCCESS, INVALID_PROG_CMD, ENTROPY_ERROR, INVALID_KEYID, INVALID_ENC_ALG, DEVICE_BUSY = range(6)
DIRECT, RANDOM, CLEAR, NO_ENCRYPT = range(4)
XTS, XTS_INTEGRITY, XTS_256 = 1, 2, 4


@pytest.fixture
def lp(enabled: Machine) -> LogicalProcessor:
    return enabled.processors[0]


def structure(keyid: int, command: int, algorithm: int = XTS, key: bytes = bytes(128)) -> bytearray:
    """KEYID u16 at 0, KEYID_CTRL u32 at 2, KEY_FIELD_1 at 64, KEY_FIELD_2 at 128; 256 bytes."""
    data = bytearray(256)
    data[0:2] = keyid.to_bytes(2, "little")
    data[2:6] = (command | algorithm << 8).to_bytes(4, "little")
    data[64:192] = key
    return data


def run(lp: LogicalProcessor, data: bytes | bytearray, leaf: int = 0, place: int = PLACE) -> int:
    lp.machine.memory.write(place, data)
    lp.gpr[RAX], lp.gpr[RBX] = leaf, place
    lp.cf = True
    lp.pconfig()
    assert lp.zf == (lp.gpr[RAX] != 0)
    assert not lp.cf
    return lp.gpr[RAX]


@pytest.mark.parametrize(
    ("keyid", "command", "algorithm", "result"),
    [
        (1, RANDOM, XTS, SUCCESS),
        (31, RANDOM, XTS_INTEGRITY, SUCCESS),
        (1, DIRECT, XTS, SUCCESS),
        (1, CLEAR, XTS, SUCCESS),
        (1, NO_ENCRYPT, XTS, SUCCESS),
        (1, 4, XTS, INVALID_PROG_CMD),
        (1, 0xFF, XTS, INVALID_PROG_CMD),
        (0, RANDOM, XTS, INVALID_KEYID),
        (32, RANDOM, XTS, INVALID_KEYID),  # private, and not in SEAM
        (63, CLEAR, XTS, INVALID_KEYID),
        (64, RANDOM, XTS, INVALID_KEYID),
        (0xFFFF, RANDOM, XTS, INVALID_KEYID),
        (1, RANDOM, 0, INVALID_ENC_ALG),
        (1, RANDOM, XTS | XTS_INTEGRITY, INVALID_ENC_ALG),
        (1, RANDOM, XTS_256, INVALID_ENC_ALG),
        (1, RANDOM, 1 << 15, INVALID_ENC_ALG),
    ],
)
def test_results(lp: LogicalProcessor, keyid: int, command: int, algorithm: int, result: int) -> None:
    before = [lp.machine.memory.keys.key(number).serial for number in range(64)]
    assert run(lp, structure(keyid, command, algorithm)) == result
    after = [lp.machine.memory.keys.key(number).serial for number in range(64)]
    changed = [number for number in range(64) if before[number] != after[number]]
    assert changed == ([keyid] if result == SUCCESS else [])


def test_no_entropy(lp: LogicalProcessor) -> None:
    lp.machine.memory.keys.entropy_failures = 1
    assert run(lp, structure(1, RANDOM)) == ENTROPY_ERROR
    assert run(lp, structure(1, RANDOM)) == SUCCESS


def test_busy(lp: LogicalProcessor) -> None:
    """Another processor is in the middle of a programming."""
    answers: list[int] = []
    keys = lp.machine.memory.keys
    ordinary = keys.before_change

    def meanwhile(keyid: int) -> None:
        ordinary(keyid)
        keys.before_change = ordinary
        answers.append(keys.program(2, RANDOM, XTS))

    keys.before_change = meanwhile
    assert run(lp, structure(1, RANDOM)) == SUCCESS
    assert answers == [DEVICE_BUSY]


def test_in_seam_private_keyids_may_be_programmed(lp: LogicalProcessor) -> None:
    lp.mode = Mode.SEAM_ROOT
    for keyid in (32, 63):
        assert run(lp, structure(keyid, RANDOM, XTS_INTEGRITY)) == SUCCESS
    assert run(lp, structure(64, RANDOM)) == INVALID_KEYID


def test_direct_keys_are_those_given(lp: LogicalProcessor) -> None:
    """The same data and tweak key under two KeyIDs read each other's lines; another tweak key does not."""
    memory = lp.machine.memory
    key = bytes(range(16)) + bytes(48) + bytes(range(16, 32)) + bytes(48)
    assert run(lp, structure(1, DIRECT, XTS, key)) == SUCCESS
    assert run(lp, structure(2, DIRECT, XTS, key)) == SUCCESS
    assert run(lp, structure(3, DIRECT, XTS, key[:64] + bytes(64))) == SUCCESS
    memory.write(1 << KEYID | 0x20_0000, b"sixteen bytes of")
    memory.wbinvd()
    assert memory.read(2 << KEYID | 0x20_0000, 16) == b"sixteen bytes of"
    assert memory.read(3 << KEYID | 0x20_0000, 16) != b"sixteen bytes of"


@pytest.mark.parametrize("offset", [6, 63, 192, 255])
def test_reserved_bytes_fault(lp: LogicalProcessor, offset: int) -> None:
    data = structure(1, RANDOM)
    data[offset] = 1
    with pytest.raises(GeneralProtection, match="reserved"):
        run(lp, data)


def test_reserved_control_bits_fault(lp: LogicalProcessor) -> None:
    data = structure(1, RANDOM)
    data[5] = 0x80
    with pytest.raises(GeneralProtection, match="reserved"):
        run(lp, data)


@pytest.mark.parametrize("leaf", [1, 0xFFFFFFFF])
def test_other_leaves_fault(lp: LogicalProcessor, leaf: int) -> None:
    with pytest.raises(GeneralProtection, match="leaf"):
        run(lp, structure(1, RANDOM), leaf)


def test_the_upper_half_of_rax_does_not_count(lp: LogicalProcessor) -> None:
    assert run(lp, structure(1, RANDOM), 1 << 32) == SUCCESS


@pytest.mark.parametrize("offset", [1, 64, 128])
def test_alignment(lp: LogicalProcessor, offset: int) -> None:
    with pytest.raises(GeneralProtection, match="256"):
        run(lp, structure(1, RANDOM), place=PLACE + offset)


def test_a_structure_under_a_private_keyid(lp: LogicalProcessor) -> None:
    lp.gpr[RAX], lp.gpr[RBX] = 0, 32 << KEYID | PLACE
    with pytest.raises(ReservedBitFault):
        lp.pconfig()


def test_before_tme_is_activated(machine: Machine) -> None:
    with pytest.raises(GeneralProtection, match="IA32_TME_ACTIVATE"):
        run(machine.processors[0], structure(1, RANDOM))
