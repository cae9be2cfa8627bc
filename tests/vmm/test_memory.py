"""The page allocator against a naive model: a set of free 4 KiB pages."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from swtdx.arch.units import PAGE
from swtdx.vmm.errors import OutOfMemory, VmmError
from swtdx.vmm.memory import BLOCK, PageAllocator

PAGES = BLOCK // PAGE
#: Ranges that the machine adds: whole blocks, odd ends, neighbours, less than a block.
RANGES = (
    (0x1000, 0x7000),
    (0x20_0000, 0x40_0000),
    (0x60_0000, 0x10_3000),
    (0x70_3000, 0xFD000),
    (0x90_0800, 0x60_1000),
    (0x1_0000_0000, 0x80_0000),
)


class Allocator(RuleBasedStateMachine):
    """Random calls; ``free`` and ``dirty`` are page numbers, ``out`` what was handed out."""

    out: Bundle[tuple[int, int]] = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.dirty: set[int] = set()
        self.free: set[int] = set()
        self.held: dict[int, int] = {}
        self.added: set[int] = set()
        self.waiting = list(RANGES[4:])
        self.allocator = PageAllocator(self.clear)
        self.allocator.refill = self.refill

    def clear(self, hpa: int, size: int) -> None:
        assert hpa % PAGE == size % PAGE == 0
        self.dirty -= set(range(hpa // PAGE, (hpa + size) // PAGE))

    def add_range(self, base: int, size: int) -> None:
        self.allocator.add(base, size)
        pages = set(range(-(-base // PAGE), (base + size) // PAGE))
        self.free |= pages
        self.dirty |= pages
        self.added |= pages

    def refill(self) -> bool:
        if not self.waiting:
            return False
        self.add_range(*self.waiting.pop(0))
        return True

    def take(self, hpa: int, size: int) -> tuple[int, int]:
        pages = set(range(hpa // PAGE, (hpa + size) // PAGE))
        assert pages <= self.free, "handed out twice, or never added"
        self.free -= pages
        self.held[hpa] = size
        return hpa, size

    def has_block(self) -> bool:
        return any(
            page % PAGES == 0 and all(page + at in self.free for at in range(PAGES)) for page in self.free
        )

    @rule(which=some.integers(0, 3))
    def add(self, which: int) -> None:
        base, size = RANGES[which]
        if -(-base // PAGE) in self.added:
            with pytest.raises(VmmError, match="added to the allocator before"):
                self.allocator.add(base, size)
        else:
            self.add_range(base, size)

    @rule(target=out, owner=some.sampled_from(["a", "b"]))
    def page(self, owner: str) -> tuple[int, int]:
        try:
            hpa = self.allocator.page(owner)
        except OutOfMemory:
            assert not self.free
            assert not self.waiting
            return (0, 0)
        assert hpa // PAGE not in self.dirty
        assert self.allocator.owner(hpa) == owner
        return self.take(hpa, PAGE)

    @rule(target=out)
    def block(self) -> tuple[int, int]:
        try:
            hpa = self.allocator.block("blocks")
        except OutOfMemory:
            assert not self.has_block()
            assert not self.waiting
            return (0, 0)
        assert hpa % BLOCK == 0
        taken = self.take(hpa, BLOCK)
        assert not self.dirty & set(range(hpa // PAGE, (hpa + BLOCK) // PAGE))
        return taken

    @rule(target=out, pages=some.integers(1, 700), high=some.sampled_from([1 << 64, 0x50_0000]))
    def contiguous(self, pages: int, high: int) -> tuple[int, int]:
        try:
            hpa = self.allocator.contiguous(pages * PAGE, "PAMT", (0, high))
        except OutOfMemory:
            return (0, 0)
        assert hpa + pages * PAGE <= high
        return self.take(hpa, pages * PAGE)

    @rule(what=consumes(out))
    def give_back(self, what: tuple[int, int]) -> None:
        hpa, size = what
        if not size:
            return
        if self.held.get(hpa) != size:
            return  # split meanwhile
        pages = set(range(hpa // PAGE, (hpa + size) // PAGE))
        self.dirty |= pages
        self.allocator.free(hpa)
        assert not self.dirty & pages
        del self.held[hpa]
        self.free |= pages
        with pytest.raises(VmmError, match="was not handed out"):
            self.allocator.free(hpa)

    @rule(what=out, keep=some.booleans())
    def split_and_join(self, what: tuple[int, int], keep: bool) -> None:
        hpa, size = what
        if self.held.get(hpa) != size or size != BLOCK:
            return
        owner = self.allocator.owner(hpa)
        self.allocator.split(hpa)
        assert {self.allocator.owner(page) for page in range(hpa, hpa + BLOCK, PAGE)} == {owner}
        if keep:
            self.allocator.join(hpa)
            assert self.allocator.owner(hpa) == owner
            assert self.allocator.owner(hpa + PAGE) is None
            return
        for page in range(hpa, hpa + BLOCK, PAGE):
            self.allocator.free(page)
        del self.held[hpa]
        self.free |= set(range(hpa // PAGE, (hpa + BLOCK) // PAGE))

    @invariant()
    def sums_agree(self) -> None:
        assert self.allocator.used == sum(self.held.values())
        assert self.allocator.total == len(self.added) * PAGE


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_messages_name_the_way_out() -> None:
    allocator = PageAllocator(lambda _hpa, _size: None)
    with pytest.raises(OutOfMemory, match="give the machine more memory"):
        allocator.block("TD")
    with pytest.raises(OutOfMemory, match="no 8 KiB of contiguous free memory between 0x0"):
        allocator.contiguous(2 * PAGE, "PAMT", (0, 0x1000))
    allocator.add(0, 2 * BLOCK)
    page = allocator.page("a")
    with pytest.raises(VmmError, match="is no 2 MiB block"):
        allocator.split(page)
    block = allocator.block("a")
    allocator.split(block)
    allocator.give(block + PAGE, "b")
    assert dict(allocator.owned("b")) == {block + PAGE: PAGE}
    with pytest.raises(VmmError, match="not all with one owner"):
        allocator.join(block)
    with pytest.raises(VmmError, match="changes hands"):
        allocator.give(7, "b")


def test_a_block_of_used_and_unused_pages_is_a_block() -> None:
    cleared = []
    allocator = PageAllocator(lambda hpa, size: cleared.append((hpa, size)))
    allocator.add(BLOCK - PAGE, BLOCK + 2 * PAGE)
    top = allocator.contiguous(3 * PAGE, "PAMT")
    assert top == 2 * BLOCK - 2 * PAGE
    with pytest.raises(OutOfMemory):
        allocator.block("TD")
    allocator.free(top)
    assert allocator.block("TD") == BLOCK
    assert cleared == [(top, 3 * PAGE), (BLOCK, BLOCK - 2 * PAGE)]
    # Its neighbours are still there.
    assert sorted([allocator.page("TD"), allocator.page("TD")]) == [BLOCK - PAGE, 2 * BLOCK]
    with pytest.raises(OutOfMemory):
        allocator.page("TD")
