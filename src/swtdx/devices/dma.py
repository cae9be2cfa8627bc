"""How a device reaches guest memory.

A TD's private memory is closed to devices, so what a device reads and writes is the memory that the
guest has shared.  Addresses are guest-physical *without* the shared bit: a guest's drivers hand out
plain bus addresses (Linux's bounce buffers and coherent pages do), and which pages are shared is the
hypervisor's knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Segment(NamedTuple):
    """A piece of guest memory: guest-physical address and length in bytes."""

    gpa: int
    length: int


class DmaError(Exception):
    """An address that the device cannot reach: not memory, or not shared with the hypervisor."""

    def __init__(self, gpa: int, length: int, why: str = "not shared memory") -> None:
        super().__init__(f"DMA of {length} bytes at GPA {gpa:#x}: {why}")
        self.gpa = gpa
        self.length = length


class Dma(Protocol):
    """Guest memory as a device sees it; implemented by the hypervisor."""

    def read(self, gpa: int, length: int) -> bytes:
        """``length`` bytes from guest-physical address ``gpa``.

        Raises:
            DmaError: any of the bytes cannot be reached.
        """
        ...

    def write(self, gpa: int, data: bytes) -> None:
        """Store ``data`` at ``gpa``.  All of it, or nothing.

        Raises:
            DmaError: any of the bytes cannot be reached.
        """
        ...

    def transfer(self, segments: Iterable[Segment], move: Callable[[list[memoryview]], T]) -> T:
        """Call ``move`` with writable views of all of ``segments``, in order; its result.

        For what is too much to copy twice.  A segment may be several views, and neighbours may be one.  The
        memory stays there meanwhile: ``move`` must not wait for a thread that uses memory, nor keep a view.

        Raises:
            DmaError: any of the bytes cannot be reached; ``move`` was not called.
        """
        ...


class BufferDma:
    """Guest memory that is one writable buffer starting at GPA ``base``: for tests and plain VMs."""

    def __init__(self, buffer: bytearray | memoryview, base: int = 0) -> None:
        self._view = memoryview(buffer).cast("B")
        self._base = base

    def _span(self, gpa: int, length: int) -> tuple[int, int]:
        start = gpa - self._base
        if start < 0 or length < 0 or start + length > len(self._view):
            raise DmaError(gpa, length, "outside guest memory")
        return start, start + length

    def read(self, gpa: int, length: int) -> bytes:
        """See :meth:`Dma.read`."""
        start, end = self._span(gpa, length)
        return bytes(self._view[start:end])

    def write(self, gpa: int, data: bytes) -> None:
        """See :meth:`Dma.write`."""
        start, end = self._span(gpa, len(data))
        self._view[start:end] = data

    def transfer(self, segments: Iterable[Segment], move: Callable[[list[memoryview]], T]) -> T:
        """See :meth:`Dma.transfer`."""
        spans = [self._span(*segment) for segment in segments]
        return move([self._view[start:end] for start, end in spans if start < end])
