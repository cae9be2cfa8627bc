"""Reads and writes inside one page, with what each KeyID sees of the others' lines.

Called with the memory lock held, for accesses that the bus admitted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import ALL_LINES, LINE, PAGE_SHIFT, full_line_mask, line_mask, line_runs
from swtdx.machine.memory.cache import Cache
from swtdx.machine.memory.faults import MachineCheck
from swtdx.machine.memory.keys import Key
from swtdx.machine.memory.pages import ALL, FILLED, WRITTEN, runs
from swtdx.machine.memory.store import Poison


class LineAccess:
    """Line-granular accesses over ``cache``."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._first_private = cache.addresses.first_private

    def read(self, page: int, offset: int, size: int, keyid: int) -> bytes:
        """``size`` bytes from ``offset`` in the page, as ``keyid`` sees them.

        Raises:
            MachineCheck: a line is poisoned.
        """
        pages = self.cache.pages
        mask = line_mask(offset, size)
        shared = keyid < self._first_private
        if shared and pages.valid[page] and pages.tag[page] >= self._first_private:
            return self._peek(page, offset, size, self.cache.keys.key(keyid))
        if shared and self._hides(page, mask):
            return bytes(size)
        if not keyid and not pages.valid[page] | pages.pend[page] and not pages.flag[page] & WRITTEN:
            return bytes(size)  # as the BIOS left it; not worth a place in the cache
        key = self.cache.prepare(page, keyid)
        self.cache.fill(page, mask, key)
        start = (page << PAGE_SHIFT) + offset
        return self.cache.frames.map[start : start + size]

    def _hides(self, page: int, mask: int) -> bool:
        """Whether these lines are a TD's, flushed but not yet encrypted: no need to, to show zeros."""
        pages = self.cache.pages
        if mask & ~pages.pend[page] or pages.valid[page] & mask:
            return False
        return self.cache.keys.by_serial(pages.pkey[page]).owner

    def read_alike(self, hpa: int, size: int, keyid: int) -> bytes | None:
        """A read over many pages, at once if they are all in the same state; None if they are not.

        What comes out of DRAM here does not get a place in the cache.
        """
        pages, keys = self.cache.pages, self.cache.keys
        first, end = hpa >> PAGE_SHIFT, (hpa + size - 1 >> PAGE_SHIFT) + 1
        window = slice(first, end)
        valids, pends = pages.valids[window], pages.pends[window]
        shared = keyid < self._first_private
        if valids.any():
            tags = pages.tags[window]
            if (valids != ALL).any():
                return None
            if (tags == keyid).all():
                return self.cache.frames.map[hpa : hpa + size]
            return bytes(size) if shared and (tags >= self._first_private).all() else None
        if pends.any():
            serials = np.unique(pages.pkeys[window]).tolist()
            hidden = shared and (pends == ALL).all() and all(keys.by_serial(s).owner for s in serials)
            return bytes(size) if hidden else None
        written = (pages.flags[window] & WRITTEN) != 0
        if keyid == 0 and not written.any():
            return bytes(size)
        return self._sweep(hpa, size, keys.key(keyid), written)

    def _sweep(self, hpa: int, size: int, key: Key, written: npt.NDArray[np.bool_]) -> bytes | None:
        """Read pages that are only in DRAM; None if something there needs a closer look."""
        if (key.owner or key.mac is not None) and not written.all():
            return None
        store = self.cache.store
        base = hpa & -PAGE
        plain = memoryview(bytearray(len(written) * PAGE))
        try:
            for start, stop in runs(written):
                store.open(key, plain[start * PAGE : stop * PAGE], base + start * PAGE)
        except Poison:
            return None
        for start, stop in runs(~written) if key.keyid else ():
            part, at = plain[start * PAGE : stop * PAGE], base + start * PAGE
            cipher = memoryview(bytearray(len(part)))
            store.pristine(cipher, at)
            if key.xts is None:
                part[:] = cipher
            else:
                key.xts.decrypt(cipher, part, at)
        return bytes(plain[hpa - base : hpa - base + size])

    def _peek(self, page: int, offset: int, size: int, key: Key) -> bytes:
        """Read under a shared KeyID beside a TD's lines, without disturbing them."""
        lines = self._look(page, line_mask(offset, size), key)
        start = offset % LINE
        return bytes(lines[start : start + size])

    def _look(self, page: int, mask: int, key: Key) -> bytearray:
        """The lines in ``mask`` (one run) of a page that a TD uses, as a shared KeyID sees them."""
        pages = self.cache.pages
        first, count = line_runs(mask)[0]
        result = bytearray(count * LINE)
        hidden = 0
        if pages.valid[page] and pages.tag[page] >= self._first_private:
            hidden = pages.valid[page]
        if pages.pend[page] and self.cache.keys.by_serial(pages.pkey[page]).owner:
            hidden |= pages.pend[page]
        seen = mask & ~hidden
        if not seen:
            return result
        if seen & pages.pend[page]:
            self.cache.materialise(page, page + 1)
        if not pages.flag[page] & WRITTEN and not key.keyid:
            return result
        self.cache.store.initialise(page)
        view = memoryview(result)
        for line, length in line_runs(seen):
            start = (line - first) * LINE
            at = (page << PAGE_SHIFT) + line * LINE
            try:
                self.cache.store.open(key, view[start : start + length * LINE], at)
            except Poison as poison:
                raise MachineCheck(poison.hpa, key.keyid, poison.kind) from None
        return result

    def write(self, page: int, offset: int, data: memoryview, keyid: int) -> None:
        """Store ``data`` at ``offset`` in the page under ``keyid``.

        Raises:
            MachineCheck: a line that had to be read first is poisoned; nothing was stored.
        """
        pages = self.cache.pages
        mask = line_mask(offset, len(data))
        if keyid < self._first_private and pages.valid[page] and pages.tag[page] >= self._first_private:
            self._write_beside(page, offset, data, self.cache.keys.key(keyid))
            return
        key = self.cache.prepare(page, keyid)
        covered = full_line_mask(offset, len(data)) if not key.owner and key.mac is None else 0
        self.cache.fill(page, mask & ~covered, key)
        if pages.pend[page] & mask & ~pages.dirty[page]:
            self.cache.materialise(page, page + 1)
        self.cache.unghost(page, mask)
        pages.changed(page, page + 1)
        start = (page << PAGE_SHIFT) + offset
        self.cache.frames.map[start : start + len(data)] = data
        pages.touch(page, page + 1)
        pages.tag[page] = keyid
        pages.flag[page] |= FILLED
        pages.valid[page] |= mask
        pages.dirty[page] |= mask

    def _write_beside(self, page: int, offset: int, data: memoryview, key: Key) -> None:
        """A write under a shared KeyID to a page that a TD has in the cache.

        Only the lines written leave the TD's cache; they go to DRAM at once, as the writer's.
        """
        pages = self.cache.pages
        mask = line_mask(offset, len(data))
        self.cache.release(page, page + 1)
        lines = self._look(page, mask, key)
        lines[offset % LINE : offset % LINE + len(data)] = data
        self.cache.store.initialise(page)
        pages.pend[page] &= ~mask & ALL_LINES
        self.cache.drop_lines(page, mask)
        at = (page << PAGE_SHIFT) + offset // LINE * LINE
        self.cache.store.seal(key, memoryview(lines), at)
