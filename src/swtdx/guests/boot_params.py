"""The zero page for the 64-bit boot protocol (Linux ``Documentation/arch/x86/boot.rst``)."""

from __future__ import annotations

from collections.abc import Sequence

from swtdx.arch.units import MASK32
from swtdx.guests.kernel import KernelImage
from swtdx.guests.memory_map import E820Entry, Range
from swtdx.guests.setup_header import (
    E820_ENTRY_BYTES,
    E820_MAX_ENTRIES,
    HEADER_START,
    LOADER_UNDEFINED,
    SETUP_HEADER,
    ZERO_PAGE_BYTES,
)


def build_boot_params(
    kernel: KernelImage,
    *,
    load_gpa: int,
    cmdline_gpa: int,
    initrd: Range | None,
    e820: Sequence[E820Entry],
    rsdp_gpa: int,
) -> bytes:
    """The zero page, 4096 bytes.

    Args:
        kernel: whose setup header is copied.
        load_gpa: where the protected-mode code is loaded.
        cmdline_gpa: the command line, which ends with NUL.
        initrd: where the initrd lies, if there is one.
        e820: the memory map, at most 128 entries.
        rsdp_gpa: the ACPI root pointer.
    """
    if len(e820) > E820_MAX_ENTRIES:
        raise ValueError(f"the zero page holds {E820_MAX_ENTRIES} e820 entries, not {len(e820)}")
    page = bytearray(ZERO_PAGE_BYTES)
    header_end = 0x202 + SETUP_HEADER.jump_length.get(kernel.data[:ZERO_PAGE_BYTES])
    page[HEADER_START:header_end] = kernel.data[HEADER_START:header_end]
    field = SETUP_HEADER
    field.type_of_loader.set(page, LOADER_UNDEFINED)
    field.code32_start.set(page, load_gpa & MASK32)
    field.cmd_line_ptr.set(page, cmdline_gpa & MASK32)
    field.ext_cmd_line_ptr.set(page, cmdline_gpa >> 32)
    if initrd is not None:
        field.ramdisk_image.set(page, initrd.base & MASK32)
        field.ext_ramdisk_image.set(page, initrd.base >> 32)
        field.ramdisk_size.set(page, initrd.size & MASK32)
        field.ext_ramdisk_size.set(page, initrd.size >> 32)
    field.acpi_rsdp_addr.set(page, rsdp_gpa)
    field.e820_entries.set(page, len(e820))
    words = E820_ENTRY_BYTES // 4
    for index, entry in enumerate(e820):
        values = (entry.base & MASK32, entry.base >> 32, entry.size & MASK32, entry.size >> 32, entry.kind)
        for offset, value in enumerate(values):
            field.e820_table.set(page, index * words + offset, value)
    return bytes(page)
