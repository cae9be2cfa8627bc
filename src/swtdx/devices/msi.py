"""Message-signalled interrupts: a device's write to 0xFEExxxxx, decoded and delivered to vCPUs.

Source of the message format: Intel SDM vol. 3, "Message Signalled Interrupts".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from swtdx.devices.saved import In, Out

#: Bits 31:20 of an MSI address.
MSI_PREFIX: Final = 0xFEE


class Delivery(enum.IntEnum):
    """Delivery modes (data bits 10:8)."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    EXTINT = 7


@dataclass(frozen=True, slots=True)
class MsiMessage:
    """What an MSI asks for.

    ``destination`` is an APIC id (or a mask of them if ``logical``), 0xFF meaning all; ``vector`` is
    0..255.
    """

    destination: int
    vector: int
    delivery: int
    logical: bool
    level: bool

    @classmethod
    def decode(cls, address: int, data: int) -> MsiMessage | None:
        """The message in a write of ``data`` (32 bits) to ``address``, or None if it is no MSI."""
        if address >> 20 != MSI_PREFIX:
            return None
        return cls(
            destination=address >> 12 & 0xFF,
            vector=data & 0xFF,
            delivery=data >> 8 & 7,
            logical=bool(address & 4),
            level=bool(data & 0x8000),
        )


class MsiRouter:
    """Delivers MSIs to vCPUs by their APIC ids.

    Only fixed and lowest-priority messages are delivered (the latter to the lowest APIC id asked
    for): a TD takes nothing else from a device.  So are vectors from 32 up only, because the module
    does not accept exceptions from outside.  Everything else is counted in :attr:`dropped`.
    """

    def __init__(self, interrupts: Mapping[int, Callable[[int], None]]) -> None:
        """``interrupts`` maps an APIC id to the function that makes a vector pending on its vCPU."""
        self._interrupts = dict(sorted(interrupts.items()))
        #: Messages that no vCPU could be given.
        self.dropped = 0

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  Where vectors are pending is the vCPUs' state."""
        out.u64(self.dropped)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self.dropped = section.u64()

    def _targets(self, message: MsiMessage) -> list[Callable[[int], None]]:
        destination = message.destination
        if destination == 0xFF:
            return list(self._interrupts.values())
        if message.logical:
            # Flat model, as Linux programs it on up to eight processors: one bit for each APIC id.
            return [
                take
                for apic_id, take in self._interrupts.items()
                if apic_id < 8 and destination >> apic_id & 1
            ]
        take = self._interrupts.get(destination)
        return [] if take is None else [take]

    def deliver(self, address: int, data: int) -> bool:
        """Deliver the MSI that a write of ``data`` to ``address`` is; False if it was dropped."""
        message = MsiMessage.decode(address, data)
        targets: list[Callable[[int], None]] = []
        if (
            message is not None
            and message.vector >= 32
            and message.delivery in (Delivery.FIXED, Delivery.LOWEST_PRIORITY)
        ):
            targets = self._targets(message)
            if message.delivery == Delivery.LOWEST_PRIORITY:
                del targets[1:]
            for take in targets:
                take(message.vector)
        if not targets:
            self.dropped += 1
        return bool(targets)
