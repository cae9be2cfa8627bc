"""Extended page tables, walked as the processor walks them.

Source: Intel SDM volume 3, section 28.3; in a TD private GPAs use the Secure EPT, whose pages and
targets carry the TD's HKID, and shared GPAs the hypervisor's EPT, whose entries carry their KeyID.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from swtdx.arch.x86 import FRAME_MASK
from swtdx.machine.memory import ReservedBitFault

_ENTRY: Final = struct.Struct("<Q").unpack_from
SUPPRESS_VE: Final = 1 << 63
#: Memory types that do not exist (2, 3) or not in an EPT (7).
_RESERVED_TYPES: Final = (2, 3, 7)

#: Maps a table page: (physical address with KeyID) to its 4096 bytes.
MapTable = Callable[[int], memoryview]


class Walk:
    """The outcome of a walk: where it stopped and what it found."""

    __slots__ = ("entry", "level", "misconfigured", "table")

    def __init__(self) -> None:
        #: The last entry read.
        self.entry = 0
        #: Its level: 0 maps 4 KiB, 1 maps 2 MiB, 2 maps 1 GiB.
        self.level = 0
        #: The table that it is in.
        self.table: memoryview | None = None
        self.misconfigured = False

    @property
    def present(self) -> bool:
        """Whether the entry maps something (any of R, W, X)."""
        return bool(self.entry & 7)


def walk(eptp: int, gpa: int, keyid_bits: int, map_table: MapTable, found: Walk) -> Walk:
    """Walk from ``eptp`` to the entry that maps ``gpa`` or that stops the walk.

    ``keyid_bits`` is or-ed into table addresses (a Secure EPT's entries hold no KeyID).
    """
    level = eptp >> 3 & 7
    table = eptp & FRAME_MASK
    while True:
        try:
            view = map_table(table | keyid_bits)
        except ReservedBitFault:
            # A private KeyID, or bits above MAXPA, in a shared table's address: reserved bits.
            found.level = level
            found.misconfigured = True
            return found
        entry = _ENTRY(view, (gpa >> 12 + 9 * level & 511) * 8)[0]
        if not entry & 7 or level == 0 or entry & 0x80:
            found.entry = entry
            found.level = level
            found.table = view
            # Write without read, a leaf above 1 GiB, or a reserved memory type is a misconfiguration.
            found.misconfigured = bool(entry & 7) and (
                entry & 3 == 2 or (level > 2 and bool(entry & 0x80)) or entry >> 3 & 7 in _RESERVED_TYPES
            )
            return found
        table = entry & FRAME_MASK
        level -= 1
