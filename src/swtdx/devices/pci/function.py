"""One PCI function: its type 0 configuration space, BARs and capabilities.

A configuration space is 256 bytes and, for each byte, a mask of the bits that software may change.
Everything special (BARs, the command register's effect) hangs on that.

Source: PCI Local Bus Specification 3.0, chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swtdx.devices.bus import BusDevice, BusError
from swtdx.devices.saved import In, Out

VENDOR_ID: Final = 0x00
COMMAND: Final = 0x04
STATUS: Final = 0x06
CLASS_REVISION: Final = 0x08
HEADER_TYPE: Final = 0x0E
BAR0: Final = 0x10
SUBSYSTEM: Final = 0x2C
CAPABILITY_POINTER: Final = 0x34
FIRST_CAPABILITY: Final = 0x40

COMMAND_IO: Final = 1
COMMAND_MEMORY: Final = 2
COMMAND_MASTER: Final = 4
COMMAND_INTX_DISABLE: Final = 0x400
_COMMAND_WRITABLE: Final = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE
_STATUS_CAPABILITIES: Final = 0x10
_BARS: Final = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """A 32-bit memory BAR of ``size`` bytes (a power of two, 16 or more) behind which is ``device``."""

    index: int
    size: int
    device: BusDevice


class PciFunction:
    """A type 0 function with 32-bit memory BARs and no interrupt pin.

    Args:
        vendor, device: the 16-bit ids.
        class_code: base class, sub-class and interface, 24 bits.
        subsystem: (vendor, id), 16 bits each.
    """

    def __init__(
        self,
        vendor: int,
        device: int,
        *,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
    ) -> None:
        #: The 256 bytes that a read sees.
        self.config = bytearray(256)
        self._writable = bytearray(256)
        self._hooks: list[tuple[int, int, Callable[[], None]]] = []
        self._bars: list[Bar | None] = [None] * _BARS
        self._next_capability = FIRST_CAPABILITY
        self._last_link = CAPABILITY_POINTER
        #: Called when an address that the function answers at may have changed; the host sets it.
        self.on_remap: Callable[[], None] = lambda: None
        self._put(VENDOR_ID, vendor | device << 16, 4)
        self._put(CLASS_REVISION, class_code << 8 | revision, 4)
        self._put(SUBSYSTEM, subsystem[0] | subsystem[1] << 16, 4)
        self.allow(COMMAND, _COMMAND_WRITABLE, 2)
        self.allow(0x3C, 0xFF, 1)  # interrupt line: a note that software leaves for itself
        self.hook(COMMAND, 2, self._remap)

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`: the configuration space."""
        out.write(self.config)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        config = section.read(len(self.config))
        if config[:4] != self.config[:4]:
            raise section.fail(f"a PCI function {config[:4].hex()}, and here is {self.config[:4].hex()}")
        self.config[:] = config
        self._remap()

    def _put(self, offset: int, value: int, size: int) -> None:
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, mask: int, size: int) -> None:
        """Let software change the bits of ``mask`` in the ``size`` bytes at ``offset``."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def hook(self, offset: int, size: int, changed: Callable[[], None]) -> None:
        """Call ``changed`` after a write that touches the ``size`` bytes at ``offset``."""
        self._hooks.append((offset, offset + size, changed))

    def define(self, offset: int, value: int, size: int, writable: int = 0) -> None:
        """Declare a register: its reset value, little-endian, and the bits that software may change."""
        self._put(offset, value, size)
        self.allow(offset, writable, size)

    def add_bar(self, index: int, size: int, device: BusDevice) -> None:
        """Put ``device`` behind BAR ``index`` (0..5), a 32-bit memory range of ``size`` bytes.

        Raises:
            BusError: the BAR exists, or its size is not a power of two of at least 16 bytes.
        """
        if not 0 <= index < _BARS or self._bars[index] is not None:
            raise BusError(f"BAR {index} does not exist or is taken")
        if size < 16 or size & (size - 1) or size > 1 << 31:
            raise BusError(f"a BAR's size is a power of two from 16 bytes to 2 GiB, not {size:#x}")
        self._bars[index] = Bar(index, size, device)
        offset = BAR0 + 4 * index
        # The address bits below the size are hard-wired to zero: that is how software finds the size.
        self.define(offset, 0, 4, writable=-size & 0xFFFF_FFFF)
        self.hook(offset, 4, self._remap)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """The BARs that exist."""
        return tuple(bar for bar in self._bars if bar is not None)

    def place_bar(self, index: int, address: int) -> None:
        """Assign ``address`` to BAR ``index``, as firmware does.

        Raises:
            BusError: no such BAR, or the address is not a multiple of its size below 4 GiB.
        """
        bar = self._bars[index]
        if bar is None or address % bar.size or not 0 <= address <= (1 << 32) - bar.size:
            raise BusError(f"BAR {index} cannot be placed at {address:#x}")
        self._put(BAR0 + 4 * index, address, 4)
        self._remap()

    def decoded(self) -> list[tuple[int, int, BusDevice]]:
        """The ranges (start, end, device) at which the function answers now."""
        if not self.config[COMMAND] & COMMAND_MEMORY:
            return []
        ranges = []
        for bar in self.bars:
            offset = BAR0 + 4 * bar.index
            start = int.from_bytes(self.config[offset : offset + 4], "little")
            if start:  # an address of zero means "not assigned" and decodes nothing
                ranges.append((start, start + bar.size, bar.device))
        return ranges

    @property
    def is_bus_master(self) -> bool:
        """Whether software lets the function do DMA and send MSIs."""
        return bool(self.config[COMMAND] & COMMAND_MASTER)

    def add_capability(self, capability_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; returns the offset of its first byte (the id).

        Args:
            body: what follows the id and the link.
            writable: masks for the bytes of ``body``, from its start; missing ones are read-only.

        Raises:
            BusError: the capability does not fit in the 256 bytes.
        """
        offset = self._next_capability
        length = 2 + len(body)
        if offset + length > 256:
            raise BusError(f"capability {capability_id:#x} of {length} bytes does not fit at {offset:#x}")
        self.config[offset] = capability_id
        self.config[offset + 2 : offset + length] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.config[self._last_link] = offset
        self._last_link = offset + 1
        self._next_capability = (offset + length + 3) & ~3
        self.config[STATUS] |= _STATUS_CAPABILITIES
        return offset

    def _remap(self) -> None:
        self.on_remap()

    def read_config(self, offset: int, size: int) -> int:
        """``size`` bytes (1, 2 or 4, inside one dword) of configuration space, little-endian."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write ``size`` bytes; bits that software may not change keep their value."""
        for at, byte in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little"), offset):
            mask = self._writable[at]
            self.config[at] = self.config[at] & ~mask | byte & mask
        end = offset + size
        for start, stop, changed in self._hooks:
            if start < end and offset < stop:
                changed()
