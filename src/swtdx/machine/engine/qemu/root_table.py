"""The root world's view of physical memory: addresses to frames, without a page table of its own making.

Software outside SEAM addresses memory physically, so what a nested table translates here is a physical
address, KeyID and all, to the frame that it may reach under that KeyID now.  Frames leave one page at a time:
a SEAMCALL that takes a page must not cost the translations of all others.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

from swtdx.arch.units import PAGE
from swtdx.arch.x86 import PTE_P, PTE_W
from swtdx.machine.engine.protocol import Access
from swtdx.machine.engine.qemu.npt import NestedTable, PagePool
from swtdx.machine.engine.qemu.port import Port
from swtdx.machine.engine.qemu.process import QemuProcess

_BITS: Final = PTE_P | PTE_W | 0x064


class Outside(AbstractContextManager[None]):
    """In it a processor does not run what its port's tables are for: the root world, or TDs.

    It goes on if it runs the other.  Nothing else can be started there meanwhile.
    """

    def __init__(self, port: Port, *, root: bool) -> None:
        self._port = port
        self._root = root

    def __enter__(self) -> None:
        port = self._port
        port.lock.acquire()
        live = port.live
        if live is not None and live.root is not self._root:
            return
        port.lock.release()
        port.__enter__()

    def __exit__(self, *_: object) -> None:
        self._port.lock.release()


class RootTable(NestedTable):
    """The translations of one processor's root world.  All methods need the memory's lock."""

    __slots__ = ("_keyed", "_ones")

    def __init__(
        self, process: QemuProcess, pool: PagePool, outside: AbstractContextManager[Any], ones: int
    ) -> None:
        """``ones``: where in QEMU's memory a page of ones lies."""
        super().__init__(process, pool, outside)
        self._ones = ones
        #: Pages reached under a KeyID: HPA >> 12 to physical addresses.
        self._keyed: dict[int, set[int]] = {}

    def admit(self, pa: int, hpa: int, size: int) -> None:
        """Software may read, write and execute ``size`` bytes (4 KiB or 2 MiB) at ``pa``: frame ``hpa``."""
        self.map(pa, hpa, size, Access.READ | Access.WRITE | Access.FETCH, code=True)
        if pa != hpa:
            self._keyed.setdefault(hpa >> 12, set()).add(pa)

    def admit_device(self, pa: int) -> None:
        """Software may reach the page at ``pa`` of QEMU's own board."""
        self._enter(pa, pa, PAGE, pa | _BITS)
        # It is no memory: nothing is fetched or walked there.
        self._small.pop(pa >> 12, None)

    def admit_nothing(self, pa: int) -> None:
        """Loads from the page at ``pa`` give all ones."""
        self._enter(pa, pa, PAGE, self._ones | _BITS & ~PTE_W)
        self._small.pop(pa >> 12, None)

    def admitted(self, pa: int) -> bool:
        """Whether the page of ``pa`` is translated."""
        return self.lookup(pa) is not None

    def drop(self, hpa: int, size: int) -> None:
        """Frames ``hpa .. hpa+size-1`` leave the cache, or change their KeyID.

        Of 2 MiB that are translated at once all go; what is still the software's comes back by and by.
        """
        large = [unit for unit in range(hpa >> 21, (hpa + size - 1 >> 21) + 1) if unit in self._large]
        pages = range(hpa >> 12, hpa + size >> 12)
        if len(pages) < len(self._small):
            small = [page for page in pages if page in self._small]
        else:
            small = [page for page in self._small if page in pages]
        if self._keyed:
            for page in pages:
                small += [pa >> 12 for pa in self._keyed.pop(page, ())]
        if not large and not small:
            return
        self._walks.clear()
        with self._outside:
            for unit in large:
                self._q[self._directory(unit << 21) + (unit & 511)] = 0
                del self._large[unit]
            for page in small:
                if self._small.pop(page, None) is not None:
                    place = page << 12
                    self._q[self._table(place) + (page & 511)] = 0

    def _drop(self) -> None:
        super()._drop()
        self._keyed.clear()
