"""The shared EPT, walked as the processor walks it (Intel SDM volume 3, section 29.3), against a model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swtdx.vmm.errors import VmmError
from swtdx.vmm.memory import PageAllocator
from swtdx.vmm.shared_ept import SharedEpt, fill
from tests.vmm.fake_guest import walk_shared
from tests.vmm.fake_machine import FakeMachine

PAGE, BLOCK, GIB = 4096, 2 << 20, 1 << 30
#: RAM of the model's guest.
RAM = [(0, 3 * BLOCK), (4 * GIB, 4 * GIB + BLOCK)]


def make(levels: int = 4) -> tuple[SharedEpt, FakeMachine, PageAllocator]:
    machine = FakeMachine()
    allocator = PageAllocator(machine.memory.clear)
    allocator.add(1 << 32, 1 << 30)
    shared_bit = 1 << (51 if levels == 5 else 47)
    return SharedEpt(machine.host.memory, allocator, levels, shared_bit, "TD"), machine, allocator


def walk(ept: SharedEpt, machine: FakeMachine, gpa: int, levels: int = 4) -> int | str:
    shared_bit = 1 << (51 if levels == 5 else 47)
    return walk_shared(machine.memory.read_u64, ept.root, gpa, levels, shared_bit=shared_bit)


class Walked(RuleBasedStateMachine):
    """Random mapping and unmapping; ``here`` are the mapped pages, ``holes`` those that are devices."""

    @initialize(levels=some.sampled_from([4, 5]))
    def start(self, levels: int) -> None:
        self.levels = levels
        self.ept, self.machine, self.allocator = make(levels)
        self.here: set[int] = set()
        self.holes: set[int] = set()
        self.ept.add_mmio(3 * GIB, GIB)
        self.ept.add_mmio(GIB + 3 * PAGE, BLOCK)

    def ram(self, where: int, pages: int) -> tuple[int, int]:
        base, end = RAM[where & 1]
        start = base + (where >> 1) % ((end - base) // PAGE) * PAGE
        return start, min(start + pages * PAGE, end)

    @rule(where=some.integers(0, 1 << 13), pages=some.sampled_from([1, 2, 511, 512, 513, 1600]))
    def map(self, where: int, pages: int) -> None:
        start, end = self.ram(where, pages)
        before = {page: walk(self.ept, self.machine, page, self.levels) for page in list(self.here)[:50]}
        self.ept.map(start, end - start)
        self.here |= set(range(start, end, PAGE))
        assert all(walk(self.ept, self.machine, page, self.levels) == hpa for page, hpa in before.items())

    @rule(block=some.integers(0, 3), pages=some.integers(0, 511), whole=some.booleans())
    def unmap(self, block: int, pages: int, whole: bool) -> None:
        base = block * BLOCK if block < 3 else 4 * GIB
        start, end = (base, base + BLOCK) if whole else (base + pages * PAGE, base + BLOCK)
        gone = self.ept.unmap(start, end - start)
        pages_gone = {page for page in self.here if start <= page < end}
        assert sum(size for _, size in gone) == len(pages_gone) * PAGE
        self.here -= pages_gone
        self.ept.release(gone)

    @rule(page=some.one_of(some.integers(0, (1 << 35) - 1), some.integers(0, 1 << 21)))
    def touch_nothing(self, page: int) -> None:
        page *= PAGE
        if any(low <= page < high for low, high in RAM):
            return
        self.ept.add_hole(page, RAM)
        self.holes.add(page)

    @invariant()
    def every_page_is_where_it_should_be(self) -> None:
        if not hasattr(self, "ept"):
            return
        hpas: set[int] = set()
        for low, high in RAM:
            for page in range(low, high, PAGE):
                found = walk(self.ept, self.machine, page + 0x123, self.levels)
                if page in self.here:
                    assert found == self.ept.translate(page + 0x123)
                    assert isinstance(found, int)
                    hpas.add(found - 0x123)
                else:
                    assert found == "exit"
                    assert self.ept.translate(page) is None
        assert len(hpas) == len(self.here), "two GPAs share memory"
        assert self.ept.mapped_bytes == len(self.here) * PAGE
        for page in (*self.holes, 3 * GIB, 4 * GIB - PAGE, GIB + 3 * PAGE, GIB + BLOCK + 2 * PAGE):
            assert walk(self.ept, self.machine, page, self.levels) == "#VE"
        # A guest cannot make us build tables without end.
        assert len(self.ept._tables) < 40

    def teardown(self) -> None:
        if hasattr(self, "ept"):
            self.ept.close()
            assert self.allocator.used == 0


TestWalked = Walked.TestCase
TestWalked.settings = settings(max_examples=5, stateful_step_count=10, deadline=None)


@pytest.mark.parametrize("levels", [4, 5])
def test_empty(levels: int) -> None:
    ept, machine, _ = make(levels)
    for gpa in (0, PAGE, GIB, (1 << 46) + 5, (1 << 47) - 1):
        assert walk(ept, machine, gpa, levels) == "exit"


def test_shared_memory_is_zeros_and_not_executable() -> None:
    ept, machine, allocator = make()
    page = allocator.page("earlier")
    machine.memory.write(page, b"left behind")
    allocator.free(page)
    ept.map(0, PAGE)
    hpa = ept.translate(0)
    assert hpa is not None
    assert machine.memory.read(hpa, PAGE) == bytes(PAGE)
    table = ept.root
    for level in (3, 2, 1):
        index = (1 << 47) >> 12 + 9 * level & 511
        table = machine.memory.read_u64(table + 8 * index) & 0x000FFFFFFFFFF000
    assert machine.memory.read_u64(table) & 7 == 0b011


@pytest.mark.parametrize(("base", "size"), [(1, PAGE), (0, PAGE + 1), (PAGE, 0), (0, -PAGE)])
def test_mmio_of_odd_size(base: int, size: int) -> None:
    ept, _, _ = make()
    with pytest.raises(VmmError, match="not made of whole 4 KiB pages"):
        ept.add_mmio(base, size)


def test_fill() -> None:
    ept, machine, _ = make()
    ept.map(BLOCK - PAGE, 2 * PAGE)
    data = bytes(range(256)) * 16
    fill(machine.host.memory, ept.translate, [(BLOCK - 1000, data)])
    first, second = ept.translate(BLOCK - 1000), ept.translate(BLOCK)
    assert first is not None
    assert second is not None
    assert machine.memory.read(first, 1000) + machine.memory.read(second, len(data) - 1000) == data
    with pytest.raises(VmmError, match="is not shared memory"):
        fill(machine.host.memory, ept.translate, [(BLOCK + PAGE - 8, data)])
