"""The host's time-stamp counter, read from Python.

QEMU's TCG gives its guests the host's counter less an offset that stays the same while it runs
(``cpu_get_ticks``), so reading the host's own is the exact way to know a guest's.  Python has no RDTSC;
four instructions in a page of our own do.  Where that cannot be had (another processor, a system that
forbids executable memory) there is none, and the caller has to extrapolate.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable
from typing import Final

#: RDTSC; SHL RDX, 32; OR RAX, RDX; RET.
_CODE: Final = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
_X86: Final = ("x86_64", "AMD64")

# The pages must live as long as the functions: several machines may be in one process.
_pages: list[mmap.mmap] = []


@functools.cache
def host_tsc() -> Callable[[], int] | None:
    """A function that executes RDTSC, or None where there is none."""
    if platform.machine() not in _X86:
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    except (OSError, ValueError):
        return None
    _pages.append(page)
    function: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    return function


def frequency(read: Callable[[], int], seconds: float = 0.01) -> float:
    """Counter ticks a second, against ``perf_counter_ns`` over ``seconds``."""
    first = _paired(read)
    time.sleep(seconds)
    second = _paired(read)
    return (second[1] - first[1]) * 1e9 / (second[0] - first[0])


def _paired(read: Callable[[], int]) -> tuple[int, int]:
    """(perf_counter_ns, counter) read together: the tightest of a few tries."""
    best: tuple[int, int, int] | None = None
    for _ in range(8):
        before = time.perf_counter_ns()
        ticks = read()
        after = time.perf_counter_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, ticks)
    assert best is not None
    return best[1], best[2]
