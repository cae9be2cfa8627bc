"""The I/O ports of the host that QEMU's board does not answer: they are ours, or nothing is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from swtdx.devices.power import PM_BASE, PM_LENGTH, RESET_PORT, PowerBlock

#: The keyboard controller and fast reset, which would end QEMU, and QEMU's fw_cfg, which copies to wherever
#: it is told, past all rules of the memory.
_HIDDEN: Final = (0x60, 0x64, 0x92, *range(0x510, 0x51C))
#: The PCI host bridge.  Its registers decide, among other things, what lies where the engine's stub runs.
_PCI: Final = tuple(range(0xCF8, 0xD00))


class HostPorts:
    """Power, reset, and the ports that are kept from the host.

    ``ended`` is told how the host has ended the machine.
    """

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._power = PowerBlock(lambda: ended("power off"), time.monotonic_ns)

    @property
    def stopping(self) -> tuple[int, ...]:
        """All ports at which an access has to stop."""
        return (*range(PM_BASE, PM_BASE + PM_LENGTH), *_HIDDEN, *_PCI)

    def read(self, port: int, size: int) -> int:
        """IN of ``size`` bytes."""
        if PM_BASE <= port < PM_BASE + PM_LENGTH:
            return self._power.read(port - PM_BASE, size)
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of ``size`` bytes."""
        if PM_BASE <= port < PM_BASE + PM_LENGTH:
            self._power.write(port - PM_BASE, size, value)
        elif port == RESET_PORT and value & 4:
            self._ended("reset")
