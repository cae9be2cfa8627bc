"""The debug port of QEMU and Bochs: bytes that firmware prints while it has nothing else to print on.

Source: QEMU's ``hw/char/debugcon.c`` (a read gives 0xE9, by which firmware knows that it is there).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.devices.saved import Stateless

DEBUG_PORT: Final = 0x402
_PRESENT: Final = 0xE9


class DebugPort(Stateless):
    """A :class:`~swtdx.devices.bus.BusDevice` of one port; ``output`` takes what is printed."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def read(self, offset: int, size: int) -> int:
        """It is there."""
        return _PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        """Print a byte."""
        self._output(bytes((value & 0xFF,)))
