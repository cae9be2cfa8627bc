"""The I/O APIC's registers; QEMU's takes the same accesses."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from swtdx.arch.guest_map import IOAPIC_GPA
from swtdx.devices import parts
from swtdx.devices.board import BoardConfig
from swtdx.devices.ioapic import IoApic
from swtdx.devices.parts import InterruptController
from tests.devices.conftest import needs_qemu
from tests.devices.machines import BoardMachine, Machine, QtestMachine
from tests.devices.sections import carry


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


SCI = 9


@pytest.mark.parametrize(("logical", "address"), [(0, 0xFEE0_3000), (1 << 11, 0xFEE0_3004)])
def test_an_input_becomes_a_message(logical: int, address: int) -> None:
    sent: list[tuple[int, int]] = []
    device = IoApic(24, lambda where, data: sent.append((where, data)))

    def entry(low: int) -> None:
        for register, value in ((0x11 + 2 * SCI, 0x0300_0000), (0x10 + 2 * SCI, low)):
            device.write(0, 4, register)
            device.write(0x10, 4, value)

    entry(1 << 16 | 0x31)
    device.set_level(SCI, True)
    assert sent == [], "it is masked"
    entry(logical | 0x31)
    assert sent == [], "an edge that came while it was masked is lost"
    for level in (False, True, True):
        device.set_level(SCI, level)
    assert sent == [(address, 0x31)], "once for each edge"
    entry(1 << 16 | 1 << 15 | logical | 0x31)
    entry(1 << 15 | logical | 0x31)
    assert sent == [(address, 0x31)] * 2, "a level is still there"


def test_whoever_looks_at_acpi_s_input_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Linux does before it suspends itself: tests/boot/test_linux.py has the whole of it."""
    monkeypatch.setattr(parts, "_SLEEP", 0.0)
    machine = BoardMachine(BoardConfig(ioapic=True))
    write(machine, 0x11, 0)
    machine.outp(0x602, 2, 1 << 5)
    read(machine, 0x10)
    assert machine.wakes == 0, "a masked input is looked at while Linux starts"
    write(machine, 0x10, 0x31)
    read(machine, 0x10)
    while not machine.wakes:
        time.sleep(0.001)
    assert machine.inp(0x600, 2) == 0
    machine.board.poll()
    assert machine.inp(0x600, 2) == 1 << 5
    assert machine.msis == [(0xFEE0_0000, 0x31)]
    machine.outp(0x600, 2, 1 << 5)
    assert machine.inp(0x600, 2) == 0, "writing 1 clears it"
    machine.board.poll()
    assert len(machine.msis) == 1, "once"


@pytest.mark.parametrize("polled_between", [False, True])
def test_each_suspend_has_an_end(monkeypatch: pytest.MonkeyPatch, polled_between: bool) -> None:
    """Also one that begins when the last one's end is on its way, as on a busy host."""
    monkeypatch.setattr(parts, "_SLEEP", 0.05)
    machine = BoardMachine(BoardConfig(ioapic=True))
    write(machine, 0x10, 0x31)
    machine.outp(0x602, 2, 1 << 5)
    read(machine, 0x10)
    while not machine.wakes:
        time.sleep(0.001)
    for times in range(1, 5):
        # The alarm has rung; the guest suspends itself once more before anything was polled, or after.
        read(machine, 0x10)
        if polled_between:
            machine.board.poll()
            machine.outp(0x600, 2, 1 << 5)
            read(machine, 0x10)
        start, sent = time.monotonic(), len(machine.msis)
        while len(machine.msis) == sent:
            assert time.monotonic() - start < 30, f"it sleeps for ever, {times}"
            time.sleep(0.01)
            machine.nanoseconds += 10_000_000
            machine.board.poll()
        machine.outp(0x600, 2, 1 << 5)


def test_one_that_was_saved_asleep_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_SLEEP", 3600.0)
    machine = BoardMachine(BoardConfig(ioapic=True))
    write(machine, 0x10, 0x31)
    machine.outp(0x602, 2, 1 << 5)
    read(machine, 0x10)
    again = BoardMachine(BoardConfig(ioapic=True))
    carry(machine.board, again.board)
    monkeypatch.setattr(parts, "_SLEEP", 0.0)
    woken = again.wakes
    again.board.poll()
    while again.wakes == woken:
        time.sleep(0.001)
    again.board.poll()
    assert again.msis == [(0xFEE0_0000, 0x31)]
    assert machine.msis == []


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
