"""What UEFI structures in event data say: variables, boot entries, device paths, signature lists, GPT.

Layouts: UEFI specification 2.10 (device paths, chapter 10; load options, 3.1.3; GPT, 5.3; signature lists,
32.4.1) and TCG PC Client Platform Firmware Profile, section 10 (UEFI_VARIABLE_DATA, UEFI_IMAGE_LOAD_EVENT,
UEFI_GPT_DATA, UEFI_HANDOFF_TABLE_POINTERS, UEFI_PLATFORM_FIRMWARE_BLOB).  Every reader here gives None when
the sizes inside do not fit the bytes: then they are something else.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from cryptography import x509

GLOBAL_VARIABLE: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK: Final = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
_X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_SHA256: Final = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
#: Variables that hold signature lists.
_DATABASES: Final = frozenset({"PK", "KEK", "db", "dbx", "dbt", "dbr", "MokList", "MokListX", "MokListRT"})

#: Device path nodes of messaging that have names here, by sub-type.
_MESSAGING: Final = {
    1: "Atapi", 2: "Scsi", 5: "Usb", 10: "Vendor", 11: "Mac", 12: "IPv4", 13: "IPv6", 14: "Uart", 18: "Sata",
    19: "Iscsi", 23: "NVMe", 24: "Uri", 26: "Sd", 29: "eMMC",
}  # fmt: skip

#: Bytes of a value that are shown.
_SHOWN: Final = 32
#: Longest text that is shown, in characters.
_WORDS: Final = 200


def words(data: bytes, *, whole: bool = False) -> str:
    """Text out of UTF-16 or ASCII bytes on one line, "" if they are none; ``whole``: however long it is."""
    for encoding in ("utf-16-le", "ascii"):
        try:
            text = data.decode(encoding).rstrip("\0")
        except UnicodeDecodeError:
            continue
        text = " ".join(text.split())
        if text and text.isascii() and text.isprintable():
            return text if whole or len(text) <= _WORDS else text[: _WORDS - 3] + "..."
    return ""


def plain(data: bytes) -> str:
    """A value that is nothing in particular: text if it is text, else hex, the rest counted."""
    if len(data) > 3 and (text := words(data)):
        return text
    if len(data) <= _SHOWN:
        return data.hex()
    return f"{data[:_SHOWN].hex()}... ({len(data)} bytes)"


def guid(data: bytes) -> uuid.UUID:
    """A GUID as UEFI stores it (16 bytes)."""
    return uuid.UUID(bytes_le=data)


def variable(data: bytes) -> tuple[uuid.UUID, str, bytes] | None:
    """UEFI_VARIABLE_DATA: (vendor, name, value)."""
    if len(data) < 32:
        return None
    count, size = struct.unpack_from("<QQ", data, 16)
    end = 32 + 2 * count
    if end + size != len(data):
        return None
    try:
        name = data[32:end].decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    name = name.rstrip("\0")
    return (guid(data[:16]), name, data[end:]) if name.isprintable() and name else None


def variable_text(data: bytes, *, authority: bool = False) -> str | None:
    """A variable with its value: ``SecureBoot = 00``, ``Boot0000: UiApp``, ``dbx = 371 SHA-256 hashes``.

    ``authority``: the value is the entry of a signature database that let an image run.
    """
    found = variable(data)
    if found is None:
        return None
    vendor, name, value = found
    shown = name if vendor in (GLOBAL_VARIABLE, IMAGE_SECURITY, SHIM_LOCK) else f"{name} {{{vendor}}}"
    if not value:
        return f"{shown}, empty"
    if authority and vendor in (GLOBAL_VARIABLE, IMAGE_SECURITY, SHIM_LOCK):
        subject = _certificate(value[16:]) or _certificate(value)
        return f"{shown}: {subject}" if subject else f"{shown} = {plain(value)}"
    if name in _DATABASES:
        lists = signature_lists(value)
        if lists is not None:
            return f"{shown} = {lists}"
    if name in ("BootOrder", "DriverOrder", "SysPrepOrder") and not len(value) % 2:
        order = [f"{each:04X}" for each in struct.unpack(f"<{len(value) // 2}H", value)]
        return f"{shown} = {' '.join(order)}"
    if name in ("BootNext", "BootCurrent") and len(value) == 2:
        return f"{shown} = {int.from_bytes(value, 'little'):04X}"
    if name.rstrip("0123456789ABCDEFabcdef") in ("Boot", "Driver", "SysPrep") and len(name) >= 8:
        option = load_option(value)
        if option is not None:
            return f"{shown}: {option}"
    return f"{shown} = {plain(value)}"


def load_option(data: bytes) -> str | None:
    """EFI_LOAD_OPTION: description, and where it boots from."""
    if len(data) < 8:
        return None
    (path_size,) = struct.unpack_from("<H", data, 4)
    end = 6
    while data[end : end + 2] not in (b"\0\0", b""):
        end += 2
    if len(data) < end + 2 + path_size:
        return None
    try:
        description = data[6:end].decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    if not description.isprintable():
        return None
    path = device_path(data[end + 2 : end + 2 + path_size]) if path_size else ""
    return description + (f", {path}" if path else "")


def _signature_lists(data: bytes) -> list[tuple[str, list[bytes]]] | None:
    """EFI_SIGNATURE_LISTs: what each holds, and its entries (a GUID of 16 bytes, and the signature)."""
    found: list[tuple[str, list[bytes]]] = []
    at = 0
    while at < len(data):
        if len(data) < at + 28:
            return None
        size, header, each = struct.unpack_from("<III", data, at + 16)
        if size < 28 + header or at + size > len(data) or not each or (size - 28 - header) % each:
            return None
        kind = guid(data[at : at + 16])
        name = {_X509: "certificate", _SHA256: "SHA-256 hash"}.get(kind, f"entry of type {kind}")
        entries = [data[start : start + each] for start in range(at + 28 + header, at + size, each)]
        found.append((name, entries))
        at += size
    return found


def signatures(data: bytes) -> list[str] | None:
    """The entries of EFI_SIGNATURE_LISTs, a certificate by its subject; None if it is no such list."""
    lists = _signature_lists(data)
    if lists is None:
        return None
    return [
        f"{name} {_certificate(entry[16:]) or plain(entry[16:])}"
        for name, entries in lists
        for entry in entries
    ]


def signature_lists(data: bytes) -> str | None:
    """EFI_SIGNATURE_LISTs counted by what they hold."""
    lists = _signature_lists(data)
    if lists is None:
        return None
    counts: dict[str, int] = {}
    for name, entries in lists:
        counts[name] = counts.get(name, 0) + len(entries)
    parts = []
    for name, count in counts.items():
        plural = "es" if name.endswith("sh") else "s"
        parts.append(f"{count} {name}{plural if count > 1 and 'entry' not in name else ''}")
    return ", ".join(parts)


def _certificate(data: bytes) -> str:
    try:
        return x509.load_der_x509_certificate(data).subject.rfc4514_string()
    except ValueError:
        return ""


def device_path(data: bytes) -> str:
    """A device path in a few words: file names and firmware files, other nodes by type; "" if it is none."""
    parts: list[str] = []
    at = 0
    while at + 4 <= len(data):
        kind, sub, size = struct.unpack_from("<BBH", data, at)
        if size < 4 or at + size > len(data):
            return ""
        body = data[at + 4 : at + size]
        if kind == 0x7F:
            break
        parts.append(_node(kind, sub, body))
        at += size
    return "/".join(part for part in parts if part)


def _node(kind: int, sub: int, body: bytes) -> str:
    match (kind, sub):
        case (1, 1) if len(body) == 2:
            return f"Pci({body[1]:#x},{body[0]:#x})"
        case (1, 3) if len(body) == 20:
            start, end = struct.unpack_from("<QQ", body, 4)
            return f"Memory({start:#x},{end:#x})"
        case (1, 4) if len(body) >= 16:
            return f"Vendor({guid(body[:16])})"
        case (2, 1) if len(body) == 8:
            return f"Acpi({struct.unpack_from('<I', body)[0]:#x})"
        case (3, sub) if sub in _MESSAGING:
            return _MESSAGING[sub]
        case (4, 3) if len(body) >= 16:
            return f"VenMedia({guid(body[:16])})"
        case (4, 1) if len(body) == 38:
            (number,) = struct.unpack_from("<I", body)
            return f"Partition({number},{guid(body[20:36])})"
        case (4, 4):
            return words(body)
        case (4, 6) if len(body) == 16:
            return f"FvFile({guid(body)})"
        case (4, 7) if len(body) == 16:
            return f"Fv({guid(body)})"
    return f"Node({kind},{sub})"


def _image(data: bytes) -> tuple[int, int, bytes] | None:
    """UEFI_IMAGE_LOAD_EVENT: (address, bytes, device path)."""
    if len(data) < 32:
        return None
    base, size, _link, path_size = struct.unpack_from("<QQQQ", data)
    return (base, size, data[32:]) if 32 + path_size == len(data) else None


def image_load(data: bytes) -> str | None:
    """Where a PE image lies, its size, and the path it came from."""
    found = _image(data)
    if found is None:
        return None
    base, size, raw = found
    path = device_path(raw)
    return f"PE image at {base:#x}, {size} bytes" + (f", {path}" if path else "")


def image_path(data: bytes) -> str | None:
    """The path that a PE image came from; None if the data is no UEFI_IMAGE_LOAD_EVENT."""
    found = _image(data)
    return None if found is None else device_path(found[2])


def image_size(data: bytes) -> int | None:
    """Bytes of a PE image; None if the data is no UEFI_IMAGE_LOAD_EVENT."""
    found = _image(data)
    return None if found is None else found[1]


def _gpt_entries(data: bytes) -> list[bytes] | None:
    """The entries of UEFI_GPT_DATA."""
    if len(data) < 100 or data[:8] != b"EFI PART":
        return None
    (count,) = struct.unpack_from("<Q", data, 92)
    (each,) = struct.unpack_from("<I", data, 84)
    if each < 128 or 100 + count * each != len(data):
        return None
    return [data[100 + number * each :][:each] for number in range(count)]


def gpt(data: bytes) -> str | None:
    """UEFI_GPT_DATA: the disk and its partitions."""
    entries = _gpt_entries(data)
    if entries is None:
        return None
    names = [words(entry[56:128]) or str(guid(entry[:16])) for entry in entries]
    disk = f"GPT of disk {guid(data[56:72])}, {len(names)} partitions"
    return disk + (f": {', '.join(names)}" if names else "")


def partitions(data: bytes) -> list[str] | None:
    """The disk of UEFI_GPT_DATA, and each partition with its id, type and blocks."""
    entries = _gpt_entries(data)
    if entries is None:
        return None
    found = [f"disk {guid(data[56:72])}"]
    for entry in entries:
        start, end = struct.unpack_from("<QQ", entry, 32)
        found.append(
            f"partition {words(entry[56:128]) or 'without a name'}, id {guid(entry[16:32])}, type "
            f"{guid(entry[:16])}, blocks {start} to {end}"
        )
    return found


def tables(data: bytes, *, described: bool) -> str | None:
    """UEFI_HANDOFF_TABLE_POINTERS (``described``: version 2, with a description before it)."""
    name, at = "", 0
    if described:
        if not data or len(data) < 1 + data[0]:
            return None
        at = 1 + data[0]
        name = words(data[1:at])
    if len(data) < at + 8:
        return None
    (count,) = struct.unpack_from("<Q", data, at)
    if at + 8 + 24 * count != len(data):
        return None
    found = [f"{guid(data[at + 8 + 24 * each :][:16])}" for each in range(count)]
    text = f"{count} table{'s' if count != 1 else ''}" + (f": {', '.join(found)}" if found else "")
    return f"{name}, {text}" if name else text


def blob(data: bytes, *, described: bool) -> str | None:
    """UEFI_PLATFORM_FIRMWARE_BLOB (``described``: version 2): where it lies and its size."""
    name, at = "", 0
    if described:
        if not data or len(data) != 17 + data[0]:
            return None
        at = 1 + data[0]
        name = words(data[1:at]) or data[1:at].hex()
    elif len(data) != 16:
        return None
    base, size = struct.unpack_from("<QQ", data, at)
    return f"{name or 'blob'} at {base:#x}, {size} bytes"
