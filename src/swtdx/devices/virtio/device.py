"""What a virtio device is to its transport, and what the transport is to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.queue import Virtqueue

# Feature bits that belong to the queues and the transport (VIRTIO 1.2, chapter 6)
F_INDIRECT_DESC: Final = 28
F_EVENT_IDX: Final = 29
F_VERSION_1: Final = 32
F_ACCESS_PLATFORM: Final = 33

# Device status (2.1)
STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 0x40
STATUS_FAILED: Final = 0x80


class Transport(Protocol):
    """The way from a device to its driver."""

    def used(self, queue: Virtqueue) -> None:
        """Interrupt the driver if it wants to hear of what was pushed on ``queue``."""
        ...

    def config_changed(self) -> None:
        """Interrupt the driver because the device's configuration has changed."""
        ...


class VirtioDevice(Protocol):
    """A kind of device.  The transport calls these methods one at a time, under its lock.

    Any of ``activate``, ``notify`` and ``poll`` may raise :class:`~.queue.QueueError`: the transport
    then stops the device until the driver resets it.
    """

    #: The virtio device id (chapter 5).
    device_id: int
    #: PCI class code to show, 24 bits.
    class_code: int
    #: Offered feature bits beyond those that the transport adds.
    features: int
    #: Largest size of each queue, powers of two.
    queue_sizes: tuple[int, ...]

    def config(self) -> bytes:
        """The device-specific configuration as the driver reads it."""
        ...

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """The driver is ready (DRIVER_OK) with these queues (some may be disabled) and features."""
        ...

    def notify(self, index: int) -> None:
        """The driver has added buffers to queue ``index``."""
        ...

    def poll(self) -> None:
        """Do what has piled up on the host's side."""
        ...

    def reset(self) -> None:
        """Forget the driver: no queues, no transport."""
        ...

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  Registers and queues are the transport's."""
        ...

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        ...

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """Before :meth:`load_state`: the driver was ready, with these queues.  The guest hears nothing."""
        ...
