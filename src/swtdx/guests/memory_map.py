"""Where things are in the guest-physical memory of a directly booted TD.

====================  ==========================================================================
0                     RAM to 640 KiB
0xA0000               the PC's legacy hole: private, accepted and zero, but not offered for use
ACPI_GPA              ACPI tables (e820: ACPI)
EVENT_LOG_GPA         the event log that the CCEL table points to (e820: ACPI NVS, because Linux maps
                      a *reserved* area as shared memory in a TD, but ACPI areas as private: Linux
                      ``arch/x86/mm/ioremap.c``, ``__ioremap_check_encrypted``)
BOOT_PARAMS_GPA       the zero page; COMMAND_LINE_GPA: the command line (RAM)
16 MiB                usually: the kernel; its file's first part just below (RAM)
top of low RAM        the initrd, at most 2 GiB from 0
PCI window and APICs  where :mod:`swtdx.arch.guest_map` says (shared)
SHIM_GPA              64 KiB: mailbox for other vCPUs (ACPI NVS), the shim's pages (reserved)
4 GiB                 the rest of RAM
====================  ==========================================================================
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from swtdx.arch.guest_map import FOUR_GIB, GUEST_MAP, LEGACY_HOLE_GPA
from swtdx.arch.units import GIB, MIB, PAGE
from swtdx.guests.errors import DoesNotFit

ACPI_GPA: Final = 0x100000
ACPI_BYTES: Final = 0x10000
EVENT_LOG_GPA: Final = 0x110000
EVENT_LOG_BYTES: Final = 0x10000
BOOT_PARAMS_GPA: Final = 0x120000
COMMAND_LINE_GPA: Final = 0x121000
COMMAND_LINE_BYTES: Final = 0x10000
#: The kernel's file may start here at the lowest.
LOADS_GPA: Final = COMMAND_LINE_GPA + COMMAND_LINE_BYTES

SHIM_GPA: Final = 0xFFFF0000
#: Mailbox of the MADT's multiprocessor wakeup structure, 4 KiB.
MAILBOX_GPA: Final = SHIM_GPA
#: The measured page that tells the shim what to do.
BOOT_INFO_GPA: Final = 0xFFFF5000

#: The shim reaches shared memory through a window of this size.
SHARED_WINDOW_BYTES: Final = 512 * GIB


class E820Type(enum.IntEnum):
    """Memory types of the e820 map (ACPI 6.5, section 15, table "Address Range Types")."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


@dataclass(frozen=True, slots=True)
class Range:
    """``size`` bytes of guest-physical memory from ``base``."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.base + self.size


@dataclass(frozen=True, slots=True)
class E820Entry:
    """``size`` bytes from ``base`` of type ``kind``."""

    base: int
    size: int
    kind: E820Type


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """RAM of a TD, as ranges to be accepted, and as the kernel is told of it."""

    ram: tuple[Range, ...]
    e820: tuple[E820Entry, ...]

    @property
    def low_end(self) -> int:
        """The first address after the RAM below 4 GiB."""
        return self.ram[0].end

    @property
    def end(self) -> int:
        """The first address after all RAM."""
        return self.ram[-1].end


def memory_map(memory_bytes: int) -> MemoryMap:
    """The layout for a TD with so much RAM.

    Raises:
        DoesNotFit: not a whole number of pages, or too little to hold even the fixed areas.
    """
    if memory_bytes % PAGE:
        raise DoesNotFit(f"a TD's memory is a whole number of 4 KiB pages, not {memory_bytes} bytes")
    if memory_bytes < 2 * MIB:
        raise DoesNotFit(f"{memory_bytes} bytes of memory are too few for any kernel; give megabytes: 512M")
    low = min(memory_bytes, GUEST_MAP.low_ram_end)
    high = memory_bytes - low
    ram = [Range(0, low)]
    e820 = [
        E820Entry(0, LEGACY_HOLE_GPA, E820Type.RAM),
        E820Entry(ACPI_GPA, ACPI_BYTES, E820Type.ACPI),
        E820Entry(EVENT_LOG_GPA, EVENT_LOG_BYTES, E820Type.NVS),
        E820Entry(BOOT_PARAMS_GPA, low - BOOT_PARAMS_GPA, E820Type.RAM),
        E820Entry(MAILBOX_GPA, PAGE, E820Type.NVS),
        E820Entry(SHIM_GPA + PAGE, FOUR_GIB - SHIM_GPA - PAGE, E820Type.RESERVED),
    ]
    if high:
        ram.append(Range(FOUR_GIB, high))
        e820.append(E820Entry(FOUR_GIB, high, E820Type.RAM))
    return MemoryMap(tuple(ram), tuple(e820))
