"""Messages of 9P2000.L: numbers, and reading and making their bodies.

Everything is little-endian; a string is its length (2 bytes) and UTF-8.

Source: Plan 9's ``intro(5)``, and the description of 9P2000.L that the diod project keeps; numbers are those
of Linux's ``include/net/9p/9p.h``.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

#: size, type, tag
HEAD: Final = struct.Struct("<IBH")
NO_TAG: Final = 0xFFFF
NO_FID: Final = 0xFFFF_FFFF
#: A qid: kind, version, path.
QID: Final = struct.Struct("<BIQ")
QID_DIRECTORY: Final = 0x80
QID_LINK: Final = 0x02
#: Names in one walk at most (P9_MAXWELEM).
MOST_NAMES: Final = 16


class Kind(enum.IntEnum):
    """Types of requests; a reply has the next number."""

    LERROR = 6
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


class Malformed(Exception):
    """A message that is shorter than it says, or none."""


class Body:
    """Reads the fields of a message one after the other.

    Raises:
        Malformed: from every method, where there is no more.
    """

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self._at + count
        if end > len(self._data):
            raise Malformed
        data = self._data[self._at : end]
        self._at = end
        return data

    def number(self, size: int) -> int:
        """An integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def numbers(self, *sizes: int) -> list[int]:
        """Several."""
        return [self.number(size) for size in sizes]

    def text(self) -> bytes:
        """A string's bytes."""
        return self.take(self.number(2))


def text(data: bytes) -> bytes:
    """A string."""
    return len(data).to_bytes(2, "little") + data
