"""Unpacking what a bzImage carries.

The kernel's build appends the unpacked size (4 bytes, little-endian) to most compressed payloads, so
trailing bytes are normal.  Source: Linux ``scripts/Makefile.lib`` (``size_append``) and
``Documentation/arch/x86/boot.rst`` (``payload_offset``: the magic numbers of the formats).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Final

import zstandard


class CannotUnpack(Exception):
    """The payload is in a format that cannot be read here, or is damaged; the message says which."""


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data)


def _xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(data)


def _lzma(data: bytes) -> bytes:
    # The kernel's build knows only the size of what it read from a pipe: the header says "unknown",
    # and the stream carries an end mark.
    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE).decompress(data)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data)


def _plain(data: bytes) -> bytes:
    return data


_FORMATS: Final[tuple[tuple[bytes, str, Callable[[bytes], bytes] | None], ...]] = (
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "lz4", None),
    (b"\x89LZO\0\r\n", "lzo", None),
    (b"\x7fELF", "uncompressed", _plain),
)


def unpack_payload(payload: bytes) -> bytes:
    """The kernel proper (an ELF file) out of a bzImage's payload.

    Raises:
        CannotUnpack: the format is unknown, has no decompressor here (lz4, lzo), or the data is damaged.
    """
    for magic, name, unpack in _FORMATS:
        if payload.startswith(magic):
            if unpack is None:
                raise CannotUnpack(f"its payload is {name}-compressed, which swtdx cannot unpack")
            try:
                return unpack(payload)
            except (zstandard.ZstdError, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise CannotUnpack(f"its {name} payload is damaged ({error})") from error
    raise CannotUnpack(f"its payload starts with {payload[:6].hex()}, no format that swtdx knows")
