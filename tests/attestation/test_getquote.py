"""The data of a GetQuote request, as Linux and as Intel's library send it."""

from __future__ import annotations

import struct

import pytest

from swtdx.attestation.errors import QgsError
from swtdx.attestation.getquote import answer
from swtdx.attestation.qgs import messages
from swtdx.attestation.qgs.server import respond
from swtdx.attestation.tdreport import ReportKey
from swtdx.attestation.world import World


def ask(world: World, data: bytes) -> bytes:
    enclave = world.enclave(world.report_key)
    return answer(data, lambda message: respond(message, enclave))


def test_linux_sends_a_bare_report(world: World) -> None:
    assert ask(world, world.report_fields().report(world.report_key)) == world.quote()


def test_intels_library_sends_a_prefixed_message(world: World) -> None:
    request = messages.quote_request(world.report_fields().report(world.report_key))
    data = ask(world, struct.pack(">I", len(request)) + request)
    assert struct.unpack(">I", data[:4]) == (len(data) - 4,)
    assert messages.parse_quote_response(data[4:]) == world.quote()


def test_a_refused_report_has_the_services_error(world: World) -> None:
    report = world.report_fields().report(ReportKey(b"another machine"))
    with pytest.raises(QgsError, match="UNEXPECTED") as error:
        ask(world, report)
    assert error.value.code == 0x12001
    # Intel's library gets the message with the error, and reads it itself.
    request = messages.quote_request(report)
    data = ask(world, struct.pack(">I", len(request)) + request)
    assert struct.unpack("<I", data[16:20]) == (0x12001,)


@pytest.mark.parametrize("data", [b"", b"xyz", b"\0\0\0\7too long for its prefix", bytes(1023), bytes(1025)])
def test_data_that_is_neither_is_refused(world: World, data: bytes) -> None:
    with pytest.raises(QgsError, match=f"{len(data)} bytes are neither") as error:
        ask(world, data)
    assert error.value.code


def test_a_service_that_is_not_there_has_no_code() -> None:
    def nobody(_: bytes) -> bytes:
        raise QgsError("nobody there")

    with pytest.raises(QgsError) as error:
        answer(bytes(1024), nobody)
    assert error.value.code == 0
