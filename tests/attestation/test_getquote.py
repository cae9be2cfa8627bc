"""The GetQuote buffer, driven as the guest kernel and the hypervisor drive it."""

from __future__ import annotations

import struct

import pytest

from swtdx.attestation import getquote
from swtdx.attestation.errors import AttestationError, QgsError
from swtdx.attestation.qgs import messages
from swtdx.attestation.qgs.server import respond
from swtdx.attestation.tdreport import ReportKey
from swtdx.attestation.world import World

SIZE = 8192


def buffer(data: bytes, size: int = SIZE, version: int = 1) -> bytes:
    """As Linux fills it: version, status, in_len, out_len, data."""
    return (struct.pack("<QQII", version, 0, len(data), 0) + data).ljust(size, b"\0")


def serve(world: World, data: bytes, size: int = SIZE) -> tuple[int, int, int, bytes]:
    """(status, in_len, out_len, data out) after a request."""
    enclave = world.enclave(world.report_key)
    out = getquote.serve(buffer(data, size), lambda message: respond(message, enclave))
    version, status, in_len, out_len = struct.unpack("<QQII", out[:24])
    assert version == 1
    assert len(out) == size
    return status, in_len, out_len, out[24 : 24 + out_len]


def test_linux_sends_a_bare_report(world: World) -> None:
    report = world.report_fields().report(world.report_key)
    assert serve(world, report) == (0, 1024, len(world.quote()), world.quote())


def test_intels_library_sends_a_prefixed_message(world: World) -> None:
    request = messages.quote_request(world.report_fields().report(world.report_key))
    status, in_len, _, data = serve(world, struct.pack(">I", len(request)) + request)
    assert (status, in_len) == (0, 4 + len(request))
    assert struct.unpack(">I", data[:4]) == (len(data) - 4,)
    assert messages.parse_quote_response(data[4:]) == world.quote()


def test_a_refused_report_is_an_error(world: World) -> None:
    report = world.report_fields().report(ReportKey(b"another machine"))
    assert serve(world, report) == (0x8000000000000000, 1024, 0, b"")


def test_a_quote_that_does_not_fit_is_an_error(world: World) -> None:
    report = world.report_fields().report(world.report_key)
    assert serve(world, report, size=4096) == (0x8000000000000000, 1024, 0, b"")


@pytest.mark.parametrize("data", [b"", b"xyz", b"\0\0\0\7too long for its prefix", bytes(1023), bytes(1025)])
def test_data_that_is_neither_is_an_error(world: World, data: bytes) -> None:
    assert serve(world, data)[0] == 0x8000000000000000


def test_no_service_is_said_as_such(world: World) -> None:
    def nobody(_: bytes) -> bytes:
        raise QgsError("nobody there")

    out = getquote.serve(buffer(bytes(1024)), nobody)
    assert struct.unpack("<Q", out[8:16]) == (0x8000000000000001,)


@pytest.mark.parametrize(
    ("gpa", "size", "content", "in_flight", "r10"),
    [
        (0x1001, SIZE, buffer(b""), 0, 0x8000000000000002),
        (0x1000, 4097, buffer(b""), 0, 0x8000000000000002),
        (0x1000, 0, b"", 0, 0x8000000000000000),
        (0x1000, 132 * 1024, buffer(b""), 0, 0x8000000000000000),
        (0x1000, SIZE, buffer(b"", version=2), 0, 0x8000000000000000),
        (0x1000, SIZE, struct.pack("<QQII", 1, 0, SIZE - 23, 0), 0, 0x8000000000000000),
        (0x1000, SIZE, buffer(b""), 16, 1),
    ],
)
def test_requests_that_are_not_taken(gpa: int, size: int, content: bytes, in_flight: int, r10: int) -> None:
    admission = getquote.admit(
        gpa, size, lambda offset, length: content[offset : offset + length], in_flight=in_flight
    )
    assert admission == getquote.Admission(r10)


def test_an_unplaced_buffer_is_never_read() -> None:
    def read(offset: int, length: int) -> bytes:
        raise AssertionError("read a buffer that is refused")

    for gpa, size in ((1, SIZE), (0x1000, 1), (0x1000, 0), (0x1000, 1 << 30)):
        assert getquote.admit(gpa, size, read).request is None


def test_in_flight_comes_first_and_data_before_status(world: World) -> None:
    content = buffer(world.report_fields().report(world.report_key))
    admission = getquote.admit(0, SIZE, lambda offset, length: content[offset : offset + length])
    assert admission.r10 == 0
    assert admission.writes == (getquote.Write(8, b"\xff" * 8),)
    assert admission.request is not None
    enclave = world.enclave(world.report_key)
    data, header = getquote.answer(admission.request, lambda message: respond(message, enclave))
    assert (data.offset, data.data) == (24, world.quote())
    assert header.offset == 8
    assert header.data[:8] == bytes(8)


def test_without_a_service_the_answer_is_immediate() -> None:
    content = buffer(bytes(1024))
    admission = getquote.admit(
        0, SIZE, lambda offset, length: content[offset : offset + length], available=False
    )
    (write,) = admission.writes
    assert (admission.r10, admission.request) == (0, None)
    assert struct.unpack("<QII", write.data) == (0x8000000000000001, 1024, 0)


def test_serve_says_when_a_request_is_refused() -> None:
    with pytest.raises(AttestationError, match="0x8000000000000000"):
        getquote.serve(buffer(b"", version=3), lambda message: message)
