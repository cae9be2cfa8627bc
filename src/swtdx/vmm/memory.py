"""The hypervisor's page allocator: 4 KiB pages and 2 MiB blocks of physical memory, each with an owner.

Memory arrives by :meth:`PageAllocator.add` and is handed out lowest address first.  Pages and blocks
always come as zeros: memory is cleared with MOVDIR64B before its first use and whenever it is given back,
which also cures lines that a TD's key has left poisoned for the hypervisor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

from swtdx.arch.units import PAGE
from swtdx.devices.saved import In, Out
from swtdx.vmm.errors import OutOfMemory, VmmError
from swtdx.vmm.saved import get, get_numbers, put, put_numbers

BLOCK: Final = 2 << 20
_PAGES: Final = BLOCK // PAGE
_ALL: Final = (1 << _PAGES) - 1


class PageAllocator:
    """Free physical memory, and who has the rest.

    Args:
        clear: zeroes ``size`` bytes (whole pages) at an HPA, as MOVDIR64B does.

    ``refill``, if set, is called when memory runs out; it may :meth:`add` more, and says whether it did.
    """

    def __init__(self, clear: Callable[[int, int], None]) -> None:
        self._clear = clear
        self._lock = threading.RLock()
        #: Ranges never handed out, as [base, end], ascending.
        self._fresh: list[list[int]] = []
        #: Everything that was ever added, as (base, end).
        self._added: list[tuple[int, int]] = []
        self._blocks: list[int] = []
        #: Blocks of which single pages are free: bit n of the mask is page n.
        self._partial: dict[int, int] = {}
        #: HPA to (bytes, owner).
        self._owners: dict[int, tuple[int, str]] = {}
        self._used = 0
        self._total = 0
        self.refill: Callable[[], bool] | None = None

    # ------------------------------------------------------------------ snapshots
    def save_state(self, out: Out) -> None:
        """Write down who has what."""
        with self._lock:
            names = list(dict.fromkeys(name for _, name in self._owners.values()))
            number = {name: index for index, name in enumerate(names)}
            put(out, names=names, used=self._used, total=self._total, fresh=self._fresh, added=self._added)
            put_numbers(out, self._blocks)
            put_numbers(out, self._partial)
            put(out, masks=list(self._partial.values()))
            put_numbers(out, self._owners)
            put_numbers(out, (size for size, _ in self._owners.values()))
            put_numbers(out, (number[name] for _, name in self._owners.values()))

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote; ``refill`` stays."""
        fields = get(section)
        names: list[str] = fields["names"]
        self._used, self._total = int(fields["used"]), int(fields["total"])
        self._fresh = [[int(base), int(end)] for base, end in fields["fresh"]]
        self._added = [(int(base), int(end)) for base, end in fields["added"]]
        self._blocks = get_numbers(section)
        partial = get_numbers(section)
        self._partial = dict(zip(partial, map(int, get(section)["masks"]), strict=True))
        places, sizes, owners = get_numbers(section), get_numbers(section), get_numbers(section)
        self._owners = {
            place: (size, names[owner]) for place, size, owner in zip(places, sizes, owners, strict=True)
        }

    # ------------------------------------------------------------------ what there is
    @property
    def total(self) -> int:
        """Bytes that were ever added."""
        return self._total

    @property
    def used(self) -> int:
        """Bytes that are handed out."""
        return self._used

    def add(self, base: int, size: int) -> None:
        """Make ``size`` bytes at ``base`` available; both are trimmed inwards to whole pages.

        Raises:
            VmmError: the range overlaps memory that is here already.
        """
        end = (base + size) & -PAGE
        base = (base + PAGE - 1) & -PAGE
        if end <= base:
            return
        with self._lock:
            for other, other_end in self._added:
                if base < other_end and other < end:
                    raise VmmError(f"memory {base:#x}..{end - 1:#x} was added to the allocator before")
            self._added.append((base, end))
            self._fresh.append([base, end])
            self._fresh.sort()
            self._join_fresh()
            self._total += end - base

    def _join_fresh(self) -> None:
        """Make neighbours one, so that a block or a range may reach from one into the other."""
        joined: list[list[int]] = []
        for base, end in self._fresh:
            if joined and joined[-1][1] == base:
                joined[-1][1] = end
            else:
                joined.append([base, end])
        self._fresh = joined

    def owner(self, hpa: int) -> str | None:
        """Who has the page or block that starts at ``hpa``; None if it is free or not ours."""
        found = self._owners.get(hpa)
        return None if found is None else found[1]

    def owned(self, owner: str) -> Iterator[tuple[int, int]]:
        """(HPA, bytes) of everything that ``owner`` has."""
        for hpa, (size, name) in list(self._owners.items()):
            if name == owner:
                yield hpa, size

    # ------------------------------------------------------------------ taking
    def page(self, owner: str) -> int:
        """The HPA of a free 4 KiB page, full of zeros.

        Raises:
            OutOfMemory: there is none.
        """
        with self._lock:
            if not self._partial:
                self._partial_from_somewhere()
            block, mask = next(iter(self._partial.items()))
            low = mask & -mask
            if mask == low:
                del self._partial[block]
            else:
                self._partial[block] = mask ^ low
            hpa = block + (low.bit_length() - 1) * PAGE
            self._owners[hpa] = (PAGE, owner)
            self._used += PAGE
        return hpa

    def block(self, owner: str) -> int:
        """The HPA of a free 2 MiB block, aligned to its size, full of zeros.

        Raises:
            OutOfMemory: there is none.
        """
        with self._lock:
            hpa = self._take_block()
            self._owners[hpa] = (BLOCK, owner)
            self._used += BLOCK
        return hpa

    def contiguous(self, size: int, owner: str, within: tuple[int, int] | None = None) -> int:
        """The HPA of ``size`` contiguous bytes (whole pages) that were never used, from the top down.

        ``within`` limits the search to [base, end).  For what stays for good, such as PAMTs; such memory
        can be given back but then comes as pages and blocks.

        Raises:
            OutOfMemory: no free range is large enough.
        """
        low, high = within or (0, 1 << 64)
        with self._lock:
            for index in range(len(self._fresh) - 1, -1, -1):
                base, end = self._fresh[index]
                start = (min(end, high) - size) & -PAGE
                if start < max(base, low):
                    continue
                pieces = [[base, start], [start + size, end]]
                self._fresh[index : index + 1] = [piece for piece in pieces if piece[0] < piece[1]]
                self._owners[start] = (size, owner)
                self._used += size
                return start
        where = "" if within is None else f" between {low:#x} and {high:#x}"
        raise OutOfMemory(f"no {size >> 10} KiB of contiguous free memory{where} for {owner}")

    def _partial_from_somewhere(self) -> None:
        """Find a block to take pages from, or the ends of ranges that hold no whole block."""
        try:
            self._partial[self._take_block()] = _ALL
        except OutOfMemory:
            if not self._fresh:
                raise
            base, end = self._fresh.pop(0)
            self._clear(base, end - base)
            for hpa in range(base, end, PAGE):
                self._free_page(hpa)

    def _take_block(self) -> int:
        if self._blocks:
            return self._blocks.pop()
        while True:
            hpa = self._fresh_block()
            if hpa is not None:
                self._clear(hpa, BLOCK)
                return hpa
            if self._complete_a_block():
                return self._blocks.pop()
            if self.refill is None or not self.refill():
                raise OutOfMemory(
                    f"the hypervisor is out of memory: {self._used >> 20} of {self._total >> 20} MiB are in "
                    "use and no 2 MiB block is free; give the machine more memory"
                )

    def _fresh_block(self) -> int | None:
        for index, extent in enumerate(self._fresh):
            base, end = extent
            start = (base + BLOCK - 1) & -BLOCK
            if start + BLOCK > end:
                continue
            if start > base:
                # Keep the pages before it apart; single pages come from blocks.
                self._fresh.insert(index, [base, start])
            extent[0] = start + BLOCK
            if extent[0] == end:
                self._fresh.remove(extent)
            return start
        return None

    def _complete_a_block(self) -> bool:
        """Make a block of free pages and pages that were never used, if there is one; whether there is."""
        for block, mask in self._partial.items():
            end = block + BLOCK
            fresh = [(max(first, block), min(last, end)) for first, last in self._fresh]
            fresh = [(first, last) for first, last in fresh if first < last]
            for first, last in fresh:
                mask |= (1 << (last - block) // PAGE) - (1 << (first - block) // PAGE)
            if mask == _ALL:
                break
        else:
            return False
        for first, last in fresh:
            self._clear(first, last - first)
        around = [([base, min(top, block)], [max(base, end), top]) for base, top in self._fresh]
        self._fresh = [piece for pieces in around for piece in pieces if piece[0] < piece[1]]
        del self._partial[block]
        self._blocks.append(block)
        return True

    # ------------------------------------------------------------------ giving back
    def free(self, hpa: int, *, clear: bool = True) -> None:
        """Take a page, a block or a contiguous range back.

        ``clear`` may be False only for what has not been written since it was handed out.

        Raises:
            VmmError: nothing that starts at ``hpa`` is handed out.
        """
        with self._lock:
            found = self._owners.pop(hpa, None)
            if found is None:
                raise VmmError(f"{hpa:#x} is freed and was not handed out")
            size = found[0]
            if clear:
                self._clear(hpa, size)
            self._used -= size
            end = hpa + size
            while hpa < end:
                if hpa % BLOCK == 0 and end - hpa >= BLOCK:
                    self._blocks.append(hpa)
                    hpa += BLOCK
                else:
                    self._free_page(hpa)
                    hpa += PAGE

    def _free_page(self, hpa: int) -> None:
        block = hpa & -BLOCK
        mask = self._partial.get(block, 0) | 1 << (hpa - block) // PAGE
        if mask == _ALL:
            self._partial.pop(block, None)
            self._blocks.append(block)
        else:
            self._partial[block] = mask

    def split(self, hpa: int) -> None:
        """Account for a 2 MiB block as 512 pages of the same owner, to be freed one by one.

        Raises:
            VmmError: no block that starts at ``hpa`` is handed out.
        """
        with self._lock:
            size, owner = self._owners.get(hpa, (0, ""))
            if size != BLOCK:
                raise VmmError(f"{hpa:#x} is split and is no 2 MiB block")
            self._owners.update((page, (PAGE, owner)) for page in range(hpa, hpa + BLOCK, PAGE))

    def join(self, hpa: int) -> None:
        """The reverse of :meth:`split`.

        Raises:
            VmmError: not all 512 pages are handed out to the same owner.
        """
        with self._lock:
            owners = {self._owners.get(page) for page in range(hpa, hpa + BLOCK, PAGE)}
            first = owners.pop()
            if owners or first is None or first[0] != PAGE:
                raise VmmError(f"{hpa:#x} is joined and its pages are not all with one owner")
            for page in range(hpa, hpa + BLOCK, PAGE):
                del self._owners[page]
            self._owners[hpa] = (BLOCK, first[1])

    def give(self, hpa: int, owner: str) -> None:
        """Change the owner of what starts at ``hpa``.

        Raises:
            VmmError: nothing that starts there is handed out.
        """
        with self._lock:
            found = self._owners.get(hpa)
            if found is None:
                raise VmmError(f"{hpa:#x} changes hands and was not handed out")
            self._owners[hpa] = (found[0], owner)
