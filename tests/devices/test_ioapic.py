"""The I/O APIC's registers; QEMU's takes the same accesses."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.arch.guest_map import IOAPIC_GPA
from swtdx.devices.board import BoardConfig
from swtdx.devices.parts import InterruptController
from tests.devices.conftest import needs_qemu
from tests.devices.machines import BoardMachine, Machine, QtestMachine


@pytest.fixture(params=["ours", pytest.param("qemu", marks=pytest.mark.qemu)])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.param == "ours":
        # QEMU's has as many inputs as a PC's.
        yield BoardMachine(BoardConfig(more=(lambda: InterruptController(first=0, pins=24),)))
        return
    needs_qemu()
    theirs = QtestMachine(frozen=True)
    yield theirs
    theirs.close()


def read(machine: Machine, register: int) -> int:
    machine.mmio_write(IOAPIC_GPA, 4, register)
    return machine.mmio_read(IOAPIC_GPA + 0x10, 4)


def write(machine: Machine, register: int, value: int) -> None:
    machine.mmio_write(IOAPIC_GPA, 4, register)
    machine.mmio_write(IOAPIC_GPA + 0x10, 4, value)


def test_what_linux_reads_and_writes(machine: Machine) -> None:
    version = read(machine, 1)
    assert (version & 0xFF, version >> 16 & 0xFF) == (0x20, 23)
    for pin in (0, 9, 23):
        assert read(machine, 0x10 + 2 * pin) == 1 << 16, "inputs start masked"
        assert read(machine, 0x11 + 2 * pin) == 0
        # Level, masked, vector 0x31, to APIC 3; the two status bits are the device's.
        write(machine, 0x11 + 2 * pin, 0x0300_0000)
        write(machine, 0x10 + 2 * pin, 1 << 16 | 1 << 15 | 1 << 14 | 1 << 12 | 0x31)
        assert read(machine, 0x10 + 2 * pin) == 1 << 16 | 1 << 15 | 0x31
        assert read(machine, 0x11 + 2 * pin) == 0x0300_0000
    assert read(machine, 0x10 + 48) == 0, "there is no input 24"


def test_the_tables_tell_of_it_and_of_fixed_registers() -> None:
    acpi = BoardMachine(BoardConfig(ioapic=True)).board.acpi(0x10_0000)
    fadt, madt = acpi["FACP"], acpi["APIC"]
    assert not struct.unpack_from("<I", fadt, 112)[0] >> 20 & 1, "not hardware-reduced"
    assert struct.unpack_from("<H", fadt, 46)[0] == 9
    assert struct.unpack_from("<II", fadt, 56)[0] == 0x600
    assert struct.unpack_from("<I", fadt, 64)[0] == 0x604
    assert bytes(struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_GPA, 9)) in madt
    plain = BoardMachine().board.acpi(0x10_0000)
    assert struct.unpack_from("<I", plain["FACP"], 112)[0] >> 20 & 1


def overrides(madt: bytes) -> list[tuple[int, int]]:
    """ISA interrupt and where it is, of each interrupt source override, in order (ACPI 6.5, 5.2.12.5)."""
    found, at = [], 44
    while at < len(madt):
        if madt[at] == 2:
            found.append((madt[at + 3], struct.unpack_from("<I", madt, at + 4)[0]))
        at += madt[at + 1]
    return found


def test_a_board_has_the_one_input_that_it_needs() -> None:
    """Linux complains of every ISA interrupt for which no I/O APIC has an input."""
    board = BoardMachine(BoardConfig(ioapic=True))
    assert read(board, 1) >> 16 & 0xFF == 0
    places = overrides(board.board.acpi(0x10_0000)["APIC"])
    assert places[0] == (9, 9), "Linux calls an input by the first"
    assert dict(places) == dict.fromkeys(range(16), 9)


def test_a_pcs_interrupts_are_where_their_numbers_say() -> None:
    board = BoardMachine(BoardConfig(more=(lambda: InterruptController(first=0, pins=24),))).board
    assert overrides(board.acpi(0x10_0000)["APIC"]) == [(9, 9)]
