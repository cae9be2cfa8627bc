"""Linux bzImages: what a boot loader must know of one, and clear words when a file is not one.

Sources: Linux ``Documentation/arch/x86/boot.rst``; a kernel's answer to "can you be a TD guest?" is
found as described in :mod:`swtdx.guests.tdx_support`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests.errors import NotAKernel
from swtdx.guests.files import read_file
from swtdx.guests.setup_header import BOOT_FLAG, HEADER_MAGIC, LOADED_HIGH, SETUP_HEADER, XLF_KERNEL_64

#: The 64-bit entry point and ``init_size`` exist from protocol 2.12 on (Linux 3.8).
OLDEST_PROTOCOL: Final = 0x020C
#: Where 64-bit code starts, in bytes from the start of the protected-mode code.
ENTRY_64_OFFSET: Final = 0x200
_SECTOR: Final = 512
#: The header's last byte in protocol 2.15 is 0x26B, so anything shorter cannot be a kernel.
_SHORTEST: Final = 0x400


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A bzImage that the 64-bit boot protocol can start.

    Sizes and addresses are in bytes.  ``data`` is the whole file.
    """

    data: bytes
    name: str
    protocol: int
    setup_bytes: int
    version: str
    xloadflags: int
    init_size: int
    pref_address: int
    kernel_alignment: int
    relocatable: bool
    cmdline_size: int
    initrd_addr_max: int
    payload_offset: int
    payload_length: int

    @property
    def release(self) -> str:
        """The first word of the version string, as ``uname -r`` gives it ("" if there is none)."""
        return self.version.split(" ", 1)[0]

    @property
    def payload(self) -> bytes:
        """The compressed kernel proper (with whatever its compressor appended)."""
        start = self.setup_bytes + self.payload_offset
        return self.data[start : start + self.payload_length]


def parse_kernel(data: bytes, name: str = "kernel") -> KernelImage:
    """Read the setup header of a bzImage.

    Args:
        data: the whole file.
        name: what to call it in messages, usually its path.

    Raises:
        NotAKernel: the file is not a bzImage, is cut short, or is too old for the 64-bit boot protocol.
    """
    if len(data) < _SHORTEST or SETUP_HEADER.header.get(data.ljust(4096, b"\0")) != HEADER_MAGIC:
        raise NotAKernel(f"{name} is not a Linux bzImage: {_guess(data)}")
    head = data[:4096].ljust(4096, b"\0")
    field = SETUP_HEADER
    if field.boot_flag.get(head) != BOOT_FLAG:
        raise NotAKernel(f"{name} is not a Linux bzImage: its boot flag at 0x1FE is not 0xAA55")
    protocol = field.version.get(head)
    if protocol < OLDEST_PROTOCOL:
        raise NotAKernel(
            f"{name} speaks boot protocol {protocol >> 8}.{protocol & 0xFF:02}; a TD starts by the 64-bit "
            "protocol, which needs 2.12 or later (Linux 3.8). Give a newer kernel."
        )
    xloadflags = field.xloadflags.get(head)
    if not xloadflags & XLF_KERNEL_64:
        raise NotAKernel(f"{name} has no 64-bit entry point (XLF_KERNEL_64): it is a 32-bit kernel")
    if not field.loadflags.get(head) & LOADED_HIGH:
        raise NotAKernel(f"{name} is a zImage, made for memory below 1 MiB; give a bzImage")
    setup_bytes = ((field.setup_sects.get(head) or 4) + 1) * _SECTOR
    payload_offset = field.payload_offset.get(head)
    payload_length = field.payload_length.get(head)
    needed = setup_bytes + payload_offset + payload_length
    if len(data) < needed:
        raise NotAKernel(f"{name} is cut short: it has {len(data)} bytes, its header promises {needed}")
    if field.init_size.get(head) == 0 or field.kernel_alignment.get(head) == 0:
        raise NotAKernel(f"{name} has a damaged header: init_size or kernel_alignment is 0")
    return KernelImage(
        data=data,
        name=name,
        protocol=protocol,
        setup_bytes=setup_bytes,
        version=_version_string(data, field.kernel_version.get(head), setup_bytes),
        xloadflags=xloadflags,
        init_size=field.init_size.get(head),
        pref_address=field.pref_address.get(head),
        kernel_alignment=field.kernel_alignment.get(head),
        relocatable=bool(field.relocatable_kernel.get(head)),
        cmdline_size=field.cmdline_size.get(head),
        initrd_addr_max=field.initrd_addr_max.get(head),
        payload_offset=payload_offset,
        payload_length=payload_length,
    )


#: Bytes of a bzImage at most; those of distributions have 6 to 20 million.
_LARGEST: Final = 1 << 30


def load_kernel(path: Path) -> KernelImage:
    """Read and parse the bzImage at ``path``.

    Raises:
        NotAKernel: see :func:`parse_kernel`; also when the file cannot be read.
    """
    try:
        data = read_file(path, "a bzImage", _LARGEST, NotAKernel)
    except PermissionError as error:
        raise NotAKernel(
            f"{path} is not readable by you (some distributions keep /boot for root): "
            f"copy it as root and give the copy, or run `swtdx guest fetch`"
        ) from error
    except OSError as error:
        raise NotAKernel(f"{path} cannot be read: {error.strerror}") from error
    return parse_kernel(data, str(path))


def _version_string(data: bytes, pointer: int, setup_bytes: int) -> str:
    if pointer == 0 or pointer + 0x200 >= setup_bytes:
        return ""
    start = pointer + 0x200
    end = data.find(b"\0", start, setup_bytes)
    return data[start : end if end >= 0 else setup_bytes].decode("ascii", "replace")


def _guess(data: bytes) -> str:
    """What the file seems to be, and what to give instead."""
    if data.startswith(b"\x7fELF"):
        return "it is an ELF file (a vmlinux?); give the arch/x86/boot/bzImage of the same build"
    if data.startswith(b"\x1f\x8b"):
        return "it is gzip-compressed; unpack it first (bzImages compress only their inside)"
    if data.startswith(b"MZ"):
        return "it is an EFI program without a kernel header (a unified image?); give the kernel inside it"
    if data.startswith(b"!<arch>\n"):
        return "it is a package; `swtdx guest fetch` unpacks those"
    if not data:
        return "it is empty"
    return "there is no HdrS signature at 0x202"
