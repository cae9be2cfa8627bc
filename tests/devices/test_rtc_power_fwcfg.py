"""The small devices: clock, power, firmware configuration.  QEMU answers where it has the same one."""

from __future__ import annotations

import contextlib
import itertools
import struct
from datetime import UTC, datetime

import pytest

from swtdx.devices.board import BoardConfig
from swtdx.devices.fw_cfg import FwCfgError
from swtdx.devices.power import POWER_OFF_VALUE, SLEEP_CONTROL_PORT
from tests.devices.conftest import needs_qemu
from tests.devices.machines import BoardMachine, Machine, QtestMachine

#: What QEMU's clock is started at.
LEAP_NIGHT = datetime(2024, 2, 29, 23, 59, 30, tzinfo=UTC)


def cmos(machine: Machine, index: int) -> int:
    machine.outp(0x70, 1, index)
    return machine.inp(0x71, 1)


def set_cmos(machine: Machine, index: int, value: int) -> None:
    machine.outp(0x70, 1, index)
    machine.outp(0x71, 1, value)


def read_clock(machine: Machine) -> datetime:
    """The time as Linux reads it at start: wait for no update, read twice the same second."""
    for _ in range(100):
        second = cmos(machine, 0)
        if cmos(machine, 0x0A) & 0x80:
            continue
        fields = [cmos(machine, index) for index in (0x32, 9, 8, 7, 4, 2)]
        if cmos(machine, 0) == second:
            break
    else:
        raise AssertionError("the clock is never still")
    control = cmos(machine, 0x0B)
    fields.append(second)
    afternoon = fields[4] & 0x80
    fields[4] &= 0x7F
    if not control & 4:
        fields = [(value >> 4) * 10 + (value & 15) for value in fields]
    century, year, month, day, hour, minute, second = fields
    if not control & 2:
        hour = hour % 12 + (12 if afternoon else 0)
    return datetime(century * 100 + year, month, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize("mode", [0x02, 0x06, 0x00, 0x04])
def test_time_of_day(machine: Machine, mode: int) -> None:
    """24 and 12 hours, BCD and binary."""
    if isinstance(machine, BoardMachine):
        machine.seconds = LEAP_NIGHT.timestamp()
    else:
        set_cmos(machine, 0x0B, 0x82)  # stop, or QEMU would take the mode as a new setting of the time
    set_cmos(machine, 0x0B, mode)
    late = (read_clock(machine) - LEAP_NIGHT).total_seconds()
    assert 0 <= late < 20


@pytest.mark.parametrize("hour", range(24))
def test_every_hour_in_twelve_hour_mode(board: BoardMachine, hour: int) -> None:
    when = datetime(2031, 12, 31, hour, 5, 59, tzinfo=UTC)
    board.seconds = when.timestamp()
    set_cmos(board, 0x0B, 0)
    assert read_clock(board) == when
    assert cmos(board, 6) == when.isoweekday() % 7 + 1  # Sunday is 1


def test_the_clock_is_always_there(machine: Machine) -> None:
    """Linux would otherwise wait a second for "update in progress" to end."""
    assert not cmos(machine, 0x0A) & 0x80
    assert cmos(machine, 0x0D) & 0x80


def memory_by_cmos(machine: Machine) -> tuple[int, int]:
    """RAM below and above 4 GiB, as OVMF of 2022 finds it out."""

    def word(*indices: int) -> int:
        return sum(cmos(machine, index) << 8 * at for at, index in enumerate(indices))

    return word(0x34, 0x35) * 65536 + (16 << 20), word(0x5B, 0x5C, 0x5D) * 65536


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("size", "low", "high"), [("512M", 512 << 20, 0), ("2816M", 2 << 30, 768 << 20), ("5G", 2 << 30, 3 << 30)]
)
def test_memory_in_the_cmos(size: str, low: int, high: int) -> None:
    """Every byte that QEMU has there, beside clock, disks and boot order."""
    ours = BoardMachine(BoardConfig(ram=(low, high)))
    told = range(0x15, 0x19), range(0x30, 0x32), range(0x34, 0x36), range(0x5B, 0x5E)
    needs_qemu()
    with contextlib.closing(QtestMachine("-m", size)) as theirs:
        assert memory_by_cmos(ours) == memory_by_cmos(theirs) == (low, high)
        for index in itertools.chain(*told):
            assert cmos(ours, index) == cmos(theirs, index), hex(index)


def test_no_memory_in_the_cmos_of_a_board_without_firmware(board: BoardMachine) -> None:
    assert [cmos(board, index) for index in (0x15, 0x34, 0x5B)] == [0, 0, 0]


def test_power_off(board: BoardMachine) -> None:
    assert (SLEEP_CONTROL_PORT, POWER_OFF_VALUE) == (0x605, 0x20)
    board.outp(0x606, 1, 0x80)  # Linux first clears the wake status
    board.outp(0x605, 1, 0x00)
    assert board.power == []
    board.outp(0x605, 1, 0x20 | 3 << 2)  # a sleep state that does not exist
    assert board.power == []
    board.outp(0x605, 1, POWER_OFF_VALUE)
    assert board.power == ["off"]
    assert board.inp(0x606, 1) == 0


def test_power_off_by_the_chipset_s_register(board: BoardMachine) -> None:
    """As OVMF does it: SLP_EN in the 16-bit PM1a control register."""
    board.outp(0x604, 2, 0x2000)
    assert board.power == ["off"]
    assert board.inp(0x604, 2) == 0


def test_restart_needs_a_rising_bit(board: BoardMachine) -> None:
    board.outp(0xCF9, 1, 0x02)
    assert board.power == []
    board.outp(0xCF9, 1, 0x06)
    board.outp(0xCF9, 1, 0x06)
    assert board.power == ["restart"]


def test_timer_counts_at_its_rate(board: BoardMachine) -> None:
    """3.579545 MHz in 24 bits: it wraps after 4.69 seconds."""
    first = board.inp(0x608, 4)
    board.nanoseconds += 1_000_000_000
    assert (board.inp(0x608, 4) - first) & 0xFF_FFFF == 3_579_545
    board.nanoseconds += 4_000_000_000
    assert board.inp(0x608, 4) == 5 * 3_579_545 & 0xFF_FFFF


@pytest.fixture
def firmware(request: pytest.FixtureRequest) -> BoardMachine:
    return BoardMachine(BoardConfig(chipset=True))


def read_item(machine: Machine, key: int, length: int) -> bytes:
    machine.outp(0x510, 2, key)
    return bytes(machine.inp(0x511, 1) for _ in range(length))


def dma(machine: Machine, control: int, length: int, address: int) -> int:
    """One fw_cfg DMA request; the control word afterwards."""
    at = 0x3000
    machine.mem_write(at, struct.pack(">IIQ", control, length, address))
    machine.outp(0x514, 4, 0)
    machine.outp(0x518, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))
    return int.from_bytes(machine.mem_read(at, 4), "big")


@pytest.mark.parametrize("kind", ["ours", pytest.param("qemu", marks=pytest.mark.qemu)])
def test_firmware_configuration(request: pytest.FixtureRequest, kind: str) -> None:
    chosen: Machine = request.getfixturevalue("firmware" if kind == "ours" else "reference")
    if isinstance(chosen, BoardMachine):
        assert chosen.board.fw_cfg is not None
        chosen.board.fw_cfg.add_file("etc/e820", bytes(range(40)))
        chosen.board.fw_cfg.add_file("etc/acpi/rsdp", b"RSD PTR ")
    assert read_item(chosen, 0, 4) == b"QEMU"
    assert int.from_bytes(read_item(chosen, 1, 4), "little") & 3 == 3
    assert chosen.inp(0x514, 4).to_bytes(4, "little") == b"QEMU"
    assert chosen.inp(0x518, 4).to_bytes(4, "little") == b" CFG"
    count = int.from_bytes(read_item(chosen, 0x19, 4), "big")
    directory = read_item(chosen, 0x19, 4 + 64 * count)[4:]
    files = {}
    for entry in range(count):
        size, key, _, name = struct.unpack_from(">IHH56s", directory, 64 * entry)
        files[name.rstrip(b"\0").decode()] = (key, size)
    assert list(files) == sorted(files)
    key, size = files["etc/e820"]
    assert key >= 0x20
    content = read_item(chosen, key, size)
    chosen.mem_write(0x4000, b"\xee" * (size + 8))
    assert dma(chosen, key << 16 | 8 | 2, size + 4, 0x4000) == 0
    assert chosen.mem_read(0x4000, size + 8) == content + bytes(4) + b"\xee" * 4
    assert dma(chosen, key << 16 | 8 | 4, 16, 0) == 0  # skip
    assert dma(chosen, 2, 4, 0x4000) == 0
    assert chosen.mem_read(0x4000, 4) == content[16:20]


def test_firmware_configuration_refuses(firmware: BoardMachine) -> None:
    device = firmware.board.fw_cfg
    assert device is not None
    with pytest.raises(FwCfgError, match="1 to 55"):
        device.add_file("x" * 56, b"")
    with pytest.raises(FwCfgError, match="taken"):
        device.add_item(0, b"")
    device.add_file("opt/a", b"abc")
    assert dma(firmware, 0x20 << 16 | 8 | 2, 0xFFFF_FFFF, 0) & 1, "a hostile length is refused"
    assert dma(firmware, 0x20 << 16 | 8 | 2, 16, 0x7F_FFF8) & 1, "so is memory that is not there"
    assert dma(firmware, 16, 4, 0x4000) & 1, "and writing"
    firmware.outp(0x514, 4, 0xFFFF_FFFF)
    firmware.outp(0x518, 4, 0xFFFF_FFFF)  # a request that is nowhere
