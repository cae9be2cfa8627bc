"""An I/O APIC, to which only ACPI's interrupt is wired (:mod:`swtdx.devices.power`).

Linux gets a timer that may stop its tick only where the PC's interval timer is registered, because a TD's
CPUID does not say that the local APIC's timer always runs (leaf 6 is a #VE): an idle vCPU would else be
woken 250 times a second.  It registers that timer on platforms that are not hardware-reduced, and such a
platform needs an interrupt for ACPI's events, which come through here.  The interval timer stands still.

Our boards' has one input, that interrupt's, where a PC's has 24: Linux reads and writes every entry several
times while it boots, and each of the two halves takes two accesses that leave the TD, 500 in all.

Nothing that a suspended TD waits for would ever happen, and it would look as if it hung.  So it is woken
after a while.  Suspend-to-idle, which is all that Linux offers without S3, does not tell the platform; but
before it sleeps, Linux makes sure that no ACPI interrupt is being handled any more, and reads the input's
entry.  It does that on no other occasion but when it gives the interrupt up.

The hypervisor does not see a TD's end of interrupt.  So the tables call the input edge-triggered; one that
the guest makes level-triggered all the same is delivered when it is asserted, and again when it is unmasked.

Source: Intel 82093AA data sheet (I/O APIC), section 3; Intel SDM vol. 3, "Message Signalled Interrupts";
Linux arch/x86/kernel/apic/apic.c (apic_needs_pit), kernel/irq/pm.c (suspend_device_irqs: synchronize_irq).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch.units import MASK32
from swtdx.devices.msi import MSI_PREFIX
from swtdx.devices.saved import In, Out

#: Interrupt inputs of a PC's.
PINS: Final = 24
_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _REDIRECTION = 0x00, 0x01, 0x02, 0x10
_VERSION_VALUE: Final = 0x20
_VECTOR, _DELIVERY_MODE, _LOGICAL = 0xFF, 7 << 8, 1 << 11
_LEVEL: Final = 1 << 15
_PIN_MASKED: Final = 1 << 16
#: Delivery status and remote IRR are the device's.
_READ_ONLY: Final = 1 << 12 | 1 << 14


class IoApic:
    """Its two registers, and what is behind them; a :class:`~swtdx.devices.bus.BusDevice`.

    Args:
        pins: how many interrupt inputs it has, 1 to 120.
        send_msi: delivers the interrupt message (address, data) of an input.
        looked_at: told the number of an input whose entry was read while it was not masked.
    """

    def __init__(
        self,
        pins: int = PINS,
        send_msi: Callable[[int, int], None] = lambda _address, _data: None,
        looked_at: Callable[[int], None] = lambda _pin: None,
    ) -> None:
        self._version = (pins - 1) << 16 | _VERSION_VALUE
        self._send_msi = send_msi
        self._looked_at = looked_at
        self._levels = [False] * pins
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
        for level in self._levels:
            out.u8(level)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._select = section.u8()
        self._id = section.u32()
        halves = section.u16()
        if halves != len(self._entries):
            raise section.fail(f"an I/O APIC of {halves // 2} inputs, and this has {len(self._entries) // 2}")
        self._entries = [section.u32() for _ in range(halves)]
        self._levels = [bool(section.u8()) for _ in self._levels]

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
        if not 0 <= at < len(self._entries):
            return 0
        if not self._entries[at & ~1] & _PIN_MASKED:
            self._looked_at(at >> 1)
        return self._entries[at]

    def set_level(self, pin: int, level: bool) -> None:
        """Assert or release an input."""
        rising = level and not self._levels[pin]
        self._levels[pin] = level
        if rising:
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        low, high = self._entries[2 * pin : 2 * pin + 2]
        if low & _PIN_MASKED:
            return
        # Vector and delivery mode are at the same bits of a message's data, the destination and its mode not.
        address = MSI_PREFIX << 20 | high >> 24 << 12 | (4 if low & _LOGICAL else 0)
        self._send_msi(address, low & (_VECTOR | _DELIVERY_MODE))

    def write(self, offset: int, size: int, value: int) -> None:
        """IOREGSEL or IOWIN; anything else is ignored."""
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _WINDOW:
            at = self._select - _REDIRECTION
            if self._select == _ID:
                self._id = value & 0x0F00_0000
            elif 0 <= at < len(self._entries):
                before = self._entries[at]
                self._entries[at] = value & MASK32 & ~_READ_ONLY
                pin, high = divmod(at, 2)
                if not high and before & _PIN_MASKED and value & _LEVEL and self._levels[pin]:
                    self._deliver(pin)
