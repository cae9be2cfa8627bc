"""ACPI tables compared: which tables, which of their fields, and the bytes.

Source: ACPI 6.5, 5.2.6 (header), 5.2.9 (FADT), 5.2.12 (MADT).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_HEADER: Final = 36
#: Offset, bytes and name of what every table begins with.
_FIELDS: Final = (
    (0, 4, "signature"), (4, 4, "length"), (8, 1, "revision"), (9, 1, "checksum"), (10, 6, "OEM id"),
    (16, 8, "OEM table id"), (24, 4, "OEM revision"), (28, 4, "creator id"), (32, 4, "creator revision"),
)  # fmt: skip
_NAMES: Final = {"APIC": "MADT", "FACP": "FADT"}
_MADT_ENTRIES: Final = 44
#: Ranges that are shown, bytes of each, and equal bytes between two that are shown as one.
_RANGES: Final = 6
_SHOWN: Final = 24
_GAP: Final = 3


def split(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """The tables in fw_cfg's file: (name, offset, bytes); what is between them has the name ''."""
    at = gap = 0
    while at + _HEADER <= len(data):
        signature, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        # The FACS has a shorter header of another form, but signature and length are where all have them.
        if not signature.isalnum() or not _HEADER <= length <= len(data) - at:
            at += 1
            continue
        if any(data[gap:at]):
            yield "", gap, data[gap:at]
        yield signature.decode("ascii"), at, data[at : at + length]
        at = gap = at + length
    if any(data[gap:]):
        yield "", gap, data[gap:]


def compare(one: bytes, other: bytes) -> list[str]:
    """Two files of tables: a line for each difference."""
    left, right = _numbered(one), _numbered(other)
    lines: list[str] = []
    for name in [*left, *(each for each in right if each not in left)]:
        if name not in right or name not in left:
            which, table = ("A", left[name]) if name in left else ("B", right[name])
            lines.append(f"table {name}, {len(table)} bytes: only in {which}")
        elif left[name] != right[name]:
            lines += _table(name, left[name], right[name])
    if [*left] != [*right] and {*left} == {*right}:
        lines.append(f"their order differs: {' '.join(left)} in A, {' '.join(right)} in B")
    return lines or [f"the tables are the same; {len(one)} bytes of file in A, {len(other)} in B"]


def _numbered(data: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for signature, _, table in split(data):
        plain = name = _NAMES.get(signature, signature) or "bytes beside the tables"
        number = 2
        while name in found:
            name = f"{plain} {number}"
            number += 1
        found[name] = table
    return found


def _table(name: str, one: bytes, other: bytes) -> list[str]:
    lines = []
    if len(one) != len(other):
        lines.append(f"{name}: {len(one)} bytes in A, {len(other)} in B")
    fields = [
        f"{name}: {field} {_value(one[at : at + size])} in A, {_value(other[at : at + size])} in B"
        for at, size, field in _FIELDS
        if one[at : at + size] != other[at : at + size] and field not in ("length", "checksum")
    ]
    if name == "MADT":
        mine, theirs = _madt(one), _madt(other)
        entries = [f"{name}: only in A: {each}" for each in mine if each not in theirs]
        entries += [f"{name}: only in B: {each}" for each in theirs if each not in mine]
        if entries:
            return lines + fields + entries
    body = ranges(one[_HEADER:], other[_HEADER:], name, _HEADER)
    return lines + fields + body or [f"{name}: only its checksum differs"]


def _value(raw: bytes) -> str:
    text = raw.rstrip(b"\0 ")
    return repr(text.decode()) if len(raw) > 1 and text.isalnum() else raw.hex(" ")


def _madt(table: bytes) -> list[str]:
    """Its entries in words."""
    found, at = [], _MADT_ENTRIES
    while at + 2 <= len(table):
        kind, size = table[at], table[at + 1]
        entry = table[at : at + size]
        if size < 2:
            break
        if kind == 0 and size == 8:
            text = f"processor {entry[2]} with APIC id {entry[3]}"
        elif kind == 9 and size == 16:
            uid, apic = struct.unpack_from("<4xI4xI", entry)[::-1]
            text = f"processor {uid} with x2APIC id {apic}"
        elif kind == 1 and size == 12:
            text = f"I/O APIC at {struct.unpack_from('<I', entry, 4)[0]:#x}"
        elif kind == 2 and size == 10:
            text = f"interrupt {entry[3]} is input {struct.unpack_from('<I', entry, 4)[0]}"
        elif kind == 16:
            text = "multiprocessor wakeup mailbox"
        else:
            text = f"entry of type {kind}"
        found.append(f"{text} [{entry.hex(' ')}]")
        at += size
    return found


def ranges(one: bytes, other: bytes, name: str = "", first: int = 0) -> list[str]:
    """Where two byte strings differ, with the bytes; ``first`` is the offset of their first byte."""
    places: list[tuple[int, int]] = []
    for at in range(min(len(one), len(other))):
        if one[at] == other[at]:
            continue
        if places and at - places[-1][1] <= _GAP:
            places[-1] = places[-1][0], at + 1
        else:
            places.append((at, at + 1))
    prefix = f"{name}: " if name else ""
    lines = [
        f"{prefix}from byte {first + start:#x}: {_hex(one[start:end])} in A, {_hex(other[start:end])} in B"
        for start, end in places[:_RANGES]
    ]
    if len(places) > _RANGES:
        lines.append(f"{prefix}and {len(places) - _RANGES} more places")
    if len(one) != len(other):
        which, longer = ("A", one) if len(one) > len(other) else ("B", other)
        shorter = min(len(one), len(other))
        lines.append(f"{prefix}from byte {first + shorter:#x}: only {which} has {_hex(longer[shorter:])}")
    return lines


def _hex(data: bytes) -> str:
    if len(data) <= _SHOWN:
        return data.hex(" ")
    return f"{data[:_SHOWN].hex(' ')}... ({len(data)} bytes)"
