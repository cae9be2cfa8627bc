"""The place of the 8254 timer (ports 0x40-0x43), whose counters stand still at 0.

There is no timer here: a TD has the TSC, whose frequency CPUID tells, and its local APIC.  But Linux tries
to measure the processor's frequency with channel 2 before it believes that (``quick_pit_calibrate`` in
``arch/x86/kernel/tsc.c``): on all ones it reads 50,000 times, in the hope that the counter will count on
from there; from zeros it sees at the first reading that it does not.
"""

from __future__ import annotations

from typing import Final

from swtdx.devices.saved import Stateless

BASE: Final = 0x40
PORTS: Final = 4


class StoppedTimer(Stateless):
    """A :class:`~swtdx.devices.bus.BusDevice`."""

    def read(self, offset: int, size: int) -> int:
        """Every counter is 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing starts it."""
