"""Nested page tables: the translation cache of one address space on one processor.

QEMU walks these tables (4-level, long-mode format) where a real processor would look in its TLB.
They are filled on demand and hold only what was filled, stale entries included, until flushed.
"""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.arch.x86 import FRAME_MASK, PTE_NX, PTE_P, PTE_PS, PTE_W
from swtdx.machine.engine.protocol import Access
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.process import QemuProcess

#: User, accessed and dirty are always set: the nested walk is a user access, and the EPT of a TD
#: has no accessed and dirty flags.
_BASE: Final = PTE_P | 0x064
_TABLE: Final = PTE_P | PTE_W | 0x064


#: A guest with paging off runs on page tables of ours that map all 4 GiB to themselves.  They are in PAE
#: format, so that only the root must lie below 4 GiB, where the guest's own accesses go: it takes the local
#: APIC's page, which is hardly ever memory.  There the tables lead to another address, ALIAS, so that the
#: guest does not see the root, nor write to it; the others lie where no 32-bit address leads.  They are
#: mapped only while paging is off.
IDENTITY_GPA: Final = 0xFEE00000
_HIDDEN_GPA: Final = 0x7FFF_FFE0_0000
_ALIAS: Final = _HIDDEN_GPA + 0x10000
_REGION: Final = IDENTITY_GPA >> 21
_HIDDEN: Final = _HIDDEN_GPA >> 21


def _identity_pages() -> bytes:
    """The root, four page directories, and the page table for the root's 2 MiB.

    Accessed and dirty flags are set already, so that QEMU writes none.
    """
    table = _HIDDEN_GPA + 4 * PAGE
    root = [_HIDDEN_GPA + number * PAGE | 0x21 for number in range(4)]
    directories = [number * LARGE_PAGE | 0xE7 for number in range(4 * 512)]
    directories[_REGION] = table | 0x67
    pages = [_REGION * LARGE_PAGE + number * PAGE | 0x67 for number in range(512)]
    pages[IDENTITY_GPA >> 12 & 511] = _ALIAS | 0x67
    return b"".join(
        struct.pack(f"<{len(part)}Q", *part) for part in ([*root, *[0] * 508], directories, pages)
    )


_IDENTITY: Final = _identity_pages()


def guest_gpa(gpa: int) -> int:
    """Where a guest with paging off wanted to go that missed at ``gpa``."""
    return IDENTITY_GPA | gpa & PAGE - 1 if gpa >> 12 == _ALIAS >> 12 else gpa


#: Pages that one call may need: the identity tables, and tables to three places.
_RESERVE: Final = 16
#: Translations of small pages that a table has at most: what Python keeps of them takes memory, too.
_MOST_SMALL: Final = 1 << 19
#: Walks of guests' page tables that it remembers at most, and a walk: see ``NestedTable._walks``.
_MOST_WALKS: Final = 64
_Walk = tuple[int, int, int, int, int, int, int, int, int]


class PagePool:
    """4 KiB pages of the engine's memory, for nested tables.

    All tables of a machine take from it.  When little is left the largest forgets its translations, as a TLB
    may at any time: no guest can take them away for good.
    """

    def __init__(self) -> None:
        self.free = list(range(at.ENGINE_SIZE - PAGE, at.POOL - 1, -PAGE))
        self._tables: list[NestedTable] = []

    def join(self, table: NestedTable) -> None:
        """``table`` takes pages."""
        self._tables.append(table)

    def leave(self, table: NestedTable) -> None:
        """``table`` takes no more."""
        self._tables.remove(table)

    def make_room(self) -> None:
        """Have the largest table forget everything, until there is room."""
        while len(self.free) < _RESERVE:
            max(self._tables, key=lambda table: table.pages).flush()

    def take(self) -> int:
        """The address of a free page."""
        return self.free.pop()

    def give(self, pages: list[int]) -> None:
        """Return pages to the pool."""
        self.free.extend(pages)


class NestedTable:
    """A 4-level nested page table; see :class:`swtdx.machine.engine.protocol.TranslationCache`.

    ``outside`` is a context in which the processor that uses it is not in a guest: only then tables may be
    given back, for it would go on walking them.
    """

    __slots__ = (
        "_directories",
        "_identity",
        "_large",
        "_lent",
        "_outside",
        "_pool",
        "_process",
        "_q",
        "_small",
        "_tables",
        "_units",
        "_used",
        "_walks",
        "identity",
        "root",
    )

    def __init__(self, process: QemuProcess, pool: PagePool, outside: AbstractContextManager[object]) -> None:
        self._process = process
        self._outside = outside
        self._pool = pool
        self._q = process.memory.cast("Q")
        self._used: list[int] = []
        self._directories: dict[int, int] = {}  # gpa >> 30 -> page directory, as an index into _q
        self._tables: dict[int, int] = {}  # gpa >> 21 -> page table, likewise
        self._large: dict[int, int] = {}  # gpa >> 21 -> HPA
        self._small: dict[int, int] = {}  # gpa >> 12 -> HPA
        self._units: set[int] = set()  # HPA >> 21 of everything mapped
        #: HPA >> 21 of regions of which a snapshot's file shows something, and their GPA >> 21.
        self._lent: dict[int, int] = {}
        #: Walks of the guest's page tables, by linear address and CR3: where entries are, what they said, and
        #: where that led.  As long as no translation changes they are true if the entries are the same.
        self._walks: dict[tuple[int, int], _Walk] = {}
        #: The pages of the identity tables.
        self._identity: list[int] = []
        self.identity = False
        if len(pool.free) < _RESERVE:
            pool.make_room()
        self.root = self._page()
        pool.join(self)

    @property
    def pages(self) -> int:
        """How many pages it has taken, besides its root."""
        return len(self._used) - 1

    def _page(self) -> int:
        page = self._pool.take()
        self._used.append(page)
        self._process.memory[page : page + PAGE] = bytes(PAGE)
        return page

    def _child(self, slot: int) -> int:
        """The table that ``slot`` (an index into _q) points to, made if absent; as an index."""
        entry = self._q[slot]
        if not entry & PTE_P:
            page = self._page()
            self._q[slot] = page | _TABLE
            return page >> 3
        return (entry & 0xFFFFFFFFFF000) >> 3

    def _directory(self, gpa: int) -> int:
        found = self._directories.get(gpa >> 30)
        if found is None:
            pointer_table = self._child((self.root >> 3) + (gpa >> 39))
            found = self._child(pointer_table + (gpa >> 30 & 511))
            self._directories[gpa >> 30] = found
        return found

    def _table(self, gpa: int) -> int:
        found = self._tables.get(gpa >> 21)
        if found is None:
            slot = self._directory(gpa) + (gpa >> 21 & 511)
            if self._q[slot] & PTE_PS:
                self._q[slot] = 0
                self._large.pop(gpa >> 21, None)
            found = self._child(slot)
            self._tables[gpa >> 21] = found
        return found

    def map(self, gpa: int, hpa: int, size: int, access: Access, *, code: bool) -> None:
        """Cache the translation of the page of ``size`` bytes at ``gpa`` to ``hpa``.

        ``gpa`` and ``hpa`` are aligned to ``size``, which is 4 KiB or 2 MiB.
        """
        if len(self._pool.free) < _RESERVE:
            self._pool.make_room()
        if len(self._small) >= _MOST_SMALL:
            self.flush()
        bits = _BASE
        if access & Access.WRITE:
            bits |= PTE_W
        if not (code and access & Access.FETCH):
            bits |= PTE_NX
        self._units.add(hpa >> 21)
        self._enter(gpa, hpa, size, self._process.physical(hpa) | bits)

    def map_run(self, gpa: int, hpa: int, pages: int, access: Access, *, code: bool) -> None:
        """Cache ``pages`` adjacent translations of 2 MiB at once, of which nothing is cached yet.

        A TD whose pages go to and fro between private and shared has all translations flushed each time, and
        then they come back by the hundred.
        """
        if len(self._pool.free) < _RESERVE:
            self._pool.make_room()
        self._walks.clear()
        bits = _BASE | PTE_PS
        if access & Access.WRITE:
            bits |= PTE_W
        if not (code and access & Access.FETCH):
            bits |= PTE_NX
        where = self._directory(gpa) + (gpa >> 21 & 511) << 3
        entries = np.frombuffer(self._process.memory[where : where + 8 * pages], "<u8")
        first = self._process.physical(hpa) | bits
        entries[:] = np.arange(pages, dtype=np.uint64) * np.uint64(LARGE_PAGE) + np.uint64(first)
        end = hpa + pages * LARGE_PAGE
        self._units.update(range(hpa >> 21, end >> 21))
        self._large.update(
            zip(range(gpa >> 21, (gpa >> 21) + pages), range(hpa, end, LARGE_PAGE), strict=True)
        )

    def uncached(self, gpa: int) -> npt.NDArray[np.bool_]:
        """Of which of the 512 regions of 2 MiB in the 1 GiB at ``gpa`` nothing is cached."""
        directory = self._directories.get(gpa >> 30)
        if directory is None:
            free = np.ones(512, dtype=np.bool_)
        else:
            where = directory << 3
            free = np.frombuffer(self._process.memory[where : where + PAGE], "<u8") & np.uint64(PTE_P) == 0
        if self.identity and gpa >> 30 == _REGION >> 9:
            # Beside the identity tables only small pages can be.
            free[_REGION & 511] = False
        return free

    def _enter(self, gpa: int, hpa: int, size: int, entry: int) -> None:
        """Put ``entry`` where the walk of ``gpa`` leads."""
        self._walks.clear()
        if self.identity and gpa >> 21 == _REGION:
            self._map_beside_root(gpa, hpa, size, entry)
        elif size == LARGE_PAGE:
            if gpa >> 21 in self._tables:
                del self._tables[gpa >> 21]
                first = gpa >> 12
                for number in range(first, first + 512):
                    self._small.pop(number, None)
                self._forget_lent(gpa >> 21)
            self._q[self._directory(gpa) + (gpa >> 21 & 511)] = entry | PTE_PS
            self._large[gpa >> 21] = hpa
        else:
            self._q[self._table(gpa) + (gpa >> 12 & 511)] = entry
            self._small[gpa >> 12] = hpa

    def lend(self, gpa: int, hpa: int, pages: npt.NDArray[np.bool_], access: Access, *, code: bool) -> None:
        """Show ``pages`` of the 2 MiB of frames at ``hpa`` where a snapshot's file has them, for reading.

        Pages that are mapped already stay as they are.
        """
        if len(self._pool.free) < _RESERVE:
            self._pool.make_room()
        self._walks.clear()
        bits = _BASE if code and access & Access.FETCH else _BASE | PTE_NX
        where = self._table(gpa) << 3
        entries = np.frombuffer(self._process.memory[where : where + PAGE], "<u8")
        first = self._process.physical_in_image(hpa)
        shown = np.arange(first | bits, first + LARGE_PAGE, PAGE, dtype=np.uint64)
        entries[pages] = shown[pages]
        self._units.add(hpa >> 21)
        self._lent[hpa >> 21] = gpa >> 21

    def lends(self, hpa: int) -> bool:
        """Whether it shows anything of the 2 MiB at ``hpa`` in a snapshot's file."""
        return hpa >> 21 in self._lent

    def unlend(self, hpa: int, size: int) -> None:
        """Frames ``hpa .. hpa+size-1`` are not to be shown in the snapshot's file any more."""
        end = hpa + size
        while hpa < end:
            stop = min(end, (hpa | LARGE_PAGE - 1) + 1)
            region = self._lent.get(hpa >> 21)
            if region is not None:
                with self._outside:
                    where = (self._tables[region] << 3) + (hpa >> 9 & 0xFF8)
                    size = stop - hpa >> 9
                    self._process.memory[where : where + size] = bytes(size)
            hpa = stop

    def _map_beside_root(self, gpa: int, hpa: int, size: int, entry: int) -> None:
        """Map what lies in the same 2 MiB as the root of the identity tables, in small pages."""
        for offset in range(0, size, PAGE):
            page = gpa + offset
            place = _ALIAS if page == IDENTITY_GPA else page
            self._q[self._table(place) + (place >> 12 & 511)] = entry + offset
            self._small[page >> 12] = hpa + offset

    def lookup(self, gpa: int) -> int | None:
        """The HPA of byte ``gpa``, or None when it is not cached."""
        base = self._large.get(gpa >> 21)
        if base is not None:
            return base | gpa & 0x1FFFFF
        base = self._small.get(gpa >> 12)
        return None if base is None else base | gpa & 0xFFF

    def code_address(self, linear: int, cr3: int, words: memoryview) -> int | None:
        """The HPA of ``linear`` in 4-level paging, if all that the walk needs is cached, else None.

        ``words``: all frames as 8-byte integers.  Some ten thousand instructions are looked up here in a
        boot, most of them at a few places.
        """
        known = self._walks.get((linear, cr3))
        if known is not None:
            first, second, third, last, one, two, three, four, found = known
            if words[last] == four and words[third] == three and words[second] == two and words[first] == one:
                return found
        return self._walk(linear, cr3, words)

    def _walk(self, linear: int, cr3: int, words: memoryview) -> int | None:
        """Walk the guest's page tables by what is cached, and remember the way."""
        places: list[int] = []
        entries: list[int] = []
        large, small = self._large, self._small
        gpa = cr3 & FRAME_MASK | (linear >> 36 & 0xFF8)
        shift = 39
        while True:
            base = large.get(gpa >> 21)
            if base is not None:
                hpa = base | gpa & 0x1FFFFF
            else:
                base = small.get(gpa >> 12)
                if base is None:
                    return None
                hpa = base | gpa & 0xFFF
            if not shift:
                # Where a page is large there are fewer than four.
                places += places[-1:] * (4 - len(places))
                entries += entries[-1:] * (4 - len(entries))
                if len(self._walks) >= _MOST_WALKS:
                    self._walks.clear()
                self._walks[linear, cr3] = (
                    places[0], places[1], places[2], places[3],
                    entries[0], entries[1], entries[2], entries[3], hpa,
                )  # fmt: skip
                return hpa
            entry: int = words[hpa >> 3]
            if not entry & 1:
                return None
            places.append(hpa >> 3)
            entries.append(entry)
            if shift == 12 or (entry & 0x80 and shift < 39):
                size = 1 << shift
                gpa = entry & FRAME_MASK & -size | linear & size - 1
                shift = 0
            else:
                shift -= 9
                gpa = entry & FRAME_MASK | (linear >> shift - 3 & 0xFF8)

    def flush(self) -> None:
        """Forget every translation."""
        if not self.pages:
            return
        with self._outside:
            self._drop()
            self.root = self._page()
            self.identity = False

    def drop(self, hpa: int, size: int) -> None:
        """Frames ``hpa .. hpa+size-1`` leave the cache: no translation may reach them any more."""
        # A copy: the table's own processor may flush it meanwhile.
        units = frozenset(self._units)
        if len(units) < size >> 21:
            hit = any(hpa >> 21 <= unit <= hpa + size - 1 >> 21 for unit in units)
        else:
            hit = any(unit in units for unit in range(hpa >> 21, (hpa + size - 1 >> 21) + 1))
        if hit:
            self.flush()

    def serve(self, context: Any) -> None:
        """``context`` runs next: with paging on, or off and on the identity tables."""
        if context.unpaged is not self.identity:
            self._set_identity(context.unpaged)

    def _set_identity(self, on: bool) -> None:
        """Map, or unmap, the identity page tables for a guest with paging off."""
        if len(self._pool.free) < _RESERVE:
            self._pool.make_room()
        self._forget(_REGION)
        self._forget(_HIDDEN)
        self.identity = on
        if not on:
            return
        while len(self._identity) < len(_IDENTITY) // PAGE:
            self._identity.append(self._page())
        # Anew each time: it may have been another guest that ran here.
        for number, page in enumerate(self._identity):
            self._process.memory[page : page + PAGE] = _IDENTITY[number * PAGE : (number + 1) * PAGE]
            gpa = _HIDDEN_GPA + (number - 1) * PAGE if number else IDENTITY_GPA
            self._q[self._table(gpa) + (gpa >> 12 & 511)] = page | _BASE | PTE_W | PTE_NX

    def _forget(self, region: int) -> None:
        """Forget the translations of 2 MiB, whose GPA >> 21 is ``region``."""
        self._walks.clear()
        self._large.pop(region, None)
        self._forget_lent(region)
        slot = self._directory(region << 21) + (region & 511)
        table = self._tables.get(region)
        if table is None:
            self._q[slot] = 0
            return
        self._process.memory[table << 3 : (table << 3) + PAGE] = bytes(PAGE)
        for number in range(region << 9, (region + 1) << 9):
            self._small.pop(number, None)

    def _forget_lent(self, region: int) -> None:
        """What the 2 MiB whose GPA >> 21 is ``region`` showed in a snapshot's file is not shown any more."""
        for unit in [unit for unit, shown in self._lent.items() if shown == region]:
            del self._lent[unit]

    def _drop(self) -> None:
        self._pool.give(self._used)
        self._used = []
        self._walks.clear()
        self._identity.clear()
        self._directories.clear()
        self._tables.clear()
        self._large.clear()
        self._lent.clear()
        self._small.clear()
        self._units.clear()

    def close(self) -> None:
        """Give the pages back; the table cannot be used again."""
        self._pool.leave(self)
        with self._outside:
            self._drop()
