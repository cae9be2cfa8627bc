"""A kernel in the machine's memory, as a boot loader leaves it (Linux "64-bit boot protocol").

=============  =====================================================================================
0x10000        the zero page, the command line (0x11000), GDT (0x20000), page tables (0x21000...):
               reserved, because processors that are started later use the last two
0x90000        ACPI tables
0x9F000        the mailbox by which other processors are started (ACPI 6.5, "Multiprocessor Wakeup")
16 MiB         the kernel; the initrd ends where memory below 2 GiB ends that the BIOS gives
=============  =====================================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.arch.units import KIB, LARGE_PAGE, MIB, PAGE
from swtdx.arch.x86 import PTE_P, PTE_PS, PTE_W
from swtdx.devices.acpi.build import AcpiConfig, build_acpi
from swtdx.guests.boot_params import build_boot_params
from swtdx.guests.kernel import ENTRY_64_OFFSET, KernelImage
from swtdx.guests.memory_map import E820Entry, E820Type, Range
from swtdx.host.errors import HostError
from swtdx.host.lines import UARTS
from swtdx.machine.machine import Machine

ZERO_PAGE: Final = 0x10000
COMMAND_LINE: Final = 0x11000
GDT: Final = 0x20000
PML4: Final = 0x21000
_PDPT: Final = 0x22000
_DIRECTORIES: Final = 0x23000
_OURS_END: Final = 0x27000
ACPI: Final = 0x90000
MAILBOX: Final = 0x9F000
_CONVENTIONAL: Final = 640 * KIB
_KERNEL: Final = 16 * MIB
#: The local APICs and the I/O APIC of the board: pages that the host reaches.
IOAPIC: Final = 0xFEC00000
LOCAL_APIC: Final = 0xFEE00000
BOARD: Final = (IOAPIC, LOCAL_APIC)
_IOAPIC_PINS: Final = 24


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the first processor starts, and what it finds in RSI."""

    rip: int
    rsi: int


def load(machine: Machine, kernel: KernelImage, initrd: bytes, cmdline: str) -> Entry:
    """Put everything into memory.

    Raises:
        HostError: it does not fit, or the command line is too long.
    """
    memory = machine.memory
    text = cmdline.encode() + b"\0"
    if len(text) > min(kernel.cmdline_size + 1, GDT - COMMAND_LINE):
        raise HostError(
            f"the kernel's command line has {len(text) - 1} bytes; it takes {kernel.cmdline_size}"
        )
    usable = [Range(base, size) for base, size in machine.usable if base >= MIB]
    place = _KERNEL if kernel.relocatable else kernel.pref_address
    room = next((part for part in usable if part.base <= place < part.end), None)
    low = [part for part in usable if part.end <= 2 << 30]
    top = low[-1].end if low else 0
    at = (top - len(initrd)) & -LARGE_PAGE
    if room is None or place + kernel.init_size > (at if room is low[-1] else room.end):
        raise HostError(
            f"kernel ({kernel.init_size >> 20} MiB) and initrd ({len(initrd) >> 20} MiB) do not fit into the"
            " machine's memory: give more, e.g. --memory 1G"
        )
    memory.write(place, kernel.data[kernel.setup_bytes :])
    if initrd:
        memory.write(at, initrd)
    memory.write(COMMAND_LINE, text)
    acpi = build_acpi(
        AcpiConfig(
            apic_ids=tuple(lp.x2apic_id for lp in machine.processors),
            wakeup_mailbox=MAILBOX if len(machine.processors) > 1 else None,
            serial_port=UARTS[0][0],
            serial_irq=UARTS[0][1],
            cmos_rtc=True,
            ioapic=(IOAPIC, 0, _IOAPIC_PINS),
        ),
        ACPI,
    )
    if ACPI + acpi.length > MAILBOX:
        raise HostError("the ACPI tables of so many processors do not fit")
    memory.write(ACPI, acpi.image())
    memory.write(MAILBOX, bytes(PAGE))
    params = build_boot_params(
        kernel,
        load_gpa=place,
        cmdline_gpa=COMMAND_LINE,
        initrd=Range(at, len(initrd)) if initrd else None,
        e820=_e820(machine, usable),
        rsdp_gpa=acpi.rsdp_gpa,
    )
    memory.write(ZERO_PAGE, params)
    memory.write(GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
    _identity_map(machine)
    return Entry(place + ENTRY_64_OFFSET, ZERO_PAGE)


def _e820(machine: Machine, usable: Sequence[Range]) -> list[E820Entry]:
    entries = [
        E820Entry(0, ZERO_PAGE, E820Type.RAM),
        E820Entry(ZERO_PAGE, _OURS_END - ZERO_PAGE, E820Type.RESERVED),
        E820Entry(_OURS_END, ACPI - _OURS_END, E820Type.RAM),
        E820Entry(ACPI, MAILBOX - ACPI, E820Type.ACPI),
        E820Entry(MAILBOX, _CONVENTIONAL - MAILBOX, E820Type.NVS),
        E820Entry(_CONVENTIONAL, MIB - _CONVENTIONAL, E820Type.RESERVED),
    ]
    at = MIB
    for part in (*usable, *(Range(base + size, 0) for base, size in machine.memory.populated)):
        if part.base > at and any(base <= at < base + size for base, size in machine.memory.populated):
            entries.append(E820Entry(at, part.base - at, E820Type.RESERVED))
        if part.size:
            entries.append(E820Entry(part.base, part.size, E820Type.RAM))
        at = max(at, part.end)
    return sorted(entries, key=lambda entry: entry.base)


def _identity_map(machine: Machine) -> None:
    """All below 4 GiB in pages of 2 MiB, for processors before they have tables of their own."""
    memory = machine.memory
    memory.write(PML4, struct.pack("<Q", _PDPT | PTE_P | PTE_W).ljust(PAGE, b"\0"))
    directories = [_DIRECTORIES + number * PAGE | PTE_P | PTE_W for number in range(4)]
    memory.write(_PDPT, struct.pack("<4Q", *directories).ljust(PAGE, b"\0"))
    pages = [number * LARGE_PAGE | PTE_P | PTE_W | PTE_PS for number in range(4 * 512)]
    memory.write(_DIRECTORIES, struct.pack("<2048Q", *pages))
