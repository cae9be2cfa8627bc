"""Frames that an engine has executed code from: whatever changes them behind its back is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from swtdx.machine.memory import SEAM, MachineCheck, PhysicalMemory

from .conftest import TD_A, TD_B

A = 0x20_0000
PAGE = 4096
BIG = 0x20_0000


def joined(memory: PhysicalMemory, hpa: int, keyid: int = TD_A) -> int:
    return memory.addresses.join(hpa, keyid)


def run_code(
    memory: PhysicalMemory, hpa: int = A, size: int = PAGE, keyid: int = TD_A
) -> list[tuple[int, int]]:
    """What an engine does before it executes the frames; those that it must look at anew."""
    memory.acquire(hpa, size, keyid)
    return memory.executed(hpa, size)


@pytest.fixture
def page(memory: PhysicalMemory) -> PhysicalMemory:
    """Memory with a page of a TD at A that was executed."""
    memory.direct_zero(joined(memory, A), BIG)
    assert run_code(memory) == []
    return memory


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.direct_store(joined(m, A + 64), b"x" * 64),
        lambda m: m.direct_zero(joined(m, A), PAGE),
        lambda m: (m.direct_zero(A, PAGE), m.direct_zero(joined(m, A), PAGE)),
        lambda m: (m.wbinvd(), m.write(joined(m, A + 8), b"x", SEAM)),
        lambda m: (m.wbinvd(), m.map_page(A, TD_A)),
        lambda m: (m.direct_zero(joined(m, A, TD_B), PAGE), m.write(joined(m, A, TD_B), b"other", SEAM),
                   m.direct_zero(joined(m, A), PAGE)),
    ],
)  # fmt: skip
def test_a_change_is_known_when_the_frame_is_executed_again(
    page: PhysicalMemory, change: Callable[[PhysicalMemory], object]
) -> None:
    change(page)
    assert run_code(page) == [(A, PAGE)]
    assert run_code(page) == [], "once"


def test_what_leaves_the_cache_and_comes_back_is_the_same(page: PhysicalMemory) -> None:
    page.wbinvd()
    assert run_code(page) == []
    page.clflush(joined(page, A), PAGE, SEAM)
    assert run_code(page) == []


def test_a_store_of_SEAM_into_a_page_that_is_running(page: PhysicalMemory) -> None:
    page.write(joined(page, A + 8), b"new", SEAM)
    assert page.written(A + 8, 3)
    assert run_code(page) == []
    page.write(joined(page, A + PAGE), b"new", SEAM)
    assert not page.written(A + PAGE, 3), "never executed"
    assert page.written(A + PAGE - 1, 2), "but half of this was"
    page.clflush(joined(page, A), PAGE, SEAM)
    page.write(joined(page, A), b"new", SEAM)
    assert not page.written(A, 3), "not running now"
    assert run_code(page) == [(A, PAGE)], "and so looked at when it does"


def test_reading_a_running_page_through_a_view_costs_nothing(page: PhysicalMemory) -> None:
    page.map_page(A, TD_A)
    assert run_code(page) == []


def test_of_a_large_page_only_what_changed(memory: PhysicalMemory) -> None:
    memory.direct_zero(joined(memory, A), BIG)
    assert run_code(memory, size=BIG) == []
    for number in (3, 4, 77):
        memory.direct_store(joined(memory, A + number * PAGE), b"x" * 64)
    assert run_code(memory, size=BIG) == [(A + 3 * PAGE, 2 * PAGE), (A + 77 * PAGE, PAGE)]


def test_against_the_bytes(memory: PhysicalMemory) -> None:
    """Random accesses: what was executed before and differs now is always named."""
    rng = random.Random(5)
    pages = [A + number * PAGE for number in range(4)]
    seen: dict[int, bytes] = {}
    named = wrong = 0
    for hpa in pages:
        memory.direct_zero(joined(memory, hpa), PAGE)
    for _ in range(600):
        hpa, keyid = rng.choice(pages), rng.choice((TD_A, TD_B, 0))
        match rng.randrange(7):
            case 0:
                memory.direct_store(joined(memory, hpa, keyid), rng.randbytes(PAGE))
            case 1:
                memory.direct_zero(joined(memory, hpa, keyid), PAGE)
            case 2:
                memory.wbinvd()
            case 3:
                memory.clflush(joined(memory, hpa, keyid), PAGE, SEAM)
            case _:
                pass
        try:
            if rng.random() < 0.3:
                memory.write(joined(memory, hpa, keyid), rng.randbytes(8), SEAM)
                if memory.written(hpa, 8):
                    seen[hpa] = bytes(memory.frames[hpa : hpa + PAGE])
            stale = run_code(memory, hpa, PAGE, keyid)
        except MachineCheck:
            memory.direct_zero(joined(memory, hpa, keyid), PAGE)
            continue
        now = bytes(memory.frames[hpa : hpa + PAGE])
        if hpa in seen and seen[hpa] != now:
            named += 1
            wrong += not stale
        seen[hpa] = now
    assert named > 100
    assert wrong == 0
