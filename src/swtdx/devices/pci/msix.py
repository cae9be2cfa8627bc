"""MSI-X: the capability, the vector table and the pending bits of one function.

Source: PCI Local Bus Specification 3.0, 6.8.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.devices.bus import BusError
from swtdx.devices.pci.function import PciFunction
from swtdx.devices.saved import In, Out

CAPABILITY_ID: Final = 0x11
ENTRY_SIZE: Final = 16
_ENABLE: Final = 0x8000
_FUNCTION_MASK: Final = 0x4000
_CONTROL: Final = 12  # byte offset of vector control in an entry; bit 0 masks


class MsixTable:
    """The table and the pending bits: a device to be mapped by a BAR, and the function's capability.

    Args:
        send: performs the message: a 32-bit write of ``data`` to ``address``.
    """

    def __init__(self, function: PciFunction, vectors: int, send: Callable[[int, int], None]) -> None:
        if not 1 <= vectors <= 2048:
            raise BusError(f"MSI-X has 1 to 2048 vectors, not {vectors}")
        self.vectors = vectors
        self._function = function
        self._send = send
        self._capability = 0
        self.reset()

    def install(self, bar: int, table_offset: int, pba_offset: int) -> None:
        """Add the capability to the function: table and pending bits at these offsets of ``bar``."""
        body = (
            (self.vectors - 1).to_bytes(2, "little")
            + (table_offset | bar).to_bytes(4, "little")
            + (pba_offset | bar).to_bytes(4, "little")
        )
        self._capability = self._function.add_capability(CAPABILITY_ID, body, writable=b"\0\xc0")
        self._function.hook(self._capability + 2, 2, self._flush)

    def reset(self) -> None:
        """The state after reset: every vector masked, nothing pending."""
        entry = bytes(_CONTROL) + b"\1\0\0\0"
        self._table = bytearray(entry * self.vectors)
        self._pending = 0

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  The capability is the function's."""
        out.blob(self._table)
        out.write(self._pending.to_bytes(self.vectors // 8 + 1, "little"))

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        table = section.blob()
        if len(table) != len(self._table):
            raise section.fail(f"{len(table) // ENTRY_SIZE} MSI-X vectors, and there are {self.vectors}")
        self._table[:] = table
        self._pending = int.from_bytes(section.read(self.vectors // 8 + 1), "little")

    @property
    def _message_control(self) -> int:
        return self._function.read_config(self._capability + 2, 2)

    @property
    def enabled(self) -> bool:
        """Whether software has switched the function to MSI-X."""
        return bool(self._message_control & _ENABLE)

    def fire(self, vector: int) -> None:
        """Send the vector's message, or remember it while it is masked.  Unknown vectors are ignored."""
        if not 0 <= vector < self.vectors or not self.enabled:
            return
        at = vector * ENTRY_SIZE
        if self._message_control & _FUNCTION_MASK or self._table[at + _CONTROL] & 1:
            self._pending |= 1 << vector
            return
        self._pending &= ~(1 << vector)
        if self._function.is_bus_master:
            address = int.from_bytes(self._table[at : at + 8], "little")
            data = int.from_bytes(self._table[at + 8 : at + 12], "little")
            self._send(address, data)

    def _flush(self) -> None:
        pending = self._pending
        vector = 0
        while pending:
            if pending & 1:
                self.fire(vector)
            pending >>= 1
            vector += 1

    def read_table(self, offset: int, size: int) -> int:
        """Read the table (bytes beyond it are zero)."""
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        """Write the table in aligned 4- or 8-byte units; anything else is ignored, as PCI allows."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        entry = offset - offset % ENTRY_SIZE
        self._table[entry + _CONTROL] &= 1
        self._table[entry + _CONTROL + 1 : entry + ENTRY_SIZE] = bytes(3)
        vector = offset // ENTRY_SIZE
        if self._pending >> vector & 1:
            self.fire(vector)

    def read_pending(self, offset: int, size: int) -> int:
        """Read the pending bits."""
        return self._pending >> 8 * offset & (1 << 8 * size) - 1
