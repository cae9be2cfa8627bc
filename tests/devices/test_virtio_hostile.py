"""A driver that means harm: whatever it puts into the rings, the device stops and says so."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.machines import RAM_SIZE, BoardMachine
from tests.devices.virtio_driver import ACCESS_PLATFORM, EVENT_IDX, VERSION_1, Ring, VirtioDriver

RX, TX = 0, 1
BASIC = VERSION_1 | ACCESS_PLATFORM
BUFFERS = 0x10_0000
NEXT, WRITE, INDIRECT = 1, 2, 4
NEEDS_RESET = 0x40


def running(board: BoardMachine, features: int = BASIC) -> VirtioDriver:
    driver = VirtioDriver(board, board.console_slot)
    driver.start(features)
    driver.enable_msix(3, 0x8000)
    driver.set_common(0x10, 2, 0)
    return driver


def stopped(board: BoardMachine, driver: VirtioDriver) -> str:
    """The reason for which the device has stopped."""
    assert driver.status & NEEDS_RESET
    assert (0x8000, 0x100) in board.msis, "the driver is told by a configuration interrupt"
    (reason,) = board.board.failures.values()
    return reason


def offer(driver: VirtioDriver, queue: int, *descriptors: tuple[int, int, int, int]) -> None:
    """Put descriptors 0, 1, ... into the table, offer the first and notify."""
    ring = driver.rings[queue]
    for index, descriptor in enumerate(descriptors):
        ring.put_descriptor(index, *descriptor)
    ring.expose(0)
    driver.notify(queue)


@pytest.mark.parametrize(
    ("descriptors", "reason"),
    [
        ([(BUFFERS, 8, NEXT, 1), (BUFFERS, 8, NEXT, 0)], "loop"),
        ([(BUFFERS, 8, NEXT, 0)], "loop"),
        ([(BUFFERS, 8, NEXT, 16)], "descriptor 16 of 16"),
        ([(BUFFERS, 8, NEXT, 0xFFFF)], "descriptor 65535"),
        ([(BUFFERS, 32, INDIRECT, 0)], "indirect"),
        ([(BUFFERS, 0xFFFF_FFFF, 0, 0)], "a chain of more than"),
        ([(BUFFERS, 0x80_0000, NEXT, 1), (BUFFERS, 0x80_0001, 0, 0)], "a chain of more than"),
        ([(BUFFERS, 8, WRITE | NEXT, 1), (BUFFERS, 8, 0, 0)], "readable descriptor after"),
        ([(RAM_SIZE - 4, 8, 0, 0)], "outside guest memory"),
        ([(0xFFFF_FFFF_FFFF_FFFF, 8, 0, 0)], "outside guest memory"),
        ([(0x20_0000, 8, 0, 0)], "not shared"),
        ([(0x1F_FFF8, 16, 0, 0)], "not shared"),
    ],
)
def test_a_malformed_chain_stops_the_device(
    board: BoardMachine, descriptors: list[tuple[int, int, int, int]], reason: str
) -> None:
    driver = running(board)
    board.dma.private = (0x20_0000, 0x30_0000)
    offer(driver, TX, *descriptors)
    assert reason in stopped(board, driver)
    assert board.printed == b""
    offer(driver, TX, (BUFFERS, 8, 0, 0))
    assert board.printed == b"", "a stopped device does nothing"
    board.msis.clear()
    driver.start(BASIC)  # a reset brings it back
    board.mem_write(BUFFERS, b"well")
    driver.rings[TX].add([(BUFFERS, 4)], [])
    driver.notify(TX)
    assert board.printed == b"well"
    assert board.board.failures == {}


@pytest.mark.parametrize("queue", [RX, TX])
def test_rings_in_private_memory_stop_the_device(board: BoardMachine, queue: int) -> None:
    driver = running(board)
    board.dma.private = (driver.rings[queue].desc, driver.rings[queue].end)
    driver.notify(queue)
    board.console_input(b"x")
    assert "not shared" in stopped(board, driver)


def test_an_index_that_jumps_stops_the_device(board: BoardMachine) -> None:
    driver = running(board)
    board.mem_write(driver.rings[TX].avail + 2, struct.pack("<H", 17))
    driver.notify(TX)
    assert "17 buffers available in a queue of 16" in stopped(board, driver)


def test_an_unaligned_ring_is_refused_when_enabled(board: BoardMachine) -> None:
    driver = VirtioDriver(board, board.console_slot)
    driver.accept(BASIC)
    ring = Ring(board, 0x10008, 16, False)
    driver.set_queue(TX, ring)
    assert driver.status & NEEDS_RESET
    (reason,) = board.board.failures.values()
    assert "not aligned to 16" in reason


def test_no_dma_without_bus_mastering(board: BoardMachine) -> None:
    driver = VirtioDriver(board, board.console_slot)
    driver.pci.write(0x04, 2, 0x0002)
    driver.accept(BASIC)
    driver.set_queue(TX, Ring(board, 0x10000, 16, False))
    driver.status = 15
    assert driver.status & NEEDS_RESET


def test_queue_registers_refuse_nonsense(board: BoardMachine) -> None:
    driver = VirtioDriver(board, board.console_slot)
    driver.set_common(0x16, 2, TX)
    offered = driver.common(0x18, 2)
    assert offered
    assert offered & (offered - 1) == 0
    for size in (0, 3, 2 * offered, 0xFFFF):
        driver.set_common(0x18, 2, size)
        assert driver.common(0x18, 2) == offered
    driver.set_common(0x16, 2, 99)
    assert driver.common(0x18, 2) == 0
    driver.set_common(0x1C, 2, 1)
    assert driver.common(0x1C, 2) == 0


_descriptor = st.tuples(
    st.sampled_from([0, BUFFERS, BUFFERS + 0xFFF, 0x20_0000, RAM_SIZE - 1, 1 << 47, (1 << 64) - 1]),
    st.sampled_from([0, 1, 7, 4096, 1 << 20, (1 << 32) - 1]),
    st.integers(0, 7),
    st.integers(0, 17),
)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    features=st.sampled_from([BASIC, BASIC | EVENT_IDX]),
    table=st.lists(_descriptor, min_size=16, max_size=16),
    ring=st.lists(st.integers(0, 18), min_size=16, max_size=16),
    idx=st.integers(0, 0xFFFF),
    event=st.integers(0, 0xFFFF),
)
def test_random_rings_never_hang_or_raise(
    data: st.DataObject,
    features: int,
    table: list[tuple[int, int, int, int]],
    ring: list[int],
    idx: int,
    event: int,
) -> None:
    board = BoardMachine()
    driver = running(board, features)
    board.dma.private = (0x20_0000, 0x30_0000)
    queue = driver.rings[data.draw(st.sampled_from([RX, TX]))]
    for index, descriptor in enumerate(table):
        queue.put_descriptor(index, *descriptor)
    flags = data.draw(st.integers(0, 0xFFFF))
    # Indices near the start, so that the device believes some of them.
    idx = data.draw(st.sampled_from([idx, idx % 17]))
    board.mem_write(queue.avail, struct.pack("<HH16HH", flags, idx, *ring, event))
    secret = board.mem_read(0x20_0000, 0x10_0000)
    # Of this thread alone: others may be busy.
    started = time.thread_time()
    driver.notify(RX)
    driver.notify(TX)
    board.console_input(b"input" * 1000)
    board.board.poll()
    assert time.thread_time() - started < 5
    assert board.mem_read(0x20_0000, 0x10_0000) == secret, "private memory was written"
    assert len(board.printed) <= 16 * (16 << 20)
    driver.status = 0
    driver.start(BASIC)
    board.mem_write(BUFFERS, b"back")
    del board.printed[:]
    driver.rings[TX].add([(BUFFERS, 4)], [])
    driver.notify(TX)
    assert board.printed == b"back"


class _Endless(BoardMachine):
    """Another vCPU that adds a buffer whenever the device takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.driver: VirtioDriver | None = None
        self.left = 0
        original = self.dma.read

        def read(gpa: int, length: int) -> bytes:
            driver = self.driver
            if driver is not None and gpa == driver.rings[TX].avail + 2 and self.left:
                self.left -= 1
                driver.rings[TX].expose(0)
            return original(gpa, length)

        self.dma.read = read  # type: ignore[method-assign]


@pytest.mark.parametrize("features", [BASIC, BASIC | EVENT_IDX])
def test_a_guest_that_never_stops_adding_is_served_in_turns(features: int) -> None:
    board = _Endless()
    driver = running(board, features)
    driver.rings[TX].put_descriptor(0, BUFFERS, 1, 0, 0)
    board.driver, board.left = driver, 100_000
    wakes = board.wakes
    driver.notify(TX)
    assert 0 < len(board.printed) < 1000
    assert board.wakes > wakes, "the rest is asked for"
    taken = len(board.printed)
    board.board.poll()
    assert len(board.printed) > taken


_value = st.one_of(
    st.sampled_from([0, 1, 2, 4, 8, 11, 15, 0xFF, 0xFFFF, 0xFFFF_FFFF]), st.integers(0, (1 << 64) - 1)
)


@settings(max_examples=150, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 0x1FFF), st.sampled_from([1, 2, 4, 8]), st.none() | _value), max_size=80
    )
)
def test_random_accesses_to_the_registers_never_raise(accesses: list[tuple[int, int, int | None]]) -> None:
    board = BoardMachine()
    driver = running(board)
    base = driver.pci.read(0x10, 4) & ~15
    for offset, size, value in accesses:
        if value is None:
            assert 0 <= board.mmio_read(base + offset, size) < 1 << 8 * size
        else:
            board.mmio_write(base + offset, size, value & (1 << 8 * size) - 1)
