"""The hash of a PE image as UEFI measures and verifies it (Authenticode).

Source: Microsoft's "Windows Authenticode Portable Executable Signature Format", section "Calculating the PE
Image Hash".  All of the file but the checksum, the directory entry of the signatures, and the signatures.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from swtdx.measure.errors import MeasureError

_OPTIONAL_32, _OPTIONAL_64 = 0x10B, 0x20B
_CHECKSUM: Final = 64
#: Offset of the data directories in the optional header; entry 4 is that of the signatures.
_DIRECTORIES: Final = {_OPTIONAL_32: 96, _OPTIONAL_64: 112}
_SIGNATURES: Final = 4
_SECTION_HEADER: Final = 40


def authenticode(data: bytes, algorithm: str = "sha384") -> bytes:
    """The hash of the PE image ``data``.

    Raises:
        MeasureError: it is no PE image, or its headers do not fit it.
    """
    try:
        return _hash(data, algorithm)
    except struct.error:
        raise MeasureError("the file is no PE image: its headers lie outside it") from None


def _hash(data: bytes, algorithm: str) -> bytes:
    (header,) = struct.unpack_from("<I", data, 0x3C)
    if data[:2] != b"MZ" or data[header : header + 4] != b"PE\0\0":
        raise MeasureError("the file is no PE image: it does not begin with MZ, or lacks PE")
    sections, optional_size = struct.unpack_from("<H12xH", data, header + 6)
    optional = header + 24
    (magic,) = struct.unpack_from("<H", data, optional)
    if magic not in _DIRECTORIES:
        raise MeasureError(f"the PE image has an optional header of the unknown kind {magic:#x}")
    (headers_size,) = struct.unpack_from("<I", data, optional + 60)
    directories = optional + _DIRECTORIES[magic]
    (count,) = struct.unpack_from("<I", data, directories - 4)
    entry = directories + 8 * _SIGNATURES
    signed = struct.unpack_from("<II", data, entry)[1] if count > _SIGNATURES else 0
    digest = hashlib.new(algorithm)
    digest.update(data[: optional + _CHECKSUM])
    if count > _SIGNATURES:
        digest.update(data[optional + _CHECKSUM + 4 : entry])
        digest.update(data[entry + 8 : headers_size])
    else:
        digest.update(data[optional + _CHECKSUM + 4 : headers_size])
    places = []
    for number in range(sections):
        size, start = struct.unpack_from(
            "<II", data, optional + optional_size + number * _SECTION_HEADER + 16
        )
        if size:
            places.append((start, size))
    done = headers_size
    for start, size in sorted(places):
        if start + size > len(data):
            raise MeasureError(f"a section of the PE image ends at {start + size:#x}, behind the file's end")
        digest.update(data[start : start + size])
        done += size
    # What lies behind the sections, but for the signatures, which are at the end.
    digest.update(data[done : len(data) - signed] if len(data) > done + signed else b"")
    return digest.digest()
