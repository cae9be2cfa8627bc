"""Split virtqueues, device side.

The rings lie in memory that the guest may change at any moment and fill with anything.  So every
field is read once, checked, and only then used; whatever is wrong raises :class:`QueueError`, upon
which the transport stops the device (DEVICE_NEEDS_RESET).  No input makes this code loop for longer
than a queue is long.

Source: VIRTIO 1.2, section 2.7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from swtdx.devices.dma import Dma, DmaError, Segment, T
from swtdx.devices.saved import In, Out

DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1
#: A chain describes at most this many bytes here: far more than a driver of ours puts in one, far
#: less than the 4 GiB that the specification allows and a hostile guest could make us copy.
MAX_CHAIN_BYTES: Final = 16 << 20

_DESC: Final = struct.Struct("<QIHH")
_U16: Final = struct.Struct("<H")
_USED_ELEMENT: Final = struct.Struct("<II")


class QueueError(Exception):
    """The driver broke the rules of the queue, or put it where the device cannot reach it."""


__all__ = ["Chain", "QueueError", "Segment", "Virtqueue", "cut"]


@dataclass(frozen=True, slots=True)
class Chain:
    """One buffer that the driver made available: what the device may read, then what it may write."""

    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]

    @property
    def readable_bytes(self) -> int:
        """Bytes that the device may read."""
        return sum(segment.length for segment in self.readable)

    @property
    def writable_bytes(self) -> int:
        """Bytes that the device may write."""
        return sum(segment.length for segment in self.writable)


def cut(segments: Iterable[Segment], start: int, end: int) -> list[Segment]:
    """The bytes ``start`` to ``end`` (exclusive) of what ``segments`` hold one after the other."""
    found = []
    at = 0
    for gpa, length in segments:
        low, high = max(start - at, 0), min(end - at, length)
        if low < high:
            found.append(Segment(gpa + low, high - low))
        at += length
        if at >= end:
            break
    return found


class Virtqueue:
    """One queue: first programmed by the transport (the public fields), then used by the device."""

    def __init__(self, dma: Dma, index: int, max_size: int) -> None:
        """``max_size`` is the number of entries offered, a power of two up to 32768."""
        self._dma = dma
        self.index = index
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        """Disabled, with nothing programmed."""
        self.size = self.max_size
        self.desc = 0
        self.avail = 0
        self.used = 0
        self.enabled = False
        self.event_idx = False
        self.indirect = False
        self._last_avail = 0
        self._used_idx = 0
        self._signalled = 0  # used index at the last interrupt sent

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  The rings are in the guest's memory."""
        out.u16(self.size)
        for address in (self.desc, self.avail, self.used):
            out.u64(address)
        for index in (self._last_avail, self._used_idx, self._signalled):
            out.u16(index)
        out.u8(self.enabled)
        out.u8(self.event_idx)
        out.u8(self.indirect)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self.size = section.u16()
        if not 0 < self.size <= self.max_size or self.size & self.size - 1:
            raise section.fail(f"queue {self.index} has {self.size} entries, and at most {self.max_size}")
        self.desc, self.avail, self.used = (section.u64() for _ in range(3))
        self._last_avail, self._used_idx, self._signalled = (section.u16() for _ in range(3))
        enabled = bool(section.u8())
        self.event_idx = bool(section.u8())
        self.indirect = bool(section.u8())
        if enabled:
            try:
                self.enable()
            except QueueError as error:
                raise section.fail(str(error)) from None

    def enable(self) -> None:
        """Start using the queue as programmed.

        Raises:
            QueueError: an area is not aligned as section 2.7 wants it.
        """
        for name, address, alignment in (
            ("descriptor table", self.desc, 16),
            ("available ring", self.avail, 2),
            ("used ring", self.used, 4),
        ):
            if address % alignment:
                raise QueueError(
                    f"queue {self.index}: the {name} at {address:#x} is not aligned to {alignment}"
                )
        self.enabled = True

    def _read(self, gpa: int, length: int) -> bytes:
        try:
            return self._dma.read(gpa, length)
        except DmaError as error:
            raise QueueError(f"queue {self.index}: {error}") from error

    def _write(self, gpa: int, data: bytes) -> None:
        try:
            self._dma.write(gpa, data)
        except DmaError as error:
            raise QueueError(f"queue {self.index}: {error}") from error

    def available(self) -> int:
        """Chains that the driver has made available and :meth:`pop` has not taken.

        Raises:
            QueueError: more than the queue has entries.
        """
        idx: int = _U16.unpack(self._read(self.avail + 2, 2))[0]
        count = idx - self._last_avail & 0xFFFF
        if count > self.size:
            raise QueueError(
                f"queue {self.index}: {count} buffers available in a queue of {self.size} entries"
            )
        return count

    def pop(self) -> Chain | None:
        """Take the next available chain, or None.

        Raises:
            QueueError: the ring or the chain is malformed.
        """
        if not self.available():
            return None
        slot = self._last_avail % self.size
        head: int = _U16.unpack(self._read(self.avail + 4 + 2 * slot, 2))[0]
        chain = self._chain(head, None)
        self._last_avail = self._last_avail + 1 & 0xFFFF
        return chain

    def pop_all(self, most: int = 1 << 16) -> list[Chain]:
        """Take every chain that is available now, ``most`` at most; the rings are read in one piece each.

        Raises:
            QueueError: the ring or a chain is malformed; the chains before it are lost with it.
        """
        count = min(self.available(), most)
        if not count:
            return []
        size = self.size
        ring = self._read(self.avail + 4, 2 * size)
        table = self._read(self.desc, 16 * size)
        chains = []
        for _ in range(count):
            (head,) = _U16.unpack_from(ring, 2 * (self._last_avail % size))
            chains.append(self._chain(head, table))
            self._last_avail = self._last_avail + 1 & 0xFFFF
        return chains

    def put_back(self, count: int) -> None:
        """Give the last ``count`` chains that were taken back unused: they will be taken again."""
        self._last_avail = self._last_avail - count & 0xFFFF

    def _chain(self, head: int, table: bytes | None) -> Chain:
        """The chain from ``head`` in the queue's table, of which ``table`` is a copy, if there is one."""
        if head >= self.size:
            raise QueueError(f"queue {self.index}: descriptor {head} of {self.size}")
        raw = self._read(self.desc + 16 * head, 16) if table is None else table[16 * head : 16 * head + 16]
        gpa, length, flags, _ = _DESC.unpack(raw)
        if flags & DESC_INDIRECT:
            return self._indirect(head, gpa, length, flags)
        if not flags & DESC_NEXT:
            # Most buffers of most devices are one piece.
            self._check_bytes(length)
            piece = (Segment(gpa, length),)
            return Chain(head, (), piece) if flags & DESC_WRITE else Chain(head, piece, ())
        if table is None:
            table = self._read(self.desc, 16 * self.size)
        return self._walk(head, head, table, self.size)

    def _indirect(self, head: int, gpa: int, length: int, flags: int) -> Chain:
        """A chain in a table of its own, of ``length`` bytes at ``gpa`` (2.7.5.3)."""
        where = f"queue {self.index}: indirect descriptor"
        if not self.indirect:
            raise QueueError(f"{where}, which was not negotiated")
        if flags & DESC_NEXT:
            raise QueueError(f"{where} with another one behind it")
        # No chain may be longer than the queue.
        if not length or length % 16 or length > 16 * self.size:
            raise QueueError(f"{where} of {length} bytes, in a queue of {self.size} entries")
        return self._walk(head, 0, self._read(gpa, length), length // 16, inside=True)

    def _check_bytes(self, total: int) -> None:
        if total > MAX_CHAIN_BYTES:
            raise QueueError(f"queue {self.index}: a chain of more than {MAX_CHAIN_BYTES} bytes")

    def _walk(self, head: int, at: int, table: bytes, entries: int, *, inside: bool = False) -> Chain:
        readable: list[Segment] = []
        writable: list[Segment] = []
        total = 0
        unpack = _DESC.unpack_from
        # A chain without a loop has at most as many descriptors as the table.
        for _ in range(entries):
            if at >= entries:
                raise QueueError(f"queue {self.index}: descriptor {at} of {entries}")
            gpa, length, flags, following = unpack(table, 16 * at)
            if flags & DESC_INDIRECT:
                how = "inside of another one" if inside else "in the middle of a chain"
                raise QueueError(f"queue {self.index}: indirect descriptor {how}")
            total += length
            if flags & DESC_WRITE:
                writable.append(Segment(gpa, length))
            elif writable:
                raise QueueError(f"queue {self.index}: a readable descriptor after a writable one")
            else:
                readable.append(Segment(gpa, length))
            if not flags & DESC_NEXT:
                self._check_bytes(total)
                return Chain(head, tuple(readable), tuple(writable))
            at = following
        raise QueueError(f"queue {self.index}: the descriptor chain from {head} has a loop")

    def transfer(self, segments: Iterable[Segment], move: Callable[[list[memoryview]], T]) -> T:
        """See :meth:`swtdx.devices.dma.Dma.transfer`.

        Raises:
            QueueError: some of it cannot be reached.
        """
        try:
            return self._dma.transfer(segments, move)
        except DmaError as error:
            raise QueueError(f"queue {self.index}: {error}") from error

    def read(self, segments: Iterable[Segment]) -> bytes:
        """What ``segments`` hold.

        Raises:
            QueueError: some of it cannot be reached.
        """
        return b"".join(self._read(gpa, length) for gpa, length in segments)

    def write(self, segments: Iterable[Segment], data: bytes | memoryview) -> None:
        """Store ``data``, which fits into ``segments``, there.

        Raises:
            QueueError: some of it cannot be reached.
        """
        done = 0
        for gpa, length in segments:
            part = data[done : done + length]
            if not part:
                return
            self._write(gpa, bytes(part))
            done += len(part)

    def gather(self, chain: Chain) -> bytes:
        """Everything that the device may read in ``chain``.

        Raises:
            QueueError: some of it cannot be reached.
        """
        return b"".join(self._read(piece.gpa, piece.length) for piece in chain.readable)

    def scatter(self, chain: Chain, data: bytes) -> int:
        """Fill ``chain`` from its start with as much of ``data`` as fits; returns how much that was.

        Raises:
            QueueError: some of it cannot be reached.
        """
        done = 0
        for piece in chain.writable:
            part = data[done : done + piece.length]
            if not part:
                break
            self._write(piece.gpa, part)
            done += len(part)
        return done

    def push(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back, of which the first ``written`` writable bytes were filled.

        Raises:
            QueueError: the used ring cannot be reached.
        """
        slot = self._used_idx % self.size
        self._write(self.used + 4 + 8 * slot, _USED_ELEMENT.pack(chain.head, written))
        self._used_idx = self._used_idx + 1 & 0xFFFF
        # The element must be there before the index says so.
        self._write(self.used + 2, _U16.pack(self._used_idx))

    def push_all(self, done: Iterable[tuple[Chain, int]]) -> None:
        """:meth:`push` for each of (chain, bytes written), with one store of the index.

        Raises:
            QueueError: the used ring cannot be reached.
        """
        index = self._used_idx
        for chain, written in done:
            slot = index % self.size
            self._write(self.used + 4 + 8 * slot, _USED_ELEMENT.pack(chain.head, written))
            index = index + 1 & 0xFFFF
        if index != self._used_idx:
            self._used_idx = index
            self._write(self.used + 2, _U16.pack(index))

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last time this said yes.

        Raises:
            QueueError: the available ring cannot be reached.
        """
        pushed = self._used_idx - self._signalled & 0xFFFF
        if not pushed:
            return False
        if self.event_idx:
            event: int = _U16.unpack(self._read(self.avail + 4 + 2 * self.size, 2))[0]
            wanted = (self._used_idx - event - 1 & 0xFFFF) < pushed
        else:
            flags: int = _U16.unpack(self._read(self.avail, 2))[0]
            wanted = not flags & AVAIL_NO_INTERRUPT
        self._signalled = self._used_idx
        return wanted

    def set_notify(self, wanted: bool) -> None:
        """Tell the driver whether to notify us of buffers that it adds.  It saves TD exits not to.

        A request, not a promise: notifications may come all the same.  After asking for them, look
        once more whether something was added before the driver could see it.

        Raises:
            QueueError: the used ring cannot be reached.
        """
        if self.event_idx:
            # "Notify when the index passes this": the next one, or the one that comes last.
            event = self._last_avail if wanted else self._last_avail - 1 & 0xFFFF
            self._write(self.used + 4 + 8 * self.size, _U16.pack(event))
        else:
            self._write(self.used, _U16.pack(0 if wanted else USED_NO_NOTIFY))
