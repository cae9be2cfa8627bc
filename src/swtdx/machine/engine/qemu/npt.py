"""Nested page tables: the translation cache of one address space on one processor.

QEMU walks these tables (4-level, long-mode format) where a real processor would look in its TLB.
They are filled on demand and hold only what was filled, stale entries included, until flushed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.machine.engine.protocol import Access, EngineError
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.process import QemuProcess

_PRESENT: Final = 0x001
_WRITE: Final = 0x002
#: User, accessed and dirty are always set: the nested walk is a user access, and the EPT of a TD
#: has no accessed and dirty flags.
_BASE: Final = _PRESENT | 0x064
_LARGE: Final = 0x080
_NO_EXECUTE: Final = 1 << 63
_TABLE: Final = _PRESENT | _WRITE | 0x064


#: Where guests with paging off find their identity page directory: the local APIC's page, which is
#: never memory.  It must lie below 4 GiB, and is mapped only while paging is off.
IDENTITY_GPA: Final = 0xFEE00000


class PagePool:
    """4 KiB pages of the engine's memory, for nested tables."""

    def __init__(self) -> None:
        self._free = list(range(at.ENGINE_SIZE - PAGE, at.POOL - 1, -PAGE))

    def take(self) -> int | None:
        """The address of a free page, or None when there is none."""
        return self._free.pop() if self._free else None

    def give(self, pages: list[int]) -> None:
        """Return pages to the pool."""
        self._free.extend(pages)


class NestedTable:
    """A 4-level nested page table; see :class:`swtdx.machine.engine.protocol.TranslationCache`.

    ``outside`` is a context in which the processor that uses it is not in a guest: only then tables may be
    given back, for it would go on walking them.
    """

    __slots__ = (
        "_directories",
        "_large",
        "_outside",
        "_pool",
        "_process",
        "_q",
        "_small",
        "_tables",
        "_units",
        "_used",
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
        self.identity = False
        self.root = self._page()

    def _page(self) -> int:
        page = self._pool.take()
        if page is None:
            raise EngineError("the engine's nested page tables are full")
        self._used.append(page)
        self._process.memory[page : page + PAGE] = bytes(PAGE)
        return page

    def _child(self, slot: int) -> int:
        """The table that ``slot`` (an index into _q) points to, made if absent; as an index."""
        entry = self._q[slot]
        if not entry & _PRESENT:
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
            if self._q[slot] & _LARGE:
                self._q[slot] = 0
                self._large.pop(gpa >> 21, None)
            found = self._child(slot)
            self._tables[gpa >> 21] = found
        return found

    def map(self, gpa: int, hpa: int, size: int, access: Access, *, code: bool) -> None:
        """Cache the translation of the page of ``size`` bytes at ``gpa`` to ``hpa``.

        ``gpa`` and ``hpa`` are aligned to ``size``, which is 4 KiB or 2 MiB.
        """
        bits = _BASE
        if access & Access.WRITE:
            bits |= _WRITE
        if not (code and access & Access.FETCH):
            bits |= _NO_EXECUTE
        entry = self._process.physical(hpa) | bits
        self._units.add(hpa >> 21)
        if size == LARGE_PAGE:
            if gpa >> 21 in self._tables:
                del self._tables[gpa >> 21]
                first = gpa >> 12
                for number in range(first, first + 512):
                    self._small.pop(number, None)
            self._q[self._directory(gpa) + (gpa >> 21 & 511)] = entry | _LARGE
            self._large[gpa >> 21] = hpa
        else:
            self._q[self._table(gpa) + (gpa >> 12 & 511)] = entry
            self._small[gpa >> 12] = hpa

    def lookup(self, gpa: int) -> int | None:
        """The HPA of byte ``gpa``, or None when it is not cached."""
        base = self._large.get(gpa >> 21)
        if base is not None:
            return base | gpa & 0x1FFFFF
        base = self._small.get(gpa >> 12)
        return None if base is None else base | gpa & 0xFFF

    def flush(self) -> None:
        """Forget every translation."""
        if not (self._large or self._small):
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

    def set_identity(self, on: bool) -> None:
        """Map, or unmap, the identity page directory for a guest with paging off."""
        slot = self._table(IDENTITY_GPA) + (IDENTITY_GPA >> 12 & 511)
        self._q[slot] = (at.IDENTITY_PD | _BASE | _WRITE | _NO_EXECUTE) if on else 0
        self.identity = on

    def _drop(self) -> None:
        self._pool.give(self._used)
        self._used = []
        self._directories.clear()
        self._tables.clear()
        self._large.clear()
        self._small.clear()
        self._units.clear()

    def close(self) -> None:
        """Give the pages back; the table cannot be used again."""
        with self._outside:
            self._drop()
