"""fw_cfg: how firmware asks the hypervisor for its configuration (QEMU's interface).

A selector picks an item, and its bytes are then read one by one at the data port, or all at once by
DMA.  Items 0x0000..0x001F are fixed; files have numbers from 0x20 and names in a directory.

Source: QEMU's ``docs/specs/fw_cfg.rst`` (the registers, the DMA structure and the directory); the numbers of
items are those of ``include/standard-headers/linux/qemu_fw_cfg.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from swtdx.devices.dma import Dma, DmaError
from swtdx.devices.saved import In, Out

FW_CFG_BASE: Final = 0x510
FW_CFG_PORTS: Final = 12

SIGNATURE: Final = 0x0000
INTERFACE: Final = 0x0001
RAM_SIZE: Final = 0x0003
NO_GRAPHIC: Final = 0x0004
CPU_COUNT: Final = 0x0005
KERNEL_SIZE: Final = 0x0008
INITRD_SIZE: Final = 0x000B
MAX_CPUS: Final = 0x000F
KERNEL_DATA: Final = 0x0011
INITRD_DATA: Final = 0x0012
COMMAND_LINE_SIZE: Final = 0x0014
COMMAND_LINE_DATA: Final = 0x0015
SETUP_SIZE: Final = 0x0017
SETUP_DATA: Final = 0x0018
FILE_DIRECTORY: Final = 0x0019
FIRST_FILE: Final = 0x0020
#: Items of one architecture have this bit.
_ARCHITECTURE: Final = 0x8000
_NUMBER: Final = 0x3FFF
_DMA_PORT: Final = 4

_INTERFACE_TRADITIONAL, _INTERFACE_DMA = 1, 2
_DMA_ERROR, _DMA_READ, _DMA_SKIP, _DMA_SELECT, _DMA_WRITE = 1, 2, 4, 8, 16
_DMA_SIGNATURE: Final = 0x51454D5520434647
_DESCRIPTOR: Final = struct.Struct(">IIQ")
_ENTRY: Final = struct.Struct(">IHH56s")
_CHUNK: Final = 64 << 10
#: Most bytes that one request moves; no item is larger, and a hostile length must not keep us busy.
MAX_TRANSFER: Final = 64 << 20


class FwCfgError(ValueError):
    """An item that cannot be added."""


@dataclass(frozen=True, slots=True)
class FwCfgContents:
    """What firmware finds beside the fixed items: by number, and files by name.

    ``acpi`` makes ACPI's files where they are not the board's own, given where ECAM is (a GPA).
    """

    items: Mapping[int, bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    acpi: Callable[[int], Mapping[str, bytes]] | None = None


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file whose contents are made when it is selected; ``size`` bytes, filled up with zeros."""

    size: int
    make: Callable[[], bytes]


class FwCfg:
    """The device at ports 0x510..0x51B, read-only for the guest."""

    def __init__(self, dma: Dma) -> None:
        self._dma = dma
        self._items: dict[int, bytes | MadeFile] = {
            SIGNATURE: b"QEMU",
            INTERFACE: (_INTERFACE_TRADITIONAL | _INTERFACE_DMA).to_bytes(4, "little"),
        }
        #: Files in the order of their names: the first has the number FIRST_FILE.
        self._files: dict[str, bytes | MadeFile] = {}
        self._selected = b""
        self._offset = 0
        self._dma_high = 0

    def add_item(self, key: int, data: bytes) -> None:
        """Add a numbered item.

        Raises:
            FwCfgError: the number is taken or too large.
        """
        known = key in self._items or key == FILE_DIRECTORY
        if known or not 0 <= key & ~_ARCHITECTURE < FIRST_FILE:
            raise FwCfgError(f"fw_cfg item {key:#x} is taken or out of range")
        self._items[key] = data

    def add_file(self, name: str, data: bytes | MadeFile) -> None:
        """Add a file such as ``etc/acpi/tables``, or replace its content.

        Raises:
            FwCfgError: the name is not 1 to 55 ASCII characters.
        """
        if not name.isascii() or not 0 < len(name) < 56:
            raise FwCfgError(f"a fw_cfg file name has 1 to 55 ASCII characters, {name!r} has not")
        self._files = dict(sorted({**self._files, name: data}.items()))
        self._items |= dict(enumerate(self._files.values(), FIRST_FILE))

    def contents(self) -> dict[str, bytes]:
        """Every file by its name, as a guest that selects it now would read it."""
        return {name: _made(item) for name, item in self._files.items()}

    def _numbers(self) -> range:
        """The files' numbers."""
        return range(FIRST_FILE, FIRST_FILE + len(self._files))

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  Contents too, but for those that are made when read."""
        plain = {
            key: item
            for key, item in self._items.items()
            if isinstance(item, bytes) and key not in self._numbers()
        }
        out.u32(len(plain))
        for key, data in plain.items():
            out.u16(key)
            out.blob(data)
        out.u32(len(self._files))
        for name, item in self._files.items():
            out.text(name)
            out.u8(isinstance(item, MadeFile))
            out.blob(item if isinstance(item, bytes) else b"")
        out.blob(self._selected)
        out.u64(self._offset)
        out.u32(self._dma_high)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        own, self._files = self._files, {}
        self._items = {section.u16(): section.blob() for _ in range(section.u32())}
        for _ in range(section.u32()):
            name, made, data = section.text(), section.u8(), section.blob()
            item = own.get(name) if made else data
            if item is None:
                raise section.fail(f"a fw_cfg file {name} without content")
            self.add_file(name, item)
        self._selected = section.blob()
        self._offset = section.u64()
        self._dma_high = section.u32()

    def _directory(self) -> bytes:
        entries = [
            _ENTRY.pack(_size(data), key, 0, name.encode())
            for key, (name, data) in enumerate(self._files.items(), FIRST_FILE)
        ]
        return len(entries).to_bytes(4, "big") + b"".join(entries)

    def _select(self, key: int) -> None:
        key &= _ARCHITECTURE | _NUMBER  # bit 14 asked for writing in old versions
        found = self._directory() if key == FILE_DIRECTORY else self._items.get(key, b"")
        self._selected = _made(found)
        self._offset = 0

    def _take(self, length: int) -> bytes:
        """The next bytes of the selected item; zeros beyond its end."""
        data = self._selected[self._offset : self._offset + length]
        self._offset += length
        return data.ljust(length, b"\0")

    def read(self, offset: int, size: int) -> int:
        """IN from port 0x510 + ``offset``."""
        if offset == 1 and size == 1:
            return self._take(1)[0]
        if offset >= _DMA_PORT:
            # The DMA address register reads as a signature, big-endian, to show that it is there.
            raw = _DMA_SIGNATURE.to_bytes(8, "big")[offset - _DMA_PORT :][:size]
            return int.from_bytes(raw, "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT to port 0x510 + ``offset``."""
        if offset == 0 and size == 2:
            self._select(value)
        elif size == 4 and offset == _DMA_PORT:
            self._dma_high = _swap32(value)
        elif size == 4 and offset == _DMA_PORT + 4:
            address, self._dma_high = self._dma_high << 32 | _swap32(value), 0
            self._transfer(address)

    def _transfer(self, address: int) -> None:
        try:
            control, length, target = _DESCRIPTOR.unpack(self._dma.read(address, _DESCRIPTOR.size))
        except DmaError:
            return  # there is nowhere to say so
        if control & _DMA_SELECT:
            self._select(control >> 16)
        failed = bool(control & _DMA_WRITE) or length > MAX_TRANSFER
        try:
            if not failed and control & _DMA_READ:
                for done in range(0, length, _CHUNK):
                    self._dma.write(target + done, self._take(min(_CHUNK, length - done)))
            elif not failed and control & _DMA_SKIP:
                self._offset += length
        except DmaError:
            failed = True
        status = _DMA_ERROR if failed else 0
        try:
            self._dma.write(address, status.to_bytes(4, "big"))
        except DmaError:
            return


def _size(item: bytes | MadeFile) -> int:
    return item.size if isinstance(item, MadeFile) else len(item)


def _made(item: bytes | MadeFile) -> bytes:
    return item.make()[: item.size].ljust(item.size, b"\0") if isinstance(item, MadeFile) else item


def _swap32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little"), "big")
