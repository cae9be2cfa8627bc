"""Threads that only answer ask Linux for short slices, and change nothing else of themselves."""

from __future__ import annotations

import os
import platform
import re
import threading
from pathlib import Path

import pytest

from swtdx.machine.engine.qemu import slices

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64") or not Path("/proc/self/sched").exists(),
    reason="Linux does not say here how it schedules a thread (/proc/self/sched)",
)
LONG = 3_000_000


def scheduled() -> dict[str, str]:
    """What Linux says of the calling thread."""
    text = Path("/proc/thread-self/sched").read_text()
    return dict(re.findall(r"^(\S+)\s+:\s+(\S+)$", text, re.MULTILINE))


def test_nothing_but_the_slice_changes() -> None:
    seen: list[dict[str, str]] = []

    def body() -> None:
        os.nice(3)
        # A thread starts with the slices of whoever made it.
        slices.set_slice(LONG)
        seen.append(scheduled())
        with slices.short_slices():
            seen.append(scheduled())
        seen.append(scheduled())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    before, meanwhile, after = seen
    for name in ("policy", "prio"):
        assert before[name] == meanwhile[name] == after[name]
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if release >= (6, 12) and "se.slice" in after:
        assert [int(each["se.slice"]) for each in seen] == [LONG, slices.SHORT, LONG]


def test_a_thread_that_is_gone_is_no_error() -> None:
    assert slices.set_slice(slices.SHORT, 2**22 + 1) is None
