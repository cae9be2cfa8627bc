"""Power management: the block of registers at 0x600 that ends or restarts the machine.

It is laid out as an ICH9's ACPI block, so that one device serves both kinds of guest:

=======  ==============================================================================
offset   register
=======  ==============================================================================
0x0      PM1a event status (2 bytes, write 1 to clear) and enable (2 bytes); an event that is
         enabled asserts ACPI's interrupt
0x4      PM1a control (2 bytes)
0x5      ... whose high byte is at the same time the sleep control register of
         hardware-reduced ACPI: both have SLP_TYP in bits 12:10 and SLP_EN in bit 13
0x6      sleep status register of hardware-reduced ACPI (WAK_STS in bit 7)
0x8      power management timer, 24 bits at 3.579545 MHz (for OVMF; our ACPI tables
         do not offer it to the operating system)
=======  ==============================================================================

The one event is that of the global lock (GBL_STS), which firmware raises when it has released that lock.
There is no lock and no firmware here.  But an operating system with ACPI listens, whatever drivers it has,
and if it has suspended itself it wakes up.

Sources: ACPI 6.5 sections 4.8.3.1 (PM1 events), 4.8.3.2 (PM1 control), 4.8.3.3 (timer), 4.8.3.7 (sleep
registers); Intel ICH9 data sheet, "Power Management I/O Registers".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.devices.saved import In, Out

#: First port of the block (OVMF programs an ICH9's PMBASE to this) and its size in bytes.
PM_BASE: Final = 0x600
PM_LENGTH: Final = 0x10
PM1_CONTROL_PORT: Final = PM_BASE + 4
SLEEP_CONTROL_PORT: Final = PM_BASE + 5
SLEEP_STATUS_PORT: Final = PM_BASE + 6
PM_TIMER_PORT: Final = PM_BASE + 8
#: SLP_TYP of S5 (soft off), as on an ICH9 under QEMU; the DSDT's \_S5 names the same number.
S5_SLEEP_TYPE: Final = 0
#: What to write to :data:`SLEEP_CONTROL_PORT`, one byte, to power off.
POWER_OFF_VALUE: Final = 0x20 | S5_SLEEP_TYPE << 2
#: The reset control register of a PC's chipset, and what to write to it, one byte, to restart.
RESET_PORT: Final = 0xCF9
RESET_VALUE: Final = 0x06
PM_TIMER_HZ: Final = 3_579_545

_SLP_EN: Final = 0x20
#: PM1 status and enable bit of the global lock.
GBL_EVENT: Final = 1 << 5


class PowerBlock:
    """The registers above.

    Args:
        power_off: called when the guest asks for S5.
        clock: nanoseconds since any fixed moment; drives the timer.
        interrupt: told whenever the level of ACPI's interrupt changes.
    """

    def __init__(
        self,
        power_off: Callable[[], None],
        clock: Callable[[], int],
        interrupt: Callable[[bool], None] = lambda _level: None,
    ) -> None:
        self._power_off = power_off
        self._clock = clock
        self._interrupt = interrupt
        self._level = False
        self._status = 0
        #: Whether the guest has suspended itself and has not been woken yet.
        self.sleeping = False
        self._enable = 0
        self._control = 0

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  The timer is the host's clock."""
        out.u16(self._status)
        out.u16(self._enable)
        out.u16(self._control)
        out.u8(self.sleeping)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._status = section.u16()
        self._enable = section.u16()
        self._control = section.u16()
        self.sleeping = bool(section.u8())
        self._level = bool(self._status & self._enable)

    def wake_up(self) -> None:
        """Raise the event that every operating system with ACPI listens to."""
        self.sleeping = False
        self._status |= GBL_EVENT
        self._update()

    def _update(self) -> None:
        level = bool(self._status & self._enable)
        if level is not self._level:
            self._level = level
            self._interrupt(level)

    def _byte(self, offset: int) -> int:
        if offset in (0, 1):
            return self._status >> 8 * offset & 0xFF
        if offset in (2, 3):
            return self._enable >> 8 * (offset - 2) & 0xFF
        if offset in (4, 5):
            return self._control >> 8 * (offset - 4) & 0xFF
        return 0  # no sleep state but S5 is entered, so there is none to be woken from

    def read(self, offset: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if offset >= 8:
            ticks = self._clock() * PM_TIMER_HZ // 1_000_000_000 & 0xFF_FFFF
            return ticks >> 8 * (offset - 8) if offset < 12 else 0
        return sum(self._byte(offset + step) << 8 * step for step in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            self._write_byte(at, byte)

    def _write_byte(self, offset: int, byte: int) -> None:
        if offset in (0, 1):
            self._status &= ~(byte << 8 * offset)
            self._update()
        elif offset in (2, 3):
            shift = 8 * (offset - 2)
            self._enable = self._enable & ~(0xFF << shift) | byte << shift
            self._update()
        elif offset == 4:
            self._control = self._control & 0xFF00 | byte
        elif offset == 5:
            # SLP_EN acts and is not kept: it always reads as zero.
            self._control = self._control & 0x00FF | (byte & ~_SLP_EN) << 8
            if byte & _SLP_EN and byte >> 2 & 7 == S5_SLEEP_TYPE:
                self._power_off()


class ResetControl:
    """Port 0xCF9: a write with bit 2 (RST_CPU) rising restarts the machine.

    Source: Intel ICH9 data sheet, "RST_CNT: Reset Control Register".
    """

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart
        self._value = 0

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        out.u8(self._value)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._value = section.u8()

    def read(self) -> int:
        """The register, one byte."""
        return self._value

    def write(self, value: int) -> None:
        """Write the register, one byte."""
        rising = value & 4 and not self._value & 4
        self._value = value & 0x0E
        if rising:
            self._restart()
