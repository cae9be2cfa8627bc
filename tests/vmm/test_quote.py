"""GetQuote's buffer, driven as Linux drives it, by the rules of QEMU (ghci.md section 7)."""

from __future__ import annotations

import struct
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swtdx.vmm.quote import QuoteRequests, QuoteService
from swtdx.vmm.vcpu import Vcpu

GPA = 0x10_0000
SIZE = 8192
IN_FLIGHT = 0xFFFF_FFFF_FFFF_FFFF
ERROR = 0x8000_0000_0000_0000
UNAVAILABLE = 0x8000_0000_0000_0001
#: R10 of the TDVMCALL.
RETRY, INVALID, ALIGN = 1, 0x8000_0000_0000_0000, 0x8000_0000_0000_0002


class Guest:
    """A buffer at GPA, everything that was written to it, and the interrupts that came."""

    def __init__(self, service: QuoteService | None, vector: int | None = 0x50) -> None:
        self.memory = bytearray(128 * 1024)
        self.writes: list[tuple[int, bytes]] = []
        self.reads = 0
        self.vectors: list[int] = []
        self.woken = threading.Event()
        self.vcpu = cast(Vcpu, SimpleNamespace(event_vector=vector, post=self.vectors.append))
        self.requests = QuoteRequests(service, self.read, self.write, self.woken.set)

    def read(self, gpa: int, size: int) -> bytes:
        self.reads += 1
        return bytes(self.memory[gpa - GPA :][:size])

    def write(self, gpa: int, data: bytes) -> None:
        self.writes.append((gpa - GPA, bytes(data)))
        self.memory[gpa - GPA : gpa - GPA + len(data)] = data

    def submit(self, data: bytes, size: int = SIZE, version: int = 1, gpa: int = GPA) -> int:
        self.memory[: 24 + len(data)] = struct.pack("<QQII", version, 0, len(data), 0) + data
        return self.requests.submit(self.vcpu, gpa, size)

    def finish(self) -> None:
        assert self.woken.wait(10)
        self.woken.clear()
        self.requests.poll()

    @property
    def header(self) -> tuple[Any, ...]:
        """Version, status, in_len, out_len."""
        return struct.unpack("<QQII", self.memory[:24])


def test_in_flight_at_once_and_the_quote_later_with_an_interrupt() -> None:
    release = threading.Event()

    def service(data: bytes) -> bytes:
        assert release.wait(10)
        return b"quote of " + data

    guest = Guest(service)
    assert guest.submit(b"report") == 0
    assert guest.header == (1, IN_FLIGHT, 6, 0)
    guest.requests.poll()
    assert (guest.header[1], guest.vectors) == (IN_FLIGHT, [])
    release.set()
    guest.finish()
    assert guest.header == (1, 0, 6, 15)
    assert guest.memory[24:39] == b"quote of report"
    assert guest.vectors == [0x50]
    # A guest that polls the status never sees half a quote.
    assert [offset for offset, _ in guest.writes[-3:]] == [24, 16, 8]


def test_without_an_interrupt_the_guest_polls() -> None:
    guest = Guest(bytes, vector=None)
    assert guest.submit(b"report") == 0
    guest.finish()
    assert guest.header == (1, 0, 6, 6)
    assert guest.vectors == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ConnectionError("no"), UNAVAILABLE),
        (ConnectionRefusedError(), UNAVAILABLE),
        (ValueError(), ERROR),
    ],
)
def test_failures_of_the_service(failure: Exception, status: int) -> None:
    def service(_: bytes) -> bytes:
        raise failure

    guest = Guest(service)
    assert guest.submit(b"report") == 0
    guest.finish()
    assert guest.header == (1, status, 6, 0)
    assert guest.vectors == [0x50]


def test_a_quote_that_fills_the_buffer_fits_and_one_byte_more_does_not() -> None:
    for size, header in ((SIZE - 24, (1, 0, 1, SIZE - 24)), (SIZE - 23, (1, ERROR, 1, 0))):
        guest = Guest(lambda _, size=size: b"q" * size)  # type: ignore[misc]
        assert guest.submit(b"r") == 0
        guest.finish()
        assert guest.header == header
        assert guest.memory[SIZE:] == bytes(len(guest.memory) - SIZE)


def test_without_a_service_the_answer_is_immediate() -> None:
    guest = Guest(None)
    assert guest.submit(b"report") == 0
    assert guest.header[1] == UNAVAILABLE


@pytest.mark.parametrize(
    ("gpa", "size", "version", "r10"),
    [
        (GPA + 1, SIZE, 1, ALIGN),
        (GPA, 4097, 1, ALIGN),
        (GPA, 0, 1, INVALID),
        (GPA, 132 * 1024, 1, INVALID),
        (GPA, SIZE, 2, INVALID),
    ],
)
def test_requests_that_are_not_taken(gpa: int, size: int, version: int, r10: int) -> None:
    guest = Guest(bytes)
    assert guest.submit(b"report", size, version, gpa) == r10
    assert guest.writes == []
    if version == 1:
        assert guest.reads == 0


def test_data_that_is_longer_than_the_buffer_is_not_taken() -> None:
    guest = Guest(bytes)
    guest.memory[:24] = struct.pack("<QQII", 1, 0, SIZE - 23, 0)
    assert guest.requests.submit(guest.vcpu, GPA, SIZE) == INVALID


def test_sixteen_requests_at_a_time() -> None:
    release = threading.Event()

    def service(data: bytes) -> bytes:
        assert release.wait(10)
        return data

    guest = Guest(service)
    assert [guest.submit(b"r") for _ in range(17)] == [0] * 16 + [RETRY]
    release.set()
    # All of them are done in time, and there is room again.
    for _ in range(100):
        guest.finish()
        if len(guest.vectors) == 16:
            break
    assert len(guest.vectors) == 16
    assert guest.submit(b"r") == 0
