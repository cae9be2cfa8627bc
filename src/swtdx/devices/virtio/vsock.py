"""The virtio socket device: moves packets between the driver and the sockets on the host.

Source: VIRTIO 1.2, section 5.10.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, Transport
from swtdx.devices.virtio.queue import QueueError, Virtqueue, cut

_RECEIVE: Final = 0
_TRANSMIT: Final = 1
_EVENT: Final = 2
_HEADER: Final = struct.Struct("<QQIIIHHIII")
HEADER_BYTES: Final = _HEADER.size
#: Payload of a packet at most; Linux sends 64 KiB.
LONGEST_PAYLOAD: Final = 256 << 10
#: ``struct virtio_vsock_event`` of a transport that was reset: the guest closes all its connections.
_TRANSPORT_RESET: Final = bytes(4)

HOST_CID: Final = 2
STREAM: Final = 1


class Op(enum.IntEnum):
    """What a packet is for."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Packet(NamedTuple):
    """A packet's header.  ``length`` is that of the payload in bytes; counts wrap at 32 bits."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    kind: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Sockets(Protocol):
    """The host's side."""

    def connect(self, wake: Callable[[], None]) -> None:
        """A device is there now.

        ``wake`` is to be called, from any thread, when there is something for it.
        """
        ...

    def reset(self) -> None:
        """The guest has lost all its connections."""
        ...

    def received(self, packet: Packet, payload: bytes) -> None:
        """The guest has sent a packet."""
        ...

    @property
    def full(self) -> bool:
        """Whether so many packets wait for the guest that none of its own should be taken."""
        ...

    @property
    def ready(self) -> bool:
        """Whether :meth:`next` has a packet."""
        ...

    def next(self, room: int) -> tuple[Packet, bytes] | None:
        """The next packet for the guest, with ``room`` bytes of payload at most."""
        ...


class VirtioVsock:
    """The device.

    Args:
        cid: the guest's context id.
        sockets: what its connections lead to.
    """

    device_id = 19
    class_code = 0x078000  # communication controller, other
    queue_sizes: tuple[int, ...] = (128, 128, 16)
    features = 1 << F_EVENT_IDX | 1 << F_INDIRECT_DESC

    def __init__(self, cid: int, sockets: Sockets) -> None:
        self._cid = cid
        self._sockets = sockets
        #: The guest must hear that its connections are gone.
        self._lost = False
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport: Transport | None = None
        self._queues: Sequence[Virtqueue] = ()
        self._sockets.reset()

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`.  Connections are not saved: the guest sees them end."""
        out.u64(self._cid)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`."""
        cid = section.u64()
        if cid != self._cid:
            raise section.fail(f"a guest with the context id {cid}, and here it is {self._cid}")
        self._lost = True

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport, self._queues = transport, queues

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        return self._cid.to_bytes(8, "little")

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.attach(transport, queues)
        if queues[_EVENT].enabled:
            queues[_EVENT].set_notify(False)
        self.poll()

    def notify(self, index: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.poll()

    def poll(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if self._transport is None:
            return
        self._tell_loss()
        self._fill()
        self._drain()
        self._fill()

    def _tell_loss(self) -> None:
        queue = self._queues[_EVENT]
        if not self._lost or self._transport is None or not queue.enabled:
            return
        chain = queue.pop()
        if chain is not None:
            queue.push(chain, queue.scatter(chain, _TRANSPORT_RESET))
            self._lost = False
            self._transport.used(queue)

    def _drain(self) -> None:
        """Take the guest's packets, unless too many answers wait for it already."""
        queue, transport, sockets = self._queues[_TRANSMIT], self._transport, self._sockets
        if transport is None or not queue.enabled:
            return
        for _ in range(2 * queue.size):
            if sockets.full:
                break
            chain = queue.pop()
            if chain is None:
                if queue.event_idx:
                    queue.set_notify(True)
                if not queue.available():
                    break
                continue
            head = queue.read(cut(chain.readable, 0, HEADER_BYTES))
            if len(head) < HEADER_BYTES:
                raise QueueError(f"queue {queue.index}: a packet without its header")
            packet = Packet(*_HEADER.unpack(head))
            there = chain.readable_bytes - HEADER_BYTES
            if packet.length <= min(there, LONGEST_PAYLOAD):
                payload = queue.read(cut(chain.readable, HEADER_BYTES, HEADER_BYTES + packet.length))
                sockets.received(packet, payload)
            queue.push(chain, 0)
        transport.used(queue)

    def _fill(self) -> None:
        """Hand packets over, as far as there are buffers."""
        queue, transport, sockets = self._queues[_RECEIVE], self._transport, self._sockets
        if transport is None or not queue.enabled:
            return
        pushed = False
        for _ in range(2 * queue.size):
            if not sockets.ready:
                break
            chain = queue.pop()
            if chain is None:
                queue.set_notify(True)
                chain = queue.pop()  # it may have come before the driver could see that
                if chain is None:
                    break
            size = chain.writable_bytes
            if size < HEADER_BYTES:
                raise QueueError(f"queue {queue.index}: a buffer of {size} bytes for packets")
            found = sockets.next(size - HEADER_BYTES)
            if found is None:
                queue.put_back(1)
                break
            packet, payload = found
            queue.push(chain, queue.scatter(chain, _HEADER.pack(*packet) + payload))
            pushed = True
        if pushed:
            transport.used(queue)
