"""PCI: mechanism 1, BARs, capabilities, ECAM; QEMU's Q35 answers the same questions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.devices.board import BoardConfig, BoardError
from swtdx.devices.bus import BusError
from swtdx.devices.pci.function import PciFunction
from swtdx.devices.pci.host import PciHost
from tests.devices.machines import BoardMachine, Machine
from tests.devices.pci_driver import PciDevice


def test_an_operating_system_finds_mechanism_1(machine: Machine) -> None:
    """The check that Linux makes before it believes in the ports."""
    machine.outp(0xCFB, 1, 0x01)
    before = machine.inp(0xCF8, 4)
    machine.outp(0xCF8, 4, 0x8000_0000)
    assert machine.inp(0xCF8, 4) == 0x8000_0000
    machine.outp(0xCF8, 4, before)
    host = PciDevice(machine, 0)
    assert host.read(0x0A, 2) == 0x0600  # a host bridge: the ports are real
    assert host.read(0, 4) == 0x29C0_8086


def test_data_ports_are_dead_without_the_enable_bit(machine: Machine) -> None:
    machine.outp(0xCF8, 4, 0x0000_0000)
    assert machine.inp(0xCFC, 4) == 0xFFFF_FFFF


def test_absent_functions_read_as_ones(machine: Machine) -> None:
    absent = PciDevice(machine, 5)
    assert absent.read(0, 4) == 0xFFFF_FFFF
    assert absent.read(0x0E, 1) == 0xFF
    absent.write(0x04, 2, 7)
    assert not absent.present


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_width_reads_the_same_bytes(machine: Machine, size: int) -> None:
    device = PciDevice(machine, machine.console_slot)
    whole = b"".join(device.read(at, 4).to_bytes(4, "little") for at in range(0, 64, 4))
    parts = b"".join(device.read(at, size).to_bytes(size, "little") for at in range(0, 64, size))
    assert parts == whole


def test_bars_are_sized_and_decode_where_they_are_put(machine: Machine) -> None:
    device = PciDevice(machine, machine.console_slot)
    bars = device.place(0xD000_0000)
    assert bars
    (at,) = [at for capability, at in device.capabilities() if capability == 0x11]
    table = device.read(at + 4, 4)
    entry = bars[table & 7].address + (table & ~7)
    machine.mmio_write(entry, 4, 0x1234_5678 & ~3)
    assert machine.mmio_read(entry, 4) == 0x1234_5678 & ~3
    device.write(0x04, 2, 0)
    assert machine.mmio_read(entry, 4) != 0x1234_5678 & ~3, "decoding is off"
    device.write(0x04, 2, 2)
    assert machine.mmio_read(entry, 4) == 0x1234_5678 & ~3


def test_identity_cannot_be_written(machine: Machine) -> None:
    device = PciDevice(machine, machine.console_slot)
    before = [device.read(at, 4) for at in (0x00, 0x08, 0x2C, 0x34)]
    for at in (0x00, 0x08, 0x2C, 0x34):
        device.write(at, 4, 0xFFFF_FFFF)
    assert [device.read(at, 4) for at in (0x00, 0x08, 0x2C, 0x34)] == before


def test_interrupts_need_no_pin(board: BoardMachine) -> None:
    """No interrupt pin, so that Linux looks for no routing."""
    assert PciDevice(board, board.console_slot).read(0x3D, 1) == 0


def test_firmware_s_work_is_done(board: BoardMachine) -> None:
    """The BAR lies in the window and decodes nothing until the driver says so."""
    device = PciDevice(board, board.console_slot)
    address = device.read(0x10, 4)
    assert 0xC000_0000 <= address < 0xFEC0_0000
    assert device.read(0x04, 2) == 0
    assert board.mmio_read(address, 4) == 0xFFFF_FFFF


def test_the_lower_bar_wins_nothing_when_two_overlap(board: BoardMachine) -> None:
    """A guest may program BARs over each other or out of the window; nothing breaks."""
    device = PciDevice(board, board.console_slot)
    device.write(0x04, 2, 2)
    for address in (0xC000_0000, 0xFEBF_E000, 0, 0xFFFF_E000, 0x1000):
        device.write(0x10, 4, address)
        board.mmio_read(0xC000_0000, 4)
        board.mmio_write(0xFEBF_FFFF, 8, 0)
        board.mmio_read(0xFEBF_FFFF, 8)


def test_pciexbar_moves_ecam(machine: Machine) -> None:
    """As OVMF does: 256 buses at 0xE0000000."""
    host = PciDevice(machine, 0)
    host.write(0x64, 4, 0)
    host.write(0x60, 4, 0xE000_0001)
    assert machine.mmio_read(0xE000_0000, 4) == 0x29C0_8086
    slot = machine.console_slot << 15
    assert machine.mmio_read(0xE000_0000 + slot, 4) == 0x1043_1AF4
    assert machine.mmio_read(0xE000_0002 + slot, 2) == 0x1043
    assert machine.mmio_read(0xE000_0000 + (5 << 15), 4) == 0xFFFF_FFFF
    assert machine.mmio_read(0xE000_0000 + (1 << 20), 4) == 0xFFFF_FFFF, "there is no bus 1"
    machine.mmio_write(0xE000_0000 + slot + 0x3C, 1, 0x55)
    assert PciDevice(machine, machine.console_slot).read(0x3C, 1) == 0x55


def test_ecam_alone() -> None:
    board = BoardMachine(BoardConfig(ecam=0xE000_0000, mechanism1=False))
    assert board.mmio_read(0xE000_0000, 4) == 0x29C0_8086
    board.outp(0xCF8, 4, 0x8000_0000)
    assert board.inp(0xCF8, 4) == 0xFFFF_FFFF
    board.outp(0xCF9, 1, 6)
    assert board.power == ["restart"]
    with pytest.raises(BoardError, match="needs an ecam address"):
        BoardConfig(mechanism1=False)


def test_chipset_of_a_machine_for_firmware(board: BoardMachine) -> None:
    assert not PciDevice(board, 31).present
    chipset = BoardMachine(BoardConfig(chipset=True))
    bridge = PciDevice(chipset, 31)
    assert bridge.read(0, 4) == 0x2918_8086
    assert bridge.read(0x0A, 2) == 0x0601
    assert bridge.read(0x40, 4) == 0x601


def test_configuration_mistakes_are_refused() -> None:
    host = PciHost()
    host.add(3, PciFunction(0x1234, 1, class_code=0))
    with pytest.raises(BusError, match=r"00:03\.0 is taken"):
        host.add(3, PciFunction(0x1234, 2, class_code=0))
    with pytest.raises(BusError, match="no PCI device 32"):
        host.add(32, PciFunction(0x1234, 2, class_code=0))
    function = PciFunction(0x1234, 3, class_code=0)
    with pytest.raises(BusError, match="power of two"):
        function.add_bar(0, 0x3000, BoardMachine().board.ports)
    with pytest.raises(BusError, match="does not fit"):
        function.add_capability(9, bytes(250))
    with pytest.raises(BusError, match="cannot be placed"):
        function.place_bar(0, 0)


@settings(max_examples=100, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.integers(0, 0xFFFF_FFFF),
            st.integers(0, 3),
            st.sampled_from([1, 2, 4]),
            st.none() | st.integers(0, 0xFFFF_FFFF),
        ),
        max_size=60,
    )
)
def test_random_configuration_accesses_never_raise(
    accesses: list[tuple[int, int, int, int | None]],
) -> None:
    board = BoardMachine(BoardConfig(chipset=True))
    for address, lane, size, value in accesses:
        board.outp(0xCF8, 4, (address & 0x0000_FFFF | 0x8000_0000) if address & 1 else address)
        if value is None:
            assert 0 <= board.inp(0xCFC + lane, size) < 1 << 8 * size
        else:
            board.outp(0xCFC + lane, size, value & (1 << 8 * size) - 1)
        board.mmio_read(0xC000_0000 + (address & 0x3000_0FFC), 4)
