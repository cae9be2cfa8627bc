"""SMBIOS tables for firmware: as the two files of fw_cfg from which OVMF installs them.

Source: DMTF DSP0134 (System Management BIOS reference), version 3.0: entry point in 5.2.2, structures in
chapter 7.  Integers are little-endian; a structure is its formatted part, its strings, and a NUL.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from swtdx.arch.guest_map import FOUR_GIB
from swtdx.arch.units import MIB

ANCHOR_FILE: Final = "etc/smbios/smbios-anchor"
TABLES_FILE: Final = "etc/smbios/smbios-tables"

_NO_HANDLE: Final = 0xFFFE
_UNKNOWN_HALF: Final = 0xFFFF
#: Handles: the type's number in the upper byte, as QEMU has them.
_CHASSIS, _PROCESSOR, _MEMORY_ARRAY, _MEMORY, _MAPPED = 0x300, 0x400, 0x1000, 0x1100, 0x1300
_DEVICE_MIB: Final = 16 << 10
_MANUFACTURER: Final = "swtdx"
_PRODUCT: Final = "Trust domain (q35)"

#: Types of structures of which the user can say something, and what.
SETTINGS: Final[Mapping[int, tuple[str, ...]]] = {
    0: ("vendor", "version", "date", "release", "uefi"),
    1: ("manufacturer", "product", "version", "serial", "uuid", "sku", "family"),
    2: ("manufacturer", "product", "version", "serial", "asset", "location"),
    3: ("manufacturer", "version", "serial", "asset", "sku"),
    4: ("sock_pfx", "manufacturer", "version", "serial", "asset", "part", "max-speed", "current-speed"),
    11: ("value",),
    17: ("loc_pfx", "bank", "manufacturer", "serial", "asset", "part", "speed"),
}


class SmbiosError(ValueError):
    """A setting that no table can have."""


@dataclass(frozen=True, slots=True)
class SmbiosConfig:
    """What the tables say.

    Args:
        settings: by type of structure, names of :data:`SETTINGS`.
        strings: the OEM strings (type 11).
        ram: bytes of RAM below and above 4 GiB.
        vcpus: processors, all in one socket.
    """

    settings: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    strings: Sequence[str] = ()
    ram: tuple[int, int] = (512 * MIB, 0)
    vcpus: int = 1


class _Strings:
    """The strings of a structure: a number for each, 0 for none."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._texts: list[str] = []

    def __call__(self, name: str, default: str = "") -> int:
        return self.add(self._settings.get(name, default))

    def add(self, text: str) -> int:
        if "\0" in text:
            raise SmbiosError(f"an SMBIOS string cannot hold NUL: {text!r}")
        if not text:
            return 0
        if len(self._texts) == 255:
            raise SmbiosError("an SMBIOS structure has at most 255 strings")
        self._texts.append(text)
        return len(self._texts)

    def encode(self) -> bytes:
        return (b"".join(text.encode() + b"\0" for text in self._texts) or b"\0") + b"\0"


def _structure(kind: int, handle: int, body: bytes, strings: _Strings) -> bytes:
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + strings.encode()


def smbios_files(config: SmbiosConfig) -> dict[str, bytes]:
    """The entry point and the structures, by the names of their fw_cfg files.

    Raises:
        SmbiosError: a setting that no table can have.
    """
    tables = b"".join(_structures(config))
    anchor = bytearray(struct.pack("<5sBBBBBBxIQ", b"_SM3_", 0, 24, 3, 0, 0, 1, len(tables), 0))
    anchor[5] = -sum(anchor) & 0xFF
    return {ANCHOR_FILE: bytes(anchor), TABLES_FILE: tables}


def _structures(config: SmbiosConfig) -> Iterator[bytes]:
    def settings(kind: int) -> Mapping[str, str]:
        return config.settings.get(kind, {})

    if settings(0):
        yield _bios(settings(0))
    yield _system(settings(1))
    if settings(2):
        yield _baseboard(settings(2))
    yield _chassis(settings(3))
    yield _processor(settings(4), config.vcpus)
    if config.strings:
        oem = _Strings({})
        for text in config.strings:
            oem.add(text)
        yield _structure(11, 0xB00, bytes((len(config.strings),)), oem)
    yield from _memory(settings(17), config.ram)
    yield _structure(32, 0x2000, bytes(7), _Strings({}))
    yield _structure(127, 0x7F00, b"", _Strings({}))


def _bios(settings: Mapping[str, str]) -> bytes:
    text = _Strings(settings)
    major, _, minor = settings.get("release", "0.0").partition(".")
    try:
        release = bytes((int(major), int(minor or "0")))
    except ValueError:
        raise SmbiosError(f"release={settings['release']}: give two numbers below 256, as 1.0") from None
    vendor, version, date = text("vendor"), text("version"), text("date")
    # "Characteristics are not supported"; in the extension: targeted content, UEFI, virtual machine.
    body = struct.pack("<BBHBBQ", vendor, version, 0xE800, date, 0, 1 << 3) + bytes((0, 0x1C)) + release
    return _structure(0, 0, body + b"\xff\xff", text)


def _system(settings: Mapping[str, str]) -> bytes:
    text = _Strings(settings)
    try:
        identity = uuid.UUID(settings.get("uuid", str(uuid.UUID(int=0))))
    except ValueError:
        raise SmbiosError(f"uuid={settings['uuid']}: this is no UUID") from None
    names = bytes(
        (text("manufacturer", _MANUFACTURER), text("product", _PRODUCT), text("version"), text("serial"))
    )
    # Woken up by the power switch.
    body = names + identity.bytes_le + bytes((6, text("sku"), text("family")))
    return _structure(1, 0x100, body, text)


def _baseboard(settings: Mapping[str, str]) -> bytes:
    text = _Strings(settings)
    names = [text("manufacturer", _MANUFACTURER), text("product", _PRODUCT)]
    names += [text(name) for name in ("version", "serial", "asset")]
    # A hosting board, of the kind motherboard.
    body = bytes((*names, 1, text("location"))) + struct.pack("<HBB", _CHASSIS, 0x0A, 0)
    return _structure(2, 0x200, body, text)


def _chassis(settings: Mapping[str, str]) -> bytes:
    text = _Strings(settings)
    manufacturer = text("manufacturer", _MANUFACTURER)
    names = bytes(text(name) for name in ("version", "serial", "asset"))
    # Of kind "other"; boot-up, power and thermal states are safe, security unknown.
    body = bytes((manufacturer, 1)) + names + bytes((3, 3, 3, 2)) + bytes(8) + bytes((text("sku"),))
    return _structure(3, _CHASSIS, body, text)


def _speed(settings: Mapping[str, str], name: str) -> int:
    try:
        value = int(settings.get(name, "2000"))
    except ValueError:
        value = -1
    if not 0 <= value <= 0xFFFF:
        raise SmbiosError(f"{name}={settings[name]}: give MHz, at most 65535")
    return value


def _processor(settings: Mapping[str, str], vcpus: int) -> bytes:
    text = _Strings(settings)
    socket = text.add(f"{settings.get('sock_pfx', 'CPU')} 0")
    manufacturer, version = text("manufacturer", _MANUFACTURER), text("version")
    clocks = _speed(settings, "max-speed"), _speed(settings, "current-speed")
    names = [text(name) for name in ("serial", "asset", "part")]
    small = min(vcpus, 0xFF)
    body = struct.pack("<BBBBQBBHHHBB", socket, 3, 1, manufacturer, 0, version, 0, 0, *clocks, 0x41, 1)
    body += struct.pack("<HHH", *[_UNKNOWN_HALF] * 3) + bytes((*names, small, small, small))
    body += struct.pack("<HHHHH", 2, 1, vcpus, vcpus, vcpus)
    return _structure(4, _PROCESSOR, body, text)


def _memory(settings: Mapping[str, str], ram: tuple[int, int]) -> Iterator[bytes]:
    """The array, its devices of 16 GiB at most, and which addresses they have."""
    total = sum(ram)
    devices = -(-total // (_DEVICE_MIB * MIB))
    # On the system board, system memory, multi-bit ECC; the size follows in the extension.
    array = struct.pack("<BBBIHHQ", 1, 3, 6, 1 << 31, _NO_HANDLE, devices, total)
    yield _structure(16, _MEMORY_ARRAY, array, _Strings({}))
    for number in range(devices):
        text = _Strings(settings)
        size = min(_DEVICE_MIB, total // MIB - number * _DEVICE_MIB)
        locator, bank = text.add(f"{settings.get('loc_pfx', 'DIMM')} {number}"), text("bank")
        speed = _speed({"speed": "0", **settings}, "speed")
        names = [text.add(settings.get("manufacturer", _MANUFACTURER))]
        names += [text(name) for name in ("serial", "asset", "part")]
        body = struct.pack("<HHHHHBBBBBHH", _MEMORY_ARRAY, _NO_HANDLE, _UNKNOWN_HALF, _UNKNOWN_HALF,
                           size, 9, 0, locator, bank, 7, 2, speed)  # fmt: skip
        body += bytes((*names, 0)) + struct.pack("<IHHHH", 0, speed, 0, 0, 0)
        yield _structure(17, _MEMORY + number, body, text)
    for number, (base, size_) in enumerate(((0, ram[0]), (FOUR_GIB, ram[1]))):
        if size_:
            body = struct.pack("<IIHBQQ", 0xFFFFFFFF, 0xFFFFFFFF, _MEMORY_ARRAY, 1, base, base + size_ - 1)
            yield _structure(19, _MAPPED + number, body, _Strings({}))
