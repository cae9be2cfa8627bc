"""ACPI tables for firmware: as files of fw_cfg, with the script by which firmware puts them into memory.

Firmware allocates memory for each file, adds the file's address to the pointers in the tables, and makes the
checksums anew.  So pointers here are offsets in the file of tables, and checksums are zero.

Source: QEMU's ``hw/acpi/bios-linker-loader.c`` (commands of 128 bytes each, integers little-endian).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from swtdx.devices.acpi.build import AcpiBlob

RSDP_FILE: Final = "etc/acpi/rsdp"
TABLES_FILE: Final = "etc/acpi/tables"
LOADER_FILE: Final = "etc/table-loader"

_COMMAND_BYTES: Final = 128
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2
_TABLE_ALIGN: Final = 64
#: Offsets in tables.
_TABLE_CHECKSUM, _HEADER = 9, 36
_FADT_DSDT, _FADT_X_DSDT = 40, 140
_RSDP_CHECKSUM, _RSDP_XSDT, _RSDP_EXTENDED, _RSDP_OLD_BYTES = 8, 24, 32, 20


@dataclass(frozen=True, slots=True)
class AcpiFiles:
    """The three files' contents."""

    rsdp: bytes
    tables: bytes
    loader: bytes


def _file(name: str) -> bytes:
    return name.encode().ljust(56, b"\0")


def _command(kind: int, body: bytes) -> bytes:
    return (struct.pack("<I", kind) + body).ljust(_COMMAND_BYTES, b"\0")


def _allocate(name: str, align: int, zone: int) -> bytes:
    return _command(_ALLOCATE, _file(name) + struct.pack("<IB", align, zone))


def _pointer(where: str, offset: int, size: int, to: str) -> bytes:
    return _command(_ADD_POINTER, _file(where) + _file(to) + struct.pack("<IB", offset, size))


def _checksum(name: str, at: int, start: int, length: int) -> bytes:
    return _command(_ADD_CHECKSUM, _file(name) + struct.pack("<III", at, start, length))


def acpi_files(blob: AcpiBlob) -> AcpiFiles:
    """The files of tables that were built to lie from GPA 0 on."""
    (_, rsdp), *placed = blob.tables
    base = placed[0][0]
    pointed = {at - base: data for at, data in placed}
    image = bytearray(max(at + len(data) for at, data in pointed.items()))
    for at, data in pointed.items():
        image[at : at + len(data)] = data
    script = [_allocate(RSDP_FILE, 16, _ZONE_FSEG), _allocate(TABLES_FILE, _TABLE_ALIGN, _ZONE_HIGH)]

    def point(target: bytearray, name: str, offset: int, size: int) -> None:
        """The pointer at ``offset``, GPA of a table, becomes an offset in the file of tables."""
        at = int.from_bytes(target[offset : offset + size], "little") - base
        target[offset : offset + size] = at.to_bytes(size, "little")
        script.append(_pointer(name, offset, size, TABLES_FILE))

    for at, data in pointed.items():
        if data[:4] == b"FACP":
            point(image, TABLES_FILE, at + _FADT_DSDT, 4)
            point(image, TABLES_FILE, at + _FADT_X_DSDT, 8)
        elif data[:4] == b"XSDT":
            for entry in range(at + _HEADER, at + len(data), 8):
                point(image, TABLES_FILE, entry, 8)
        image[at + _TABLE_CHECKSUM] = 0
        script.append(_checksum(TABLES_FILE, at + _TABLE_CHECKSUM, at, len(data)))
    root = bytearray(rsdp)
    point(root, RSDP_FILE, _RSDP_XSDT, 8)
    root[_RSDP_CHECKSUM] = root[_RSDP_EXTENDED] = 0
    script.append(_checksum(RSDP_FILE, _RSDP_CHECKSUM, 0, _RSDP_OLD_BYTES))
    script.append(_checksum(RSDP_FILE, _RSDP_EXTENDED, 0, len(root)))
    return AcpiFiles(bytes(root), bytes(image), b"".join(script))
