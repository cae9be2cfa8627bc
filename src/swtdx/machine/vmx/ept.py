"""Extended page tables, walked as the processor walks them.

Source: Intel SDM volume 3, section 28.3; in a TD private GPAs use the Secure EPT, whose pages and
targets carry the TD's HKID, and shared GPAs the hypervisor's EPT, whose entries carry their KeyID.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from swtdx.arch.sept_bits import LEAF, SUPPRESS_VE
from swtdx.arch.x86 import FRAME_MASK
from swtdx.machine.memory import ReservedBitFault

_ENTRY: Final = struct.Struct("<Q").unpack_from
#: Memory types that do not exist (2, 3) or not in an EPT (7).
_RESERVED_TYPES: Final = (2, 3, 7)
#: Address bits of a leaf by level: a large page is aligned to its size.
_LEAF_RESERVED: Final = (0, 0x1FF << 12, 0x3FFFF << 12)

#: Maps a table page: (physical address with KeyID) to its 4096 bytes.
MapTable = Callable[[int], memoryview]


class Walk:
    """The outcome of a walk: where it stopped and what it found."""

    __slots__ = ("above", "entry", "level", "misconfigured", "table")

    def __init__(self) -> None:
        #: The last entry read.
        self.entry = 0
        #: Its level: 0 maps 4 KiB, 1 maps 2 MiB, 2 maps 1 GiB.
        self.level = 0
        #: The table that it is in.
        self.table: memoryview | None = None
        #: R, W and X as far as the entries above it allow them.
        self.above = 0
        self.misconfigured = False

    @property
    def rights(self) -> int:
        """R, W and X that every entry of the walk allows."""
        return self.above & self.entry

    @property
    def convertible(self) -> bool:
        """Whether a violation here is a #VE (SDM volume 3, 26.5.7.1): bit 63 of a leaf, or of no entry."""
        leaf = self.level == 0 or self.entry & LEAF
        return not self.entry & SUPPRESS_VE and bool(leaf or not self.entry & 7)


def walk(
    eptp: int,
    gpa: int,
    keyid_bits: int,
    map_table: MapTable,
    found: Walk,
    *,
    root: memoryview | None = None,
    wanted: int = 0,
) -> Walk:
    """Walk from ``eptp`` to the entry that maps ``gpa`` or that stops the walk.

    Args:
        keyid_bits: or-ed into table addresses (a Secure EPT's entries hold no KeyID).
        root: the table at ``eptp``, where it is not reached like the others.
        wanted: R, W, X without one of which an entry stops the walk (the processor goes on to the leaf).
    """
    level = eptp >> 3 & 7
    table = eptp & FRAME_MASK
    above = 7
    view = root
    while True:
        if view is None:
            try:
                view = map_table(table | keyid_bits)
            except ReservedBitFault:
                # A private KeyID, or bits above MAXPA, in a shared table's address: reserved bits.
                found.level = level
                found.misconfigured = True
                return found
        entry = _ENTRY(view, (gpa >> 12 + 9 * level & 511) * 8)[0]
        misconfigured = bool(entry & 7) and _is_misconfigured(entry, level)
        if not entry & 7 or level == 0 or entry & LEAF or misconfigured or entry & wanted != wanted:
            found.entry = entry
            found.level = level
            found.table = view
            found.above = above
            found.misconfigured = misconfigured
            return found
        above &= entry
        table = entry & FRAME_MASK
        level -= 1
        view = None


def _is_misconfigured(entry: int, level: int) -> bool:
    """Whether a present entry is one that nothing may use (SDM volume 3, 28.3.3.1).

    That is: write without read, a reserved bit, or in a leaf a reserved memory type.
    """
    if entry & 3 == 2:
        return True
    if level > 2:
        return bool(entry & 0xF8)
    if level and not entry & LEAF:
        return bool(entry & 0x78)
    return bool(entry & _LEAF_RESERVED[level]) or entry >> 3 & 7 in _RESERVED_TYPES
