"""The virtio transport of 9P: a request and its reply in one buffer.

Source: VIRTIO 1.2, section 5.6 (device id 9) and the form of its configuration in Linux,
``include/uapi/linux/virtio_9p.h``: the length of the mount tag and the tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, Transport
from swtdx.devices.virtio.queue import Virtqueue

_F_MOUNT_TAG: Final = 0


class FileServer(Protocol):
    """Answers requests."""

    def handle(self, request: bytes, room: int) -> bytes:
        """The reply to one request, ``room`` bytes at most; empty if there is no room for any."""
        ...

    def reset(self) -> None:
        """The client has gone."""
        ...


class Virtio9p:
    """The device.

    Args:
        tag: what the guest mounts it by.
        server: answers the requests.
    """

    device_id = 9
    class_code = 0x018000  # mass storage controller, other
    queue_sizes: tuple[int, ...] = (128,)
    features = 1 << F_EVENT_IDX | 1 << F_INDIRECT_DESC | 1 << _F_MOUNT_TAG

    def __init__(self, tag: str, server: FileServer) -> None:
        self._tag = tag.encode()
        self._server = server
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None
        self._server.reset()

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`.  Open files are not saved: the guest sees stale handles."""
        out.blob(self._tag)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`."""
        tag = section.blob()
        if tag != self._tag:
            raise section.fail(f"a shared folder {tag!r}, and here it is {self._tag!r}")

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport, self._queue = transport, queues[0]

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        return len(self._tag).to_bytes(2, "little") + self._tag

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.attach(transport, queues)

    def poll(self) -> None:
        """Nothing waits: requests are done when they come."""

    def notify(self, index: int) -> None:
        """Answer every request that there is."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None or not queue.enabled:
            return
        for _ in range(4):
            for chain in queue.pop_all():
                reply = self._server.handle(queue.gather(chain), chain.writable_bytes)
                queue.push(chain, queue.scatter(chain, reply))
            if queue.event_idx:
                queue.set_notify(True)
            if not queue.available():
                break
        transport.used(queue)
