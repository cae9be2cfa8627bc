"""Runs of 2 MiB translations, which both engines' caches take at once, are the same as one by one."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from swtdx.arch.units import HUGE_PAGE, LARGE_PAGE, PAGE
from swtdx.machine.engine.protocol import Access
from swtdx.machine.engine.scripted.space import ScriptedSpace
from tests.machine.guests import build_machine

ALL = Access.READ | Access.WRITE | Access.FETCH


def space() -> ScriptedSpace:
    return ScriptedSpace(contextlib.nullcontext())


def test_uncached_is_what_lookup_does_not_know() -> None:
    cache = space()
    cache.map(HUGE_PAGE + 3 * LARGE_PAGE, 0, LARGE_PAGE, ALL, code=True)
    cache.map(HUGE_PAGE + 5 * LARGE_PAGE + 7 * PAGE, 0, PAGE, ALL, code=True)
    cache.map(2 * HUGE_PAGE, 0, LARGE_PAGE, ALL, code=True)
    free = cache.uncached(HUGE_PAGE + 12345)
    assert [index for index in range(512) if not free[index]] == [3, 5]


@pytest.mark.parametrize("pages", [1, 2, 509])
def test_a_run_is_its_pages(pages: int) -> None:
    cache = space()
    cache.map_run(HUGE_PAGE + 3 * LARGE_PAGE, 8 * LARGE_PAGE, pages, ALL, code=True)
    for index in range(512):
        gpa = HUGE_PAGE + index * LARGE_PAGE + 99
        expected = 8 * LARGE_PAGE + (index - 3) * LARGE_PAGE + 99 if 3 <= index < 3 + pages else None
        assert cache.lookup(gpa) == expected


@pytest.mark.qemu
@pytest.mark.parametrize(("access", "code"), [(ALL, True), (ALL, False), (Access.READ, True)])
def test_tables_for_the_processor_are_the_same(access: Access, code: bool) -> None:
    """QEMU's processors walk the entries; what a run writes is what single pages write."""
    with build_machine("qemu") as machine:
        _ = machine.tsc_hz  # it has come up
        engine: Any = machine.engine
        singly, run = engine.space(0), engine.space(0)
        gpa, hpa, pages = HUGE_PAGE + 3 * LARGE_PAGE, 2 * LARGE_PAGE, 5
        for offset in range(0, pages * LARGE_PAGE, LARGE_PAGE):
            singly.map(gpa + offset, hpa + offset, LARGE_PAGE, access, code=code)
        assert run.uncached(gpa).all()
        run.map_run(gpa, hpa, pages, access, code=code)
        directories = [cache._directories[gpa >> 30] for cache in (singly, run)]
        first, second = (
            cache._q[at : at + 512].tolist() for cache, at in zip((singly, run), directories, strict=True)
        )
        assert first == second
        assert sum(map(bool, first)) == pages
        assert (singly._large, singly._units) == (run._large, run._units)
        assert (run.uncached(gpa) == singly.uncached(gpa)).all()
        # Beside the identity tables nothing large may be; and frames that leave are forgotten.
        run.drop(hpa, PAGE)
        assert run.lookup(gpa) is None
        assert run.uncached(gpa).all()
        singly.close()
        run.close()
