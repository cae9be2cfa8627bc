"""An event's data in words: what tells one event from another when a register differs.

Types: TCG PC Client Platform Firmware Profile, table 27.  Tags: Linux ``drivers/firmware/efi/libstub``
(efistub.h), systemd ``src/fundamental/tpm-pcr.h``.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from . import efi

#: Tags of EV_EVENT_TAG events whose data does not say what they are.
TAGS: Final = {
    0xF5BC582A: "systemd-boot's loader configuration",
    0x6C46F751: "device tree add-on of systemd-stub",
    0x49DFFE0F: "initrd add-on of systemd-stub",
    0xDAC08E1A: "microcode add-on of systemd-stub",
    0x13AED6DB: "UKI profile of systemd-stub",
}
_SECTION: Final = re.compile(r"\.[a-z]{2,12}")
#: Event type of dstack's runtime events.
DSTACK: Final = 0x08000001


def describe(kind: int, data: bytes) -> str:
    """Event data of a type in words; what does not have the type's form is shown as what it is."""
    text = _by_kind(kind, data)
    if text is not None:
        return text
    if not data:
        return "no data"
    if text := efi.words(data):
        return text
    return f"{len(data)} bytes {data[:16].hex()}"


def _by_kind(kind: int, data: bytes) -> str | None:
    match kind:
        case 0x00000003:
            return efi.words(data[:16]) or None
        case 0x00000004:
            return _separator(data)
        case 0x0000000A:
            return _config(data)
        case 0x0000000D:
            return _ipl(data)
        case 0x00000006:
            return _tagged(data)
        case 0x80000001 | 0x80000002 | 0x8000000C:
            return efi.variable_text(data)
        case 0x800000E0:
            return efi.variable_text(data, authority=True)
        case 0x80000003 | 0x80000004 | 0x80000005:
            return efi.image_load(data)
        case 0x80000006:
            return efi.gpt(data)
        case 0x80000008:
            return efi.blob(data, described=False)
        case 0x8000000A:
            return efi.blob(data, described=True)
        case 0x80000009:
            return efi.tables(data, described=False)
        case 0x8000000B:
            return efi.tables(data, described=True)
    return None


def _separator(data: bytes) -> str | None:
    if len(data) != 4:
        return None
    value = int.from_bytes(data, "little")
    if value in (0, 0xFFFFFFFF):
        return f"separator {data.hex()}"
    return f"separator of an error, {data.hex()}" if value == 1 else None


def _config(data: bytes) -> str | None:
    # td-shim: a name of 16 bytes, the size of what follows, and that (a HOB list, a payload's description).
    if len(data) < 20 or int.from_bytes(data[16:20], "little") != len(data) - 20:
        return None
    name = efi.words(data[:16].rstrip(b"\0"))
    return f"{name}, {len(data) - 20} bytes" if name else None


def _ipl(data: bytes) -> str | None:
    # Grub logs its buffer, whose end may lie behind the text's.
    text = efi.words(data) or efi.words(data.partition(b"\0")[0])
    if not text:
        return None
    # systemd-stub logs each section of a UKI by name, and then its content under the same name.
    return f"section {text} (systemd-stub)" if _SECTION.fullmatch(text) else text


def _tagged(data: bytes) -> str | None:
    # taggedEventID, taggedEventDataSize, data.
    if len(data) < 8:
        return None
    tag, size = struct.unpack_from("<II", data)
    if size != len(data) - 8:
        # Linux EFI stubs before 5.18 log a bare name under this type.
        return None
    # Linux's own tags (0x8f3b22ec initrd, 0x8f3b22ed load options) carry their names as data.
    name = f"tag {tag:#x}" + (f" ({TAGS[tag]})" if tag in TAGS else "")
    content = efi.words(data[8:]) or (data[8:].hex() if size <= 16 else f"{size} bytes {data[8:24].hex()}")
    return f"{name}: {content}" if size else name
