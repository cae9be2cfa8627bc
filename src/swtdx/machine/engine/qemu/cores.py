"""Whether the host has cores to spare, so that waiting may be done by polling."""

from __future__ import annotations

import os
import time
from typing import Final

_LOAD: Final = "/proc/loadavg"
#: Seconds between two looks.
_INTERVAL: Final = 0.01
#: Threads that run while a guest does: ours and the guest's.
_OURS: Final = 2


class Cores:
    """The cores that this process may use, and whether more threads want them than there are.

    One object a process: looking is a system call, and all engines may share what it says.
    """

    def __init__(self) -> None:
        try:
            self._file = os.open(_LOAD, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1
        self._looked = 0.0
        self._wanted = 0.0

    @staticmethod
    def count() -> int:
        """How many cores this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def scarce(self) -> bool:
        """Whether a thread that only polls takes its core from one that has work."""
        now = time.monotonic()
        if now - self._looked > _INTERVAL:
            self._looked = now
            self._wanted = self._wanted * 0.75 + self._look() * 0.25
        return self._wanted > 0.5

    def _look(self) -> bool:
        """Whether at this moment more threads are ready to run than there are cores."""
        if self.count() < _OURS:
            return True
        if self._file < 0:
            return False
        try:
            # "0.20 0.18 0.12 3/80 11206": the fourth field says how many are ready, this one among them.
            ready = int(os.pread(self._file, 80, 0).split()[3].split(b"/")[0])
        except (OSError, ValueError, IndexError):
            return False
        return ready > (os.cpu_count() or 1)


CORES: Final = Cores()
