"""The physical attacker's face of memory: raw lines on the bus, with no key.

What is there is what was written back; dirty lines in the cache are not, and lines in the cache do not
notice what happens here. Nothing in the machine is asked for permission.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import LINE, LINE_SHIFT, PAGE_SHIFT, AddressError
from swtdx.machine.memory.mac import MAC_MASK
from swtdx.machine.memory.pages import WRITTEN, runs
from swtdx.machine.memory.physical import PhysicalMemory
from swtdx.machine.memory.store import OWNER

#: Bytes copied at a time by bulk operations.
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class DramLine:
    """A 64-byte line as it lies in DRAM: ciphertext, 28-bit MAC, TD-owner bit."""

    ciphertext: bytes
    mac: int
    owner: bool

    def __post_init__(self) -> None:
        if len(self.ciphertext) != LINE:
            raise AddressError(f"a line has 64 bytes of ciphertext, not {len(self.ciphertext)}")
        if not 0 <= self.mac <= MAC_MASK:
            raise AddressError(f"a MAC has 28 bits, and {self.mac:#x} does not fit")


class Dram:
    """Raw access to the DRAM of ``memory``. Addresses are HPAs in bytes, without KeyID."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def _line(self, hpa: int) -> int:
        """The number of the line at ``hpa``, with its page up to date in DRAM."""
        if hpa % LINE:
            raise AddressError(f"DRAM is accessed in lines of 64 bytes, and {hpa:#x} is inside one")
        if not self._memory.bus.is_populated(hpa, LINE):
            raise AddressError(f"there is no DRAM at HPA {hpa:#x}")
        page = hpa >> PAGE_SHIFT
        self._memory.recall(page << PAGE_SHIFT, PAGE)
        self._memory.cache.materialise(page, page + 1)
        self._memory.store.initialise(page)
        return hpa >> LINE_SHIFT

    def read_line(self, hpa: int) -> DramLine:
        """The line at ``hpa`` (64-byte aligned).

        Raises:
            AddressError: unaligned, or no DRAM there.
        """
        with self._memory.lock:
            number = self._line(hpa)
            store = self._memory.store
            meta = int(store.meta.items[number])
            return DramLine(bytes(store.cipher.view[hpa : hpa + LINE]), meta & MAC_MASK, bool(meta & OWNER))

    def write_line(self, hpa: int, line: DramLine) -> None:
        """Put ``line`` at ``hpa``, for instance one read there before (replay) or elsewhere (move).

        Raises:
            AddressError: as for :meth:`read_line`.
        """
        with self._memory.lock:
            number = self._line(hpa)
            store = self._memory.store
            store.cipher.view[hpa : hpa + LINE] = line.ciphertext
            store.meta.items[number] = line.mac | (OWNER if line.owner else 0)

    def swap(self, hpa: int, other: int) -> None:
        """Exchange two lines with their MACs and owner bits."""
        with self._memory.lock:
            mine, theirs = self.read_line(hpa), self.read_line(other)
            self.write_line(hpa, theirs)
            self.write_line(other, mine)

    def flip(self, hpa: int, bit: int) -> None:
        """Flip bit ``bit`` (0..7) of the ciphertext byte at ``hpa``.

        Raises:
            AddressError: no such bit, or no DRAM there.
        """
        if not 0 <= bit < 8:
            raise AddressError(f"a byte has bits 0..7, not {bit}")
        base = hpa & -LINE
        with self._memory.lock:
            line = self.read_line(base)
            data = bytearray(line.ciphertext)
            data[hpa - base] ^= 1 << bit
            self.write_line(base, replace(line, ciphertext=bytes(data)))

    def read(self, hpa: int, size: int) -> bytes:
        """``size`` bytes of ciphertext from ``hpa`` on, any alignment.

        Raises:
            AddressError: part of the range has no DRAM.
        """
        if size < 0 or not self._memory.bus.is_populated(hpa, size):
            raise AddressError(f"there is no DRAM behind all of HPA {hpa:#x}+{size:#x}")
        memory = self._memory
        parts: list[bytes] = []
        with memory.lock:
            for at in range(hpa & -PAGE, hpa + size, _STEP):
                first, end = at >> PAGE_SHIFT, -(-min(at + _STEP, hpa + size) // PAGE)
                memory.recall(first << PAGE_SHIFT, end - first << PAGE_SHIFT)
                memory.cache.materialise(first, end)
                written = (memory.pages.flags[first:end] & WRITTEN) != 0
                block = bytearray(memory.store.cipher.view[first << PAGE_SHIFT : end << PAGE_SHIFT])
                for start, stop in runs(~written):
                    memory.store.pristine(
                        memoryview(block)[start * PAGE : stop * PAGE], first + start << PAGE_SHIFT
                    )
                low, high = max(hpa, at), min(hpa + size, at + _STEP)
                parts.append(bytes(memoryview(block)[low - at : high - at]))
        return b"".join(parts)

    def written(self) -> Iterator[tuple[int, int]]:
        """``(hpa, size)`` of the parts of DRAM that were ever written after the BIOS cleared them."""
        memory = self._memory
        memory.here()
        for first, end in list(memory.pages.touched()):
            with memory.lock:
                flags = memory.pages.flags[first:end] & WRITTEN
                found = runs((flags != 0) | (memory.pages.pends[first:end] != 0))
            for start, stop in found:
                yield first + start << PAGE_SHIFT, stop - start << PAGE_SHIFT

    def find(self, needle: bytes) -> list[int]:
        """Where ``needle`` appears in raw DRAM (HPAs; what was never written is not searched).

        Raises:
            AddressError: an empty needle.
        """
        if not needle:
            raise AddressError("cannot search for nothing")
        hits: list[int] = []
        for base, size in self.written():
            # Overlap the steps so that nothing hides on a border.
            for at in range(base, base + size, 16 * _STEP):
                block = self.read(at, min(16 * _STEP + len(needle) - 1, base + size - at))
                hit = block.find(needle)
                while hit >= 0:
                    hits.append(at + hit)
                    hit = block.find(needle, hit + 1)
        return hits

    def owners(self, hpa: int, size: int) -> int:
        """How many lines of a range have their TD-owner bit set in DRAM (whole pages; bytes)."""
        memory = self._memory
        with memory.lock:
            memory.recall(hpa, size)
            memory.cache.materialise(hpa >> PAGE_SHIFT, -(-(hpa + size) // PAGE))
            meta = memory.store.meta.array[hpa >> LINE_SHIFT : hpa + size >> LINE_SHIFT]
            return int(np.count_nonzero(meta & OWNER))
