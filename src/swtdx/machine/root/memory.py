"""Physical memory as code in the root world reaches it: filled on demand, by the rules for a hypervisor.

Every translation is asked of :class:`PhysicalMemory` as an access of the requestor HOST.  So a TD's page
reads as zeros, a store to it takes its lines away from the TD, and where no memory answers loads give all
ones and stores are dropped.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.machine.memory import BusAbort, PhysicalMemory, Requestor
from swtdx.machine.memory.pages import WRITTEN

#: Small pages that are translated at once: so many before the one that is wanted, and from it on.
_BEFORE: Final = 4
_AFTER: Final = 28


class Reach(enum.Enum):
    """What lies at a physical address."""

    MEMORY = "memory, translated now"
    DEVICE = "a device of the board, translated now"
    NOTHING = "nothing: loads give all ones, stores are dropped"


class Translations(Protocol):
    """The engine's translation cache for the root world."""

    def admit(self, pa: int, hpa: int, size: int) -> None:
        """Translate ``size`` bytes (4 KiB or 2 MiB) at ``pa`` to the frame ``hpa``."""

    def admit_device(self, pa: int) -> None:
        """Translate the page at ``pa`` to QEMU's own board."""

    def admit_nothing(self, pa: int) -> None:
        """Let loads from the page at ``pa`` give all ones."""

    def admitted(self, pa: int) -> bool:
        """Whether the page of ``pa`` is translated."""


class RootMemory:
    """The memory of one processor's root world.

    ``devices`` are the addresses of the pages of the board that it may reach; ``mapped`` is told what it may
    execute, before it can.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        table: Translations,
        devices: Collection[int],
        mapped: Callable[[int, int], None],
    ) -> None:
        self._memory = memory
        self._table = table
        self._devices = frozenset(devices)
        self._mapped = mapped

    def fill(self, pa: int) -> Reach:
        """Translate the page of ``pa``, and what is near it.  With the memory's lock held.

        Raises:
            ReservedBitFault: ``pa`` carries a KeyID that this software may not use.
            MachineCheck: a line of the page is poisoned.
        """
        page = pa & -PAGE
        keyid, hpa = self._memory.addresses.split(page)
        try:
            if keyid:
                self._acquire(page, hpa, PAGE, keyid)
            elif not self._fill_large(hpa & -LARGE_PAGE):
                self._fill_small(hpa)
        except BusAbort:
            if page in self._devices:
                self._table.admit_device(page)
                return Reach.DEVICE
            self._table.admit_nothing(page)
            return Reach.NOTHING
        return Reach.MEMORY

    def _acquire(self, pa: int, hpa: int, size: int, keyid: int) -> None:
        self._memory.acquire(hpa, size, keyid, Requestor.HOST)
        self._mapped(hpa, size)
        self._table.admit(pa, hpa, size)

    def _fill_large(self, base: int) -> bool:
        """Translate 2 MiB at once, if that takes nothing away from a TD."""
        memory = self._memory
        if not memory.bus.admits(base, LARGE_PAGE, 0, Requestor.HOST) or not self._own(base >> 12, 512).all():
            return False
        self._acquire(base, base, LARGE_PAGE, 0)
        return True

    def _fill_small(self, hpa: int) -> None:
        self._acquire(hpa, hpa, PAGE, 0)
        first = max(hpa - _BEFORE * PAGE, hpa & -LARGE_PAGE)
        end = min(hpa + _AFTER * PAGE, (hpa & -LARGE_PAGE) + LARGE_PAGE, self._memory.size)
        own = self._own(first >> 12, end - first >> 12)
        for number in np.flatnonzero(own).tolist():
            near = first + number * PAGE
            if self._memory.bus.admits(near, PAGE, 0, Requestor.HOST) and not self._table.admitted(near):
                self._acquire(near, near, PAGE, 0)

    def _own(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of ``count`` pages are KeyID 0's, cached or never used: no TD has anything there."""
        pages = self._memory.pages
        window = slice(first, first + count)
        own: npt.NDArray[np.bool_] = (pages.tags[window] == 0) | (pages.valids[window] == 0)
        own &= (pages.flags[window] & WRITTEN) == 0
        pending = pages.pends[window] != 0
        if pending.any():
            own &= ~pending | (pages.pkeys[window] == self._memory.keys.key(0).serial)
        return own
