"""The guest's own page tables, walked by microcode to fetch an instruction.

Source: Intel SDM volume 3, chapter 4.  The walk sets no accessed or dirty flags: it repeats one that
the guest's processor has just made.
"""

from __future__ import annotations

from collections.abc import Callable

from swtdx.arch.x86 import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, FRAME_MASK

#: Reads the 8-byte value at a guest-physical address (None: it cannot be read).
ReadQword = Callable[[int], int | None]


def linear_to_gpa(linear: int, cr0: int, cr3: int, cr4: int, efer: int, read: ReadQword) -> int | None:
    """The guest-physical address of ``linear``, or None when it is not mapped."""
    if not cr0 & CR0_PG:
        return linear & 0xFFFFFFFF
    if efer & EFER_LMA:
        return _walk(linear, cr3 & FRAME_MASK, 5 if cr4 & CR4_LA57 else 4, read)
    linear &= 0xFFFFFFFF
    if cr4 & CR4_PAE:
        root = read((cr3 & 0xFFFFFFE0) + (linear >> 30) * 8)
        if root is None or not root & 1:
            return None
        return _walk(linear, root & FRAME_MASK, 2, read)
    return _walk_32(linear, cr3 & 0xFFFFF000, bool(cr4 & CR4_PSE), read)


def _walk(linear: int, table: int, levels: int, read: ReadQword) -> int | None:
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        entry = read(table + (linear >> shift & 511) * 8)
        if entry is None or not entry & 1:
            return None
        if level == 0 or (level <= 2 and entry & 0x80):
            size = 1 << shift
            return entry & FRAME_MASK & -size | linear & size - 1
        table = entry & FRAME_MASK
    return None


def _walk_32(linear: int, directory: int, large: bool, read: ReadQword) -> int | None:
    def word(address: int) -> int | None:
        value = read(address & ~7)
        return None if value is None else value >> 8 * (address & 4) & 0xFFFFFFFF

    entry = word(directory + (linear >> 22) * 4)
    if entry is None or not entry & 1:
        return None
    if large and entry & 0x80:
        return (entry & 0xFFC00000) | (entry >> 13 & 0xFF) << 32 | linear & 0x3FFFFF
    entry = word((entry & 0xFFFFF000) + (linear >> 12 & 0x3FF) * 4)
    if entry is None or not entry & 1:
        return None
    return entry & 0xFFFFF000 | linear & 0xFFF
