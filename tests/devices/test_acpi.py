"""ACPI tables: structure by the specification, content by Intel's own compiler, use by Linux."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.devices.acpi import AcpiConfig, aml, build_acpi, tables
from swtdx.devices.acpi.build import AcpiError
from swtdx.devices.board import BoardConfig
from tests.devices.machines import BoardMachine

BASE = 0xE_0000
FULL = AcpiConfig(
    apic_ids=(0, 1, 254, 255, 300),
    wakeup_mailbox=0x7FFE_F000,
    memory_windows=((0xC000_0000, 0x3EC0_0000), (1 << 40, 1 << 38)),
    serial_irq=4,
    ccel=(0x7FFF_0000, 0x1_0000),
    ecam=(0xE000_0000, 1 << 20),
    cmos_rtc=True,
)
needs_iasl = pytest.mark.skipif(
    shutil.which("iasl") is None, reason="iasl (Debian: acpica-tools) is not installed"
)


def little(data: bytes | bytearray, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


@pytest.mark.parametrize("config", [AcpiConfig(), FULL])
def test_a_walk_from_the_root_finds_every_table_whole(config: AcpiConfig) -> None:
    """As an operating system does it, reading only guest memory."""
    blob = build_acpi(config, BASE)
    memory = bytearray(BASE + blob.length)
    for gpa, data in blob.tables:
        memory[gpa : gpa + len(data)] = data
    assert memory[BASE:] == blob.image()
    root = bytes(memory[blob.rsdp_gpa : blob.rsdp_gpa + 36])
    assert root[:8] == b"RSD PTR "
    assert root[15] == 2
    assert sum(root[:20]) % 256 == sum(root) % 256 == 0

    def table(gpa: int) -> bytes:
        data = bytes(memory[gpa : gpa + little(memory, gpa + 4, 4)])
        assert sum(data) % 256 == 0, f"checksum of {data[:4]!r}"
        return data

    xsdt = table(little(root, 24, 8))
    found = {data[:4]: data for data in (table(little(xsdt, at, 8)) for at in range(36, len(xsdt), 8))}
    expected = {b"FACP", b"APIC"} | ({b"CCEL", b"MCFG"} if config is FULL else set())
    assert set(found) == expected
    fadt = found[b"FACP"]
    assert little(fadt, 40, 4) == little(fadt, 140, 8)
    assert table(little(fadt, 140, 8))[:4] == b"DSDT"
    assert little(fadt, 112, 4) >> 20 & 1, "hardware-reduced"


def test_tables_are_deterministic_and_movable() -> None:
    assert build_acpi(FULL, BASE).image() == build_acpi(FULL, BASE).image()
    assert build_acpi(FULL, 0).length == build_acpi(FULL, 0x7FE0_0000).length


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"apic_ids": ()}, "one for each vCPU"),
        ({"apic_ids": (1, 1)}, "all different"),
        ({"apic_ids": (0, 1)}, "wakeup_mailbox"),
        ({"wakeup_mailbox": 0x1008}, "page-aligned"),
    ],
)
def test_impossible_platforms_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(AcpiError, match=message):
        AcpiConfig(**arguments)  # type: ignore[arg-type]
    with pytest.raises(AcpiError, match="aligned"):
        build_acpi(AcpiConfig(), 8)


def disassemble(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / f"{name}.dat").write_bytes(data)
    done = subprocess.run(
        ["iasl", "-d", f"{name}.dat"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert not re.search(r"warning|error|incorrect|invalid", done.stdout + done.stderr, re.IGNORECASE), done
    return (tmp_path / f"{name}.dsl").read_text()


@needs_iasl
@pytest.mark.parametrize("config", [AcpiConfig(), FULL])
def test_iasl_compiles_the_dsdt_to_the_same_bytes(tmp_path: Path, config: AcpiConfig) -> None:
    dsdt = build_acpi(config, BASE)["DSDT"]
    source = disassemble(tmp_path, "dsdt", dsdt)
    assert 'EisaId ("PNP0A03")' in source
    assert 'EisaId ("PNP0501")' in source
    subprocess.run(
        ["iasl", "-oa", "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, timeout=60, check=True
    )
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt[36:]


@needs_iasl
def test_iasl_reads_the_fadt_as_meant(tmp_path: Path) -> None:
    source = disassemble(tmp_path, "fadt", build_acpi(FULL, BASE)["FACP"])
    for line in (
        r"Hardware Reduced \(V5\) : 1",
        r"VGA Not Present \(V4\) : 1",
        r"CMOS RTC Not Present \(V5\) : 0",
        r"8042 Present on ports 60/64 \(V2\) : 0",
        r"Reset Register Supported \(V2\) : 1",
        r"Value to cause reset : 06",
    ):
        assert re.search(line, source), line
    registers = re.findall(r"(\w[\w ]+) : \[Generic Address.*?Address : ([0-9A-F]{16})", source, re.DOTALL)
    used = {name.strip(): int(address, 16) for name, address in registers if int(address, 16)}
    assert used == {"Reset Register": 0xCF9, "Sleep Control Register": 0x605, "Sleep Status Register": 0x606}


@needs_iasl
def test_iasl_reads_the_processors(tmp_path: Path) -> None:
    # Without the wakeup structure, which iasl of 2020 does not know.
    source = disassemble(tmp_path, "madt", tables.madt((3, 254, 255, 300)))
    local = re.findall(r"Local Apic ID : ([0-9A-F]{2})", source)
    wide = re.findall(r"Processor x2Apic ID : ([0-9A-F]{8})", source)
    assert [int(value, 16) for value in local + wide] == [3, 254, 255, 300]
    assert re.search(r"PC-AT Compatibility : 0", source)


def test_wakeup_structure_and_ccel() -> None:
    """Offsets from the reference (ghci.md section 6; ACPI 6.5, 5.2.34), which iasl of 2020 does not know."""
    blob = build_acpi(FULL, BASE)
    wakeup = blob["APIC"][-16:]
    assert (wakeup[0], wakeup[1], little(wakeup, 2, 2), little(wakeup, 8, 8)) == (16, 16, 0, 0x7FFE_F000)
    ccel = blob["CCEL"]
    assert len(ccel) == 56
    assert (ccel[36], ccel[37], little(ccel, 40, 8), little(ccel, 48, 8)) == (2, 0, 0x1_0000, 0x7FFF_0000)


def test_tables_describe_the_board() -> None:
    board = BoardMachine(BoardConfig(pci_window=0x8000_0000, serial=False))
    blob = board.board.acpi(BASE, ccel=(0x1000, 0x1000))
    assert "CCEL" in blob
    assert "MCFG" not in blob
    assert b"COM1" not in blob["DSDT"]
    assert (0x8000_0000).to_bytes(4, "little") in blob["DSDT"]
    assert "MCFG" in BoardMachine(BoardConfig(ecam=0xE000_0000)).board.acpi(0)


@needs_iasl
@given(content=st.integers(0, 5000), value=st.integers(0, (1 << 64) - 1))
def test_iasl_agrees_on_lengths_and_integers(
    tmp_path_factory: pytest.TempPathFactory, content: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("aml")
    names = aml.name("BUFF", aml.buffer(bytes(content))), aml.name("NUMB", aml.integer(value))
    body = aml.scope("\\_SB", aml.device("DEV0", *names))
    source = disassemble(path, "t", tables.table(b"SSDT", 2, body))
    assert f"Buffer (0x{content:02X})" in source or f"Buffer (0x{content:04X})" in source or content < 2
    shown = {0: "Zero", 1: "One"}.get(value)
    pattern = shown if shown else rf"0x0*{value:X}"
    assert re.search(rf"Name \(NUMB, {pattern}\)", source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aml.name_string("TOOLONG"), "not an ACPI name"),
        (lambda: aml.name_string(""), "cannot be empty"),
        (lambda: aml.eisa_id("PNPxyz"), "EISA id"),
        (lambda: aml.integer(-1), "unsigned 64-bit"),
        (lambda: aml.integer(1 << 64), "unsigned 64-bit"),
        (lambda: aml.string("ä"), "not ASCII"),
        (lambda: aml.io_port(0xFFFF, 2), "cannot be described"),
        (lambda: aml.memory_window(1 << 64, 1), "do not fit"),
        (lambda: aml.package_length(1 << 28), "too long"),
    ],
)
def test_what_aml_cannot_say_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(aml.AmlError, match=message):
        call()
