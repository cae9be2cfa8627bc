"""A TD's private memory as the hypervisor manages it: Secure EPT pages and private pages, by SEAMCALL.

The module keeps the truth; this is the hypervisor's own record of what it gave where, which it needs to
find out what a GPA still lacks, to take it back, and to reclaim all of it at the end.

A page that is taken away stays with the TD, remembered by its GPA, instead of being flushed at once (512
TDH.PHYMEM.PAGE.WBINVD for 2 MiB): a guest that shares memory and takes it back gets the same page again,
and teardown's TDH.PHYMEM.CACHE.WB flushes the rest in one go.  :meth:`PrivateMemory.drain` frees such
pages earlier.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.units import PAGE
from swtdx.devices.saved import In, Out
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.errors import VmmError
from swtdx.vmm.memory import BLOCK, PageAllocator
from swtdx.vmm.processor import Processor
from swtdx.vmm.saved import get, get_map, pairs, put, put_map

#: Pause before asking again whether all vCPUs have left the old TLB epoch, in seconds; and how often.
_EPOCH_PAUSE: Final = 0.0002
_EPOCH_TRIES: Final = 10_000


class Verdict(enum.Enum):
    """What became of an EPT violation at a private GPA."""

    RESOLVED = "the guest can go on"
    PRESENT = "the page is there already"
    OUTSIDE = "the guest used private memory that it does not have"


class PrivateMemory:
    """Private pages of one TD.

    Args:
        tdr: HPA of the TD's root page.
        hkid_bits: the TD's HKID where a physical address carries it.
        levels: of the Secure EPT, 4 or 5.
        owner: in whose name pages are allocated.
        kick: makes every vCPU leave the guest; it need not wait until they have.
    """

    def __init__(
        self,
        tdr: int,
        allocator: PageAllocator,
        hkid_bits: int,
        levels: int,
        owner: str,
        kick: Callable[[], None],
    ) -> None:
        self._tdr = tdr
        self._allocator = allocator
        self._hkid_bits = hkid_bits
        self._top = levels - 1
        self._owner = owner
        self._kick = kick
        self._ram: list[tuple[int, int]] = []
        #: HPA of Secure EPT pages by level of the entry that points to them and first GPA.
        self.tables: list[dict[int, int]] = [{} for _ in range(levels)]
        #: What is mapped (accepted or pending), by GPA.
        self.small: dict[int, int] = {}
        self.large: dict[int, int] = {}
        #: What was taken away and not flushed yet, by the GPA where it was.
        self._spare_small: dict[int, int] = {}
        self._spare_large: dict[int, int] = {}
        #: How often each operation was done.
        self.counts = dict.fromkeys(
            (
                "added",
                "augmented_4k",
                "augmented_2m",
                "removed_4k",
                "removed_2m",
                "demoted",
                "promoted",
                "tracked",
            ),
            0,
        )

    def save_state(self, out: Out) -> None:
        """Write down what was given where."""
        put(out, ram=self._ram, counts=self.counts)
        for record in (self.small, self.large, self._spare_small, self._spare_large, *self.tables):
            put_map(out, record)

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote."""
        fields = get(section)
        self._ram = list(pairs(fields["ram"]))
        self.counts.update(fields["counts"])
        for record in (self.small, self.large, self._spare_small, self._spare_large, *self.tables):
            record.update(get_map(section))

    @property
    def mapped_bytes(self) -> int:
        """How much private memory is mapped."""
        return len(self.small) * PAGE + len(self.large) * BLOCK

    @property
    def ram(self) -> list[tuple[int, int]]:
        """Where the guest may have private memory on demand: [start, end) GPAs, ascending, not touching."""
        return self._ram

    @ram.setter
    def ram(self, ranges: Iterable[tuple[int, int]]) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        self._ram = merged

    def in_ram(self, start: int, end: int) -> bool:
        """Whether [start, end) may all be private memory."""
        return any(low <= start and end <= high for low, high in self._ram)

    def ram_parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that may be private memory, ascending."""
        return [(max(start, low), min(end, high)) for low, high in self._ram if low < end and start < high]

    # ------------------------------------------------------------------ giving
    def _ensure_tables(self, cpu: Processor, gpa: int, level: int) -> None:
        """Add the Secure EPT pages that an entry of ``gpa`` at ``level`` needs, from the top down."""
        for above in range(self._top, level, -1):
            base = gpa & -(PAGE << 9 * above)
            if base in self.tables[above]:
                continue
            page = self._allocator.page(f"SEPT of {self._owner}")
            try:
                status, _, _ = sc.tdh_mem_sept_add(cpu, base, above, self._tdr, page)
                cpu.need(status, f"GPA {base:#x} level {above}")
            except VmmError:
                self._allocator.free(page, clear=False)
                raise
            self.tables[above][base] = page

    def add(self, cpu: Processor, gpa: int, source: int, *, measured: bool) -> None:
        """TDH.MEM.PAGE.ADD of the 4 KiB at HPA ``source``, and MR.EXTEND of all of it if ``measured``.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        self._ensure_tables(cpu, gpa, 0)
        page = self._allocator.page(self._owner)
        try:
            status, _, _ = sc.tdh_mem_page_add(cpu, gpa, self._tdr, page, source)
            cpu.need(status, f"GPA {gpa:#x}")
        except VmmError:
            self._allocator.free(page, clear=False)
            raise
        self.small[gpa] = page
        self.counts["added"] += 1
        if measured:
            for at in range(gpa, gpa + PAGE, 256):
                status, _, _ = sc.tdh_mr_extend(cpu, at, self._tdr)
                cpu.need(status, f"GPA {at:#x}")

    def augment(self, cpu: Processor, gpa: int, level: int) -> None:
        """TDH.MEM.PAGE.AUG of a page of 4 KiB (level 0) or 2 MiB (level 1) at ``gpa``.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        self._ensure_tables(cpu, gpa, level)
        hpa = self._spare(gpa, level)
        if hpa is None:
            allocate = self._allocator.block if level else self._allocator.page
            hpa = allocate(self._owner)
        status, _, _ = sc.tdh_mem_page_aug(cpu, gpa, level, self._tdr, hpa)
        if status:
            (self._spare_large if level else self._spare_small)[gpa] = hpa
            cpu.need(status, f"GPA {gpa:#x} level {level}")
        if level:
            self.large[gpa] = hpa
            self.counts["augmented_2m"] += 1
        else:
            self.small[gpa] = hpa
            self.counts["augmented_4k"] += 1

    def _spare(self, gpa: int, level: int) -> int | None:
        if level:
            return self._spare_large.pop(gpa, None)
        block = self._spare_large.pop(gpa & -BLOCK, None)
        if block is not None:
            self._allocator.split(block)
            base = gpa & -BLOCK
            self._spare_small.update((base + at, block + at) for at in range(0, BLOCK, PAGE))
        return self._spare_small.pop(gpa, None)

    def _large_possible(self, base: int) -> bool:
        return base not in self.tables[1] and base not in self.large and self.in_ram(base, base + BLOCK)

    def augment_range(self, cpu: Processor, start: int, end: int) -> None:
        """Give the guest pending pages wherever [start, end) has none, large ones where possible.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        gpa = start
        while gpa < end:
            base = gpa & -BLOCK
            if base in self.large:
                gpa = base + BLOCK
            elif gpa == base and end - gpa >= BLOCK and self._large_possible(base):
                self.augment(cpu, gpa, 1)
                gpa += BLOCK
            else:
                if gpa not in self.small:
                    self.augment(cpu, gpa, 0)
                gpa += PAGE

    def resolve(self, cpu: Processor, gpa: int, accept_level: int | None = None) -> Verdict:
        """Give the guest what an EPT violation at private ``gpa`` asks for.

        ``accept_level`` is the page size that TDG.MEM.PAGE.ACCEPT wanted, if it was what stopped.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        page, base = gpa & -PAGE, gpa & -BLOCK
        if base in self.large:
            if accept_level != 0:
                return Verdict.PRESENT
            # The guest accepts 4 KiB of a pending 2 MiB page: it must be split for that.
            self.demote(cpu, [base])
            return Verdict.RESOLVED
        if page in self.small:
            return Verdict.PRESENT
        if not self.in_ram(page, page + PAGE):
            return Verdict.OUTSIDE
        self.augment(cpu, *((base, 1) if accept_level != 0 and self._large_possible(base) else (page, 0)))
        return Verdict.RESOLVED

    # ------------------------------------------------------------------ taking
    def _block(self, cpu: Processor, units: list[tuple[int, int]]) -> None:
        tdr = self._tdr
        for gpa, level in units:
            status, _, _ = sc.tdh_mem_range_block(cpu, gpa, level, tdr)
            if status:
                cpu.need(status, f"GPA {gpa:#x} level {level}")

    def track(self, cpu: Processor) -> None:
        """TDH.MEM.TRACK, and make every vCPU leave the guest, so that no TLB knows the past.

        Raises:
            SeamcallError: the module refuses, or a vCPU does not leave.
        """
        for _ in range(_EPOCH_TRIES):
            status = sc.tdh_mem_track(cpu, self._tdr)
            if st.code_of(status) != st.TDX_PREVIOUS_TLB_EPOCH_BUSY:
                break
            self._kick()
            cpu.host.pause(_EPOCH_PAUSE)
        cpu.need(status)
        self.counts["tracked"] += 1
        self._kick()

    def _when_tracked(self, cpu: Processor, call: Callable[[], tuple[int, int, int]], doing: str) -> int:
        """Repeat ``call`` until vCPUs of the old epoch have left; RCX of its success."""
        status, rcx = self._repeat(cpu, call)
        cpu.need(status, doing)
        return rcx

    def _repeat(self, cpu: Processor, call: Callable[[], tuple[int, int, int]]) -> tuple[int, int]:
        """Repeat ``call`` while vCPUs of the old epoch are in the guest; its status and RCX."""
        for _ in range(_EPOCH_TRIES):
            status, rcx, _ = call()
            if st.code_of(status) != st.TDX_TLB_TRACKING_NOT_DONE:
                break
            self._kick()
            cpu.host.pause(_EPOCH_PAUSE)
        return status, rcx

    def remove_range(self, cpu: Processor, start: int, end: int, limit: int = 1 << 62) -> int:
        """Take private pages in [start, end) away; the GPA up to which it was done.

        All pages are blocked, then the TLB epoch changes once, then all are removed.  Large pages that
        the range cuts are split first.  ``limit`` is how many pages of any size may be handled.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        cut = {edge & -BLOCK for edge in (start, end) if edge % BLOCK and edge & -BLOCK in self.large}
        if cut:
            self.demote(cpu, sorted(cut))
        units, done = self._mapped_units(start, end, limit)
        if units:
            self._block(cpu, units)
            self.track(cpu)
            for gpa, level in units:
                self._remove(cpu, gpa, level)
        return done

    def _mapped_units(self, start: int, end: int, limit: int) -> tuple[list[tuple[int, int]], int]:
        units: list[tuple[int, int]] = []
        gpa = start
        while gpa < end and len(units) < limit:
            base = gpa & -BLOCK
            if base in self.large:
                units.append((base, 1))
                gpa = base + BLOCK
            elif base in self.tables[1]:
                if gpa in self.small:
                    units.append((gpa, 0))
                gpa += PAGE
            else:
                gpa = base + BLOCK
        return units, min(gpa, end)

    def _remove(self, cpu: Processor, gpa: int, level: int) -> None:
        doing = f"GPA {gpa:#x} level {level}"
        hpa = self._when_tracked(cpu, lambda: sc.tdh_mem_page_remove(cpu, gpa, level, self._tdr), doing)
        known = (self.large if level else self.small).pop(gpa)
        if hpa != known:
            raise VmmError(f"{doing}: the module returned page {hpa:#x}, and {known:#x} had been given")
        if level:
            self._spare_large[gpa] = hpa
            self.counts["removed_2m"] += 1
        else:
            self._spare_small[gpa] = hpa
            self.counts["removed_4k"] += 1

    def drain(self, cpu: Processor) -> int:
        """Flush, clear and free what was taken away and not used again; how many bytes that was.

        Raises:
            SeamcallError: the module refuses.
        """
        freed = 0
        for spare, size in ((self._spare_small, PAGE), (self._spare_large, BLOCK)):
            while spare:
                _, hpa = spare.popitem()
                self._flush(cpu, hpa, size)
                freed += size
        return freed

    def _flush(self, cpu: Processor, hpa: int, size: int) -> None:
        for page in range(hpa, hpa + size, PAGE):
            cpu.need(sc.tdh_phymem_page_wbinvd(cpu, page | self._hkid_bits), f"page {page:#x}")
        self._allocator.free(hpa)

    # ------------------------------------------------------------------ page sizes
    def demote(self, cpu: Processor, bases: list[int]) -> None:
        """Split the 2 MiB pages at ``bases`` into 4 KiB pages, with one change of the TLB epoch.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        self._block(cpu, [(base, 1) for base in bases])
        self.track(cpu)
        for base in bases:
            page = self._allocator.page(f"SEPT of {self._owner}")
            self._demote_one(cpu, base, page)

    def _demote_one(self, cpu: Processor, base: int, page: int) -> None:
        try:
            self._when_tracked(
                cpu, lambda: sc.tdh_mem_page_demote(cpu, base, 1, self._tdr, page), f"splitting GPA {base:#x}"
            )
        except VmmError:
            self._allocator.free(page, clear=False)
            raise
        self.tables[1][base] = page
        block = self.large.pop(base)
        self._allocator.split(block)
        self.small.update((base + at, block + at) for at in range(0, BLOCK, PAGE))
        self.counts["demoted"] += 1

    def promote(self, cpu: Processor, base: int) -> bool:
        """Merge the 4 KiB pages at the 2 MiB GPA ``base`` into one large page.

        False, with nothing changed, where that cannot be: not 512 pages, not contiguous in physical
        memory, or not all accepted.

        Raises:
            SeamcallError: the module refuses for another reason.
        """
        first = self.small.get(base)
        if first is None or first % BLOCK or base not in self.tables[1]:
            return False
        if any(self.small.get(base + at) != first + at for at in range(0, BLOCK, PAGE)):
            return False
        self._block(cpu, [(base, 1)])
        self.track(cpu)
        status, page = self._repeat(cpu, lambda: sc.tdh_mem_page_promote(cpu, base, 1, self._tdr))
        if st.code_of(status) == st.TDX_EPT_INVALID_PROMOTE_CONDITIONS:
            unblocked, _, _ = sc.tdh_mem_range_unblock(cpu, base, 1, self._tdr)
            cpu.need(unblocked, f"GPA {base:#x}")
            return False
        cpu.need(status, f"merging GPA {base:#x}")
        del self.tables[1][base]
        for at in range(0, BLOCK, PAGE):
            del self.small[base + at]
        self._allocator.join(first)
        self.large[base] = first
        self._flush(cpu, page, PAGE)
        self.counts["promoted"] += 1
        return True

    def drop_table(self, cpu: Processor, base: int) -> bool:
        """Remove the Secure EPT page of an empty 2 MiB range, so that a large page fits again.

        False, with nothing changed, if there is none or the range is not empty.

        Raises:
            SeamcallError: the module refuses.
        """
        if base not in self.tables[1] or any(base + at in self.small for at in range(0, BLOCK, PAGE)):
            return False
        self._block(cpu, [(base, 1)])
        self.track(cpu)
        page = self._when_tracked(
            cpu, lambda: sc.tdh_mem_sept_remove(cpu, base, 1, self._tdr), f"GPA {base:#x} level 1"
        )
        del self.tables[1][base]
        self._flush(cpu, page, PAGE)
        return True

    # ------------------------------------------------------------------ the end
    def assigned_pages(self) -> Iterator[int]:
        """HPA of every page that the module has to give back by TDH.PHYMEM.PAGE.RECLAIM."""
        yield from self.large.values()
        yield from self.small.values()
        for tables in self.tables:
            yield from tables.values()

    def spare_pages(self) -> Iterator[int]:
        """HPA of every page that the TD had and the module no longer knows."""
        yield from self._spare_large.values()
        yield from self._spare_small.values()

    def forget(self) -> None:
        """All pages were reclaimed and freed."""
        for record in (self.large, self.small, self._spare_large, self._spare_small, *self.tables):
            record.clear()
