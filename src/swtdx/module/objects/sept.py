"""The Secure EPT: walks, entry locks, and TLB tracking.

Source: ``sept_manager.{h,c}`` and ``helpers.c`` of the TDX module 1.5.01.  An entry's states are
``swtdx.arch.sept``.
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import sept
from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.operands import OperandId
from swtdx.arch.sept import SeptState
from swtdx.arch.states import TLB_TRACKED_OP_STATES
from swtdx.module import locks
from swtdx.module.errors import LeafFailed
from swtdx.module.keyhole import Keyhole
from swtdx.module.objects.td import TDCS_SEPT_ROOT, Td

_Q: Final = struct.Struct("<Q")
_get = _Q.unpack_from
_put = _Q.pack_into
_MIGRATION: Final = 1 << 63
#: A Secure EPT page of free entries.
FREE_PAGE: Final = _Q.pack(sept.FREE_ENTRY) * bits.ENTRIES_PER_PAGE


class SeptEntry:
    """An entry of a TD's Secure EPT: where it is and what it held when it was read."""

    __slots__ = ("level", "offset", "raw", "view")

    def __init__(self, view: memoryview, offset: int, raw: int, level: int) -> None:
        self.view = view
        self.offset = offset
        self.raw = raw
        self.level = level

    @property
    def state(self) -> SeptState:
        """Its state."""
        return sept.state_of(self.raw)

    @property
    def hpa(self) -> int:
        """The page it points to."""
        return self.raw & bits.HPA

    @property
    def is_present_leaf(self) -> bool:
        """Whether it maps a page that can be accessed: not pending, not blocked."""
        return bool(self.raw & bits.LEAF and self.raw & bits.RWX)

    def store(self, raw: int) -> None:
        """Replace the entry."""
        _put(self.view, self.offset, raw)
        self.raw = raw

    def failed(self, status: int) -> LeafFailed:
        """An error with the extended information that names this entry (RCX, RDX)."""
        return LeafFailed(status, sept.architectural_view(self.raw), sept.info(self.raw, self.level))


def top_level(td: Td) -> int:
    """The level of the root's entries: 3 with a 4-level Secure EPT, 4 with 5 levels."""
    return int(TDCS.eptp.get(td.tdcs)) >> 3 & 7


def walk(keyhole: Keyhole, td: Td, gpa: int, target: int) -> SeptEntry:
    """Walk towards the entry for ``gpa`` at level ``target``; the walk may end above it."""
    level = TDCS.eptp.get(td.tdcs) >> 3 & 7
    view = td.pages[TDCS_SEPT_ROOT]
    hkid = td.hkid
    while True:
        offset = (gpa >> 12 + 9 * level & 511) * 8
        raw = _get(view, offset)[0]
        if level == target or raw & bits.LEAF or not raw & bits.RWX:
            return SeptEntry(view, offset, raw, level)
        view = keyhole.map(raw & bits.HPA, hkid)
        level -= 1


def page_info(td: Td, operand: int, lowest: int, highest: int) -> tuple[int, int]:
    """(GPA, level) of a "page info" operand in RCX.

    Raises:
        LeafFailed: OPERAND_INVALID|RCX.
    """
    level = operand & 7
    gpa = operand & 0x000FFFFFFFFFF000
    if (
        operand & 0xFFF0000000000FF8
        or not lowest <= level <= highest
        or gpa & bits.LEVEL_BYTES[level] - 1
        or gpa >= td.shared_bit
    ):
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    return gpa, level


def lock_tree(td: Td, *, exclusive: bool) -> None:
    """Check that the tree's lock can be taken.

    Raises:
        LeafFailed: OPERAND_BUSY|SEPT_TREE.
    """
    offset = TDCS.secure_ept_lock.offset
    if not (locks.can_own(td.tdcs, offset) if exclusive else locks.can_share(td.tdcs, offset)):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.SEPT_TREE)


def find(keyhole: Keyhole, td: Td, gpa: int, level: int) -> SeptEntry:
    """The entry at exactly ``level``.

    Raises:
        LeafFailed: EPT_WALK_FAILED|RCX, with the entry that stopped the walk.
    """
    entry = walk(keyhole, td, gpa, level)
    if entry.level != level:
        raise entry.failed(st.TDX_EPT_WALK_FAILED | OperandId.RCX)
    return entry


def lock_entry(entry: SeptEntry) -> None:
    """The host side takes the entry's lock; a failure leaves the host-priority bit.

    Raises:
        LeafFailed: OPERAND_BUSY|RCX.
    """
    if entry.raw & bits.TDEL:
        entry.store(entry.raw | bits.TDHP)
        raise entry.failed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    if entry.raw & bits.TDHP:
        entry.store(entry.raw & ~bits.TDHP)


def lock_entry_guest(entry: SeptEntry) -> None:
    """The guest side takes the entry's lock: not while the host holds it or waits for it.

    Raises:
        LeafFailed: OPERAND_BUSY|RCX.
    """
    if entry.raw & bits.TDEL:
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    if entry.raw & bits.TDHP:
        raise LeafFailed(st.TDX_OPERAND_BUSY_HOST_PRIORITY | OperandId.RCX)


def require(entry: SeptEntry, allowed: int) -> SeptState:
    """The entry's state, which must be one of the bits (by state index) of ``allowed``.

    Raises:
        LeafFailed: EPT_ENTRY_STATE_INCORRECT|RCX.
    """
    state = sept.state_of(entry.raw)
    if not allowed >> state.index & 1:
        raise entry.failed(st.TDX_EPT_ENTRY_STATE_INCORRECT | OperandId.RCX)
    return state


def find_for(keyhole: Keyhole, td: Td, gpa: int, level: int, allowed: int, *, exclusive: bool) -> SeptEntry:
    """The usual start of a leaf: tree lock, walk, entry lock, entry state.

    Raises:
        LeafFailed: the "SEPT" errors.
    """
    lock_tree(td, exclusive=exclusive)
    entry = find(keyhole, td, gpa, level)
    lock_entry(entry)
    require(entry, allowed)
    return entry


def tracking_needed(td: Td, state: SeptState) -> bool:
    """Whether TLBs may hold translations of an entry in ``state``, so that tracking must be done."""
    return bool(TLB_TRACKED_OP_STATES >> TDCS.op_state.get(td.tdcs) & 1) and state.tracked


def is_tracked(td: Td, bepoch: int) -> bool:
    """Whether no TLB can hold a translation of a page that was blocked at ``bepoch``."""
    if bepoch & _MIGRATION:
        return False
    epoch = TDCS.td_epoch.get(td.tdcs)
    if bepoch < epoch - 1:
        return True
    return bepoch == epoch - 1 and not TDCS.refcount.get(td.tdcs, bepoch & 1)


def check_tracked(td: Td, entry: SeptEntry, state: SeptState, bepoch: int) -> None:
    """A leaf that takes a page away: it must be blocked, and blocked long enough.

    Raises:
        LeafFailed: GPA_RANGE_NOT_BLOCKED or TLB_TRACKING_NOT_DONE.
    """
    if not tracking_needed(td, state):
        return
    if not state.blocked:
        raise entry.failed(st.TDX_GPA_RANGE_NOT_BLOCKED | OperandId.RCX)
    if not is_tracked(td, bepoch):
        # Only this check says nothing of the entry.
        raise LeafFailed(st.TDX_TLB_TRACKING_NOT_DONE | OperandId.RCX)
