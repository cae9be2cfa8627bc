"""ACPI tables by fw_cfg: the script, carried out by a reader of its own, gives the tables of the board."""

from __future__ import annotations

import struct

import pytest

from swtdx.devices.board import Board, BoardConfig
from swtdx.devices.fw_cfg import FwCfgContents
from tests.devices.machines import BoardMachine
from tests.devices.test_rtc_power_fwcfg import read_item

RSDP_AT = 0xF0000
TABLES_AT = 0x7F00_0000


def files(machine: BoardMachine) -> dict[str, bytes]:
    """All files, read as firmware does."""
    count = int.from_bytes(read_item(machine, 0x19, 4), "big")
    directory = read_item(machine, 0x19, 4 + 64 * count)[4:]
    found = {}
    for entry in range(count):
        size, key, _, name = struct.unpack_from(">IHH56s", directory, 64 * entry)
        found[name.rstrip(b"\0").decode()] = read_item(machine, key, size)
    return found


def carried_out(found: dict[str, bytes]) -> dict[str, bytes]:
    """The files after the script in "etc/table-loader" was followed."""
    places: dict[str, int] = {}
    memory = {name: bytearray(data) for name, data in found.items()}
    script = found["etc/table-loader"]
    assert len(script) % 128 == 0
    for at in range(0, len(script), 128):
        kind = int.from_bytes(script[at : at + 4], "little")
        first = script[at + 4 : at + 60].rstrip(b"\0").decode()
        rest = script[at + 60 : at + 128]
        if kind == 1:
            align, zone = struct.unpack_from("<IB", rest)
            places[first] = {1: TABLES_AT, 2: RSDP_AT}[zone]
            assert places[first] % align == 0
        elif kind == 2:
            second = rest[:56].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", rest, 56)
            value = int.from_bytes(memory[first][offset : offset + size], "little") + places[second]
            assert value < places[second] + len(memory[second])
            memory[first][offset : offset + size] = value.to_bytes(size, "little")
        elif kind == 3:
            offset, start, length = struct.unpack_from("<III", rest)
            assert start + length <= len(memory[first])
            memory[first][offset] = 0
            memory[first][offset] = -sum(memory[first][start : start + length]) & 0xFF
        else:
            assert kind == 0
            assert not any(script[at : at + 128])
    return {name: bytes(data) for name, data in memory.items()}


def tables(made: dict[str, bytes]) -> dict[str, bytes]:
    """Every table by its signature, found from the root as an operating system finds it, checksums right."""
    root = made["etc/acpi/rsdp"]
    assert sum(root[:20]) & 0xFF == sum(root) & 0xFF == 0
    memory = made["etc/acpi/tables"]
    found: dict[str, bytes] = {}

    def table(gpa: int) -> bytes:
        at = gpa - TABLES_AT
        data = memory[at : at + int.from_bytes(memory[at + 4 : at + 8], "little")]
        assert sum(data) & 0xFF == 0
        found[data[:4].decode()] = data
        return data

    xsdt = table(int.from_bytes(root[24:32], "little"))
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        table(gpa)
    facp = found["FACP"]
    dsdt = int.from_bytes(facp[140:148], "little")
    assert int.from_bytes(facp[40:44], "little") == dsdt
    table(dsdt)
    return found


@pytest.mark.parametrize("vcpus", [1, 8])
def test_the_script_gives_the_tables_of_the_board(vcpus: int) -> None:
    machine = BoardMachine(BoardConfig(apic_ids=tuple(range(vcpus)), chipset=True, ioapic=True))
    found = tables(carried_out(files(machine)))
    assert set(found) == {"XSDT", "FACP", "APIC", "DSDT"}
    expected = machine.board.acpi(TABLES_AT - 64, for_firmware=True)
    for name in ("FACP", "APIC", "DSDT", "XSDT"):
        assert found[name] == expected[name]
    assert sum(found["APIC"][at : at + 2] == b"\0\x08" for at in range(44, len(found["APIC"]))) >= vcpus


def test_tables_say_where_firmware_has_put_ecam() -> None:
    """The size is told before, and firmware fetches no more than that."""
    machine = BoardMachine(BoardConfig(chipset=True, pci_window=0x8000_0000))
    before = files(machine)
    machine.outp(0xCF8, 4, 0x8000_0060)
    machine.outp(0xCFC, 4, 0xB000_0001)
    after = files(machine)
    assert {name: len(data) for name, data in before.items()} == {
        name: len(data) for name, data in after.items()
    }
    mcfg = tables(carried_out(after))["MCFG"]
    assert struct.unpack_from("<QHBB", mcfg, 44) == (0xB000_0000, 0, 0, 0)
    assert "MCFG" not in tables(carried_out(before))


def test_contents_of_the_board_s_configuration() -> None:
    contents = FwCfgContents({5: b"\4\0", 0x8004: b"x"}, {"opt/mine": b"abc", "bootorder": b""})
    machine = BoardMachine(BoardConfig(chipset=True, fw_cfg=contents))
    assert read_item(machine, 5, 2) == b"\4\0"
    assert read_item(machine, 0x8004, 2) == b"x\0"
    assert read_item(machine, 4, 2) == b"\0\0"
    found = files(machine)
    assert (found["opt/mine"], found["bootorder"]) == (b"abc", b"")
    assert list(found) == sorted(found)


def test_a_board_without_firmware_has_no_fw_cfg() -> None:
    assert Board([]).fw_cfg is None
    assert BoardMachine().inp(0x511, 1) == 0xFF


@pytest.mark.parametrize("base", [0xF_FC00_0000, 0x1000_0000, 0x7000_0000, 0xF000_0000])
def test_ecam_where_it_cannot_answer(base: int) -> None:
    """Software may put it anywhere: above 4 GiB, into RAM, or where it reaches beyond the window."""
    machine = BoardMachine(BoardConfig(chipset=True))
    machine.outp(0xCF8, 4, 0x8000_0064)
    machine.outp(0xCFC, 4, base >> 32)
    machine.outp(0xCF8, 4, 0x8000_0060)
    machine.outp(0xCFC, 4, base & 0xFFFF_FFFF | 1)
    found = tables(carried_out(files(machine)))
    assert set(found) == {"XSDT", "FACP", "APIC", "DSDT"}
