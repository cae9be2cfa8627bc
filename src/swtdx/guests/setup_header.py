"""The bzImage setup header and the zero page (``boot_params``), as byte layouts.

Source: Linux ``Documentation/arch/x86/boot.rst`` ("The Real-Mode Kernel Header", protocol 2.15) and
``Documentation/arch/x86/zero-page.rst``.  The header lies at the same offsets in a bzImage file and in
the zero page, so one :class:`~swtdx.arch.layout.Struct` serves both.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Array, Blob, Field, Struct

#: First byte of the setup header, in the file and in the zero page.
HEADER_START: Final = 0x1F1
ZERO_PAGE_BYTES: Final = 4096
#: Entries of 20 bytes (base u64, length u64, type u32) that the zero page has room for.
E820_MAX_ENTRIES: Final = 128
E820_ENTRY_BYTES: Final = 20

BOOT_FLAG: Final = 0xAA55
HEADER_MAGIC: Final = int.from_bytes(b"HdrS", "little")
#: ``loadflags``: the protected-mode code is loaded at 1 MiB or above.
LOADED_HIGH: Final = 1 << 0
#: ``xloadflags``: there is a 64-bit entry point 0x200 bytes into the protected-mode code.
XLF_KERNEL_64: Final = 1 << 0
#: ``type_of_loader`` of a loader that has no assigned number.
LOADER_UNDEFINED: Final = 0xFF


class SETUP_HEADER(
    Struct, size=ZERO_PAGE_BYTES, label="setup_header", source="Linux Documentation/arch/x86/boot.rst"
):
    """The fields of a bzImage's first 4 KiB that a boot loader reads or writes"""

    acpi_rsdp_addr = Field(0x070, 8, "zero page only: GPA of the RSDP")
    ext_ramdisk_image = Field(0x0C0, 4, "zero page only: high half of ramdisk_image")
    ext_ramdisk_size = Field(0x0C4, 4, "zero page only: high half of ramdisk_size")
    ext_cmd_line_ptr = Field(0x0C8, 4, "zero page only: high half of cmd_line_ptr")
    e820_entries = Field(0x1E8, 1, "zero page only: entries in e820_table")
    sentinel = Field(0x1EF, 1, "zero page only: not 0 if the loader copied more than the header")
    setup_sects = Field(0x1F1, 1, "512-byte sectors of real-mode code after the first one; 0 means 4")
    boot_flag = Field(0x1FE, 2, "0xAA55")
    jump_length = Field(0x201, 1, "operand of the short jump at 0x200: the header ends at 0x202 + this")
    header = Field(0x202, 4, '"HdrS"')
    version = Field(0x206, 2, "boot protocol, major << 8 | minor")
    kernel_version = Field(0x20E, 2, "offset - 0x200 of the version string; 0 if there is none")
    type_of_loader = Field(0x210, 1)
    loadflags = Field(0x211, 1)
    code32_start = Field(0x214, 4)
    ramdisk_image = Field(0x218, 4)
    ramdisk_size = Field(0x21C, 4)
    cmd_line_ptr = Field(0x228, 4)
    initrd_addr_max = Field(0x22C, 4, "highest address that a byte of the initrd may have")
    kernel_alignment = Field(0x230, 4)
    relocatable_kernel = Field(0x234, 1)
    xloadflags = Field(0x236, 2)
    cmdline_size = Field(0x238, 4, "longest command line, without its NUL")
    payload_offset = Field(0x248, 4, "from the start of the protected-mode code")
    payload_length = Field(0x24C, 4)
    pref_address = Field(0x258, 8)
    init_size = Field(0x260, 4, "bytes from the load address that the kernel needs before it reads e820")
    e820_table = Array(0x2D0, 4, E820_MAX_ENTRIES * E820_ENTRY_BYTES // 4, "zero page only")
    reserved_tail = Blob(0xCD0, ZERO_PAGE_BYTES - 0xCD0, reserved=True)
