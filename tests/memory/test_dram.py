"""The physical attacker: what is on the bus, and when."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from swtdx.machine.memory import SEAM, TD, AddressError, Integrity, MachineCheck, PhysicalMemory
from swtdx.machine.memory.dram import Dram, DramLine
from swtdx.machine.memory.host import DeviceMemory, HostMemory

from .conftest import SEED, TD_A, TD_B

A = 0x20_0000


def test_a_flushed_secret_is_nowhere_to_be_found(memory: PhysicalMemory) -> None:
    """In raw DRAM, in any page that the host or a device can read, under any KeyID they may use."""
    secret = os.urandom(64)
    pa = memory.addresses.join(A, TD_A)
    memory.direct_zero(pa, 0x20_0000)
    memory.acquire(A, 0x20_0000, TD_A)
    for offset in (0, 0x1234, 0xFFFE0, 0x1FFFC0):  # aligned, across lines, across pages, at the end
        memory.frames[A + offset : A + offset + 64] = secret
    host, device = HostMemory(memory), DeviceMemory(memory)

    def search() -> None:
        for keyid in (0, 1, 2, 3):
            for at in range(0, memory.size, 1 << 20):
                view = memory.addresses.join(at, keyid)
                assert secret[:16] not in host.read(view, 1 << 20)
                assert secret[:16] not in device.read(view, 1 << 20)

    search()  # while it is in the cache
    memory.wbinvd()
    dram = Dram(memory)
    for start in range(0, 64, 16):
        assert dram.find(secret[start : start + 16]) == []
    search()
    assert memory.read(pa + 0x1234, 64, TD) == secret  # and yet it is there


def test_the_search_finds_what_is_plain(guarded: PhysicalMemory) -> None:
    """The search above is no good if it cannot find anything."""
    guarded.keys.program(1, 3, 1)  # NO_ENCRYPT
    guarded.write(guarded.addresses.join(0x2FF0, 1), b"needle over a page border")
    guarded.wbinvd()
    assert Dram(guarded).find(b"needle over a page border") == [0x2FF0]
    with pytest.raises(AddressError, match="nothing"):
        Dram(guarded).find(b"")


def test_dirty_lines_are_not_on_the_bus_yet(memory: PhysicalMemory) -> None:
    dram = Dram(memory)
    memory.write(A, b"one".ljust(64))
    memory.wbinvd()
    one = dram.read_line(A)
    memory.write(A, b"two".ljust(64))
    assert dram.read_line(A) == one
    memory.clwb(A)
    two = dram.read_line(A)
    assert two != one
    dram.write_line(A, one)
    assert memory.read(A, 3) == b"two"  # a hit: the cache does not look
    memory.clflush(A)  # clean, so nothing is written back
    assert memory.read(A, 3) == b"one"


def test_looking_at_dram_does_not_disturb_mapped_pages(memory: PhysicalMemory) -> None:
    pa = memory.addresses.join(A, TD_A)
    memory.direct_zero(pa, 4096)
    memory.wbinvd()
    view = memory.map_page(A, TD_A)
    view[:5] = b"alive"
    epoch = memory.epoch
    dram = Dram(memory)
    line = dram.read_line(A)
    assert (memory.epoch, bytes(view[:5])) == (epoch, b"alive")
    view[:5] = b"later"
    dram.flip(A, 0)  # the cache's copy is newer and will replace this
    memory.wbinvd()
    assert memory.read(pa, 5, SEAM) == b"later"
    # What the attacker took was a real version of the line: replaying it works.
    memory.wbinvd()
    dram.write_line(A, line)
    assert memory.read(pa, 5, SEAM) == b"alive"


def test_a_replay_of_a_whole_page_is_not_noticed(memory: PhysicalMemory) -> None:
    dram = Dram(memory)
    pa = memory.addresses.join(A, TD_A)
    memory.direct_store(pa, b"old" * 1024 + bytes(1024))
    old = [dram.read_line(A + at) for at in range(0, 4096, 64)]
    memory.direct_store(pa, b"new" * 1024 + bytes(1024))
    for index, line in enumerate(old):
        dram.write_line(A + 64 * index, line)
    assert memory.read(pa, 3072, SEAM) == b"old" * 1024


def test_one_tds_lines_at_anothers_address(guarded: PhysicalMemory) -> None:
    dram = Dram(guarded)
    guarded.direct_store(guarded.addresses.join(A, TD_A), b"a" * 64)
    guarded.direct_store(guarded.addresses.join(A + 4096, TD_B), b"b" * 64)
    dram.swap(A, A + 4096)
    for hpa, keyid in ((A, TD_A), (A + 4096, TD_B), (A, TD_B), (A + 4096, TD_A)):
        with pytest.raises(MachineCheck):
            guarded.read(guarded.addresses.join(hpa, keyid), 64, TD)
    dram.swap(A, A + 4096)
    assert guarded.read(guarded.addresses.join(A, TD_A), 64, TD) == b"a" * 64


def test_a_guessed_mac_passes_as_rarely_as_28_bits_should(guarded: PhysicalMemory) -> None:
    dram = Dram(guarded)
    pa = guarded.addresses.join(A, TD_A)
    guarded.direct_store(pa, bytes(64))
    for guess in range(300):
        dram.write_line(A, DramLine(os.urandom(64), guess, True))
        with pytest.raises(MachineCheck):
            guarded.read(pa, 64, SEAM)


def test_untouched_dram_is_ciphertext_of_zeros(memory: PhysicalMemory) -> None:
    dram = Dram(memory)
    raw = dram.read(0x1230, 10000)
    assert raw[0x1240 - 0x1230 :][:64] == dram.read_line(0x1240).ciphertext
    assert max(Counter(raw).values()) < 120  # about 39 of each byte value
    assert list(dram.written()) == [(0x1000, 4096)]  # only because a single line was looked at
    assert memory.read(0x1230, 10000) == bytes(10000)


def test_owner_bits_follow_the_keyid(memory: PhysicalMemory) -> None:
    dram = Dram(memory)
    memory.direct_zero(memory.addresses.join(A, TD_A), 8192)
    assert dram.owners(A, 8192) == 128
    memory.write(A + 100, b"x" * 200)
    memory.wbinvd()
    assert dram.owners(A, 8192) == 128 - 4
    memory.direct_zero(A, 8192)
    assert dram.owners(A, 8192) == 0


def test_misuse_is_named(memory: PhysicalMemory) -> None:
    dram = Dram(memory)
    with pytest.raises(AddressError, match="inside one"):
        dram.read_line(32)
    with pytest.raises(AddressError, match="no DRAM"):
        dram.read_line(memory.size)
    with pytest.raises(AddressError, match="no DRAM"):
        dram.read(memory.size - 64, 128)
    with pytest.raises(AddressError, match=r"0\.\.7"):
        dram.flip(0, 8)
    with pytest.raises(AddressError, match="28 bits"):
        DramLine(bytes(64), 1 << 28, False)
    with pytest.raises(AddressError, match="64 bytes"):
        DramLine(bytes(63), 0, False)


def test_a_large_flush_seals_every_line() -> None:
    """The parallel path: 8 MiB that starts in the middle of a data unit, checked line by line."""
    memory = PhysicalMemory([(0, 16 << 20)], SEED, integrity=Integrity.CRYPTOGRAPHIC)
    memory.keys.program(TD_A, 1, 2, seam=True)
    base, size = 0x3_3000, 8 << 20
    data = os.urandom(size)
    memory.direct_zero(memory.addresses.join(base, TD_A), size)
    memory.acquire(base, size, TD_A)
    memory.frames[base : base + size] = data
    memory.wbinvd()
    dram = Dram(memory)
    dram.read(base, size)
    assert dram.owners(base, size) == size // 64
    for at in [0, 64, 0xCCFC0, 0xCD000, 0x1CD000 - 64, 0x1CD000, size - 64]:
        assert memory.read(memory.addresses.join(base + at, TD_A), 64, TD) == data[at : at + 64]
    memory.acquire(base, size, TD_A)
    assert bytes(memory.frames[base : base + size]) == data


def test_what_is_in_the_cache_only_is_not_in_dram(memory: PhysicalMemory) -> None:
    """A page that was written but never written back: DRAM has what it had, the BIOS's zeros, encrypted."""
    dram = Dram(memory)
    before = dram.read(A, 4096)
    assert before != bytes(4096)
    memory.write(A, b"new".ljust(4096, b"!"))
    memory.map_page(A + 4096, 0)
    assert dram.read(A, 4096) == before
    memory.wbinvd()
    assert dram.read(A, 4096) != before


def test_a_find_over_many_steps_finds_each_place_once() -> None:
    memory = PhysicalMemory([(0, 48 << 20)], SEED, integrity=Integrity.LOGICAL)
    memory.keys.program(1, 3, 1)  # NO_ENCRYPT
    places = [0x1000, (16 << 20) - 5, (17 << 20) - 8, (33 << 20) + 64]
    plain = bytearray(b"." * (34 << 20))
    for place in places:
        plain[place : place + 8] = b"a needle"
    memory.write(memory.addresses.join(0, 1), plain)
    memory.wbinvd()
    assert Dram(memory).find(b"a needle") == places
    memory.close()
