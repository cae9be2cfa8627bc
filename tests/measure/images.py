"""TDVF images made from the documents' tables, for the tests."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field, replace

FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
TDX_OFFSET = "e47a6535-984a-4798-865e-4685a7bf8ec2"
SEV_RESET = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
METADATA = "e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae"

BFV, CFV, TD_HOB, TEMP_MEM, PERM_MEM, PAYLOAD = range(6)
MR_EXTEND, PAGE_AUG = 1, 2


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


@dataclass(frozen=True)
class Row:
    """A section as the table in the image has it."""

    kind: int
    gpa: int
    size: int
    offset: int = 0
    raw: int = 0
    attributes: int = 0

    def pack(self) -> bytes:
        return struct.pack("<IIQQII", self.offset, self.raw, self.gpa, self.size, self.kind, self.attributes)


#: 32 KiB of variables, 96 KiB of code that ends at 4 GiB.
ROWS = (
    Row(BFV, 0xFFFE8000, 0x18000, 0x8000, 0x18000, MR_EXTEND),
    Row(CFV, 0xFFFE0000, 0x8000, 0, 0x8000),
    Row(TEMP_MEM, 0x810000, 0x10000),
    Row(TD_HOB, 0x809000, 0x2000),
)


@dataclass(frozen=True)
class Image:
    """What to write into an image; every field that the metadata has can be wrong."""

    rows: tuple[Row, ...] = ROWS
    size: int = 0x20000
    signature: bytes = b"TDVF"
    version: int = 1
    count: int | None = None
    length: int | None = None
    guid: bytes = field(default_factory=lambda: guid(METADATA))
    entries: tuple[tuple[str, bytes | None], ...] = ((SEV_RESET, b"\0\0\0\0"), (TDX_OFFSET, None))
    table_length: int | None = None
    entry_length: int | None = None
    td_shim: bool = False

    def with_row(self, index: int, **changes: int) -> Image:
        rows = list(self.rows)
        rows[index] = replace(rows[index], **changes)
        return replace(self, rows=tuple(rows))

    def build(self) -> bytes:
        image = bytearray((i * 167 + (i >> 8) * 13) & 0xFF for i in range(self.size))
        body = b"".join(row.pack() for row in self.rows)
        length = 16 + len(body) if self.length is None else self.length
        count = len(self.rows) if self.count is None else self.count
        descriptor = struct.pack("<4sIII", self.signature, length, self.version, count) + body
        at = self.size - 0x800
        image[at - 16 : at] = self.guid
        image[at : at + len(descriptor)] = descriptor
        if self.td_shim:
            image[-0x30:-0x20] = bytes(16)
            image[-0x20:-0x1C] = struct.pack("<I", at)
            return bytes(image)
        table = b""
        for name, data in self.entries:
            data = struct.pack("<I", self.size - at) if data is None else data
            size = len(data) + 18 if self.entry_length is None else self.entry_length
            table += data + struct.pack("<H", size) + guid(name)
        whole = len(table) + 18 if self.table_length is None else self.table_length
        table += struct.pack("<H", whole) + guid(FOOTER)
        image[-0x20 - len(table) : -0x20] = table
        return bytes(image)


def stream(regions: list[tuple[int, int, bytes, bool]]) -> bytes:
    """The rule of measurement.md §1, word by word: (GPA, bytes, contents, measured)."""
    out = []
    for gpa, size, data, measured in regions:
        memory = data.ljust(size, b"\0")
        for page in range(0, size, 4096):
            out.append(b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", gpa + page) + bytes(104))
            if measured:
                for chunk in range(page, page + 4096, 256):
                    out.append(b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", gpa + chunk) + bytes(104))
                    out.append(memory[chunk : chunk + 256])
    return b"".join(out)
