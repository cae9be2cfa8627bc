"""The PC's CMOS real-time clock (ports 0x70, 0x71): the time of day.

It must be there.  Whatever the FADT says of it, Linux on x86 reads the time from it once while it
starts (11 registers).  Where no device answers it sees "update in progress" for ever, and gives up only
after a second and 40,000 accesses, each of them several TD exits.  That a TD does not trust its
hypervisor's time is another matter.

No alarms, no periodic interrupts: a register holds what was written and that is all.

Source: Motorola MC146818A data sheet; the century at 0x32 by the FADT.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from swtdx.devices.saved import In, Out

RTC_BASE: Final = 0x70
RTC_PORTS: Final = 2
#: Index of the century register, which the FADT publishes.
CENTURY: Final = 0x32

_B_24H, _B_BINARY = 0x02, 0x04


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class CmosRtc:
    """A 128-byte CMOS with a clock in it.

    Args:
        now: seconds since 1970-01-01 00:00 UTC.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._index = 0
        self._ram = bytearray(128)
        self._ram[0x0A] = 0x26  # 32,768 Hz time base; "update in progress" never set
        self._ram[0x0B] = _B_24H  # BCD, as every BIOS leaves it
        self._ram[0x0C] = 0
        self._ram[0x0D] = 0x80  # the battery is good

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  The time is the host's."""
        out.u8(self._index)
        out.write(self._ram)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._index = section.u8() & 0x7F
        self._ram[:] = section.read(len(self._ram))

    def read(self, offset: int, size: int) -> int:
        """IN from port 0x70 + ``offset``."""
        if offset == 0:
            return 0xFF  # the index cannot be read back
        clock = self._time_register(self._index)
        return self._ram[self._index] if clock is None else clock

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT to port 0x70 + ``offset``."""
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks the NMI, which is never raised
        elif self._index == 0x0A:
            self._ram[0x0A] = value & 0x7F
        elif self._index not in (0x0C, 0x0D):
            self._ram[self._index] = value

    def _time_register(self, index: int) -> int | None:
        if index > 9 and index != CENTURY:
            return None
        when = datetime.fromtimestamp(self._now(), UTC)
        hour = when.hour
        afternoon = 0
        mode = self._ram[0x0B]
        if not mode & _B_24H:
            afternoon = 0x80 if hour >= 12 else 0
            hour = (hour + 11) % 12 + 1
        value = {
            0: when.second,
            2: when.minute,
            4: hour,
            6: when.isoweekday() % 7 + 1,
            7: when.day,
            8: when.month,
            9: when.year % 100,
            CENTURY: when.year // 100,
        }.get(index)
        if value is None:
            return None  # the alarm registers are plain RAM
        if not mode & _B_BINARY:
            value = _bcd(value)
        return value | afternoon if index == 4 else value
