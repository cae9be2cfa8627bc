"""fw_cfg: how firmware asks the hypervisor for its configuration (QEMU's interface).

A selector picks an item, and its bytes are then read one by one at the data port, or all at once by
DMA.  Items 0x0000..0x001F are fixed; files have numbers from 0x20 and names in a directory.

Source: QEMU's ``docs/specs/fw_cfg.rst`` (the registers, the DMA structure and the directory).
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.devices.dma import Dma, DmaError
from swtdx.devices.saved import In, Out

FW_CFG_BASE: Final = 0x510
FW_CFG_PORTS: Final = 12

SIGNATURE: Final = 0x0000
INTERFACE: Final = 0x0001
FILE_DIRECTORY: Final = 0x0019
FIRST_FILE: Final = 0x0020
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


class FwCfg:
    """The device at ports 0x510..0x51B, read-only for the guest."""

    def __init__(self, dma: Dma) -> None:
        self._dma = dma
        self._items: dict[int, bytes] = {
            SIGNATURE: b"QEMU",
            INTERFACE: (_INTERFACE_TRADITIONAL | _INTERFACE_DMA).to_bytes(4, "little"),
        }
        self._files: dict[str, int] = {}
        self._selected = b""
        self._offset = 0
        self._dma_high = 0

    def add_item(self, key: int, data: bytes) -> None:
        """Add a numbered item.

        Raises:
            FwCfgError: the number is taken or too large.
        """
        if key in self._items or not 0 <= key < 0x4000 or key == FILE_DIRECTORY:
            raise FwCfgError(f"fw_cfg item {key:#x} is taken or out of range")
        self._items[key] = data

    def add_file(self, name: str, data: bytes) -> None:
        """Add a file such as ``etc/acpi/tables``, or replace its content.

        Raises:
            FwCfgError: the name is not 1 to 55 ASCII characters.
        """
        if not name.isascii() or not 0 < len(name) < 56:
            raise FwCfgError(f"a fw_cfg file name has 1 to 55 ASCII characters, {name!r} has not")
        key = self._files.setdefault(name, FIRST_FILE + len(self._files))
        self._items[key] = data

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  Items too: they are made once, for one guest."""
        out.u32(len(self._items))
        for key, data in self._items.items():
            out.u16(key)
            out.blob(data)
        out.u32(len(self._files))
        for name, key in self._files.items():
            out.text(name)
            out.u16(key)
        out.blob(self._selected)
        out.u64(self._offset)
        out.u32(self._dma_high)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._items = {section.u16(): section.blob() for _ in range(section.u32())}
        self._files = {section.text(): section.u16() for _ in range(section.u32())}
        if not self._items.keys() >= set(self._files.values()):
            raise section.fail("a fw_cfg file without content")
        self._selected = section.blob()
        self._offset = section.u64()
        self._dma_high = section.u32()

    def _directory(self) -> bytes:
        entries = [
            _ENTRY.pack(len(self._items[key]), key, 0, name.encode())
            for name, key in sorted(self._files.items())
        ]
        return len(entries).to_bytes(4, "big") + b"".join(entries)

    def _select(self, key: int) -> None:
        key &= 0x3FFF  # bit 14 asked for writing in old versions, bit 15 for a machine's own items
        self._selected = self._directory() if key == FILE_DIRECTORY else self._items.get(key, b"")
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


def _swap32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little"), "big")
