"""A board as a whole: what is refused when it is built, and what the hypervisor gets to see."""

from __future__ import annotations

import threading

import pytest

from swtdx.devices.acpi import AcpiConfig
from swtdx.devices.board import Board, BoardConfig, BoardError, describe_board
from swtdx.devices.bus import BusError
from swtdx.devices.part import Backplane, Part
from swtdx.devices.parts import Clock, PciRoot, Virtio
from swtdx.devices.virtio.console import VirtioConsole
from swtdx.devices.virtio.pci import BAR_SIZE
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


class Beeper(Part):
    """A device that only these tests have: a byte at port 0x3A0, and a table entry."""

    name = "beeper"

    def __init__(self) -> None:
        self.value = 0

    def plug(self, board: Backplane) -> None:
        board.ports.register(0x3A0, 1, self, name=self.name)

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value

    def describe(self, tables: AcpiConfig) -> AcpiConfig:
        return tables.with_device("BEEP", "PNP0800", b"")


def silent(_data: bytes) -> None:
    """Prints nowhere."""


def another_console() -> Part:
    return Virtio(lambda wires: VirtioConsole(silent, wake=wires.wake))


def test_a_part_is_added_by_the_configuration_alone() -> None:
    config = BoardConfig(more=(Beeper,))
    machine = BoardMachine(config)
    machine.outp(0x3A0, 1, 0x42)
    assert machine.inp(0x3A0, 1) == 0x42
    assert machine.board.find(Beeper) is not None
    without, with_it = describe_board(BoardConfig()).acpi(0), describe_board(config).acpi(0)
    assert b"BEEP" not in without["DSDT"]
    assert b"BEEP" in with_it["DSDT"]
    assert machine.board.acpi(0)["DSDT"] == with_it["DSDT"]


def test_pci_parts_get_slots_and_places_of_their_own() -> None:
    machine = BoardMachine(BoardConfig(more=(another_console,) * 3, ecam=0xE000_0000))
    functions = machine.board.pci.functions
    assert list(functions) == [slot << 3 for slot in (0, 1, 2, 3, 4)]
    places = [int.from_bytes(function.config[0x10:0x14], "little") & -16 for function in functions.values()][
        1:
    ]
    assert places == [0xFEC0_0000 - BAR_SIZE * number for number in (1, 2, 3, 4)]
    machine.board.poll()
    assert machine.board.failures == {}


def test_places_go_around_ecam() -> None:
    """BARs come from the top; where ECAM begins, the next one is below it."""
    board = Board([PciRoot(0xC000_0000, 0xF000_2000, 0xE000_0000)], window=(0xC000_0000, 0xF000_2000))
    assert board.place(0x2000) == 0xF000_0000
    assert board.place(0x1000) == 0xE000_0000 - 0x1000
    with pytest.raises(BoardError, match="no room"):
        board.place(1 << 30)


def test_a_bus_that_is_full_is_said() -> None:
    with pytest.raises(BoardError, match="31 devices"):
        BoardMachine(BoardConfig(more=(another_console,) * 31))


def test_two_parts_at_one_address_are_refused() -> None:
    with pytest.raises(BusError, match="RTC and RTC both claim port 0x70"):
        BoardMachine(BoardConfig(more=(Clock,)))
