"""An I/O APIC that no device is wired to.

Linux gets a timer that may stop its tick only where the PC's interval timer is registered, because a TD's
CPUID does not say that the local APIC's timer always runs (leaf 6 is a #VE): an idle vCPU would else be
woken 250 times a second.  It registers that timer on platforms that are not hardware-reduced, and such a
platform needs an interrupt for ACPI's events, which come through here.  There are none: the interval timer
stands still, and nothing raises an event.

Our boards' has one input, that interrupt's, where a PC's has 24: Linux reads and writes every entry several
times while it boots, and each of the two halves takes two accesses that leave the TD, 500 in all.

Source: Intel 82093AA data sheet (I/O APIC), section 3; Linux arch/x86/kernel/apic/apic.c (apic_needs_pit).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.units import MASK32
from swtdx.devices.saved import In, Out

#: Interrupt inputs of a PC's.
PINS: Final = 24
_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _REDIRECTION = 0x00, 0x01, 0x02, 0x10
_VERSION_VALUE: Final = 0x20
_PIN_MASKED: Final = 1 << 16
#: Delivery status and remote IRR are the device's.
_READ_ONLY: Final = 1 << 12 | 1 << 14


class IoApic:
    """Its two registers, and what is behind them; a :class:`~swtdx.devices.bus.BusDevice`.

    Args:
        pins: how many interrupt inputs it has, 1 to 120.
    """

    def __init__(self, pins: int = PINS) -> None:
        self._version = (pins - 1) << 16 | _VERSION_VALUE
        self._select = 0
        self._id = 0
        self._entries = [_PIN_MASKED, 0] * pins

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        out.u8(self._select)
        out.u32(self._id)
        out.u16(len(self._entries))
        for half in self._entries:
            out.u32(half)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._select = section.u8()
        self._id = section.u32()
        halves = section.u16()
        if halves != len(self._entries):
            raise section.fail(f"an I/O APIC of {halves // 2} inputs, and this has {len(self._entries) // 2}")
        self._entries = [section.u32() for _ in range(halves)]

    def read(self, offset: int, size: int) -> int:
        """IOREGSEL or IOWIN; anything else is 0."""
        if offset == _SELECT:
            return self._select
        if offset != _WINDOW:
            return 0
        if self._select in (_ID, _ARBITRATION):
            return self._id
        if self._select == _VERSION:
            return self._version
        at = self._select - _REDIRECTION
        return self._entries[at] if 0 <= at < len(self._entries) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """IOREGSEL or IOWIN; anything else is ignored."""
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _WINDOW:
            at = self._select - _REDIRECTION
            if self._select == _ID:
                self._id = value & 0x0F00_0000
            elif 0 <= at < len(self._entries):
                self._entries[at] = value & MASK32 & ~_READ_ONLY
