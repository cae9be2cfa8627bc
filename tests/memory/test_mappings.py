"""Views for the module, frames for the engine: what they cost and when they end."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable

import pytest

from swtdx.machine.memory import TD, MachineCheck, PhysicalMemory

from .conftest import SEED, TD_A

A = 0x20_0000
B = 0x40_0000
BIG = 0x20_0000


def test_a_view_is_the_memory(memory: PhysicalMemory) -> None:
    memory.direct_zero(memory.addresses.join(A, TD_A), 4096)
    view = memory.map_page(A, TD_A)
    assert len(view) == 4096
    view[10:14] = b"abcd"
    assert memory.map_page(A, TD_A) is view
    memory.wbinvd()
    assert bytes(memory.map_page(A, TD_A)[10:14]) == b"abcd"


@pytest.mark.parametrize(
    "leave",
    [
        lambda m: m.wbinvd(),
        lambda m: m.wbnoinvd(),
        lambda m: m.clflush(A),
        lambda m: m.clwb(A),
        lambda m: m.direct_zero(m.addresses.join(A, TD_A), 4096),
        lambda m: m.direct_store(m.addresses.join(A + 128, TD_A), bytes(64)),
        lambda m: m.acquire(A, 4096, 1),
        lambda m: m.write(m.addresses.join(A, 1), b"x"),
    ],
)
def test_the_epoch_changes_and_subscribers_hear(
    memory: PhysicalMemory, leave: Callable[[PhysicalMemory], None]
) -> None:
    heard: list[tuple[int, int, bytes]] = []
    memory.subscribe(lambda hpa, size: heard.append((hpa, size, bytes(memory.frames[A : A + 4]))))
    memory.acquire(A, 4096, 0)
    memory.frames[A : A + 4] = b"DATA"
    memory.map_page(A, 0)
    before = memory.epoch
    leave(memory)
    assert memory.epoch > before
    assert heard == [(A, 4096, b"DATA")]  # before the frame changed


def test_what_does_not_concern_a_mapping_leaves_it_alone(memory: PhysicalMemory) -> None:
    heard: list[tuple[int, int]] = []
    memory.subscribe(lambda hpa, size: heard.append((hpa, size)))
    memory.acquire(A, BIG, 0)
    memory.map_page(A, 0)
    before = memory.epoch
    memory.read(A + 5, 100)
    memory.write(A + 5, b"xyz")
    memory.acquire(A, BIG, 0)
    memory.acquire(A + 4096, 4096, 0)
    memory.direct_zero(B, BIG)
    memory.write(memory.addresses.join(B, 1), b"xyz")
    assert (memory.epoch, heard) == (before, [])


def test_a_host_read_does_not_unmap_a_tds_page_but_a_write_does(memory: PhysicalMemory) -> None:
    memory.direct_zero(memory.addresses.join(A, TD_A), 4096)
    memory.acquire(A, 4096, TD_A)
    heard: list[tuple[int, int]] = []
    memory.subscribe(lambda hpa, size: heard.append((hpa, size)))
    memory.frames[A : A + 4] = b"TDTD"
    assert memory.read(A, 4) == bytes(4)
    assert heard == []
    memory.write(A + 256, b"x")
    assert heard == [(A, 4096)]
    with pytest.raises(MachineCheck):
        memory.acquire(A, 4096, TD_A)
    assert memory.read(memory.addresses.join(A, TD_A), 4, TD) == b"TDTD"


def test_guest_writes_behind_our_back_reach_dram(memory: PhysicalMemory) -> None:
    """The engine writes to frames without telling; a mapped page counts as dirty."""
    memory.direct_zero(memory.addresses.join(A, TD_A), BIG)
    memory.acquire(A, BIG, TD_A)
    memory.wbnoinvd()  # now clean, so it must be acquired again before the guest may write
    memory.acquire(A, BIG, TD_A)
    with mmap.mmap(memory.frames_fd, memory.size) as engine:
        engine[A + 0x12345 : A + 0x12345 + 5] = b"guest"
    memory.wbinvd()
    memory.cache.materialise(A >> 12, A + BIG >> 12)
    memory.frames[A : A + BIG] = bytes(BIG)  # whatever is left in the frames does not count
    memory.acquire(A, BIG, TD_A)
    assert bytes(memory.frames[A + 0x12345 : A + 0x12345 + 5]) == b"guest"


def test_frames_that_left_the_cache_are_given_back(
    memory: PhysicalMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swtdx.machine.memory.cache._KEPT_FRAMES", 1024)
    memory.write(0, b"stays in the cache".ljust(4096))
    for at in range(A, A + 4 * BIG, BIG):
        memory.write(at, b"\x77" * BIG)
        memory.clflush(at, BIG)
        memory.cache.materialise(at >> 12, at + BIG >> 12)
    with_data = [at for at in range(0, memory.size, 4096) if memory.cache.frames.has_data(at, 4096)]
    assert 0 in with_data
    assert len(with_data) <= 1 + 1024
    assert memory.read(A, 4 * BIG) == b"\x77" * 4 * BIG
    assert memory.read(0, 18) == b"stays in the cache"


def test_accepting_memory_touches_no_frame() -> None:
    memory = PhysicalMemory([(0, 1 << 40)], SEED)
    memory.direct_zero(memory.addresses.join(1 << 35, TD_A), 512 << 20)
    memory.acquire(1 << 35, 512 << 20, TD_A)
    assert not memory.cache.frames.has_data(0, 1 << 40)
    assert memory.frames_are_zero(1 << 35, 512 << 20)
    memory.frames[(1 << 35) + 5] = 1
    assert not memory.frames_are_zero(1 << 35, 2 << 20)
    assert memory.frames_are_zero((1 << 35) + 4096, 2 << 20)
    # Giving the memory back to the host frees the frame again.
    memory.direct_zero(1 << 35, 512 << 20)
    assert not memory.cache.frames.has_data(0, 1 << 40)


def test_a_terabyte_opens_in_little_memory() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    memory = PhysicalMemory([(0, 1 << 40)], SEED)
    for hpa in range(0, 1 << 40, 1 << 34):
        memory.write(hpa, b"touch")
        assert memory.read(hpa + (1 << 33), 4096) == bytes(4096)
    memory.wbinvd()
    assert memory.read(63 << 34, 5) == b"touch"
    assert resident() - before < 50 << 20


def test_a_shared_mapping_over_a_tds_page_shows_zeros_and_spoils_only_what_it_writes(
    memory: PhysicalMemory,
) -> None:
    private = memory.addresses.join(A, TD_A)
    memory.direct_store(private, b"\x5a" * 4096)
    memory.acquire(A, 4096, 0)  # a hypervisor that maps a TD's page as shared memory of a guest
    assert bytes(memory.frames[A : A + 4096]) == bytes(4096)
    memory.frames[A + 70] = 1
    memory.wbinvd()
    assert memory.read(private, 64, TD) == b"\x5a" * 64
    with pytest.raises(MachineCheck):
        memory.read(private + 64, 64, TD)
    assert memory.read(private + 128, 4096 - 128, TD) == b"\x5a" * (4096 - 128)


def test_a_poisoned_line_stops_a_large_mapping_and_names_the_line(memory: PhysicalMemory) -> None:
    memory.direct_zero(memory.addresses.join(A, TD_A), BIG)
    memory.wbinvd()
    memory.write(A + 0x10_0040, b"x")
    with pytest.raises(MachineCheck) as poison:
        memory.acquire(A, BIG, TD_A)
    assert poison.value.hpa == A + 0x10_0040
    memory.acquire(A, 0x10_0000, TD_A)  # what lies before it is well


def test_threads_may_call_in_together() -> None:
    """Counters behind eight pages, bumped by four threads under flushes: no bump is lost."""
    memory = PhysicalMemory([(0, 1 << 20)], SEED)
    stop = threading.Event()
    errors: list[BaseException] = []

    def bump(slot: int) -> None:
        try:
            for index in range(300):
                pa = (index % 8) * 4096 + slot * 8
                memory.write_u64(pa, memory.read_u64(pa) + 1)
        except BaseException as error:
            errors.append(error)

    def flush() -> None:
        while not stop.is_set():
            memory.wbinvd()
            with memory.lock:
                memory.cache.materialise(0, 8)

    flusher = threading.Thread(target=flush)
    workers = [threading.Thread(target=bump, args=(slot,)) for slot in range(4)]
    flusher.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    flusher.join()
    assert errors == []
    for slot in range(4):
        assert sum(memory.read_u64(page * 4096 + slot * 8) for page in range(8)) == 300
