"""Short slices of the host's cores for those who only answer.

Linux from 6.12 on lets a thread that has just woken up go first, before one that computes, if it asked for
shorter slices (``sched_setattr``, for ordinary threads too; its share of the cores stays what it was).  We
and QEMU's main loop work for some microseconds and sleep again, and a guest waits for each of these; without
that a wake-up may take as long as another guest's slice, some milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from typing import Final

#: Nanoseconds; 0.1 ms is the least that Linux takes.
SHORT: Final = 100_000
#: Numbers of sched_setattr and sched_getattr.
_CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
#: struct sched_attr, its first version: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES: Final = struct.Struct("<IIQiIQQQ")
_SCHED_OTHER: Final = 0


def set_slice(nanoseconds: int, thread: int = 0) -> int | None:
    """Ask for slices of ``nanoseconds`` for a thread of this user's (0: the calling one).

    Nothing else of its scheduling changes.  Returns what they were before, in nanoseconds; None where Linux
    does not let us ask, or the thread is not an ordinary one.  Kernels before 6.12 say 0, and forget it.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None or os.uname().sysname != "Linux":
        return None
    library = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if library.syscall(calls[1], thread, attributes, _ATTRIBUTES.size, 0):
        return None
    _, policy, flags, nice, priority, before, *_ = _ATTRIBUTES.unpack(attributes.raw)
    if policy != _SCHED_OTHER:
        return None
    attributes.raw = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, flags, nice, priority, nanoseconds, 0, 0)
    return None if library.syscall(calls[0], thread, attributes, 0) else int(before)


@contextlib.contextmanager
def short_slices() -> Iterator[None]:
    """Let the calling thread have short slices meanwhile."""
    before = set_slice(SHORT)
    try:
        yield
    finally:
        if before is not None:
            set_slice(before)
