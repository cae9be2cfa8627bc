"""I/O ports of the root world that are not QEMU's own."""

from __future__ import annotations

from typing import Protocol


class RootPorts(Protocol):
    """What answers at the ports that stop."""

    def read(self, port: int, size: int) -> int:
        """IN of ``size`` bytes (1, 2 or 4)."""

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of ``size`` bytes."""


class NoPorts:
    """Nothing there: IN gives all ones, OUT is lost."""

    def read(self, port: int, size: int) -> int:
        """See :meth:`RootPorts.read`."""
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """See :meth:`RootPorts.write`."""
