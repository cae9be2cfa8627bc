"""Snapshots: bit for bit, whole or not at all, and refused by name."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from pathlib import Path

import pytest

from swtdx.machine.memory import (
    HOST,
    SEAM,
    TD,
    AddressMap,
    Integrity,
    MachineCheck,
    MemoryFault,
    PhysicalMemory,
)
from swtdx.machine.memory.dram import Dram
from swtdx.machine.memory.saving import load, save
from swtdx.machine.snapshot import Snapshot, SnapshotError, SnapshotWriter

from .conftest import SEED, SHARED_1, TD_A, TD_B, program

A = 0x20_0000


def lived(memory: PhysicalMemory) -> PhysicalMemory:
    """A memory with lines in every state: dirty, clean, pending under old keys, sealed, attacked."""
    join = memory.addresses.join
    memory.set_seamrr(0xC0_0000, 0x20_0000)
    memory.write(0xC0_0000, b"the module", SEAM)
    memory.write(0x1FF0, os.urandom(64))
    memory.write(join(0x3000, SHARED_1), os.urandom(100))
    memory.direct_zero(join(A, TD_A), 0x10_0000)
    memory.acquire(A, 0x1_0000, TD_A)
    memory.frames[A + 100 : A + 5000] = os.urandom(4900)
    memory.wbinvd()
    Dram(memory).flip(A + 64, 1)
    memory.direct_store(join(A + 0x20000, TD_B), os.urandom(4096))
    memory.wbinvd()
    program(memory, TD_B)  # pending lines of TD_B now wait for an old key
    memory.direct_store(join(A + 0x21000, TD_B), os.urandom(192))
    memory.map_page(A + 0x8000, TD_A)[5] = 77
    memory.acquire(A + 0x9000, 4096, TD_A)
    memory.write(A + 0xA040, b"poison")
    memory.direct_store(join(A + 0x30000, TD_A), b"\x11" * 4096)
    memory.acquire(A + 0x30000, 4096, SHARED_1)  # a shared mapping over a TD's page
    memory.wbnoinvd()
    memory.write(0x8000, b"dirty")
    return memory


def observe(memory: PhysicalMemory) -> list[object]:
    """All that anybody can see, raw DRAM last because looking changes nothing else."""
    seen: list[object] = []
    for requestor, keyids in ((HOST, (0, SHARED_1)), (SEAM, (TD_A, TD_B)), (TD, (TD_A,))):
        for keyid in keyids:
            for hpa in (0x1000, 0x2000, 0x3000, 0x8000, *range(A, A + 0x3_2000, 0x1000), 0xC0_0000):
                for offset in (0, 64, 4032):
                    try:
                        seen.append(memory.read(memory.addresses.join(hpa + offset, keyid), 64, requestor))
                    except MemoryFault as fault:
                        seen.append((type(fault), fault.hpa, fault.keyid))
    dram = Dram(memory)
    seen.append(hashlib.sha256(dram.read(0, memory.size)).hexdigest())
    seen.extend(dram.read_line(hpa) for hpa in (0x1FC0, A, A + 64, A + 0x20000, A + 0x21000, A + 0xA040))
    return seen


def saved(memory: PhysicalMemory, path: Path) -> bytes:
    with SnapshotWriter(path) as snapshot:
        save(memory, snapshot)
    return path.read_bytes()


def loaded(path: Path) -> PhysicalMemory:
    with Snapshot(path) as snapshot:
        return load(snapshot)


def test_a_memory_comes_back_bit_for_bit(memory: PhysicalMemory, tmp_path: Path) -> None:
    lived(memory)
    first = saved(memory, tmp_path / "one")
    assert saved(memory, tmp_path / "again") == first  # saving changes nothing
    copy = loaded(tmp_path / "one")
    assert saved(copy, tmp_path / "two") == first
    assert (copy.addresses, copy.populated, copy.seamrr) == (
        memory.addresses,
        memory.populated,
        memory.seamrr,
    )
    assert (copy.integrity, copy.epoch) == (memory.integrity, memory.epoch)
    # Both lives go on alike, with the same keys to come.
    for either in (memory, copy):
        program(either, TD_A)
        either.direct_store(either.addresses.join(0x5000, TD_A), bytes(64))
    assert observe(copy) == observe(memory)


def test_what_is_saved_is_what_is_seen(memory: PhysicalMemory, tmp_path: Path) -> None:
    lived(memory)
    saved(memory, tmp_path / "one")
    assert observe(loaded(tmp_path / "one")) == observe(memory)


def test_a_mapped_page_comes_back_dirty(guarded: PhysicalMemory, tmp_path: Path) -> None:
    guarded.direct_zero(guarded.addresses.join(A, TD_A), 4096)
    guarded.acquire(A, 4096, TD_A)
    guarded.frames[A : A + 5] = b"guest"
    saved(guarded, tmp_path / "one")
    copy = loaded(tmp_path / "one")
    heard: list[int] = []
    copy.subscribe(lambda hpa, size: heard.append(hpa))
    copy.wbinvd()
    assert heard == []  # nobody has mapped it in this process
    assert copy.read(copy.addresses.join(A, TD_A), 5, TD) == b"guest"


def test_a_snapshot_of_a_large_machine_is_small(tmp_path: Path) -> None:
    memory = PhysicalMemory([(0, 1 << 40)], SEED)
    memory.direct_zero(memory.addresses.join(1 << 35, TD_A), 64 << 20)
    memory.acquire(1 << 35, 64 << 20, TD_A)
    memory.write((1 << 40) - 8, b"the end!")
    assert len(saved(memory, tmp_path / "one")) < 2 << 20
    assert not memory.cache.frames.has_data(1 << 35, 64 << 20)  # saving touched no frame
    copy = loaded(tmp_path / "one")
    assert copy.read((1 << 40) - 8, 8) == b"the end!"
    assert copy.read(copy.addresses.join((1 << 35) + 12345, TD_A), 8, TD) == bytes(8)


def test_before_tme_too(tmp_path: Path) -> None:
    memory = PhysicalMemory([(0, 1 << 20)], SEED, AddressMap.without_tme())
    memory.write(0, b"reset vector")
    memory.wbinvd()
    saved(memory, tmp_path / "one")
    assert loaded(tmp_path / "one").read(0, 12) == b"reset vector"


@pytest.fixture
def file(guarded: PhysicalMemory, tmp_path: Path) -> Path:
    guarded.write(0, b"contents")
    saved(guarded, tmp_path / "snap")
    return tmp_path / "snap"


def test_every_truncation_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for length in [0, 1, 7, 8, 63, 64, 65, *range(100, len(whole), 997), len(whole) - 1]:
        short = tmp_path / "short"
        short.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match=r"short: (truncated|this is not a swtdx snapshot)"):
            Snapshot(short)


def test_every_flipped_bit_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    chosen = random.Random(1).sample(range(64, len(whole)), 200)
    for at in [*range(64), *chosen, len(whole) - 1]:
        bad = bytearray(whole)
        bad[at] ^= 1 << at % 8
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(SnapshotError, match="bad: "):
            loaded(tmp_path / "bad")


def test_trailing_bytes_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(SnapshotError, match="belong to no section"):
        Snapshot(file)


def test_other_versions_are_refused_by_number(file: Path, tmp_path: Path) -> None:
    bad = bytearray(file.read_bytes())
    struct.pack_into("<I", bad, 8, 9)
    (tmp_path / "format").write_bytes(bad)
    with pytest.raises(SnapshotError, match="snapshot format 9, and this swtdx reads format 1"):
        Snapshot(tmp_path / "format")
    with SnapshotWriter(tmp_path / "section") as snapshot, snapshot.section("memory", 7) as section:
        section.u8(0)
    with pytest.raises(SnapshotError, match="'memory' has version 7, and this swtdx reads version 1"):
        loaded(tmp_path / "section")
    with SnapshotWriter(tmp_path / "other") as snapshot, snapshot.section("clock", 1) as section:
        section.u8(0)
    with pytest.raises(SnapshotError, match="no section 'memory'; it has clock"):
        loaded(tmp_path / "other")
    with pytest.raises(SnapshotError, match=r"cannot read .*nowhere: No such file"):
        Snapshot(tmp_path / "nowhere")


def rewritten(file: Path, change: int, value: bytes) -> Path:
    """The same file with other contents of its section and checksums that fit."""
    with Snapshot(file) as snapshot:
        section = snapshot.section("memory", 1)
        contents = bytearray(section.read(section.remaining))
    contents[change : change + len(value)] = value
    forged = file.with_name("forged")
    with SnapshotWriter(forged) as writer, writer.section("memory", 1) as out:
        out.write(contents)
    return forged


@pytest.mark.parametrize(
    ("at", "value", "complaint"),
    [
        (0, b"\x20", "impossible machine: MAXPA"),
        (1, b"\x01", "impossible machine: 31 shared"),
        (6, b"\x05", "impossible machine"),
        (9, b"\x01" + bytes(7), "impossible machine|more bytes expected"),
        (49, b"\xff\xff\x00\x00", "more bytes expected|impossible machine"),
        (53, b"\x01", "impossible machine: memory range 0x1"),
    ],
)
def test_contents_that_make_no_sense_are_refused(file: Path, at: int, value: bytes, complaint: str) -> None:
    with pytest.raises(SnapshotError, match=complaint):
        loaded(rewritten(file, at, value))


def test_no_corruption_behind_a_good_checksum_gets_through_unseen(file: Path) -> None:
    """Random bytes changed under a valid checksum: a refusal by name, or a memory that still works."""
    with Snapshot(file) as snapshot:
        size = snapshot.section("memory", 1).remaining
    rng = random.Random(7)
    for _ in range(150):
        forged = rewritten(file, rng.randrange(size), bytes([rng.randrange(256)]))
        try:
            memory = loaded(forged)
        except SnapshotError:
            continue
        memory.wbinvd()
        try:
            memory.read(0, 64)
        except MachineCheck:
            pytest.fail("KeyID 0 has no integrity to fail")
        memory.close()


def test_a_failed_save_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()

    def interrupted() -> None:
        with SnapshotWriter(file) as snapshot:
            with snapshot.section("memory", 1) as section:
                section.u64(1)
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        interrupted()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_writers_are_strict(tmp_path: Path) -> None:
    def write(*sections: tuple[str, int]) -> None:
        with SnapshotWriter(tmp_path / "x") as snapshot:
            for name, value in sections:
                with snapshot.section(name, 1) as section:
                    section.u8(value)

    with pytest.raises(SnapshotError, match="'a' twice"):
        write(("a", 1), ("b", 2), ("a", 3))
    with pytest.raises(SnapshotError, match="0x100 does not fit in 1 bytes"):
        write(("a", 256))
    with pytest.raises(SnapshotError, match="cannot write"):
        SnapshotWriter(tmp_path / "no" / "such" / "directory")
    assert list(tmp_path.iterdir()) == []


def test_sections_are_read_to_their_ends(tmp_path: Path) -> None:
    with SnapshotWriter(tmp_path / "x") as writer:
        with writer.section("one", 3) as section:
            section.u16(0x1234)
            section.text("größer")
            section.blob(b"abc")
        with writer.section("two", 1) as section:
            section.u64(5)
    with Snapshot(tmp_path / "x") as snapshot:
        assert snapshot.sections == ("one", "two")
        one = snapshot.section("one", 3)
        two = snapshot.section("two", 1)
        assert (one.u16(), two.u64(), one.text(), one.blob()) == (0x1234, 5, "größer", b"abc")
        one.end()
        with pytest.raises(SnapshotError, match="section 'two': 1 more bytes expected, 0 left"):
            two.u8()
        with pytest.raises(SnapshotError, match="left over"):
            snapshot.section("one", 3).end()


def test_integrity_mode_is_kept(tmp_path: Path) -> None:
    for mode in Integrity:
        memory = PhysicalMemory([(0, 1 << 20)], SEED, integrity=mode)
        saved(memory, tmp_path / mode.value)
        assert loaded(tmp_path / mode.value).integrity is mode
