"""What the cache knows of every page: KeyID tag, and the state of its 64 lines.

Each line of a page is described by one bit in three masks:

* ``valid``: the cache holds it, under the page's ``tag``;
* ``dirty``: the cache's copy is newer than DRAM (only valid lines);
* ``pend``: it was written back under key ``pkey`` but not encrypted yet; its plaintext is still in the
  frame, and takes the place of what DRAM holds as soon as anybody could tell.

The bytes of a frame line mean something only if the line is valid or pending. As long as DRAM has no
contents of its own for a page (not WRITTEN), the other lines of its frame are zero; later they may be
left over from what the cache held, where no access can reach them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from swtdx.machine.memory.addresses import ALL_LINES
from swtdx.machine.memory.sparse import SparseArray

#: The frame may hold something other than zeros.
FILLED: Final = 1
#: DRAM has contents of its own; otherwise it is as the BIOS cleared it: zeros under KeyID 0.
WRITTEN: Final = 2
#: The engine has the page mapped; subscribers must hear before its frame changes meaning.
MAPPED: Final = 4
#: ``map_page`` gave out a view of it; the epoch must change before its frame changes meaning.
VIEWED: Final = 8
#: An engine may have translated code out of the frame.
EXECUTED: Final = 16
#: The frame has been changed since, in a way that the engine does not see.
STALE: Final = 32
#: The page is still in the file of a snapshot (image.py), its state too: here it looks untouched.
ABSENT: Final = 64
#: An engine shows it to a guest there, for reading.
LENT: Final = 128

#: Pages of a chunk (64 MiB), the granularity in which whole-cache operations skip untouched memory.
CHUNK: Final = 1 << 14

ALL: Final = np.uint64(ALL_LINES)


def runs(selected: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of True in ``selected`` as ``(first, end)``."""
    padded = np.zeros(len(selected) + 2, np.int8)
    padded[1:-1] = selected
    edges = np.flatnonzero(np.diff(padded))
    pairs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return [(first, end) for first, end in pairs]


class PageTable:
    """The state of ``count`` pages, all untouched at first.

    For each property there is an array (``tags``, ``valids``, ...) for ranges and a memoryview (``tag``,
    ``valid``, ...) for single pages: indexing the view gives a plain int, several times faster.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._store = {
            name: SparseArray(count, dtype)
            for name, dtype in (
                ("tag", np.uint16),
                ("valid", np.uint64),
                ("dirty", np.uint64),
                ("pend", np.uint64),
                ("pkey", np.uint32),
                ("flag", np.uint8),
            )
        }
        store = self._store
        self.tag, self.tags = store["tag"].items, store["tag"].array
        self.valid, self.valids = store["valid"].items, store["valid"].array
        self.dirty, self.dirties = store["dirty"].items, store["dirty"].array
        self.pend, self.pends = store["pend"].items, store["pend"].array
        self.pkey, self.pkeys = store["pkey"].items, store["pkey"].array
        self.flag, self.flags = store["flag"].items, store["flag"].array
        self._touched = np.zeros(-(-count // CHUNK), np.bool_)

    def touch(self, first: int, end: int) -> None:
        """Remember that pages ``first .. end-1`` may have a state."""
        self._touched[first // CHUNK : (end - 1) // CHUNK + 1] = True

    def touched(self) -> Iterator[tuple[int, int]]:
        """The ranges of pages ``(first, end)`` outside of which nothing was ever touched."""
        for chunk in np.flatnonzero(self._touched).tolist():
            yield chunk * CHUNK, min(chunk * CHUNK + CHUNK, self.count)

    def changed(self, first: int, end: int) -> None:
        """The frames of pages ``first .. end-1`` were, or will be, written to behind an engine's back."""
        if end - first == 1:
            flag = self.flag[first]
            if flag & EXECUTED:
                self.flag[first] = flag | STALE
        else:
            flags = self.flags[first:end]
            if (flags & EXECUTED).any():
                flags |= (flags & EXECUTED) << 1

    def forget(self, first: int, end: int) -> None:
        """Make pages ``first .. end-1`` untouched again; what engines know of the frames stays."""
        known = self.flags[first:end] & (EXECUTED | STALE)
        for store in self._store.values():
            store.clear(first, end - first)
        kept = np.flatnonzero(known)
        if len(kept):
            self.flags[first + kept] = known[kept]
