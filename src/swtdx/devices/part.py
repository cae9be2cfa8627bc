"""What a board is made of: parts, each of which plugs itself in and says what the ACPI tables tell of it.

To add a device write its model, and a :class:`Part` that makes one and claims its ports or plugs it into the
PCI bus; then put the part on a board (:func:`swtdx.devices.board.standard_parts`, or ``more`` of a
:class:`~swtdx.devices.board.BoardConfig`).  The board gives out PCI slots and places for BARs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from swtdx.devices.acpi import AcpiConfig
from swtdx.devices.bus import MmioSpace, PortSpace
from swtdx.devices.dma import BufferDma, Dma
from swtdx.devices.pci.host import PciHost


def _nothing(*_: object) -> None:
    """A wire that leads nowhere."""


@dataclass(frozen=True, slots=True)
class Wires:
    """What connects a board to the hypervisor.  Left out, a wire leads nowhere: enough to describe a board.

    Args:
        dma: the guest's shared memory.
        send_msi: delivers a message-signalled interrupt (address, data);
            :meth:`swtdx.devices.msi.MsiRouter.deliver` does.  Must not block.
        power_off, restart: the guest asked for it, on the vCPU's thread.
        wake: there is something for :meth:`swtdx.devices.board.Board.poll` to do.  Called from any thread;
            must not block.
        clock: nanoseconds from any fixed moment, for timers.
        now: seconds since 1970 in UTC, for the clock.
    """

    dma: Dma = field(default_factory=lambda: BufferDma(bytearray()))
    send_msi: Callable[[int, int], None] = _nothing
    power_off: Callable[[], None] = _nothing
    restart: Callable[[], None] = _nothing
    wake: Callable[[], None] = _nothing
    clock: Callable[[], int] = time.monotonic_ns
    now: Callable[[], float] = time.time


class Backplane(Protocol):
    """The board as a part sees it."""

    @property
    def wires(self) -> Wires:
        """What leads to the hypervisor."""

    @property
    def ports(self) -> PortSpace:
        """The guest's I/O ports, to be claimed."""

    @property
    def mmio(self) -> MmioSpace:
        """Guest-physical addresses that are devices, to be claimed."""

    @property
    def pci(self) -> PciHost:
        """PCI bus 0."""

    def free_slot(self) -> int:
        """The lowest PCI device number that is free, from 1 on.

        Raises:
            BoardError: all 31 are taken.
        """

    def place(self, size: int) -> int:
        """A GPA in the PCI window for a BAR of ``size`` bytes (a power of two), downwards from its end.

        Raises:
            BoardError: the window is full.
        """


class Part:
    """One device, or a few that belong together.  A part is plugged into one board."""

    #: How messages call it.
    name: str

    @property
    def failure(self) -> str | None:
        """Why it stopped because its driver misused it; None while it is well."""
        return None

    def plug(self, board: Backplane) -> None:
        """Make the device and claim what it answers to.

        Raises:
            BusError: another part has claimed it already.
            BoardError: there is no place left.
        """
        raise NotImplementedError

    def describe(self, tables: AcpiConfig) -> AcpiConfig:
        """``tables`` with what they tell of this part."""
        return tables

    def poll(self) -> None:
        """Do what waits on the host's side.  Called on a thread that runs vCPUs."""
