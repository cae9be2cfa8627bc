"""SMBIOS tables, as dmidecode and a parser written after the specification read them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from swtdx.devices.smbios import (
    ANCHOR_FILE,
    SETTINGS,
    TABLES_FILE,
    SmbiosConfig,
    SmbiosError,
    smbios_files,
)

GIB = 1 << 30
FULL = SmbiosConfig(
    {
        kind: {name: f"t{kind}-{name}" for name in names} for kind, names in SETTINGS.items() if kind != 11
    }
    | {
        0: {"vendor": "V", "version": "1", "date": "01/02/2026", "release": "4.2"},
        1: {"uuid": "12345678-1234-5678-1234-567812345678", "serial": "s"},
        4: {"max-speed": "3000", "sock_pfx": "Socket"},
        17: {"speed": "3200", "loc_pfx": "Slot"},
    },
    ["io.systemd.credential:a=b", "two"],
    (2 * GIB, 20 * GIB),
    8,
)  # fmt: skip


def structures(data: bytes) -> list[tuple[int, bytes, list[bytes]]]:
    """(type, formatted part, strings) until type 127."""
    found, at = [], 0
    while at < len(data):
        kind, size, _ = struct.unpack_from("<BBH", data, at)
        end = data.index(b"\0\0", at + size)
        text = data[at + size : end]
        found.append((kind, data[at : at + size], text.split(b"\0") if text else []))
        at = end + 2
    assert at == len(data)
    return found


def test_the_entry_point_and_the_structures_fit() -> None:
    files = smbios_files(FULL)
    anchor, tables = files[ANCHOR_FILE], files[TABLES_FILE]
    assert anchor[:5] == b"_SM3_"
    assert sum(anchor) % 256 == 0
    assert struct.unpack_from("<I", anchor, 12)[0] == len(tables)
    found = structures(tables)
    assert [kind for kind, _, _ in found] == [0, 1, 2, 3, 4, 11, 16, 17, 17, 19, 19, 32, 127]
    assert [strings for kind, _, strings in found if kind == 11] == [[b"io.systemd.credential:a=b", b"two"]]
    # Formatted parts are as long as version 3.0 says.
    sizes = {kind: len(part) for kind, part, _ in found}
    assert sizes == {0: 24, 1: 27, 2: 15, 3: 22, 4: 48, 11: 5, 16: 23, 17: 40, 19: 31, 32: 11, 127: 4}
    bare = structures(smbios_files(SmbiosConfig())[TABLES_FILE])
    assert [kind for kind, _, _ in bare] == [1, 3, 4, 16, 17, 19, 32, 127]


def test_dmidecode_reads_what_was_said(tmp_path: Path) -> None:
    tool = shutil.which("dmidecode") or shutil.which("dmidecode", path="/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("no dmidecode here")
    files = smbios_files(FULL)
    anchor = bytearray(files[ANCHOR_FILE])
    # As in a dump of its own: the structures 32 bytes behind the entry point.
    struct.pack_into("<Q", anchor, 16, 32)
    anchor[5] = 0
    anchor[5] = -sum(anchor) & 0xFF
    (tmp_path / "dump").write_bytes(bytes(anchor).ljust(32, b"\0") + files[TABLES_FILE])
    said = subprocess.run(
        [tool, "--from-dump", tmp_path / "dump"], capture_output=True, text=True, check=True
    )
    for text in (
        "Vendor: V",
        "Release Date: 01/02/2026",
        "BIOS Revision: 4.2",
        "System is a virtual machine",
        "UUID: 12345678-1234-5678-1234-567812345678",
        "Serial Number: s",
        "Location In Chassis: t2-location",
        "Socket Designation: Socket 0",
        "Max Speed: 3000 MHz",
        "Core Count: 8",
        "String 1: io.systemd.credential:a=b",
        "Maximum Capacity: 22 GB",
        "Locator: Slot 1",
        "Size: 6 GB",
        "Range Size: 20 GB",
        "End Of Table",
    ):
        assert text in said.stdout, text
    assert "<BAD INDEX>" not in said.stdout
    assert "TRUNCATED" not in said.stdout
    assert said.stderr == ""


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (1, {"uuid": "no"}, "no UUID"),
        (0, {"release": "x"}, "release=x"),
        (4, {"max-speed": "70000"}, "max-speed=70000"),
        (1, {"serial": "a\0b"}, "NUL"),
    ],
)
def test_what_no_table_can_have(kind: int, settings: dict[str, str], said: str) -> None:
    with pytest.raises(SmbiosError, match=said):
        smbios_files(SmbiosConfig({kind: settings}))
