"""PAMT: what the module knows of every physical page, in memory that the hypervisor gave.

A page has an entry at each of three sizes; the one that describes it is the leaf, its ancestors are
free (NDA).  Source: ``pamt_manager.{h,c}`` of the TDX module 1.5.01.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from swtdx.arch import status as st
from swtdx.arch.control_structs import PAMT_ENTRY
from swtdx.arch.states import PageType
from swtdx.arch.units import HUGE_PAGE, LARGE_PAGE, PAGE
from swtdx.module import locks
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import ModuleData, Tdmr
from swtdx.module.keyhole import Keyhole

_TWO: Final = struct.Struct("<QQ")
_Q: Final = struct.Struct("<Q")
_ENTRY: Final = PAMT_ENTRY.size
_ENTRIES_IN_PAGE: Final = PAGE // _ENTRY
#: Where the page type is in the first word of an entry.
TYPE_SHIFT: Final = 16
_OWNER_SHIFT: Final = 24
_LOCK: Final = 0xFFFF
_NOT_SIMPLY_SHARED: Final = locks.EXCLUSIVE | locks.HOST_PRIORITY
_MOST_PLACES: Final = 4096
#: A page of a PAMT and the byte where an entry starts.
Place = tuple[memoryview, int]
_Shared = tuple["Entry", tuple[int, ...], Place, tuple[int, ...], Place, tuple[int, ...]]
#: A page that a call has locked: its HPA and size (0: 4 KiB, 1: 2 MiB, 2: 1 GiB).
Held = tuple[int, int]
SIZES: Final = (PAGE, LARGE_PAGE, HUGE_PAGE)

NDA: Final = int(PageType.NDA)
RSVD: Final = int(PageType.RSVD)
REG: Final = int(PageType.REG)


def _shares_entry(hpa: int, size: int, held: int, held_size: int) -> bool:
    """Whether the entry of ``hpa`` at ``size`` is that of a held page, or one above it, which it shares."""
    return size >= held_size and hpa & -SIZES[size] == held & -SIZES[size]


class Entry:
    """Where a page's PAMT entry is, and what it said when it was looked up."""

    __slots__ = ("bepoch", "offset", "owner", "page_type", "size", "view", "word")

    def __init__(self, view: memoryview, offset: int, size: int) -> None:
        self.view = view
        self.offset = offset
        #: 0: 4 KiB, 1: 2 MiB, 2: 1 GiB.
        self.size = size
        self.word, self.bepoch = _TWO.unpack_from(view, offset)
        self.page_type = self.word >> TYPE_SHIFT & 0xFF
        #: HPA of the owner's TDR, 0 if none.
        self.owner = self.word >> _OWNER_SHIFT << 12

    def set(self, page_type: int, owner: int, bepoch: int = 0) -> None:
        """Rewrite the entry; its lock word stays."""
        lock = _Q.unpack_from(self.view, self.offset)[0] & _LOCK
        _TWO.pack_into(
            self.view, self.offset, lock | page_type << TYPE_SHIFT | owner >> 12 << _OWNER_SHIFT, bepoch
        )
        self.page_type, self.owner, self.bepoch = page_type, owner, bepoch

    def free(self) -> None:
        """Nobody's any more; who had it last stays to be seen (TDH.PHYMEM.PAGE.RDMD)."""
        self.set(NDA, self.owner)

    def set_bepoch(self, bepoch: int) -> None:
        """Store when the page was blocked."""
        _Q.pack_into(self.view, self.offset + 8, bepoch)
        self.bepoch = bepoch

    @property
    def shareable(self) -> bool:
        """Whether the entry's lock could be taken shared."""
        return locks.hp_host_can_share(self.view, self.offset)

    @property
    def ownable(self) -> bool:
        """Whether the entry's lock could be taken exclusively."""
        return locks.hp_host_can_own(self.view, self.offset)


class Pamt:
    """The PAMTs of all TDMRs."""

    def __init__(self, data: ModuleData, keyhole: Keyhole, max_pa: int, hpa_bits: int) -> None:
        self._data = data
        self._keyhole = keyhole
        self._outside = -1 << hpa_bits
        self._max_pa = max_pa
        #: Where the three entries of a page are, biggest page last, by page number; valid at ``_mark``.
        self._places: dict[int, tuple[Place, Place, Place]] = {}
        self._mark = (-1, -1)
        #: Pages of 4 KiB that could be locked shared, with their entries at the three sizes as they were.
        self._shared: dict[int, _Shared] = {}

    def find(self, hpa: int) -> Tdmr | None:
        """The TDMR that covers ``hpa``, if its PAMT is initialised that far."""
        for tdmr in self._data.tdmrs():
            if tdmr.base <= hpa < tdmr.end:
                return tdmr if hpa < (tdmr.initialised & -HUGE_PAGE) else None
        return None

    def _place(self, address: int) -> Place:
        return self._keyhole.map(address & -PAGE, self._data.global_hkid), address & PAGE - 1

    def _places_of(self, hpa: int, operand: int) -> tuple[Place, Place, Place]:
        """Where the 4 KiB, 2 MiB and 1 GiB entries of the page at ``hpa`` are.

        The same few pages are asked for at every entry of a vCPU, so places are remembered as long as
        views are valid and the TDMRs what they were.

        Raises:
            LeafFailed: OPERAND_ADDR_RANGE_ERROR.
        """
        mark = (self._keyhole.epoch, self._data.changes)
        if mark != self._mark or len(self._places) >= _MOST_PLACES:
            self._places.clear()
            self._shared.clear()
        found = self._places.get(hpa >> 12)
        if found is None:
            tdmr = self.find(hpa)
            if tdmr is None:
                raise LeafFailed(st.TDX_OPERAND_ADDR_RANGE_ERROR | operand)
            offset = hpa - tdmr.base
            found = (
                self._place(tdmr.pamt_4k + (offset >> 12) * _ENTRY),
                self._place(tdmr.pamt_2m + (offset >> 21) * _ENTRY),
                self._place(tdmr.pamt_1g + (offset >> 30) * _ENTRY),
            )
            after = (self._keyhole.epoch, self._data.changes)
            if after != mark:
                # Mapping pushed a page out of the cache: what was remembered, and perhaps this, is stale.
                self._places.clear()
                self._shared.clear()
                self._mark = after
                return found
            self._places[hpa >> 12] = found
        self._mark = mark
        return found

    def walk(
        self,
        hpa: int,
        operand: int,
        *,
        exclusive: bool,
        target: int = 0,
        exact: bool = True,
        held: tuple[Held, ...] = (),
    ) -> Entry:
        """The leaf entry of the page at ``hpa``; with ``exact`` it must be of size ``target``.

        ``held`` are pages that the call has locked already, as other operands: in its way like anybody's.

        Raises:
            LeafFailed: outside all TDMRs, a lock is held, or the leaf has another size.
        """
        places = self._places_of(hpa, operand)
        size, last = 2, target if exact else 0
        while size > last:
            view, offset = places[size]
            word = _Q.unpack_from(view, offset)[0]
            if word >> TYPE_SHIFT & 0xFF == REG:
                break
            if word & _NOT_SIMPLY_SHARED and not locks.hp_host_can_share(view, offset):
                raise LeafFailed(st.TDX_OPERAND_BUSY | operand)
            size -= 1
        entry = Entry(*places[size], size)
        if not (entry.ownable if exclusive else entry.shareable) or (
            exclusive and any(_shares_entry(hpa, size, *each) for each in held)
        ):
            raise LeafFailed(st.TDX_OPERAND_BUSY | operand)
        if exact and size != target:
            raise LeafFailed(st.TDX_PAGE_METADATA_INCORRECT | operand)
        return entry

    def check_hpa(self, hpa: int, operand: int, alignment: int = PAGE) -> None:
        """A private page's address: aligned, no HKID bits, below MAXPA.

        Raises:
            LeafFailed: OPERAND_INVALID.
        """
        if hpa & alignment - 1 or hpa & self._outside:
            raise LeafFailed(st.TDX_OPERAND_INVALID | operand)

    def page(
        self, hpa: int, operand: int, page_type: int, *, exclusive: bool, held: tuple[Held, ...] = ()
    ) -> Entry:
        """The entry of a 4-KiB page that an operand names and that must be of ``page_type``.

        Raises:
            LeafFailed: one of the NEWPAGE/TDR operand checks.
        """
        if hpa & PAGE - 1 or hpa & self._outside:
            raise LeafFailed(st.TDX_OPERAND_INVALID | operand)
        if not exclusive:
            entry = self._again(hpa)
            if entry is not None and entry.page_type == page_type:
                return entry
        entry = self.walk(hpa, operand, exclusive=exclusive, held=held)
        if entry.page_type != page_type:
            raise LeafFailed(st.TDX_PAGE_METADATA_INCORRECT | operand)
        if not exclusive:
            self._remember(hpa, entry, self._places_of(hpa, operand))
        return entry

    def _again(self, hpa: int) -> Entry | None:
        """What :meth:`walk` would find, shared, if the three entries are what they were when it did last.

        A vCPU's page is looked up at each of its entries.
        """
        if (self._keyhole.epoch, self._data.changes) != self._mark:
            return None
        known = self._shared.get(hpa)
        if known is None:
            return None
        entry, small, (large, large_at), large_word, (huge, huge_at), huge_word = known
        if (
            small == _TWO.unpack_from(entry.view, entry.offset)
            and large_word == _Q.unpack_from(large, large_at)
            and huge_word == _Q.unpack_from(huge, huge_at)
        ):
            return entry
        return None

    def _remember(self, hpa: int, entry: Entry, places: tuple[Place, Place, Place]) -> None:
        """See :meth:`_again`; not where a lock is wanted by others, because that changes it."""
        small = _TWO.unpack_from(entry.view, entry.offset)
        large, huge = (_Q.unpack_from(*place) for place in places[1:])
        if hpa >> 12 in self._places and not (small[0] | large[0] | huge[0]) & _NOT_SIMPLY_SHARED:
            self._shared[hpa] = (entry, small, places[1], large, places[2], huge)

    def free_range(self, hpa: int, operand: int, size: int, held: tuple[Held, ...] = ()) -> Entry:
        """The entry of a wholly free range of ``size`` (0 or 1) that an operand names.

        Raises:
            LeafFailed: one of the NEWPAGE checks.
        """
        if size == 0:
            return self.page(hpa, operand, NDA, exclusive=True, held=held)
        self.check_hpa(hpa, operand, SIZES[size])
        entry = self.walk(hpa, operand, exclusive=True, target=size, held=held)
        if entry.page_type != NDA or not self.is_2m_free(hpa):
            raise LeafFailed(st.TDX_PAGE_METADATA_INCORRECT | operand)
        return entry

    def children(self, hpa: int) -> list[memoryview]:
        """The two pages of 4-KiB entries below the 2-MiB range at ``hpa``."""
        tdmr = self.find(hpa)
        assert tdmr is not None
        first = tdmr.pamt_4k + (hpa - tdmr.base >> 12) * _ENTRY
        hkid = self._data.global_hkid
        return [self._keyhole.map(first + page * PAGE, hkid) for page in range(2)]

    def is_2m_free(self, hpa: int) -> bool:
        """Whether every 4-KiB page of the 2-MiB range at ``hpa`` is NDA."""
        return all(not any(view[2::_ENTRY]) for view in self.children(hpa))

    def taken(self) -> list[tuple[int, int]]:
        """(HPA, bytes) of all memory that the hypervisor has given: pages that TDs own, and the PAMTs."""
        found: list[tuple[int, int]] = []
        for tdmr in self._data.tdmrs():
            for size, pamt in zip(SIZES, (tdmr.pamt_4k, tdmr.pamt_2m, tdmr.pamt_1g), strict=True):
                known = -(-(tdmr.initialised - tdmr.base) // size)
                for first in range(0, known, _ENTRIES_IN_PAGE):
                    view = self._keyhole.map(pamt + first * _ENTRY, self._data.global_hkid)
                    types = np.frombuffer(view, np.uint8)[2::_ENTRY][: known - first]
                    given = np.flatnonzero((types != NDA) & (types != RSVD)) + first
                    found += [(tdmr.base + index * size, size) for index in given.tolist()]
                entries = -(-(tdmr.end - tdmr.base) // size)
                found.append((pamt, -(-entries * _ENTRY // PAGE) * PAGE))
        return found

    def owned(self, hpa: int, size: int) -> Entry:
        """The entry of a page that a TD is known to own at ``size`` (from its SEPT)."""
        return Entry(*self._places_of(hpa, 0)[size], size)
