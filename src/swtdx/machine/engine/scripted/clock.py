"""Virtual time: a TSC that counts what was done, not what a wall clock shows."""

from __future__ import annotations

import threading
from typing import Final

#: Nominal frequency in Hz: 80 times the 25 MHz crystal.
TSC_HZ: Final = 2_000_000_000
#: What one instruction of a script takes, in cycles.
OPERATION: Final = 100
#: What a stop takes on top: about a VM exit and entry.
STOP: Final = 1000
#: What reading the counter from outside takes, so that software that polls it gets somewhere.
READING: Final = 20


class VirtualClock:
    """A counter that only grows.  Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0

    def advance(self, cycles: int) -> int:
        """Let ``cycles`` pass; the new count."""
        with self._lock:
            self.now += cycles
            return self.now

    def advance_to(self, tsc: int) -> int:
        """Let time pass until ``tsc``, unless it is later already; the new count."""
        with self._lock:
            self.now = max(self.now, tsc)
            return self.now
