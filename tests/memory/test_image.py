"""Memory that stays in a snapshot's file until it is needed: whatever happens to it, none can tell."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.machine.memory import HOST, SEAM, TD, Integrity, MemoryFault, PhysicalMemory
from swtdx.machine.memory.dram import Dram
from swtdx.machine.memory.saving import load, load_image, save, save_image
from swtdx.machine.snapshot import Snapshot, SnapshotError, SnapshotWriter

from .conftest import SHARED_1, SIZE, TD_A, TD_B, build, program
from .test_snapshot import lived, observe

PAGE = 4096
REGION = 2 << 20


def as_image(memory: PhysicalMemory, path: Path) -> PhysicalMemory:
    """A memory that goes on from ``path``, where ``memory`` is saved."""
    with SnapshotWriter(path) as snapshot:
        save_image(memory, snapshot)
    with Snapshot(path) as snapshot:
        return load_image(snapshot)


def as_copy(memory: PhysicalMemory, path: Path) -> PhysicalMemory:
    """A memory that was read from ``path``, where ``memory`` is saved: what it has to be like."""
    with SnapshotWriter(path) as snapshot:
        save(memory, snapshot)
    with Snapshot(path) as snapshot:
        return load(snapshot)


@pytest.mark.parametrize("integrity", list(Integrity))
def test_nobody_can_tell(integrity: Integrity, tmp_path: Path) -> None:
    memory = lived(build(integrity))
    copy = as_image(memory, tmp_path / "image")
    assert copy.image is not None
    assert copy.image.absent(0, copy.size)
    assert observe(copy) == observe(memory)


@pytest.mark.parametrize("seed", range(6))
def test_random_lives_go_on_alike(seed: int, tmp_path: Path) -> None:
    """Accesses of every kind, to a memory that was read whole and to one whose pages come when they must."""
    memory = lived(build())
    plain = as_copy(memory, tmp_path / "copy")
    image = as_image(memory, tmp_path / "image")
    chance = random.Random(seed)
    for number in range(400):
        action = act(chance)
        answers = []
        for one in (plain, image):
            try:
                answers.append(action(one))
            except MemoryFault as fault:
                answers.append((type(fault), fault.hpa, fault.keyid))
        assert answers[0] == answers[1], number
    assert observe(image) == observe(plain)


def act(chance: random.Random) -> Callable[[PhysicalMemory], object]:
    """Something that software, a guest or an attacker does, with the operands chosen."""
    keyid = chance.choice((0, SHARED_1, TD_A, TD_B))
    requestor = chance.choice((HOST, SEAM)) if keyid < TD_A else chance.choice((SEAM, TD))
    base = chance.choice((0, 0x20_0000, 0x22_0000, 0xC0_0000))
    hpa = base + chance.randrange(0, 0x4_0000, 64)
    page = hpa & -PAGE
    flush = chance.random() < 0.2
    data = chance.randbytes(chance.choice((8, 64, 200)))

    def write_mapped(memory: PhysicalMemory) -> object:
        memory.acquire(page, PAGE, TD_A)
        memory.frames[page + 8 : page + 16] = data[:8]
        return bytes(memory.frames[page : page + PAGE])

    def view(memory: PhysicalMemory) -> object:
        memory.map_page(page, keyid)[100:108] = data[:8]
        return bytes(memory.map_page(page, keyid))

    return chance.choice(
        (
            lambda memory: memory.read(memory.addresses.join(hpa, keyid), len(data), requestor),
            lambda memory: memory.write(memory.addresses.join(hpa, keyid), data, requestor),
            lambda memory: memory.read_u64(memory.addresses.join(hpa, keyid), requestor),
            lambda memory: memory.direct_store(memory.addresses.join(hpa, keyid), data[:64].ljust(64), SEAM),
            lambda memory: memory.direct_zero(memory.addresses.join(page, keyid), 2 * PAGE, SEAM),
            lambda memory: memory.clflush(memory.addresses.join(hpa, keyid), 256, requestor),
            lambda memory: memory.clwb(memory.addresses.join(hpa, keyid), 256, requestor),
            lambda memory: memory.acquire(page, 4 * PAGE, TD_A),
            write_mapped,
            view,
            lambda memory: Dram(memory).read_line(hpa),
            lambda memory: memory.frames_are_zero(page, 16 * PAGE),
            lambda memory: memory.wbnoinvd() if flush else None,
            lambda memory: program(memory, TD_B),
        )
    )


def test_what_is_only_read_stays_in_the_file(tmp_path: Path) -> None:
    memory = build()
    at = 0x40_0000
    memory.direct_zero(memory.addresses.join(at, TD_A), REGION)
    memory.acquire(at, REGION, TD_A)
    memory.frames[at : at + 8 * PAGE] = b"guest" * (8 * PAGE // 5) + b"end"
    copy = as_image(memory, tmp_path / "image")
    image = copy.image
    assert image is not None
    assert not image.blank(at, REGION)
    assert image.blank(at + 8 * PAGE, REGION - 8 * PAGE)
    shown = image.lend(at, REGION, TD_A)
    assert shown.all()
    assert not image.lend(at, REGION, TD_B).any()
    taken: list[tuple[int, int]] = []
    image.taken = lambda hpa, size: taken.append((hpa, size))
    assert image.recalled == 0
    copy.acquire(at + PAGE, 2 * PAGE, TD_A)
    assert taken == [(at + PAGE, 2 * PAGE)]
    assert image.recalled == 2
    assert not image.shows(at + PAGE)
    assert image.shows(at)
    lent = image.lend(at, REGION, TD_A)
    assert not lent[1:3].any()
    assert lent.sum() == 510
    assert bytes(copy.frames[at + PAGE : at + 2 * PAGE]) == bytes(memory.frames[at + PAGE : at + 2 * PAGE])


def test_the_file_is_not_written_to_and_keeps_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    memory = lived(build())
    copy = as_image(memory, path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 < SIZE // 2
    for page in range(0, 64 * PAGE, PAGE):
        copy.write(page, b"mine")
    copy.wbinvd()
    copy.close()
    assert path.read_bytes() == before


def test_it_can_be_saved_again(tmp_path: Path) -> None:
    memory = lived(build())
    first = as_image(memory, tmp_path / "one")
    again = as_image(first, tmp_path / "two")
    assert observe(again) == observe(memory)


@pytest.mark.parametrize("cut", [1, 4096, SIZE // 2, SIZE + 1, SIZE + REGION - 100])
def test_a_file_that_was_cut_short_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    as_image(lived(build()), path).close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size - cut)
    with pytest.raises(SnapshotError, match="truncated"):
        Snapshot(path)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    as_image(lived(build()), path).close()
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(SnapshotError, match=str(path)):
        Snapshot(path)
