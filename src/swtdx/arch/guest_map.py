"""The guest-physical address map: where a TD's RAM ends and its devices are.

This is the one place that gives such addresses out.  Devices claim what the map says, the boot code puts
RAM around it, and the hypervisor learns from it which addresses are devices.  GPAs have no shared bit here.

Sources: Intel SDM volume 3, section 11.4.1 (local APIC), Intel ICH9 data sheet (I/O APIC), PCI Firmware
Specification 3.3, section 4.1 (ECAM); the rest is a choice, near to a Q35's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.arch.units import GIB, MIB, PAGE
from swtdx.arch.x86 import LOCAL_APIC_BASE

FOUR_GIB: Final = 4 * GIB

IOAPIC_GPA: Final = 0xFEC0_0000
#: The PC's legacy hole: RAM to software that is measured, but offered to no one.
LEGACY_HOLE_GPA: Final = 0xA0000
#: Where a PC's firmware is, up to 4 GiB.
FIRMWARE_GPA: Final = 0xFF00_0000
#: ECAM of the 256 buses of a segment, aligned to its size.
ECAM_BYTES: Final = 256 * MIB
#: ECAM of one bus.
ECAM_BUS_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class GuestMap:
    """Where things are.  Ends are exclusive.

    Args:
        low_ram_end: RAM below 4 GiB ends here at the latest; the rest goes on at 4 GiB.
        pci_window, pci_window_end: memory of PCI devices, ECAM included.
        ecam: ECAM, if it answers from the start.
    """

    low_ram_end: int = 2 * GIB
    pci_window: int = 0xC000_0000
    pci_window_end: int = IOAPIC_GPA
    ecam: int = 0xE000_0000

    @property
    def pci_memory(self) -> tuple[int, int]:
        """(GPA, bytes) of the PCI window."""
        return self.pci_window, self.pci_window_end - self.pci_window

    def device_at(self, gpa: int) -> str | None:
        """The name of the device, or of the place where software looks for one, at ``gpa``; None: memory."""
        if LOCAL_APIC_BASE <= gpa < LOCAL_APIC_BASE + PAGE:
            return "the local APIC"
        if IOAPIC_GPA <= gpa < IOAPIC_GPA + PAGE:
            return "the I/O APIC"
        if self.ecam <= gpa < self.ecam + ECAM_BYTES:
            return "PCI configuration space (ECAM)"
        if self.pci_window <= gpa < self.pci_window_end:
            return "the PCI window"
        if FIRMWARE_GPA <= gpa < FOUR_GIB:
            return "firmware"
        return None

    def devices(self) -> tuple[tuple[int, int], ...]:
        """(GPA, bytes) of what is a device, or where an operating system looks for one."""
        return (
            self.pci_memory,
            (IOAPIC_GPA, PAGE),
            (LOCAL_APIC_BASE, PAGE),
        )


#: The map of our own board.
GUEST_MAP: Final = GuestMap()

#: QEMU's q35: up to here all RAM is below 4 GiB, and what has more gets 2 GiB there.
_Q35_LOW_LIMIT: Final = 0xB000_0000
_Q35_LOW_OF_MORE: Final = 2 * GIB


def q35_map(memory: int) -> GuestMap:
    """The map of a q35 with ``memory`` bytes of RAM, as QEMU lays it out (``hw/i386/pc_q35.c``).

    Its PCI window starts where low RAM may end, because firmware decides where in it ECAM is: OVMF of 2022 at
    0xB000_0000, later ones at 0xE000_0000.
    """
    low = _Q35_LOW_OF_MORE if memory >= _Q35_LOW_LIMIT else memory
    window = max(_Q35_LOW_OF_MORE, -(-low // (256 * MIB)) * 256 * MIB)
    return GuestMap(low_ram_end=low, pci_window=window)
