"""Walks of a guest's page tables that a translation cache remembers are those that it would make now."""

from __future__ import annotations

import contextlib
import random
import struct
from typing import Any

import pytest

from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.arch.x86 import CR0_PG, CR4_PAE, EFER_LMA, EFER_LME
from swtdx.machine.engine.protocol import Access
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.npt import NestedTable, PagePool
from swtdx.machine.vmx.paging import linear_to_gpa

FRAMES = 4 * LARGE_PAGE
ANY = Access.READ | Access.WRITE | Access.FETCH
#: Two roots, and tables of the three levels below, by GPA.  Few of each, so that they are often the same.
ROOTS = (0x1000, 0x2000)
TABLES = ((0x3000, 0x4000), (0x5000, 0x6000), (0x7000, 0x8000))
#: Where code may be, by GPA, and its linear addresses, two at each table.
CODE = (0x9000, 0xA000, LARGE_PAGE, 3 * LARGE_PAGE)
LINEAR = (0x123, 0x1000, 1 << 21, 1 << 30, 1 << 39 | 0xFF8)
_SHIFTS = (39, 30, 21, 12)


class Process:
    """As much of QEMU as a table needs."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(at.ENGINE_SIZE))

    def physical(self, hpa: int) -> int:
        """Frames follow."""
        return at.ENGINE_SIZE + hpa


class Scene:
    """A table, frames with a guest's page tables, and a second opinion on both."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.frames = memoryview(bytearray(FRAMES))
        process: Any = Process()
        self.table = NestedTable(process, PagePool(), contextlib.nullcontext())
        self.small: dict[int, int] = {}
        self.large: dict[int, int] = {}

    # what happens
    def map_small(self) -> None:
        gpa = self.dice.choice((*ROOTS, *TABLES[0], *TABLES[1], *TABLES[2], *CODE[:2]))
        hpa = self.dice.choice((0, LARGE_PAGE)) + (gpa if self.dice.random() < 0.7 else 0x3000)
        self.table.map(gpa, hpa, PAGE, ANY, code=True)
        self.large.pop(gpa >> 21, None)
        self.small[gpa >> 12] = hpa

    def map_large(self) -> None:
        gpa = self.dice.choice((0, LARGE_PAGE, 3 * LARGE_PAGE))
        hpa = self.dice.choice((0, LARGE_PAGE, 2 * LARGE_PAGE))
        self.table.map(gpa, hpa, LARGE_PAGE, ANY, code=True)
        self.small = {page: where for page, where in self.small.items() if page >> 9 != gpa >> 21}
        self.large[gpa >> 21] = hpa

    def drop(self) -> None:
        hpa = self.dice.choice((0, LARGE_PAGE, 2 * LARGE_PAGE))
        hit = any(where >> 21 == hpa >> 21 for where in (*self.small.values(), *self.large.values()))
        self.table.drop(hpa, PAGE)
        if hit or not self.table.lookup(CODE[0]):
            self.refresh()

    def flush(self) -> None:
        self.table.flush()
        self.refresh()

    def refresh(self) -> None:
        """Everything is gone, or nothing: the table may forget what it likes."""
        self.small = {p: h for p, h in self.small.items() if self.table.lookup(p << 12) is not None}
        self.large = {r: h for r, h in self.large.items() if self.table.lookup(r << 21) is not None}

    def write(self) -> None:
        """The guest, or anybody, changes an entry of its tables, wherever they lie now."""
        level = self.dice.randrange(4)
        table = self.dice.choice((ROOTS, *TABLES)[level])
        linear = self.dice.choice(LINEAR)
        if level < 3 and (level == 0 or self.dice.random() < 0.8):
            entry = self.dice.choice(TABLES[level]) | 0x27
        elif level < 3:
            entry = (self.dice.choice(CODE) & -(1 << _SHIFTS[level])) | 0xA7
        else:
            entry = self.dice.choice(CODE) | 0x27
        if self.dice.random() < 0.1:
            entry &= ~1
        for base in (0, LARGE_PAGE):
            if self.dice.random() < 0.7:
                where = base + table + (linear >> _SHIFTS[level] & 511) * 8
                struct.pack_into("<Q", self.frames, where, entry)

    # the second opinion
    def where(self, gpa: int) -> int | None:
        if gpa >> 21 in self.large:
            return self.large[gpa >> 21] | gpa & LARGE_PAGE - 1
        page = self.small.get(gpa >> 12)
        return None if page is None else page | gpa & PAGE - 1

    def expected(self, linear: int, cr3: int) -> int | None:
        def read(gpa: int) -> int | None:
            hpa = self.where(gpa)
            return None if hpa is None else int(struct.unpack_from("<Q", self.frames, hpa)[0])

        gpa = linear_to_gpa(linear, CR0_PG | 1, cr3, CR4_PAE, EFER_LMA | EFER_LME, read)
        return None if gpa is None else self.where(gpa)


@pytest.mark.parametrize("seed", range(4))
def test_a_remembered_walk_is_the_walk_of_now(seed: int) -> None:
    scene = Scene(seed)
    words = scene.frames.cast("Q")
    changes = [*[scene.write] * 12, *[scene.map_small] * 12, scene.map_large, scene.map_large]
    rare = [scene.drop, scene.flush]
    found = 0
    for turn in range(4000):
        scene.dice.choice(rare if turn % 97 == 96 else changes)()
        for cr3 in ROOTS:
            for linear in LINEAR:
                here = scene.table.code_address(linear, cr3, words)
                assert here == scene.expected(linear, cr3), f"turn {turn}: {linear:#x} with CR3 {cr3:#x}"
                found += here is not None
    assert found > 500, "the walks have to arrive"
