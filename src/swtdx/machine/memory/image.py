"""Memory that is not here yet: pages whose contents are still in a snapshot's file.

A machine that goes on from a snapshot would spend most of its start on copying frames that it never looks
at, and eight of them would hold eight copies.  So pages stay in the file
(:data:`~swtdx.machine.memory.pages.ABSENT`) until they are needed, and in the page table they look like pages
that were never touched: every quick path misses, and the slow ones begin with :meth:`MemoryImage.recall`.

A guest that only reads need not have them recalled: the engine maps the file, too, and
:meth:`MemoryImage.lend` says which pages it may show there, for reading.  When such a page is recalled
:attr:`MemoryImage.taken` is called, and no translation may lead to the file any more: its copy in the frames
is what counts.

The file is not written to.  Everything here is called with the memory's lock held.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import PAGE_SHIFT
from swtdx.machine.memory.keys import KeyTable
from swtdx.machine.memory.pages import ABSENT, ALL, LENT, PageTable
from swtdx.machine.memory.sparse import SparseFile

Indices = npt.NDArray[np.int64]


class MemoryImage:
    """The pages of one memory that are in a file.

    Args:
        fd: the file, readable; it is kept, and closed with :meth:`close`.
        start: where in the file the frame at HPA 0 is; a multiple of the page size.
        pages, frames, keys: the memory's.
        indices: the numbers of the pages, ascending.
        columns: for each property of the page table (``tags`` ...) its values, in that order.
        used: whether a page's frame holds anything but zeros.
    """

    def __init__(
        self,
        fd: int,
        start: int,
        pages: PageTable,
        frames: SparseFile,
        keys: KeyTable,
        indices: Indices,
        columns: Mapping[str, npt.NDArray[Any]],
        used: npt.NDArray[np.bool_],
    ) -> None:
        self.fd = fd
        self.start = start
        self.size = frames.size
        self._pages = pages
        self._frames = frames
        self._keys = keys
        self._indices = indices
        self._columns = columns
        self._used = used
        self._file = mmap.mmap(fd, frames.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)
        #: Told ``(hpa, size)`` of pages that were lent and are recalled.
        self.taken: Callable[[int, int], None] = lambda _hpa, _size: None
        #: Pages recalled so far.
        self.recalled = 0
        pages.flags[indices] |= ABSENT
        for chunk in np.unique(indices >> 14).tolist():
            pages.touch(chunk << 14, (chunk << 14) + 1)

    def close(self) -> None:
        """Close the file.  Idempotent; engines have it open themselves."""
        if self.fd >= 0:
            self._file.close()
            os.close(self.fd)
            self.fd = -1

    def absent(self, hpa: int, size: int) -> bool:
        """Whether any page of a range (whole pages) is still in the file."""
        first, end = hpa >> PAGE_SHIFT, hpa + size >> PAGE_SHIFT
        if end - first == 1:
            return bool(self._pages.flag[first] & ABSENT)
        return bool((self._pages.flags[first:end] & ABSENT).any())

    def blank(self, hpa: int, size: int) -> bool:
        """Whether what of a range is still in the file is all zeros: to recall it costs nothing."""
        low, high = self._place(hpa >> PAGE_SHIFT, hpa + size >> PAGE_SHIFT)
        left = (self._pages.flags[self._indices[low:high]] & ABSENT) != 0
        return not self._used[low:high][left].any()

    def shows(self, hpa: int) -> bool:
        """Whether the page at ``hpa`` is lent: an engine shows it in the file."""
        return bool(self._pages.flag[hpa >> PAGE_SHIFT] & LENT)

    def recall(self, first: int, end: int) -> None:
        """Bring pages ``first .. end-1`` in, as far as they are still in the file."""
        pages = self._pages
        if end - first == 1:
            if first < pages.count and pages.flag[first] & ABSENT:
                self._recall(np.array([np.searchsorted(self._indices, first)]))
            return
        if not (pages.flags[first:end] & ABSENT).any():
            return
        low, high = self._place(first, end)
        self._recall(low + np.flatnonzero(pages.flags[self._indices[low:high]] & ABSENT))

    def recall_under(self, keyid: int) -> None:
        """``keyid`` gets another key: bring in what is cached under it and also waits to be encrypted."""
        columns = self._columns
        mixed = (columns["valids"] != 0) & (columns["pends"] != 0) & (columns["tags"] == keyid)
        mixed &= (self._pages.flags[self._indices] & ABSENT) != 0
        self._recall(np.flatnonzero(mixed))

    def lend(self, hpa: int, size: int, keyid: int) -> npt.NDArray[np.bool_]:
        """Which pages of a range an engine may show in the file, to a guest that reads them under ``keyid``.

        They count as lent from now on.
        """
        first, end = hpa >> PAGE_SHIFT, hpa + size >> PAGE_SHIFT
        pages, columns = self._pages, self._columns
        low, high = self._place(first, end)
        where = self._indices[low:high]
        serial = self._keys.key(keyid).serial
        valids, pends = columns["valids"][low:high], columns["pends"][low:high]
        cached = (valids == ALL) & (columns["tags"][low:high] == keyid)
        waiting = (valids == 0) & (pends == ALL) & (columns["pkeys"][low:high] == serial)
        chosen = where[((pages.flags[where] & ABSENT) != 0) & (cached | waiting)]
        pages.flags[chosen] |= LENT
        mask = np.zeros(end - first, np.bool_)
        mask[chosen - first] = True
        return mask

    def _place(self, first: int, end: int) -> tuple[int, int]:
        """Where in the columns pages ``first .. end-1`` are."""
        low, high = np.searchsorted(self._indices, (first, end)).tolist()
        return low, high

    def _recall(self, which: npt.NDArray[np.int64]) -> None:
        """Bring the pages in that have these places in the columns, ascending."""
        pages = self._pages
        where = self._indices[which]
        lent = (pages.flags[where] & LENT) != 0
        for name, column in self._columns.items():
            if name != "flags":
                getattr(pages, name)[where] = column[which]
        kept = pages.flags[where] & (0xFF ^ (ABSENT | LENT))
        pages.flags[where] = kept | self._columns["flags"][which]
        for a, b in _runs(where[self._used[which]]):
            self._frames.map[a * PAGE : b * PAGE] = self._file[a * PAGE : b * PAGE]
        self.recalled += len(which)
        for a, b in _runs(where[lent]):
            self.taken(a * PAGE, (b - a) * PAGE)


def _runs(numbers: Indices) -> list[tuple[int, int]]:
    """Ascending page numbers as runs ``(first, end)``."""
    if len(numbers) < 2:
        return [(int(number), int(number) + 1) for number in numbers]
    cut = np.flatnonzero(np.diff(numbers) != 1) + 1
    edges = [0, *cut.tolist(), len(numbers)]
    return [(int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in itertools.pairwise(edges)]
