"""A tiny AML encoder: data, names, scopes, devices, methods and resource templates, as bytes.

Each function returns the encoding of one term; terms are put together by nesting calls.

Source: ACPI 6.5, chapter 20 (AML grammar) and 6.4 (resource data types).
"""

from __future__ import annotations

import re
from typing import Final

_NAME_SEGMENT: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")

# Opcodes
_ZERO, _ONE, _NAME, _SCOPE, _BUFFER, _PACKAGE, _METHOD = 0x00, 0x01, 0x08, 0x10, 0x11, 0x12, 0x14
_BYTE, _WORD, _DWORD, _STRING, _QWORD = 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
_RETURN: Final = 0xA4
_DEVICE: Final = b"\x5b\x82"


class AmlError(ValueError):
    """Something that AML cannot express."""


def name_string(path: str) -> bytes:
    r"""A NameString: segments of up to four characters joined by dots, a leading ``\`` for the root."""
    root, rest = ("\\", path[1:]) if path.startswith("\\") else ("", path)
    segments = rest.split(".") if rest else []
    for segment in segments:
        if not _NAME_SEGMENT.fullmatch(segment):
            raise AmlError(f"{path!r}: {segment!r} is not an ACPI name (four of A-Z, 0-9, _)")
    if not segments and not root:
        raise AmlError("an ACPI name cannot be empty")
    encoded = b"".join(segment.ljust(4, "_").encode() for segment in segments)
    if not segments:
        prefix = b"\0"
    elif len(segments) == 1:
        prefix = b""
    elif len(segments) == 2:
        prefix = b"\x2e"
    else:
        prefix = bytes((0x2F, len(segments)))
    tail = prefix if not segments else prefix + encoded
    return root.encode() + tail


def package_length(content: int) -> bytes:
    """PkgLength for ``content`` bytes; it counts its own bytes as well."""
    if content + 1 <= 0x3F:
        return bytes((content + 1,))
    for extra in (1, 2, 3):
        total = content + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little")
    raise AmlError(f"a package of {content} bytes is too long for AML")


def integer(value: int) -> bytes:
    """The shortest encoding of an unsigned integer of up to 64 bits."""
    if value == 0:
        return bytes((_ZERO,))
    if value == 1:
        return bytes((_ONE,))
    for opcode, size in ((_BYTE, 1), (_WORD, 2), (_DWORD, 4), (_QWORD, 8)):
        if 0 < value < 1 << 8 * size:
            return bytes((opcode,)) + value.to_bytes(size, "little")
    raise AmlError(f"{value} is not an unsigned 64-bit integer")


def string(text: str) -> bytes:
    """A string of ASCII characters from 0x01 to 0x7F."""
    if not all(0 < ord(character) < 0x80 for character in text):
        raise AmlError(f"{text!r} is not ASCII")
    return bytes((_STRING,)) + text.encode() + b"\0"


def eisa_id(identifier: str) -> bytes:
    """A compressed EISA id such as ``PNP0A03``: an integer, in the byte order of EISA."""
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", identifier):
        raise AmlError(f"{identifier!r} is not an EISA id (three letters, four hex digits)")
    letters = 0
    for letter in identifier[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    packed = letters << 16 | int(identifier[3:], 16)
    return bytes((_DWORD,)) + packed.to_bytes(4, "big")


def package(*elements: bytes) -> bytes:
    """A package of up to 255 elements."""
    if len(elements) > 255:
        raise AmlError(f"a package has at most 255 elements, not {len(elements)}")
    body = bytes((len(elements),)) + b"".join(elements)
    return bytes((_PACKAGE,)) + package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """A buffer with this content."""
    body = integer(len(data)) + data
    return bytes((_BUFFER,)) + package_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return bytes((_NAME,)) + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) { ... }``."""
    body = name_string(path) + b"".join(terms)
    return bytes((_SCOPE,)) + package_length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) { ... }``."""
    body = name_string(path) + b"".join(terms)
    return _DEVICE + package_length(len(body)) + body


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """``Method (path, arguments) { ... }`` with 0 to 7 arguments."""
    if not 0 <= arguments <= 7:
        raise AmlError(f"a method has up to 7 arguments, not {arguments}")
    body = name_string(path) + bytes((arguments | serialized << 3,)) + b"".join(terms)
    return bytes((_METHOD,)) + package_length(len(body)) + body


def returns(value: bytes) -> bytes:
    """``Return (value)``."""
    return bytes((_RETURN,)) + value


# Resource descriptors (6.4); all of them fixed, and produced or consumed as the caller says


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of descriptors with its end tag; the checksum is zero, which means "not checked"."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_port(base: int, length: int) -> bytes:
    """``IO (Decode16, base, base, 1, length)``: ports that the device consumes."""
    if not 0 < length <= 255 or not 0 <= base <= 0x1_0000 - length:
        raise AmlError(f"{length} ports from {base:#x} cannot be described by one IO descriptor")
    return b"\x47\1" + base.to_bytes(2, "little") * 2 + bytes((1, length))


def irq(number: int) -> bytes:
    """``IRQNoFlags () {number}``: an edge-triggered, active-high ISA interrupt (0..15)."""
    if not 0 <= number < 16:
        raise AmlError(f"an ISA interrupt is 0 to 15, not {number}")
    return b"\x22" + (1 << number).to_bytes(2, "little")


def memory32_fixed(base: int, length: int) -> bytes:
    """``Memory32Fixed (ReadWrite, base, length)``: addresses that the device consumes."""
    return b"\x86\x09\0\1" + base.to_bytes(4, "little") + length.to_bytes(4, "little")


_MIN_MAX_FIXED: Final = 0x0C  # producer, positive decode, minimum and maximum fixed


def _address_space(size: int, kind: int, type_flags: int, base: int, length: int) -> bytes:
    tag = {2: 0x88, 4: 0x87, 8: 0x8A}[size]
    last = base + length - 1
    if length < 1 or base < 0 or last >= 1 << 8 * size:
        raise AmlError(f"{length:#x} from {base:#x} do not fit in an address space of {8 * size} bits")
    fields = b"".join(value.to_bytes(size, "little") for value in (0, base, last, 0, length))
    body = bytes((kind, _MIN_MAX_FIXED, type_flags)) + fields
    return bytes((tag,)) + len(body).to_bytes(2, "little") + body


def bus_window(first: int, count: int) -> bytes:
    """``WordBusNumber``: the buses that a PCI root produces."""
    return _address_space(2, 2, 0, first, count)


def io_window(base: int, length: int) -> bytes:
    """``WordIO``: ports that a PCI root passes on, ISA and non-ISA ranges alike."""
    if length == 0x1_0000:
        raise AmlError("a WordIO descriptor cannot hold a length of 64 KiB")
    return _address_space(2, 1, 3, base, length)


def memory_window(base: int, length: int) -> bytes:
    """``DWordMemory`` or ``QWordMemory``: non-cacheable, read-write addresses that a root passes on."""
    return _address_space(4 if base + length <= 1 << 32 else 8, 0, 1, base, length)
