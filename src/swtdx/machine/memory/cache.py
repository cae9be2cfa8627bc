"""How lines move between the cache (frames) and DRAM.

Nothing here asks who is allowed to do what; that is :mod:`swtdx.machine.memory.physical`. Every method
must be called with the memory lock held. Whatever changes the meaning of a frame calls
:meth:`Cache.release` first, and looks at the page's masks only after that.

**Write-back may be deferred.** A flushed line stays in its frame as *pending*; it is encrypted when
software could tell the difference. A page that is mapped again (by a view or by the engine) before that
keeps its pending mark: if DRAM is looked at then, it gets what the frame holds at that moment, as if the
cache had chosen this moment to write the line back, which hardware may do at any time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import ALL_LINES, LINE_SHIFT, PAGE_SHIFT, AddressMap, line_runs
from swtdx.machine.memory.faults import MachineCheck
from swtdx.machine.memory.keys import Key, KeyTable
from swtdx.machine.memory.pages import ALL, FILLED, MAPPED, VIEWED, WRITTEN, PageTable, runs
from swtdx.machine.memory.sparse import SparseFile
from swtdx.machine.memory.store import DramStore, Poison

_HELD = MAPPED | VIEWED
_ZEROS = memoryview(bytes(1 << 20))
#: Frames (pages) that are kept after their contents left the cache: 128 MiB.
_KEPT_FRAMES = 1 << 15

#: Told ``(hpa, size)`` in bytes before these frames leave the cache or change their KeyID.
Subscriber = Callable[[int, int], None]
Indices = npt.NDArray[np.int64]


class Cache:
    """The cached lines of one machine, over its frames and its DRAM."""

    def __init__(
        self, addresses: AddressMap, frames: SparseFile, pages: PageTable, store: DramStore, keys: KeyTable
    ) -> None:
        self.addresses = addresses
        self.frames = frames
        self.pages = pages
        self.store = store
        self.keys = keys
        self.epoch = 0
        self.subscribers: list[Subscriber] = []
        #: The views that map_page gave out, by physical address with KeyID.
        self.views: dict[int, memoryview] = {}
        # Lines that a shared mapping shows as zeros because they belong to a TD. Guests may write to
        # them unseen, so whether they are dirty is decided by looking when they leave.
        self.ghosts: dict[int, int] = {}
        # At least as many frames as are kept though their pages left the cache.
        self._retired = 0

    # -- leaving ------------------------------------------------------------------------------------

    def release(self, first: int, end: int) -> None:
        """Take pages ``first .. end-1`` back from the engine and from holders of views."""
        pages = self.pages
        if end - first == 1:
            if not pages.flag[first] & _HELD:
                return
        elif not np.bitwise_and(pages.flags[first:end], _HELD).any():
            return
        flags = pages.flags[first:end]
        for start, stop in runs((flags & MAPPED) != 0):
            for subscriber in self.subscribers:
                subscriber(first + start << PAGE_SHIFT, stop - start << PAGE_SHIFT)
        for page in (first + np.flatnonzero(flags & VIEWED)).tolist():
            self.views.pop(self._view_key(page, pages.tag[page]), None)
        flags &= 0xFF ^ _HELD
        self.epoch += 1

    def _view_key(self, page: int, keyid: int) -> int:
        return page << PAGE_SHIFT | keyid << self.addresses.hpa_bits

    def evict(self, first: int, end: int) -> None:
        """Write dirty lines back and invalidate all lines (WBINVD) of pages ``first .. end-1``."""
        self._write_back(first, end, keep=False)

    def clean(self, first: int, end: int) -> None:
        """Write dirty lines back but keep them (WBNOINVD) in pages ``first .. end-1``."""
        self._write_back(first, end, keep=True)

    def _write_back(self, first: int, end: int, keep: bool) -> None:
        self.release(first, end)
        if self.ghosts:
            self._settle_ghosts(first, end, keep)
        pages = self.pages
        live = first + np.flatnonzero(pages.valids[first:end])
        if not len(live):
            return
        dirty = pages.dirties[live]
        serial = self.keys.current[pages.tags[live]]
        changed = dirty != 0
        # Lines pending under an older key must not be mistaken for lines of the current one.
        conflict = changed & (pages.pends[live] != 0) & (pages.pkeys[live] != serial)
        for page in live[conflict].tolist():
            self.materialise(page, page + 1)
        pages.pends[live] |= dirty
        pages.pkeys[live[changed]] = serial[changed]
        pages.dirties[live] = 0
        if not keep:
            pages.valids[live] = 0
            self._retire(len(live))

    def flush_lines(self, page: int, mask: int, keep: bool) -> None:
        """CLFLUSH (or, with ``keep``, CLWB) of the lines in ``mask``."""
        self.release(page, page + 1)
        if self.ghosts:
            self._settle_ghosts(page, page + 1, keep)
        pages = self.pages
        mask &= pages.valid[page]
        moved = mask & pages.dirty[page]
        if moved:
            serial = int(self.keys.current[pages.tag[page]])
            if pages.pend[page] and pages.pkey[page] != serial:
                self.materialise(page, page + 1)
            pages.pend[page] |= moved
            pages.pkey[page] = serial
            pages.dirty[page] &= ~moved & ALL_LINES
        if not keep:
            self.drop_lines(page, mask)

    def drop_lines(self, page: int, mask: int) -> None:
        """Invalidate the lines in ``mask`` without writing them back."""
        self.pages.valid[page] &= ~mask & ALL_LINES
        self.pages.dirty[page] &= ~mask & ALL_LINES

    def unghost(self, page: int, mask: int) -> None:
        """The lines in ``mask`` were written by an access that was seen: they are like any other now."""
        if self.ghosts:
            ghost = self.ghosts.pop(page, 0) & ~mask
            if ghost:
                self.ghosts[page] = ghost

    def _settle_ghosts(self, first: int, end: int, keep: bool) -> None:
        for page in [page for page in self.ghosts if first <= page < end]:
            mask = self.ghosts.pop(page) & self.pages.valid[page]
            written = 0
            for line, count in line_runs(mask):
                for each in range(line, line + count):
                    start = (page << PAGE_SHIFT) + (each << LINE_SHIFT)
                    if any(self.frames.view[start : start + 64]):
                        written |= 1 << each
            self.pages.dirty[page] |= written
            if keep and mask & ~written:
                self.ghosts[page] = mask & ~written

    # -- encrypting what was deferred -----------------------------------------------------------------

    def materialise(self, first: int, end: int) -> None:
        """Encrypt every pending line of pages ``first .. end-1`` into DRAM."""
        pages = self.pages
        if end - first == 1 and not pages.pend[first]:
            return
        found = first + np.flatnonzero(pages.pends[first:end])
        if not len(found):
            return
        full = pages.pends[found] == ALL
        self._seal_pages(found[full])
        for page in found[~full].tolist():
            self.store.initialise(page)
            key = self.keys.by_serial(pages.pkey[page])
            plain = memoryview(bytes(self._frame(page)))
            for line, count in line_runs(pages.pend[page]):
                start, stop = line << LINE_SHIFT, line + count << LINE_SHIFT
                self.store.seal(key, plain[start:stop], (page << PAGE_SHIFT) + start)
        pages.flags[found] |= WRITTEN
        pages.pends[found] = 0
        self._retire(len(found))

    def _seal_pages(self, whole: Indices) -> None:
        """Encrypt pages that are pending as a whole, contiguous ones of one key at once."""
        pages = self.pages
        if not len(whole):
            return
        serial = pages.pkeys[whole]
        filled = pages.flags[whole] & FILLED
        held = (pages.flags[whole] & _HELD) != 0
        cut = (
            (np.diff(whole) != 1) | (np.diff(serial) != 0) | np.diff(filled).astype(np.bool_) | np.diff(held)
        )
        edges = [0, *(np.flatnonzero(cut) + 1).tolist(), len(whole)]
        for a, b in itertools.pairwise(edges):
            key = self.keys.by_serial(int(serial[a]))
            at, size = int(whole[a]) << PAGE_SHIFT, b - a << PAGE_SHIFT
            if filled[a] and not held[a]:
                self.store.seal(key, self.frames.view[at : at + size], at)
                continue
            for done in range(0, size, len(_ZEROS)):
                step = min(len(_ZEROS), size - done)
                plain = _ZEROS[:step]
                if held[a]:  # the holder of the page may write while we encrypt and MAC: take a copy
                    plain = memoryview(bytes(self.frames.view[at + done : at + done + step]))
                self.store.seal(key, plain, at + done)

    def before_key_change(self, keyid: int) -> None:
        """Encrypt pending lines that are also cached under ``keyid``, before its key changes.

        From then on the frame's lines will be written back under another key.
        """
        pages = self.pages
        for first, end in pages.touched():
            mixed = (pages.valids[first:end] != 0) & (pages.pends[first:end] != 0)
            mixed &= pages.tags[first:end] == keyid
            for start, stop in runs(mixed):
                self.materialise(first + start, first + stop)

    # -- arriving -------------------------------------------------------------------------------------

    def prepare(self, page: int, keyid: int) -> Key:
        """Make the page ready for lines under ``keyid``: no other KeyID cached, no other key pending."""
        pages = self.pages
        if pages.valid[page] and pages.tag[page] != keyid:
            self.evict(page, page + 1)
        key = self.keys.key(keyid)
        if pages.pend[page] and pages.pkey[page] != key.serial:
            self.materialise(page, page + 1)
        return key

    def fill(self, page: int, mask: int, key: Key, *, whole: bool = False) -> None:
        """Bring the lines in ``mask`` of a prepared page into the frame, and so into the cache.

        A TD's lines show as zeros under a shared KeyID; such zeros do not get a place in the cache,
        unless the page is to be mapped as a ``whole``.

        Raises:
            MachineCheck: one of them is poisoned; none was brought in.
        """
        pages = self.pages
        need = mask & ~pages.valid[page]
        if not need:
            return
        fetch = need & ~pages.pend[page]
        # What was never written is zeros under KeyID 0, and so is the frame already.
        if fetch and (key.keyid or pages.flag[page] & WRITTEN):
            self.store.initialise(page)
            base = page << PAGE_SHIFT
            pages.flag[page] |= FILLED
            pages.changed(page, page + 1)
            try:
                for line, count in line_runs(fetch):
                    start, stop = base + (line << LINE_SHIFT), base + (line + count << LINE_SHIFT)
                    self.store.open(key, self.frames.view[start:stop], start)
            except Poison as poison:
                raise MachineCheck(poison.hpa, key.keyid, poison.kind) from None
            if not whole and not key.owner:
                need &= ~(fetch & self.store.owned_lines(page))
        if need:
            pages.touch(page, page + 1)
            pages.tag[page] = key.keyid
            pages.valid[page] |= need

    def take_page(self, page: int, keyid: int) -> None:
        """Make one page wholly resident under ``keyid`` and, because it will be mapped, dirty.

        Raises:
            MachineCheck: a line of it is poisoned.
        """
        pages = self.pages
        key = self.prepare(page, keyid)
        missing = ALL_LINES & ~(pages.valid[page] | pages.pend[page])
        self.fill(page, ALL_LINES, key, whole=True)
        ghost = self.ghosts.get(page, 0)
        if missing and not key.owner and pages.flag[page] & WRITTEN:
            ghost |= self.store.owned_lines(page) & missing
            if ghost:
                self.ghosts[page] = ghost
        pages.dirty[page] = ALL_LINES & ~ghost
        pages.flag[page] |= FILLED

    def take(self, first: int, end: int, keyid: int) -> None:
        """:meth:`take_page` for pages ``first .. end-1``, at once where they are alike."""
        pages = self.pages
        key = self.keys.key(keyid)
        window = slice(first, end)
        pend_ok = (pages.pends[window] == ALL) & (pages.pkeys[window] == key.serial)
        pend_ok &= pages.valids[window] == 0
        if keyid == 0:
            untouched = (pages.valids[window] == 0) & (pages.pends[window] == 0)
            pend_ok |= untouched & ((pages.flags[window] & WRITTEN) == 0)
        sealed = (pages.valids[window] == 0) & (pages.pends[window] == 0) & ~pend_ok
        sealed &= (pages.flags[window] & WRITTEN) != 0
        for start, stop in runs(sealed):
            self._open_pages(first + start, first + stop, key)
        pages.touch(first, end)
        ready = first + np.flatnonzero(pend_ok)
        pages.tags[ready] = keyid
        pages.valids[ready] = ALL
        pages.dirties[ready] = ALL
        pages.flags[ready] |= FILLED
        for page in (first + np.flatnonzero(~pend_ok)).tolist():
            if pages.dirty[page] != ALL_LINES or pages.tag[page] != keyid:
                self.take_page(page, keyid)

    def _open_pages(self, first: int, end: int, key: Key) -> None:
        """Decrypt pages of which only DRAM has contents into their frames."""
        start, stop = first << PAGE_SHIFT, end << PAGE_SHIFT
        pages = self.pages
        if not key.owner and any(self.store.owned_lines(page) for page in range(first, end)):
            return  # take_page sorts out which lines belong to a TD
        pages.changed(first, end)
        try:
            for at in range(start, stop, 1 << 20):
                after = min(at + (1 << 20), stop)
                self.store.open(key, self.frames.view[at:after], at)
        except Poison as poison:
            pages.flags[first:end] |= FILLED
            raise MachineCheck(poison.hpa, key.keyid, poison.kind) from None
        pages.touch(first, end)
        pages.tags[first:end] = key.keyid
        pages.valids[first:end] = ALL
        pages.dirties[first:end] = ALL
        pages.flags[first:end] |= FILLED

    def overwrite(self, first: int, end: int, data: memoryview, key: Key) -> bool:
        """Put ``data`` into pages ``first .. end-1`` at once, if nothing of them is cached or pending.

        ``key`` is one without owner bit and MAC: nothing need be read for it first.
        """
        pages, window = self.pages, slice(first, end)
        if pages.valids[window].any() or pages.pends[window].any():
            return False
        pages.changed(first, end)
        self.frames.map[first << PAGE_SHIFT : end << PAGE_SHIFT] = data
        pages.touch(first, end)
        pages.tags[window] = key.keyid
        pages.valids[window] = ALL
        pages.dirties[window] = ALL
        pages.flags[window] |= FILLED
        return True

    # -- direct stores --------------------------------------------------------------------------------

    def store_lines(self, page: int, mask: int, data: memoryview, key: Key) -> None:
        """MOVDIR64B: replace the lines in ``mask`` (contiguous) by ``data`` without reading them."""
        pages = self.pages
        self.release(page, page + 1)
        # The page's other lines may have been written through the mapping that ends here.
        self.unghost(page, mask)
        pages.valid[page] &= ~mask & ALL_LINES
        pages.dirty[page] &= ~mask & ALL_LINES
        pages.pend[page] &= ~mask & ALL_LINES
        if pages.valid[page] and pages.tag[page] != key.keyid:
            self.evict(page, page + 1)
        if pages.pend[page] and pages.pkey[page] != key.serial:
            self.materialise(page, page + 1)
        pages.changed(page, page + 1)
        start = (page << PAGE_SHIFT) + ((mask & -mask).bit_length() - 1 << LINE_SHIFT)
        self.frames.view[start : start + len(data)] = data
        pages.touch(page, page + 1)
        pages.flag[page] |= FILLED
        pages.pend[page] |= mask
        pages.pkey[page] = key.serial

    def zero_pages(self, first: int, end: int, key: Key) -> None:
        """MOVDIR64B of zeros over whole pages, without touching frames that are zero already."""
        pages = self.pages
        self.release(first, end)
        for page in [page for page in self.ghosts if first <= page < end]:
            del self.ghosts[page]
        flags = pages.flags[first:end]
        if (flags & FILLED).any():
            self._free(first, end)
        if (flags & WRITTEN).any():
            self.store.forget(first, end)
        if key.keyid == 0:
            pages.forget(first, end)  # just what the BIOS left
            return
        pages.touch(first, end)
        pages.valids[first:end] = 0
        pages.dirties[first:end] = 0
        pages.pends[first:end] = ALL
        pages.pkeys[first:end] = key.serial

    # -- frames ---------------------------------------------------------------------------------------

    def _frame(self, page: int) -> memoryview:
        return self.frames.view[page << PAGE_SHIFT : (page << PAGE_SHIFT) + PAGE]

    def _free(self, first: int, end: int) -> None:
        self.pages.changed(first, end)
        self.frames.punch(first << PAGE_SHIFT, end - first << PAGE_SHIFT)
        self.pages.flags[first:end] &= 0xFF ^ FILLED

    def _retire(self, count: int) -> None:
        """Note that up to ``count`` more pages left the cache; free their frames if there are too many.

        A frame that is used again soon is worth keeping: allocating one costs more than encrypting it.
        """
        self._retired += count
        if self._retired > _KEPT_FRAMES:
            unused = list(self._unused())
            self._retired = sum(map(len, unused))
            if self._retired > _KEPT_FRAMES:
                for pages in unused:
                    self.free(pages)
                self._retired = 0

    def _unused(self) -> Iterator[Indices]:
        """The pages that have a frame but nothing in the cache."""
        pages = self.pages
        for first, end in pages.touched():
            idle = (pages.valids[first:end] | pages.pends[first:end]) == 0
            yield first + np.flatnonzero(idle & ((pages.flags[first:end] & FILLED) != 0))

    def free(self, gone: Indices) -> None:
        """Give the frames of these pages back, of which nothing is in the cache."""
        edges = [0, *(np.flatnonzero(np.diff(gone) != 1) + 1).tolist(), len(gone)]
        for a, b in itertools.pairwise(edges):
            if b > a:
                self._free(int(gone[a]), int(gone[b - 1]) + 1)
