"""The virtio block device: /dev/vda in Linux.

Data goes between the image and the guest's shared memory directly, however large a request is.  What the
guest asks for is done before it goes on: its vCPU waits for the image, as a processor waits for a disk
without a queue.

Source: VIRTIO 1.2, section 5.2.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, Protocol

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, Transport
from swtdx.devices.virtio.queue import Chain, QueueError, Segment, Virtqueue, cut

SECTOR: Final = 512
_F_SEG_MAX: Final = 2
_F_RO: Final = 5
_F_BLK_SIZE: Final = 6
_F_FLUSH: Final = 9
_F_DISCARD: Final = 13
_F_WRITE_ZEROES: Final = 14

_QUEUE_SIZE: Final = 256
#: Data pieces of a request: what a queue has besides the two that are no data.
_SEG_MAX: Final = _QUEUE_SIZE - 2
#: Of one request that discards or zeroes: sectors, and ranges.
_MOST_SECTORS: Final = 1 << 22
_MOST_RANGES: Final = 16

_HEADER: Final = struct.Struct("<IIQ")
_RANGE: Final = struct.Struct("<QII")
#: capacity, size_max, seg_max, geometry, blk_size, topology, writeback, queues; then discard, write zeroes
_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
_UNMAP: Final = 1
ID_BYTES: Final = 20


class Request(enum.IntEnum):
    """Request types."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(enum.IntEnum):
    """What the last byte of a request says."""

    OK = 0
    IO_ERROR = 1
    UNSUPPORTED = 2


class Image(Protocol):
    """What a disk holds.  Every method may raise OSError; the guest then sees an I/O error."""

    #: Bytes; what is beyond them up to the next sector reads as zeros.
    size: int
    read_only: bool

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views`` from ``offset`` on."""
        ...

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store ``views`` from ``offset`` on."""
        ...

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make ``length`` bytes zeros; with ``unmap`` they need take no place."""
        ...

    def flush(self) -> None:
        """Make all that was stored last."""
        ...


class VirtioBlk:
    """The device.

    Args:
        image: what is on the disk.
        serial: what it gives as its name, 20 bytes at most.
    """

    device_id = 2
    class_code = 0x018000  # mass storage controller, other
    queue_sizes: tuple[int, ...] = (_QUEUE_SIZE,)

    def __init__(self, image: Image, serial: bytes = b"") -> None:
        self._image = image
        self._serial = serial[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._sectors = -(-image.size // SECTOR)
        self.features = sum(
            1 << bit for bit in (F_EVENT_IDX, F_INDIRECT_DESC, _F_SEG_MAX, _F_BLK_SIZE, _F_FLUSH)
        )
        if image.read_only:
            self.features |= 1 << _F_RO
        else:
            self.features |= 1 << _F_DISCARD | 1 << _F_WRITE_ZEROES
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None
        self._features = 0

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`.  What is on the disk is not saved, but it is flushed."""
        if not self._image.read_only:
            self._image.flush()
        out.u64(self._sectors)
        out.u64(self._features)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`.  The disk must have the same size."""
        sectors = section.u64()
        if sectors != self._sectors:
            raise section.fail(f"a disk of {sectors} sectors, and this one has {self._sectors}")
        self._features = section.u64()

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport, self._queue = transport, queues[0]

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        most, ranges = (0, 0) if self._image.read_only else (_MOST_SECTORS, _MOST_RANGES)
        return _CONFIG.pack(
            self._sectors, 0, _SEG_MAX, 0, 0, 0, SECTOR, 0, 0, 0, 0, 1, 1,
            most, ranges, 1, most, ranges, int(most > 0),
        )  # fmt: skip

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self.attach(transport, queues)
        self._features = features
        self.notify(0)

    def poll(self) -> None:
        """Nothing waits: requests are done when they come."""

    def notify(self, index: int) -> None:
        """Do every request that there is."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None or not queue.enabled:
            return
        # Another vCPU may add while we work: it is served in turns.
        for _ in range(4):
            queue.push_all([(chain, self._serve(queue, chain)) for chain in queue.pop_all()])
            if queue.event_idx:
                queue.set_notify(True)
            if not queue.available():
                break
        transport.used(queue)

    # ------------------------------------------------------------------ requests
    def _serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Do one request; the bytes written into it."""
        head = queue.read(cut(chain.readable, 0, _HEADER.size))
        room = chain.writable_bytes
        if len(head) < _HEADER.size or not room:
            raise QueueError(f"queue {queue.index}: a request of a disk without its header or its status")
        kind, _, sector = _HEADER.unpack(head)
        data = cut(chain.writable, 0, room - 1)
        try:
            status, written = self._do(queue, kind, sector, chain, data)
        except OSError:
            status, written = Status.IO_ERROR, 0
        queue.write(cut(chain.writable, room - 1, room), bytes([status]))
        # The status is the last byte: the bytes before it count as written, too (2.7.8.2).
        return room if kind in (Request.IN, Request.GET_ID) and status == Status.OK else written + 1

    def _do(
        self, queue: Virtqueue, kind: int, sector: int, chain: Chain, data: list[Segment]
    ) -> tuple[Status, int]:
        image = self._image
        if kind == Request.IN:
            size = sum(piece.length for piece in data)
            if not self._inside(sector, size):
                return Status.IO_ERROR, 0
            queue.transfer(data, lambda views: image.read(sector * SECTOR, views))
            return Status.OK, size
        if kind == Request.FLUSH:
            if not image.read_only:
                image.flush()
            return Status.OK, 0
        if kind == Request.GET_ID:
            queue.write(data, self._serial)
            return Status.OK, min(ID_BYTES, sum(piece.length for piece in data))
        if kind not in (Request.OUT, Request.DISCARD, Request.WRITE_ZEROES):
            return Status.UNSUPPORTED, 0
        if image.read_only:
            return Status.IO_ERROR, 0
        source = cut(chain.readable, _HEADER.size, chain.readable_bytes)
        if kind == Request.OUT:
            size = sum(piece.length for piece in source)
            if not self._inside(sector, size):
                return Status.IO_ERROR, 0
            queue.transfer(source, lambda views: image.write(sector * SECTOR, views))
            if not self._features >> _F_FLUSH & 1:
                image.flush()  # a driver that cannot flush expects a cache that writes through (5.2.5.2)
            return Status.OK, 0
        return self._zero(queue, kind, source), 0

    def _inside(self, sector: int, size: int) -> bool:
        """Whether ``size`` bytes from ``sector`` on are whole sectors of the disk."""
        return size % SECTOR == 0 and sector + size // SECTOR <= self._sectors

    def _zero(self, queue: Virtqueue, kind: int, source: list[Segment]) -> Status:
        size = sum(piece.length for piece in source)
        if not size or size % _RANGE.size or size > _MOST_RANGES * _RANGE.size:
            return Status.IO_ERROR
        ranges = list(_RANGE.iter_unpack(queue.read(source)))
        for sector, count, flags in ranges:
            if flags & ~_UNMAP or (kind == Request.DISCARD and flags):
                return Status.UNSUPPORTED
            if count > _MOST_SECTORS or sector + count > self._sectors:
                return Status.IO_ERROR
        for sector, count, flags in ranges:
            unmap = kind == Request.DISCARD or bool(flags & _UNMAP)
            self._image.zero(sector * SECTOR, count * SECTOR, unmap=unmap)
        return Status.OK
