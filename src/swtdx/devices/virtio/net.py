"""The virtio network device: one pair of queues, whole frames, no offloads but one.

Large frames are what makes a network fast here: with mergeable buffers one of 64 KiB costs one exit.  The
network on the host has checked, or made, the checksums of what it hands over, and the driver is told so.

Source: VIRTIO 1.2, section 5.1.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, Transport
from swtdx.devices.virtio.queue import Chain, QueueError, Virtqueue, cut

_F_GUEST_CSUM: Final = 1
_F_MAC: Final = 5
_F_MRG_RXBUF: Final = 15
_F_STATUS: Final = 16
_RECEIVE: Final = 0
_TRANSMIT: Final = 1
_LINK_UP: Final = 1
_CONFIG: Final = struct.Struct("<6sH")
#: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
_HEADER: Final = struct.Struct("<BBHHHHH")
_DATA_VALID: Final = 2
#: Bytes of the longest frame: an IP packet and what Ethernet adds.
LONGEST_FRAME: Final = 65535 + 18
_SHORTEST_FRAME: Final = 14
#: Buffers that are looked at together.
_BATCH: Final = 64


class Network(Protocol):
    """The other end of the cable.  It fails without an exception: frames get lost in networks."""

    def connect(self, wake: Callable[[], None]) -> None:
        """A device is at this end now.

        ``wake`` is to be called, from any thread, when there is something for it.
        """
        ...

    def send(self, frame: Sequence[memoryview]) -> bool:
        """Take a frame, which is in pieces; False if it has to be sent again after ``wake``."""
        ...

    def receive(self) -> memoryview | None:
        """The next frame, good until the next call; None if there is none, and ``wake`` when there is."""
        ...


class VirtioNet:
    """The device.

    Args:
        network: where frames go to and come from.
        mac: the guest's address, 6 bytes.
    """

    device_id = 1
    class_code = 0x020000  # Ethernet controller
    queue_sizes: tuple[int, ...] = (256, 256)
    features = sum(
        1 << bit for bit in (F_EVENT_IDX, F_INDIRECT_DESC, _F_GUEST_CSUM, _F_MAC, _F_MRG_RXBUF, _F_STATUS)
    )

    def __init__(self, network: Network, mac: bytes) -> None:
        self._network = network
        self._mac = mac
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport: Transport | None = None
        self._receive: Virtqueue | None = None
        self._transmit: Virtqueue | None = None
        #: A frame that waits for buffers.
        self._pending = b""
        self._mergeable = False
        self._flags = 0

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`.  Frames on their way may get lost."""
        out.u8(self._mergeable)
        out.u8(self._flags)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._mergeable = bool(section.u8())
        self._flags = section.u8()

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport = transport
        self._receive = queues[_RECEIVE] if queues[_RECEIVE].enabled else None
        self._transmit = queues[_TRANSMIT] if queues[_TRANSMIT].enabled else None

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        return _CONFIG.pack(self._mac, _LINK_UP)

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.attach(transport, queues)
        self._mergeable = bool(features >> _F_MRG_RXBUF & 1)
        self._flags = _DATA_VALID if features >> _F_GUEST_CSUM & 1 else 0
        self.poll()

    def notify(self, index: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if index == _TRANSMIT:
            self._drain()
        self._fill()

    def poll(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._drain()
        self._fill()

    # ------------------------------------------------------------------ out
    def _drain(self) -> None:
        """Send what there is, as far as the network takes it."""
        queue, transport = self._transmit, self._transport
        if queue is None or transport is None:
            return
        for _ in range(2 * queue.size // _BATCH):
            chains = queue.pop_all(_BATCH)
            for number, chain in enumerate(chains):
                if not self._send(queue, chain):
                    queue.put_back(len(chains) - number)
                    queue.push_all((sent, 0) for sent in chains[:number])
                    transport.used(queue)
                    return
            queue.push_all((chain, 0) for chain in chains)
            if not chains:
                if queue.event_idx:
                    queue.set_notify(True)
                if not queue.available():
                    break
        transport.used(queue)

    def _send(self, queue: Virtqueue, chain: Chain) -> bool:
        size = chain.readable_bytes
        if size < _HEADER.size:
            raise QueueError(f"queue {queue.index}: a frame without its header")
        if not _HEADER.size + _SHORTEST_FRAME <= size <= _HEADER.size + LONGEST_FRAME:
            return True
        return queue.transfer(cut(chain.readable, _HEADER.size, size), self._network.send)

    # ------------------------------------------------------------------ in
    def _fill(self) -> None:
        """Hand over what has come, as far as there are buffers."""
        queue, transport = self._receive, self._transport
        if queue is None or transport is None:
            return
        room: deque[Chain] = deque()
        used: list[tuple[Chain, int]] = []
        for _ in range(2 * queue.size):
            frame = memoryview(self._pending) if self._pending else self._network.receive()
            if frame is None:
                break
            if not self._deliver(queue, frame, room, used):
                # The driver says when there are more buffers; the frame waits for them.
                self._pending = bytes(frame)
                break
            self._pending = b""
        queue.put_back(len(room))
        if used:
            queue.push_all(used)
            transport.used(queue)

    def _deliver(
        self, queue: Virtqueue, frame: memoryview, room: deque[Chain], used: list[tuple[Chain, int]]
    ) -> bool:
        """Put a frame into buffers of ``room``, which is filled up as needed; False if there are too few."""
        wanted = _HEADER.size + len(frame)
        chains: list[Chain] = []
        have = 0
        while have < wanted and len(chains) < queue.size:
            chain = self._next(queue, room)
            if chain is None:
                room.extendleft(reversed(chains))
                return False
            size = chain.writable_bytes
            if size < _HEADER.size:
                raise QueueError(f"queue {queue.index}: a buffer of {size} bytes for frames")
            chains.append(chain)
            have += size
            if not self._mergeable:
                break
        if have < wanted:
            # It never fits: dropped, as any network does with such.
            room.extendleft(reversed(chains))
            return True
        data = memoryview(_HEADER.pack(self._flags, 0, 0, 0, 0, 0, len(chains)) + frame)
        at = 0
        for chain in chains:
            part = data[at : at + chain.writable_bytes]
            queue.write(chain.writable, part)
            used.append((chain, len(part)))
            at += len(part)
        return True

    def _next(self, queue: Virtqueue, room: deque[Chain]) -> Chain | None:
        if not room:
            room.extend(queue.pop_all(_BATCH))
            if not room:
                queue.set_notify(True)
                # One may have come before the driver could see that.
                room.extend(queue.pop_all(_BATCH))
                if room:
                    queue.set_notify(False)
        return room.popleft() if room else None
