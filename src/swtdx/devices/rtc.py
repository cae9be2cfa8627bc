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

from swtdx.arch.units import KIB, MIB
from swtdx.devices.saved import In, Out

RTC_BASE: Final = 0x70
RTC_PORTS: Final = 2
#: Index of the century register, which the FADT publishes.
CENTURY: Final = 0x32

_B_24H, _B_BINARY = 0x02, 0x04
_BLOCK: Final = 64 * KIB


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class CmosRtc:
    """A 128-byte CMOS with a clock in it.

    Args:
        now: seconds since 1970-01-01 00:00 UTC.
        ram: bytes of RAM below and above 4 GiB; None: the CMOS does not say.
    """

    def __init__(self, now: Callable[[], float], ram: tuple[int, int] | None = None) -> None:
        self._now = now
        self._index = 0
        self._ram = bytearray(128)
        self._ram[0x0A] = 0x26  # 32,768 Hz time base; "update in progress" never set
        self._ram[0x0B] = _B_24H  # BCD, as every BIOS leaves it
        self._ram[0x0C] = 0
        self._ram[0x0D] = 0x80  # the battery is good
        if ram is not None:
            self._tell_ram(*ram)

    def _tell_ram(self, low: int, high: int) -> None:
        """RAM as a PC's BIOS and QEMU's write it down (``hw/i386/pc.c``); all numbers little-endian."""
        extended = min(max(low - MIB, 0) // KIB, 0xFFFF)
        for index, value, size in (
            (0x15, 640, 2),  # KiB of base memory
            (0x17, extended, 2),  # KiB from 1 MiB on
            (0x30, extended, 2),
            (0x34, min(max(low - 16 * MIB, 0) // _BLOCK, 0xFFFF), 2),  # 64 KiB blocks from 16 MiB on
            (0x5B, high // _BLOCK, 3),  # 64 KiB blocks from 4 GiB on
        ):
            self._ram[index : index + size] = value.to_bytes(size, "little")

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
