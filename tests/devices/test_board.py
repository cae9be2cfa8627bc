"""A board as a whole: what is refused when it is built, and what the hypervisor gets to see."""

from __future__ import annotations

import threading

import pytest

from swtdx.devices.board import BoardConfig, BoardError
from tests.devices.machines import BoardMachine
from tests.devices.virtio_driver import ACCESS_PLATFORM, EVENT_IDX, VERSION_1, VirtioDriver


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pci_window": 0xC000_1000}, "multiple of 1 MiB"),
        ({"pci_window": 0xFEC0_0000}, "below 0xfec00000"),
        ({"ecam": 0xE800_0000}, "multiple of 256 MiB"),
        ({"ecam": 0xB000_0000}, "in the PCI window"),
        ({"ecam": 0xF000_0000}, "in the PCI window"),
    ],
)
def test_impossible_boards_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(BoardError, match=message):
        BoardConfig(**arguments)  # type: ignore[arg-type]


def test_devices_can_be_left_out() -> None:
    board = BoardMachine(BoardConfig(console=False, serial=False))
    assert board.board.console is None
    assert board.board.serial is None
    assert board.inp(0x3FD, 1) == 0xFF
    assert list(board.board.pci.functions) == [0]
    board.board.poll()
    assert board.board.failures == {}


def test_linux_gives_up_its_quick_calibration_at_once() -> None:
    """The loops of quick_pit_calibrate (Linux arch/x86/kernel/tsc.c), counting every access."""
    board = BoardMachine()
    accesses = 0

    def read() -> int:
        nonlocal accesses
        accesses += 1
        return board.inp(0x42, 1)

    for port, value in ((0x61, 1), (0x43, 0xB0), (0x42, 0xFF), (0x42, 0xFF)):
        board.outp(port, 1, value)
    count = 0
    read()
    while count < 50000:
        read()  # the low byte is ignored
        if read() != 0xFF:
            break
        count += 1
    assert count <= 5, "Linux goes on to the next value"
    assert accesses < 10


@pytest.mark.parametrize("features", [VERSION_1 | ACCESS_PLATFORM, VERSION_1 | ACCESS_PLATFORM | EVENT_IDX])
def test_typing_while_the_guest_prints(features: int) -> None:
    """A terminal's thread types while a vCPU's thread prints and reads: every byte arrives, in order."""
    board = BoardMachine()
    driver = VirtioDriver(board, board.console_slot)
    driver.start(features)
    receive, transmit = driver.rings[0], driver.rings[1]
    slots = {}
    for slot in range(8):
        gpa = 0x10_0000 + 0x1000 * slot
        slots[receive.add([], [(gpa, 7)])] = gpa
    driver.notify(0)
    typed = bytes(range(256)) * 20
    assert board.board.console is not None
    console = board.board.console

    def type_it() -> None:
        for start in range(0, len(typed), 13):
            console.send(typed[start : start + 13])

    thread = threading.Thread(target=type_it)
    thread.start()
    got, printed = bytearray(), 0
    while len(got) < len(typed):
        board.board.poll()
        board.mem_write(0x20_0000, b"%05d" % printed)
        transmit.add([(0x20_0000, 5)], [])
        if transmit.should_notify():
            driver.notify(1)
        assert transmit.take() is not None
        printed += 1
        while (element := receive.take()) is not None:
            gpa = slots.pop(element[0])
            got += board.mem_read(gpa, element[1])
            slots[receive.add([], [(gpa, 7)])] = gpa
            if receive.should_notify():
                driver.notify(0)
        assert printed < 100_000
    thread.join()
    assert got == typed
    assert board.printed == b"".join(b"%05d" % number for number in range(printed))
