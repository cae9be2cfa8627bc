"""Copy on write: what is written goes to a temporary file, and the image below never changes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Final, Protocol

from swtdx.vmm.peripherals.raw_image import RawImage

#: Bytes that are copied at once.
CLUSTER: Final = 64 << 10


class Base(Protocol):
    """What lies below."""

    size: int

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views``."""

    def close(self) -> None:
        """Give it back."""


class Overlay:
    """An image (:class:`swtdx.devices.virtio.blk.Image`) over another one.

    Args:
        base: what reads give until something else is written.

    Raises:
        OSError: there is no room for temporary files.
    """

    read_only = False

    def __init__(self, base: Base) -> None:
        self._base = base
        self.size = base.size
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="swtdx-disk-")  # noqa: SIM115
        os.truncate(self._file.fileno(), max(1, -(-base.size // CLUSTER) * CLUSTER))
        self._top = RawImage.over(self._file.fileno())
        #: A byte for each cluster: 1 where the file has it.
        self._ours = bytearray(-(-base.size // CLUSTER))

    def close(self) -> None:
        """Forget all that was written."""
        self._top.close()
        self._file.close()
        self._base.close()

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        """(whether it is ours, offset, bytes) of the runs that a range is made of."""
        end = offset + length
        while offset < end:
            cluster = offset // CLUSTER
            here = self._ours[cluster]
            other = self._ours.find(1 - here, cluster + 1)
            stop = end if other < 0 else min(end, other * CLUSTER)
            yield bool(here), offset, stop - offset
            offset = stop

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views`` from ``offset`` on.

        Raises:
            OSError: a file cannot be read.
        """
        left = list(views)
        for ours, at, length in self._runs(offset, sum(map(len, views))):
            part = take(left, length)
            if ours:
                self._top.read(at, part)
            else:
                self._base.read(at, part)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store ``views`` from ``offset`` on.

        Raises:
            OSError: a file cannot be read or written.
        """
        length = sum(map(len, views))
        self._own(offset, length)
        self._top.write(offset, views)
        self._mark(offset, length)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make ``length`` bytes zeros.

        Raises:
            OSError: a file cannot be read or written.
        """
        self._own(offset, length)
        self._top.zero(offset, length, unmap=unmap)
        self._mark(offset, length)

    def flush(self) -> None:
        """Nothing lasts."""

    def _own(self, offset: int, length: int) -> None:
        """Copy what a store to this range would leave of the clusters at its ends."""
        end = offset + length
        for cluster in {offset // CLUSTER, max(offset, end - 1) // CLUSTER}:
            start = cluster * CLUSTER
            whole = offset <= start and end >= min(start + CLUSTER, self.size)
            if length and not whole and not self._ours[cluster]:
                data = memoryview(bytearray(CLUSTER))[: min(CLUSTER, self.size - start)]
                self._base.read(start, [data])
                self._top.write(start, [data])
                self._ours[cluster] = 1

    def _mark(self, offset: int, length: int) -> None:
        first, end = offset // CLUSTER, -(-(offset + length) // CLUSTER)
        if length:
            self._ours[first:end] = b"\1" * (min(end, len(self._ours)) - first)


def take(views: list[memoryview], length: int) -> list[memoryview]:
    """Take the first ``length`` bytes off ``views``."""
    taken = []
    while length:
        first = views[0]
        if len(first) <= length:
            taken.append(first)
            length -= len(first)
            del views[0]
        else:
            taken.append(first[:length])
            views[0] = first[length:]
            length = 0
    return taken
