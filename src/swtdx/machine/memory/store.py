"""DRAM as the memory controller sees it: sealing lines into it and opening them again.

Contents per 64-byte line: 64 bytes of ciphertext and one 32-bit word of metadata, MAC in bits 27:0 and
the TD-owner bit in bits 31:28, all four of them. A page that was never sealed has no contents here;
whoever needs them asks :meth:`DramStore.initialise` to make what the BIOS left there: zeros under KeyID 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import LINE, LINE_SHIFT, LINES_PER_PAGE, PAGE_SHIFT
from swtdx.machine.memory.keys import Key, KeyTable
from swtdx.machine.memory.mac import MAC_MASK, Tags, Words
from swtdx.machine.memory.pages import WRITTEN, PageTable
from swtdx.machine.memory.sparse import HUGE, SparseArray
from swtdx.machine.memory.xts import UNIT

#: All four bits, so that a MAC and an owner bit are put together in one operation.
OWNER: Final = 0xF << 28


class Poison(Exception):
    """A line that cannot be opened: ``hpa`` of the line and ``kind`` as in MachineCheck."""

    def __init__(self, hpa: int, kind: str) -> None:
        super().__init__(f"poison at {hpa:#x}: {kind}")
        self.hpa = hpa
        self.kind = kind


class DramStore:
    """Ciphertext and metadata of ``size`` bytes of memory, under the keys of ``keys``."""

    def __init__(self, size: int, keys: KeyTable, pages: PageTable) -> None:
        self._keys = keys
        self._pages = pages
        self.cipher = SparseArray(size, np.uint8)
        self.meta = SparseArray(size >> LINE_SHIFT, np.uint32)

    def initialise(self, page: int) -> None:
        """Give DRAM its contents for a page that has none yet."""
        if self._pages.flag[page] & WRITTEN:
            return
        self._pages.touch(page, page + 1)
        self._pages.flag[page] |= WRITTEN
        self.seal(self._keys.key(0), memoryview(bytes(PAGE)), page << PAGE_SHIFT)

    def pristine(self, out: memoryview, hpa: int) -> None:
        """Put into ``out`` the ciphertext of memory that was never written, without storing it."""
        xts = self._keys.key(0).xts
        if xts is not None:
            xts.encrypt(memoryview(bytes(len(out))), out, hpa)

    def seal(self, key: Key, plain: memoryview, hpa: int) -> None:
        """Write whole lines of plaintext to DRAM under ``key``: encrypt, MAC, set owner bits.

        The caller marks the pages WRITTEN and makes sure that their other lines have contents.
        """
        size = len(plain)
        if size >= HUGE:
            self.cipher.use_huge_pages(hpa, hpa + size)
        # Unit by unit, so that the MAC finds plaintext and ciphertext in the (real) cache.
        done = 0
        while done < size:
            end = min(size, done + UNIT - (hpa + done) % UNIT)
            self._seal(key, plain[done:end], hpa + done)
            done = end

    def _seal(self, key: Key, plain: memoryview, hpa: int) -> None:
        size = len(plain)
        cipher = self.cipher.view[hpa : hpa + size + 16]
        meta = self.meta.array[hpa >> LINE_SHIFT : hpa + size >> LINE_SHIFT]
        owner = OWNER if key.owner else 0
        if key.xts is None:
            cipher[:size] = plain
        else:
            key.xts.encrypt(plain, cipher, hpa)
        if key.mac is None:
            meta[:] = owner
        else:
            key.mac.tags(_words(plain), _words(cipher[:size]), meta, owner)

    def open(self, key: Key, plain: memoryview, hpa: int) -> None:
        """Read whole lines into ``plain`` as an access under ``key`` does.

        Lines that belong to a TD read as zeros under a shared KeyID.

        Raises:
            Poison: a line's owner bit or MAC is wrong (the lowest such line); what ``plain`` then holds
                must not be used.
        """
        size = len(plain)
        cipher = self.cipher.view[hpa : hpa + size]
        meta = self.meta.array[hpa >> LINE_SHIFT : hpa + size >> LINE_SHIFT]
        owned = (meta & OWNER) != 0
        if key.owner and not owned.all():
            before = int(np.argmin(owned)) * LINE
            # The lowest poisoned line is the one that is consumed, whatever is wrong with it.
            if key.mac is not None and before:
                self.open(key, plain[:before], hpa)
            raise Poison(hpa + before, "owner")
        if key.xts is None:
            plain[:] = cipher
        else:
            key.xts.decrypt(cipher, plain, hpa)
        foreign = owned if not key.owner and owned.any() else None
        if key.mac is not None:
            tags: Tags = np.empty(len(meta), np.uint32)
            key.mac.tags(_words(plain), _words(cipher), tags, 0)
            wrong = tags != (meta & MAC_MASK)
            if foreign is not None:
                wrong &= ~foreign
            if wrong.any():
                raise Poison(hpa + int(np.argmax(wrong)) * LINE, "mac")
        if foreign is not None:
            _words(plain)[foreign] = 0

    def owned_lines(self, page: int) -> int:
        """The mask of a page's lines whose TD-owner bit is set in DRAM."""
        first = page * LINES_PER_PAGE
        owned = (self.meta.array[first : first + LINES_PER_PAGE] & OWNER) != 0
        return int.from_bytes(np.packbits(owned, bitorder="little").tobytes(), "little")

    def forget(self, first: int, end: int) -> None:
        """Drop the contents of pages ``first .. end-1``, which others replace or which are not needed."""
        self.cipher.clear(first << PAGE_SHIFT, (end - first) << PAGE_SHIFT)
        self.meta.clear(first * LINES_PER_PAGE, (end - first) * LINES_PER_PAGE)
        self._pages.flags[first:end] &= 0xFF ^ WRITTEN


def _words(data: memoryview) -> Words:
    return np.frombuffer(data, np.uint64).reshape(-1, LINE // 8)
