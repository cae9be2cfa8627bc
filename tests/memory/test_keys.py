"""PCONFIG's MKTME_KEY_PROGRAM: results, reproducibility, and what a change of key does to memory."""

from __future__ import annotations

import pytest

from swtdx.machine.memory import (
    HOST,
    MKTME_KEY_PROGRAM,
    SEAM,
    AddressError,
    AddressMap,
    Algorithm,
    Command,
    Integrity,
    KeyProgramFormatError,
    KeyTable,
    MachineCheck,
    PhysicalMemory,
    ProgramResult,
)
from swtdx.machine.memory.dram import Dram

from .conftest import SEED, SHARED_1, SHARED_UNPROGRAMMED, TD_A, build, program

A = 0x3000
XTS, XTS_INTEGRITY = Algorithm.AES_XTS_128, Algorithm.AES_XTS_128_INTEGRITY


@pytest.mark.parametrize(
    ("keyid", "command", "algorithm", "seam", "result"),
    [
        (1, 1, 1, False, ProgramResult.SUCCESS),
        (31, 0, 1, False, ProgramResult.SUCCESS),
        (1, 2, 1, False, ProgramResult.SUCCESS),
        (1, 3, 1, False, ProgramResult.SUCCESS),
        (32, 1, 2, True, ProgramResult.SUCCESS),
        (63, 1, 2, True, ProgramResult.SUCCESS),
        (1, 4, 1, False, ProgramResult.INVALID_PROG_CMD),
        (1, 255, 1, False, ProgramResult.INVALID_PROG_CMD),
        (0, 1, 1, False, ProgramResult.INVALID_KEYID),
        (64, 1, 1, True, ProgramResult.INVALID_KEYID),
        (32, 1, 2, False, ProgramResult.INVALID_KEYID),  # private, from outside SEAM
        (1, 1, 0, False, ProgramResult.INVALID_ENC_ALG),
        (1, 1, 3, False, ProgramResult.INVALID_ENC_ALG),  # two at once
        (1, 1, 4, False, ProgramResult.INVALID_ENC_ALG),  # not activated
        (1, 1, 0x8000, False, ProgramResult.INVALID_ENC_ALG),
        (99, 9, 9, False, ProgramResult.INVALID_PROG_CMD),  # the command is looked at first
        (99, 1, 9, False, ProgramResult.INVALID_KEYID),
    ],
)
def test_results(keyid: int, command: int, algorithm: int, seam: bool, result: ProgramResult) -> None:
    table = KeyTable(SEED, AddressMap())
    before = table.current.tolist()
    assert table.program(keyid, command, algorithm, seam=seam) is result
    changed = [k for k, (a, b) in enumerate(zip(before, table.current.tolist(), strict=True)) if a != b]
    assert changed == ([keyid] if result is ProgramResult.SUCCESS else [])


def test_entropy_and_busy() -> None:
    table = KeyTable(SEED, AddressMap())
    table.entropy_failures = 1
    assert table.program(1, Command.SET_KEY_DIRECT, XTS) is ProgramResult.SUCCESS  # needs no entropy
    assert table.program(1, Command.SET_KEY_RANDOM, XTS) is ProgramResult.ENTROPY_ERROR
    assert table.program(1, Command.SET_KEY_RANDOM, XTS) is ProgramResult.SUCCESS
    inner: list[ProgramResult] = []
    table.before_change = lambda keyid: inner.append(table.program(2, Command.SET_KEY_RANDOM, XTS))
    assert table.program(1, Command.SET_KEY_RANDOM, XTS) is ProgramResult.SUCCESS
    assert inner == [ProgramResult.DEVICE_BUSY]


def test_without_cryptographic_integrity_its_algorithms_are_not_there() -> None:
    table = KeyTable(SEED, AddressMap(), Integrity.LOGICAL)
    assert table.program(32, 1, XTS_INTEGRITY, seam=True) is ProgramResult.INVALID_ENC_ALG
    assert table.program(32, 1, XTS, seam=True) is ProgramResult.SUCCESS


def test_the_structure_is_checked() -> None:
    table = KeyTable(SEED, AddressMap())
    request = MKTME_KEY_PROGRAM.new()
    with pytest.raises(KeyProgramFormatError, match="256 bytes"):
        table.pconfig(request[:192])
    MKTME_KEY_PROGRAM.keyid_ctrl.set(request, 1 << 24 | 0x101)
    with pytest.raises(KeyProgramFormatError, match="31:24"):
        table.pconfig(request)
    # KeyID in bytes 0-1, command in byte 2, algorithm from byte 3 on (intel/tdx-module mktme.h).
    raw = bytearray(256)
    raw[0:4] = bytes([5, 0, 1, 1])
    assert table.pconfig(raw) is ProgramResult.SUCCESS
    assert table.key(5).serial != 5
    assert table.key(4).serial == 4


def test_secrets_stay_out_of_sight() -> None:
    table = KeyTable(SEED, AddressMap())
    table.program(1, Command.SET_KEY_DIRECT, XTS, b"K" * 64, b"T" * 64)
    assert "KKK" not in repr(table.key(1))
    with pytest.raises(AddressError):
        table.key(64)
    with pytest.raises(ValueError, match="16 bytes"):
        KeyTable(b"short", AddressMap())


def ciphertext(seed: bytes, programmings: int) -> tuple[bytes, int]:
    memory = PhysicalMemory([(0, 1 << 16)], seed)
    for _ in range(programmings):
        program(memory, TD_A)
    memory.direct_store(memory.addresses.join(A, TD_A), bytes(64))
    line = Dram(memory).read_line(A)
    return line.ciphertext, line.mac


def test_the_same_seed_gives_the_same_machine_and_another_one_another() -> None:
    assert ciphertext(SEED, 1) == ciphertext(SEED, 1)
    different = {ciphertext(SEED, 1), ciphertext(SEED, 2), ciphertext(SEED[::-1], 1)}
    assert len({line for line, _ in different}) == len({mac for _, mac in different}) == 3


def test_the_host_may_add_entropy() -> None:
    one, other = KeyTable(SEED, AddressMap()), KeyTable(SEED, AddressMap())
    one.program(1, 1, 1)
    other.program(1, 1, 1, field_1=b"dice".ljust(64, b"\0"))
    assert one.key(1).data_key != other.key(1).data_key


def test_no_encrypt_and_clear_key() -> None:
    memory = build()
    dram = Dram(memory)
    memory.keys.program(SHARED_1, Command.NO_ENCRYPT, XTS)
    pa = memory.addresses.join(A, SHARED_1)
    memory.write(pa, b"plain as day".ljust(64))
    memory.wbinvd()
    assert dram.read(A, 12) == b"plain as day"
    memory.keys.program(SHARED_1, Command.CLEAR_KEY, XTS)
    memory.write(A, b"under the platform's key")
    memory.wbinvd()
    assert memory.read(pa, 24) == b"under the platform's key"
    assert dram.find(b"platform's key") == []


def test_a_new_key_makes_old_lines_unreadable(memory: PhysicalMemory) -> None:
    """Deferred write-back must not be seen: what was flushed belongs to the old key."""
    pa = memory.addresses.join(A, TD_A)
    memory.direct_store(pa, b"secret".ljust(64))
    memory.wbinvd()
    program(memory, TD_A)
    if memory.integrity is Integrity.CRYPTOGRAPHIC:
        with pytest.raises(MachineCheck):
            memory.read(pa, 64, SEAM)
    else:
        assert memory.read(pa, 64, SEAM) != b"secret".ljust(64)


def test_a_key_change_without_a_flush_seals_dirty_lines_under_the_new_key(memory: PhysicalMemory) -> None:
    """Why TDH.PHYMEM.CACHE.WB must come before a KeyID is used again."""
    pa = memory.addresses.join(A, TD_A)
    memory.direct_zero(pa, 4096)
    memory.wbinvd()  # lines pending under the old key ...
    memory.map_page(A, TD_A)[:6] = b"secret"  # ... and dirty in the cache at once
    program(memory, TD_A)
    assert bytes(memory.map_page(A, TD_A)[:6]) == b"secret"
    memory.wbinvd()
    assert memory.read(pa, 6, SEAM) == b"secret"
    # The pending lines went to DRAM under the old key when it changed, so nothing of it remains.
    assert memory.keys.key(TD_A).serial == memory.pages.pkey[A >> 12] or not memory.pages.pend[A >> 12]


def test_lines_not_rewritten_after_a_key_change_stay_under_the_old_key(memory: PhysicalMemory) -> None:
    pa = memory.addresses.join(A, TD_A)
    memory.direct_store(pa, b"a" * 4096)
    memory.wbinvd()
    assert memory.read(pa, 64, SEAM) == b"a" * 64  # one line cached, clean; 63 pending
    program(memory, TD_A)
    assert memory.read(pa, 64, SEAM) == b"a" * 64  # a hit
    memory.write(pa + 8, b"new", SEAM)
    memory.wbinvd()
    assert memory.read(pa, 64, SEAM) == b"a" * 8 + b"new" + b"a" * 53
    if memory.integrity is Integrity.CRYPTOGRAPHIC:
        with pytest.raises(MachineCheck):
            memory.read(pa + 64, 64, SEAM)
    else:
        assert memory.read(pa + 64, 64, SEAM) != b"a" * 64


def test_integrity_for_a_shared_keyid() -> None:
    memory = build()
    program(memory, SHARED_1, integrity=True)
    pa = memory.addresses.join(A, SHARED_1)
    memory.direct_store(pa, bytes(64), HOST)
    Dram(memory).flip(A + 9, 0)
    with pytest.raises(MachineCheck) as poison:
        memory.read(pa, 64)
    assert poison.value.kind == "mac"
    # Software that reads it under a KeyID without integrity gets noise instead.
    assert memory.read(memory.addresses.join(A, SHARED_UNPROGRAMMED), 64) != bytes(64)
