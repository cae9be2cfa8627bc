"""The virtio file system device: requests of FUSE and their replies, one in each buffer.

Source: VIRTIO 1.2, section 5.11.  There is no notification queue and no shared memory region: what a guest
maps of a file it has read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Protocol

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, Transport
from swtdx.devices.virtio.queue import Virtqueue

_CONFIG: Final = struct.Struct("<36sI")
#: Queues: one for what must not wait (FORGET), one for requests.
_QUEUES: Final = (16, 256)


class FuseServer(Protocol):
    """Answers requests."""

    def handle(self, request: bytes, room: int) -> bytes:
        """The reply to one request, ``room`` bytes at most; empty if there is none."""
        ...

    def reset(self) -> None:
        """The client has gone."""
        ...


class VirtioFs:
    """The device.

    Args:
        tag: what the guest mounts it by, 36 bytes at most.
        server: answers the requests.
    """

    device_id = 26
    class_code = 0x018000  # mass storage controller, other
    queue_sizes: tuple[int, ...] = _QUEUES
    features = 1 << F_EVENT_IDX | 1 << F_INDIRECT_DESC

    def __init__(self, tag: str, server: FuseServer) -> None:
        self._tag = tag.encode()
        self._server = server
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport: Transport | None = None
        self._queues: Sequence[Virtqueue] = ()
        self._server.reset()

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`.  Open files are not saved: the guest sees errors."""
        out.blob(self._tag)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`."""
        tag = section.blob()
        if tag != self._tag:
            raise section.fail(f"a shared folder {tag!r}, and here it is {self._tag!r}")

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport, self._queues = transport, queues

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        return _CONFIG.pack(self._tag, len(_QUEUES) - 1)

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.attach(transport, queues)

    def poll(self) -> None:
        """Nothing waits: requests are done when they come."""

    def notify(self, index: int) -> None:
        """Answer every request that there is."""
        transport = self._transport
        if transport is None or not self._queues[index].enabled:
            return
        queue = self._queues[index]
        for _ in range(4):
            done = []
            for chain in queue.pop_all():
                reply = self._server.handle(queue.gather(chain), chain.writable_bytes)
                done.append((chain, queue.scatter(chain, reply)))
            queue.push_all(done)
            if queue.event_idx:
                queue.set_notify(True)
            if not queue.available():
                break
        transport.used(queue)
