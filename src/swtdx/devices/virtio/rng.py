"""The virtio entropy device: /dev/hwrng in Linux.

Source: VIRTIO 1.2, section 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from swtdx.devices.saved import Stateless
from swtdx.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, Transport
from swtdx.devices.virtio.queue import Virtqueue

#: Bytes for one buffer at most; the driver is told how many came.
_MOST: Final = 4096


class VirtioRng(Stateless):
    """The device.

    Args:
        source: makes random bytes, as many as it is asked for.
    """

    device_id = 4
    class_code = 0x00FF00
    queue_sizes: tuple[int, ...] = (8,)
    features = 1 << F_EVENT_IDX | 1 << F_INDIRECT_DESC

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport, self._queue = transport, queues[0]

    def config(self) -> bytes:
        """There is none."""
        return b""

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.attach(transport, queues)

    def notify(self, index: int) -> None:
        """Fill every buffer that there is."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        for chain in queue.pop_all():
            size = min(chain.writable_bytes, _MOST)
            queue.push(chain, queue.scatter(chain, self._source(size)))
        if queue.event_idx:
            queue.set_notify(True)
        transport.used(queue)

    def poll(self) -> None:
        """Nothing waits."""
