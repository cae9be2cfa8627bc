"""The virtio console, driven by a driver written from the specification; QEMU's takes the same tests."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from tests.devices.machines import BoardMachine, Machine
from tests.devices.virtio_driver import (
    ACCESS_PLATFORM,
    COMMON,
    DEVICE,
    EVENT_IDX,
    ISR,
    NOTIFY,
    VERSION_1,
    VirtioDriver,
)

RX, TX = 0, 1
MAILBOXES = 0x8000
BUFFERS = 0x10_0000
BASIC = VERSION_1 | ACCESS_PLATFORM


def mailbox(machine: Machine, vector: int) -> int:
    return int.from_bytes(machine.mem_read(MAILBOXES + 4 * vector, 4), "little")


def wait_used(machine: Machine, driver: VirtioDriver, index: int) -> tuple[int, int]:
    """The next used element; QEMU needs a moment to hear of console input."""
    for _ in range(500):
        element = driver.rings[index].take()
        if element is not None:
            return element
        time.sleep(0.005)
        machine.inp(0x80, 1)
    raise AssertionError("no buffer came back")


def test_identity_and_structures(machine: Machine) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    assert driver.pci.read(0, 4) == 0x1043_1AF4
    assert driver.pci.read(0x08, 1) >= 1  # revision of a device without legacy
    assert driver.pci.read(0x2E, 2) >= 0x40
    assert driver.length(COMMON) >= 56
    assert driver.length(ISR) >= 1
    assert driver.length(DEVICE) >= 12
    assert driver.address(NOTIFY) % 2 == 0
    assert driver.window_capability
    assert driver.msix_capability
    assert driver.offered() & BASIC == BASIC


def test_structures_do_not_overlap(machine: Machine) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    vectors = (driver.pci.read(driver.msix_capability + 2, 2) & 0x7FF) + 1
    spans = [(driver.address(kind), driver.length(kind)) for kind in (COMMON, NOTIFY, ISR, DEVICE)]
    spans += [(driver.msix_table, 16 * vectors), (driver.msix_pending, (vectors + 63) // 64 * 8)]
    spans.sort()
    assert all(start + length <= following for (start, length), (following, _) in pairwise(spans))


@pytest.mark.parametrize("missing", [VERSION_1, ACCESS_PLATFORM])
def test_a_driver_without_the_required_features_is_refused(board: BoardMachine, missing: int) -> None:
    driver = VirtioDriver(board, board.console_slot)
    assert not driver.accept(BASIC & ~missing)
    driver.status = 15
    assert not driver.status & 4  # nor does it run


def test_features_that_were_not_offered_are_refused(board: BoardMachine) -> None:
    driver = VirtioDriver(board, board.console_slot)
    assert not driver.accept(BASIC | 1 << 40)
    driver.status = 0
    assert driver.accept(BASIC)


def test_features_cannot_change_after_agreement(board: BoardMachine) -> None:
    driver = VirtioDriver(board, board.console_slot)
    assert driver.accept(BASIC)
    driver.set_common(0x08, 4, 0)
    driver.set_common(0x0C, 4, EVENT_IDX)
    assert driver.common(0x0C, 4) == 0


@pytest.mark.parametrize("features", [BASIC, BASIC | EVENT_IDX])
def test_output_arrives_and_buffers_come_back(machine: Machine, features: int) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    driver.start(features)
    ring = driver.rings[TX]
    text = bytes(range(256))
    sent = b""
    # More buffers than the queue has entries, of one to three pieces each, so that the rings wrap.
    for turn in range(50):
        pieces = []
        for piece in range(turn % 3 + 1):
            gpa = BUFFERS + 0x1000 * piece + turn
            machine.mem_write(gpa, text)
            pieces.append((gpa, 17 * turn % 250 + piece + 1))
            sent += text[: pieces[-1][1]]
        head = ring.add(pieces, [])
        assert ring.should_notify()
        driver.notify(TX)
        assert ring.take() == (head, 0)
    assert machine.console_output(len(sent)) == sent


@pytest.mark.parametrize("features", [BASIC, BASIC | EVENT_IDX])
def test_input_arrives_with_an_interrupt(machine: Machine, features: int) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    driver.start(features)
    driver.enable_msix(3, MAILBOXES)
    for index in (RX, TX):
        driver.set_common(0x16, 2, index)
        driver.set_common(0x1A, 2, index + 1)
    head = driver.rings[RX].add([], [(BUFFERS, 3), (BUFFERS + 0x1000, 64)])
    driver.notify(RX)
    machine.console_input(b"hello")
    assert wait_used(machine, driver, RX) == (head, 5)
    assert machine.mem_read(BUFFERS, 3) + machine.mem_read(BUFFERS + 0x1000, 2) == b"hello"
    assert mailbox(machine, RX + 1) == 0x100 + RX + 1
    assert mailbox(machine, TX + 1) == 0


def test_input_longer_than_a_buffer_continues_in_the_next(machine: Machine) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    driver.start(BASIC)
    first = driver.rings[RX].add([], [(BUFFERS, 4)])
    driver.notify(RX)
    machine.console_input(b"0123456789")
    assert wait_used(machine, driver, RX) == (first, 4)
    second = driver.rings[RX].add([], [(BUFFERS + 0x1000, 100)])
    driver.notify(RX)
    assert wait_used(machine, driver, RX) == (second, 6)
    assert machine.mem_read(BUFFERS, 4) + machine.mem_read(BUFFERS + 0x1000, 6) == b"0123456789"


def test_vectors_that_do_not_exist_read_back_as_none(machine: Machine) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    vectors = (driver.pci.read(driver.msix_capability + 2, 2) & 0x7FF) + 1
    driver.pci.write(driver.msix_capability + 2, 2, 0x8000)
    driver.set_common(0x10, 2, vectors)
    assert driver.common(0x10, 2) == 0xFFFF
    driver.set_common(0x10, 2, vectors - 1)
    assert driver.common(0x10, 2) == vectors - 1


def test_the_configuration_window_reaches_the_same_registers(machine: Machine) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    driver.status = 0
    at = driver.window_capability
    bars = driver.pci.bars()
    for index in bars:  # find the BAR by its address, as the capability wants its number
        base = driver.pci.read(0x10 + 4 * index, 4) & ~15
        if 0 <= driver.address(COMMON) - base < bars[index].size:
            driver.pci.write(at + 4, 1, index)
            offset = driver.address(COMMON) - base
    driver.pci.write(at + 8, 4, offset + 0x14)
    driver.pci.write(at + 12, 4, 1)
    driver.pci.write(at + 16, 1, 1)  # ACKNOWLEDGE, through the window
    assert driver.status == 1
    driver.status = 3
    assert driver.pci.read(at + 16, 1) == 3


def test_linux_probing_adds_no_receive_notifications(board: BoardMachine) -> None:
    """A driver that fills its receive queue is not asked to notify, until input waits for a buffer."""
    for features in (BASIC, BASIC | EVENT_IDX):
        driver = VirtioDriver(board, board.console_slot)
        driver.start(features)
        ring = driver.rings[RX]
        for slot in range(8):
            ring.add([], [(BUFFERS + 0x1000 * slot, 4)])
            assert not ring.should_notify()
        board.console_input(b"x" * 40)  # 8 buffers of 4 bytes: 8 bytes are left
        assert board.board.console is not None
        assert board.board.console.pending == 8
        for _ in range(8):
            assert ring.take() is not None
        ring.add([], [(BUFFERS, 64)])
        assert ring.should_notify()
        driver.notify(RX)
        assert ring.take() is not None
        assert board.board.console.pending == 0
        ring.add([], [(BUFFERS, 64)])
        assert not ring.should_notify()


def test_polled_output_costs_no_interrupts(board: BoardMachine) -> None:
    """A driver that spins for its output, as Linux's does, is not interrupted for it; one that waits is."""
    driver = VirtioDriver(board, board.console_slot)
    driver.start(BASIC | EVENT_IDX)
    driver.enable_msix(3, MAILBOXES)
    for index in (RX, TX):
        driver.set_common(0x16, 2, index)
        driver.set_common(0x1A, 2, index + 1)
    ring = driver.rings[TX]
    for _ in range(100):
        ring.add([(BUFFERS, 16)], [])
        driver.notify(TX)
        assert ring.take() is not None
    assert board.msis == []
    ring.add([(BUFFERS, 16)], [])
    driver.notify(TX)
    board.board.poll()  # before the vCPU sleeps
    assert board.msis == [(MAILBOXES + 4 * (TX + 1), 0x100 + TX + 1)]


def test_resizing_the_terminal_tells_the_driver() -> None:
    from swtdx.devices.board import BoardConfig

    board = BoardMachine(BoardConfig(console_size=(132, 43)))
    driver = VirtioDriver(board, board.console_slot)
    assert driver.offered() & 1
    driver.start(BASIC | 1)
    driver.enable_msix(3, MAILBOXES)
    driver.set_common(0x10, 2, 0)
    size = driver.address(DEVICE)
    assert (board.mmio_read(size, 2), board.mmio_read(size + 2, 2)) == (132, 43)
    assert board.board.console is not None
    board.board.console.resize(80, 24)
    assert board.wakes
    board.board.poll()
    assert board.msis == [(MAILBOXES, 0x100)]
    assert (board.mmio_read(size, 2), board.mmio_read(size + 2, 2)) == (80, 24)


def test_input_before_the_driver_is_ready_is_kept(board: BoardMachine) -> None:
    board.console_input(b"early")
    driver = VirtioDriver(board, board.console_slot)
    driver.start(BASIC)
    driver.rings[RX].add([], [(BUFFERS, 64)])
    driver.notify(RX)
    board.board.poll()
    assert driver.rings[RX].take() is not None
    assert board.mem_read(BUFFERS, 5) == b"early"


def test_masked_vectors_wait_in_the_pending_bits(machine: Machine) -> None:
    driver = VirtioDriver(machine, machine.console_slot)
    driver.start(BASIC)
    driver.enable_msix(3, MAILBOXES)
    driver.set_common(0x16, 2, RX)
    driver.set_common(0x1A, 2, 1)
    entry = driver.msix_table + 16
    machine.mmio_write(entry + 12, 4, 1)
    driver.rings[RX].add([], [(BUFFERS, 64)])
    driver.notify(RX)
    machine.console_input(b"!")
    wait_used(machine, driver, RX)
    assert machine.mmio_read(driver.msix_pending, 4) == 2
    assert mailbox(machine, 1) == 0
    machine.mmio_write(entry + 12, 4, 0)
    assert mailbox(machine, 1) == 0x101
    assert machine.mmio_read(driver.msix_pending, 4) == 0
