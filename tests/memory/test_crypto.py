"""Encryption against published vectors and OpenSSL; the MAC against what a MAC must do."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from swtdx.machine.memory import (
    MKTME_KEY_PROGRAM,
    SEAM,
    AddressMap,
    Algorithm,
    MachineCheck,
    PhysicalMemory,
    ProgramResult,
)
from swtdx.machine.memory.dram import Dram
from swtdx.machine.memory.mac import LineMac
from swtdx.machine.memory.xts import UNIT, Xts

from .conftest import SEED, SHARED_1, SHARED_2, TD_A, build

BOTH_SIZES = Algorithm.AES_XTS_128 | Algorithm.AES_XTS_256


@dataclass(frozen=True)
class Vector:
    number: int
    data_key: bytes
    tweak_key: bytes
    unit: int
    plain: bytes
    cipher: bytes


def published() -> list[Vector]:
    vectors: dict[int, Vector] = {}
    for row in Path(__file__).with_name("ieee1619.txt").read_text().splitlines():
        if row.startswith("#") or not row:
            continue
        number, data_key, tweak_key, unit, plain, cipher = row.split()
        if plain == "@range":
            text = bytes(range(256)) * 2
        elif plain.startswith("@"):
            text = vectors[int(plain[1:])].cipher
        else:
            text = bytes.fromhex(plain)
        vectors[int(number)] = Vector(
            int(number), bytes.fromhex(data_key), bytes.fromhex(tweak_key),
            int(unit, 16), text, bytes.fromhex(cipher),
        )  # fmt: skip
    return list(vectors.values())


VECTORS = published()
#: Those whose data unit lies below the highest HPA.
REACHABLE = [vector for vector in VECTORS if vector.unit * UNIT < 1 << 46]


def test_the_file_of_vectors_is_whole() -> None:
    assert [vector.number for vector in VECTORS] == list(range(1, 15))
    assert [vector.number for vector in REACHABLE] == [1, 4, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"vector{vector.number}")
def test_ieee_1619(vector: Vector) -> None:
    xts = Xts(vector.data_key, vector.tweak_key)
    out = memoryview(bytearray(len(vector.plain) + 16))
    xts.encrypt(memoryview(vector.plain), out, vector.unit * UNIT)
    assert out[:-16] == vector.cipher
    xts.decrypt(memoryview(vector.cipher), out, vector.unit * UNIT)
    assert out[:-16] == vector.plain


@pytest.mark.parametrize("vector", REACHABLE, ids=lambda vector: f"vector{vector.number}")
def test_ieee_1619_through_the_line_path(vector: Vector) -> None:
    """PCONFIG the key, write through the cache, flush, read the raw lines; and back."""
    base = vector.unit * UNIT
    ranges = [(0, 4096), (base, 4096)] if base else [(0, 4096)]
    memory = PhysicalMemory(ranges, SEED, AddressMap(), algorithms=BOTH_SIZES)
    request = MKTME_KEY_PROGRAM.new()
    MKTME_KEY_PROGRAM.keyid.set(request, SHARED_1)
    algorithm = Algorithm.AES_XTS_256 if len(vector.data_key) == 32 else Algorithm.AES_XTS_128
    MKTME_KEY_PROGRAM.keyid_ctrl.set(request, algorithm << 8)
    MKTME_KEY_PROGRAM.key_field_1.set(request, vector.data_key.ljust(64, b"\0"))
    MKTME_KEY_PROGRAM.key_field_2.set(request, vector.tweak_key.ljust(64, b"\0"))
    assert memory.keys.pconfig(request) is ProgramResult.SUCCESS

    pa = memory.addresses.join(base, SHARED_1)
    memory.write(pa, vector.plain)
    memory.wbinvd()
    dram = Dram(memory)
    assert dram.read(base, len(vector.cipher)) == vector.cipher
    # Each line alone, too: the path of a single eviction and of a single fill.
    for at in range(0, len(vector.plain) // 64 * 64, 64):
        memory.write(pa + at, bytes(64))
        memory.clflush(pa + at)
        dram.read_line(base + at)
        memory.write(pa + at, vector.plain[at : at + 64])
        memory.clflush(pa + at)
        assert dram.read_line(base + at).ciphertext == vector.cipher[at : at + 64]
        assert memory.read(pa + at, 64) == vector.plain[at : at + 64]


@pytest.mark.parametrize("equal_keys", [False, True])
def test_any_run_of_lines_is_a_part_of_its_unit(equal_keys: bool) -> None:
    """A slice enciphered alone equals the slice of a unit that OpenSSL enciphered whole."""
    data_key = os.urandom(16)
    tweak_key = data_key if equal_keys else os.urandom(16)
    xts = Xts(data_key, tweak_key)
    plain = os.urandom(UNIT) if not equal_keys else os.urandom(1 << 14)
    whole = memoryview(bytearray(len(plain) + 16))
    xts.encrypt(memoryview(plain), whole, 7 * UNIT)
    if not equal_keys:
        cipher = Cipher(algorithms.AES(data_key + tweak_key), modes.XTS((7).to_bytes(16, "little")))
        assert cipher.encryptor().update(plain) == whole[:-16]
    for start, size in (
        (64, 64),
        (4096, 4096),
        (8192 + 192, 3 * 64),
        (len(plain) - 64, 64),
        (128, 5000 // 64 * 64),
    ):
        part = memoryview(bytearray(size + 16))
        xts.encrypt(memoryview(plain)[start : start + size], part, 7 * UNIT + start)
        assert part[:size] == whole[start : start + size]
        back = memoryview(bytearray(size))  # no room behind the output
        xts.decrypt(part[:size], back, 7 * UNIT + start)
        assert back == plain[start : start + size]


def test_a_run_across_units() -> None:
    xts = Xts(os.urandom(16), os.urandom(16))
    plain = memoryview(os.urandom(3 * 4096))
    whole, halves = memoryview(bytearray(3 * 4096)), memoryview(bytearray(3 * 4096))
    xts.encrypt(plain, whole, UNIT - 4096)
    xts.encrypt(plain[:4096], halves[:4096], UNIT - 4096)
    xts.encrypt(plain[4096:], halves[4096:], UNIT)
    assert whole == halves


def tags(mac: LineMac, plain: bytes, cipher: bytes) -> list[int]:
    out = np.empty(len(plain) // 64, np.uint32)
    words = [np.frombuffer(data, np.uint64).reshape(-1, 8) for data in (plain, cipher)]
    mac.tags(words[0], words[1], out, 0)
    found: list[int] = out.tolist()
    return found


def test_macs_have_28_bits_and_look_random() -> None:
    lines = 4096
    found = tags(LineMac(bytes(16)), os.urandom(64 * lines), os.urandom(64 * lines))
    assert max(found) < 1 << 28
    assert len(set(found)) > lines - 8
    ones = [sum(tag >> bit & 1 for tag in found) for bit in range(28)]
    assert all(abs(count - lines / 2) < 6 * (lines / 4) ** 0.5 for count in ones)  # six sigma


def test_a_mac_depends_on_its_own_line_only() -> None:
    mac = LineMac(os.urandom(16))
    plain, cipher = os.urandom(64 * 300), os.urandom(64 * 300)
    at_once = tags(mac, plain, cipher)
    alone = [tags(mac, plain[i : i + 64], cipher[i : i + 64])[0] for i in range(0, 64 * 300, 64)]
    assert at_once == alone


def test_every_single_and_double_bit_flip_in_a_line_changes_the_mac_or_the_owner_check() -> None:
    """Flips of one bit, and of the same bit in two words, where linear checks are blind."""
    memory = build()
    dram = Dram(memory)
    pa = memory.addresses.join(0, TD_A)
    memory.direct_store(pa, bytes(64))
    memory.wbinvd()
    good = dram.read_line(0)
    patterns = [[bit] for bit in range(512)]
    patterns += [[bit, bit + 64] for bit in range(0, 448, 3)] + [[bit, bit + 128] for bit in range(0, 384, 5)]
    for pattern in patterns:
        for bit in pattern:
            dram.flip(bit // 8, bit % 8)
        with pytest.raises(MachineCheck):
            memory.read(pa, 64, SEAM)
        dram.write_line(0, good)
    assert memory.read(pa, 64, SEAM) == bytes(64)


def test_recombining_blocks_of_older_versions_is_noticed() -> None:
    """Four versions of a line whose plaintexts sum to zero: each block is genuine, the mix is not."""
    memory = build()
    dram = Dram(memory)
    pa = memory.addresses.join(0, TD_A)
    x, zero = b"\x01" * 16, bytes(16)
    versions = []
    for line in (zero * 4, x + zero * 3, zero + x + zero * 2):
        memory.direct_store(pa, line)
        versions.append(dram.read_line(0))
    mixed = versions[1].ciphertext[:16] + versions[2].ciphertext[16:32] + versions[0].ciphertext[32:]
    for mac in {version.mac for version in versions}:
        dram.write_line(0, replace(versions[0], ciphertext=mixed, mac=mac))
        with pytest.raises(MachineCheck):
            memory.read(pa, 64, SEAM)


def test_equal_plaintexts_look_different_everywhere(memory: PhysicalMemory) -> None:
    """No two blocks of memory full of one byte agree, across lines, pages and KeyIDs."""
    dram = Dram(memory)
    for keyid, hpa in ((0, 0), (SHARED_1, 0x10000), (SHARED_2, 0x20000)):
        memory.write(memory.addresses.join(hpa, keyid), b"\x33" * 0x4000)
    memory.wbinvd()
    seen = b"".join(dram.read(hpa, 0x4000) for hpa in (0, 0x10000, 0x20000))
    blocks = {seen[at : at + 16] for at in range(0, len(seen), 16)}
    assert len(blocks) == len(seen) // 16
