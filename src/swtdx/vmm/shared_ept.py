"""The shared EPT of a TD: what its shared GPAs are, in tables of the hypervisor's own memory.

An entry that maps nothing has bit 63 (suppress #VE) set: an access there leaves the TD, and the
hypervisor decides.  Where devices are the bit is clear: the guest gets a #VE, decodes its own instruction
and asks for MMIO by TDVMCALL.  GPAs here are without the shared bit; the tables hold every mapping where the
bit leads to, because the processor walks them with the bit still in the address.

Sources: Intel SDM volume 3, section 28.3 (EPT entries); ghci.md §4; Linux, ``kvm_gfn_direct_bits`` (the
shared bit takes part in the walk).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final

from swtdx.arch.sept_bits import LEAF, SUPPRESS_VE
from swtdx.arch.units import PAGE
from swtdx.devices.saved import In, Out
from swtdx.machine.host import HostMemory
from swtdx.vmm.errors import VmmError
from swtdx.vmm.memory import BLOCK, PageAllocator
from swtdx.vmm.saved import get, get_map, put, put_map

_READ_WRITE: Final = 3
_READ_WRITE_EXECUTE: Final = 7
_WRITE_BACK: Final = 6 << 3
_EMPTY_TABLE: Final = struct.pack("<Q", SUPPRESS_VE) * 512
_OWNER: Final = "shared EPT"

#: Memory that left the shared EPT and may be freed once no processor remembers it: HPA, bytes.
Unmapped = list[tuple[int, int]]


class SharedEpt:
    """The tables, and the memory that they map.

    Args:
        levels: 4, or 5 for a guest-physical address width of 52.
        shared_bit: the GPA bit that selects shared memory.
        owner: in whose name shared memory is allocated.
        saved: what :meth:`save_state` wrote of tables that are in memory already.
    """

    def __init__(
        self,
        memory: HostMemory,
        allocator: PageAllocator,
        levels: int,
        shared_bit: int,
        owner: str,
        saved: In | None = None,
    ) -> None:
        self._memory = memory
        self._allocator = allocator
        self._levels = levels
        self._owner = owner
        self._table_owner = f"{_OWNER} of {owner}"
        #: What the shared bit adds to an index into the root.
        self._shared_index = shared_bit >> 12 + 9 * (levels - 1) & 511
        #: HPA of each table by (level of its entries, first GPA).
        self._tables: dict[tuple[int, int], int] = {}
        #: What is mapped: page number to HPA, for 4 KiB pages and for 2 MiB blocks.
        self.small: dict[int, int] = {}
        self.large: dict[int, int] = {}
        if saved is None:
            self.root = self._new_table(levels - 1, 0)
            return
        known = get(saved)["tables"]
        self._tables = {(int(level), int(gpa)): int(hpa) for level, gpa, hpa in known}
        self.root = self._tables[levels - 1, 0]
        self.small, self.large = get_map(saved), get_map(saved)

    def save_state(self, out: Out) -> None:
        """Write down where the tables are, and what they map."""
        put(out, tables=[(level, gpa, hpa) for (level, gpa), hpa in self._tables.items()])
        put_map(out, self.small)
        put_map(out, self.large)

    @property
    def mapped_bytes(self) -> int:
        """How much memory is shared."""
        return len(self.small) * PAGE + len(self.large) * BLOCK

    # ------------------------------------------------------------------ tables
    def _new_table(self, level: int, gpa: int) -> int:
        page = self._allocator.page(self._table_owner)
        self._memory.write(page, _EMPTY_TABLE)
        self._tables[level, gpa] = page
        return page

    def _span(self, level: int) -> int:
        """Bytes that one entry of a table of ``level`` covers."""
        return PAGE << 9 * level

    def _set(self, level: int, gpa: int, entry: int) -> None:
        """Write the entry of ``gpa`` at ``level``, making the tables above it."""
        above = self._span(level) * 512
        table = self._tables.get((level, gpa & -above))
        if table is None:
            table = self._grow(level, gpa)
        index = gpa // self._span(level) & 511
        if level == self._levels - 1:
            index |= self._shared_index
        self._memory.write_u64(table + 8 * index, entry)

    def _grow(self, level: int, gpa: int) -> int:
        """A new table of ``level`` for ``gpa``, entered in the one above it."""
        above = self._span(level + 1)
        table = self._new_table(level, gpa & -above)
        self._set(level + 1, gpa & -above, table | _READ_WRITE_EXECUTE)
        return table

    # ------------------------------------------------------------------ devices
    def add_mmio(self, base: int, size: int) -> None:
        """Let accesses to ``size`` bytes at GPA ``base`` (whole pages) raise #VE in the guest.

        Raises:
            VmmError: the range is not whole pages, or tables below its large parts exist already.
        """
        if (base | size) % PAGE or size <= 0:
            raise VmmError(f"MMIO range {base:#x} (+{size:#x}) is not made of whole 4 KiB pages")
        end = base + size
        while base < end:
            level = 0
            while (
                level + 1 < self._levels
                and base % self._span(level + 1) == 0
                and base + self._span(level + 1) <= end
                and (level, base) not in self._tables
            ):
                level += 1
            self._set(level, base, 0)
            base += self._span(level)

    def add_hole(self, page: int, ram: Iterable[tuple[int, int]]) -> None:
        """Let accesses around the GPA ``page``, as far as there is neither RAM nor a table, raise #VE.

        A guest that touches addresses at random then costs few tables.  ``ram`` are [start, end) GPAs.
        """
        spans = list(ram)
        level = self._levels - 1
        while level:
            size = self._span(level)
            base = page & -size
            if (level - 1, base) not in self._tables and not any(
                low < base + size and base < high for low, high in spans
            ):
                break
            level -= 1
        self._set(level, page & -self._span(level), 0)

    # ------------------------------------------------------------------ memory
    def translate(self, gpa: int) -> int | None:
        """The HPA of a shared GPA, or None."""
        page = self.small.get(gpa >> 12)
        if page is not None:
            return page | gpa & PAGE - 1
        block = self.large.get(gpa >> 21)
        return None if block is None else block | gpa & BLOCK - 1

    def map(self, gpa: int, size: int) -> None:
        """Map zeroed memory wherever ``size`` bytes at ``gpa`` (whole pages) have none yet.

        Raises:
            OutOfMemory: there is not enough; what was mapped until then stays.
        """
        end = gpa + size
        while gpa < end:
            if gpa % BLOCK == 0 and end - gpa >= BLOCK and (0, gpa) not in self._tables:
                if gpa >> 21 not in self.large:
                    self.map_block(gpa, self._allocator.block(self._owner))
                gpa += BLOCK
                continue
            if self.translate(gpa) is None:
                self.map_page(gpa, self._allocator.page(self._owner))
            gpa += PAGE

    def map_page(self, gpa: int, hpa: int) -> None:
        """Map one 4 KiB page of memory that is already allocated."""
        self._set(0, gpa, hpa | _WRITE_BACK | _READ_WRITE)
        self.small[gpa >> 12] = hpa

    def map_block(self, gpa: int, hpa: int) -> None:
        """Map one 2 MiB block of memory that is already allocated."""
        self._set(1, gpa, hpa | _WRITE_BACK | LEAF | _READ_WRITE)
        self.large[gpa >> 21] = hpa

    def unmap(self, gpa: int, size: int) -> Unmapped:
        """Unmap ``size`` bytes at ``gpa``; give the memory to :meth:`release` after a TLB flush."""
        gone: Unmapped = []
        end = gpa + size
        while gpa < end:
            block = self.large.get(gpa >> 21)
            if block is not None:
                if gpa % BLOCK == 0 and end - gpa >= BLOCK:
                    self._set(1, gpa, SUPPRESS_VE)
                    del self.large[gpa >> 21]
                    gone.append((block, BLOCK))
                    gpa += BLOCK
                    continue
                self._split(gpa & -BLOCK)
            page = self.small.pop(gpa >> 12, None)
            if page is not None:
                self._set(0, gpa, SUPPRESS_VE)
                gone.append((page, PAGE))
            # Skip what has no table at all in one step.
            elif gpa % BLOCK == 0 and end - gpa >= BLOCK and (0, gpa) not in self._tables:
                gpa += BLOCK
                continue
            gpa += PAGE
        return gone

    def _split(self, gpa: int) -> None:
        """Turn a 2 MiB mapping into 512 small ones of the same memory."""
        block = self.large.pop(gpa >> 21)
        self._allocator.split(block)
        table = self._new_table(0, gpa)
        entries = [block + at | _WRITE_BACK | _READ_WRITE for at in range(0, BLOCK, PAGE)]
        self._memory.write(table, struct.pack("<512Q", *entries))
        self._set(1, gpa, table | _READ_WRITE_EXECUTE)
        first = gpa >> 12
        self.small.update((first + index, block + index * PAGE) for index in range(512))

    def release(self, gone: Unmapped) -> None:
        """Free memory that :meth:`unmap` returned."""
        for hpa, _ in gone:
            self._allocator.free(hpa)

    def close(self) -> None:
        """Free the tables and all memory that is still shared.  No vCPU may run any more."""
        for hpa in (*self.small.values(), *self.large.values(), *self._tables.values()):
            self._allocator.free(hpa)
        self.small.clear()
        self.large.clear()
        self._tables.clear()


def fill(
    memory: HostMemory, translate: Callable[[int], int | None], blobs: Iterable[tuple[int, bytes]]
) -> None:
    """Copy blobs (GPA, bytes) into shared memory that is mapped already.

    Raises:
        VmmError: a page is not mapped.
    """
    for gpa, data in blobs:
        view = memoryview(data)
        done = 0
        while done < len(view):
            hpa = translate(gpa + done)
            if hpa is None:
                raise VmmError(f"GPA {gpa + done:#x} is not shared memory")
            part = min(len(view) - done, PAGE - (gpa + done) % PAGE)
            # Pages that follow each other in memory go in one piece.
            while done + part < len(view) and translate(gpa + done + part) == hpa + part:
                part += min(len(view) - done - part, PAGE)
            memory.write(hpa, view[done : done + part])
            done += part
