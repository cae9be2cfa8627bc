"""The quote generation service on a real socket, spoken to as QEMU and Intel's library speak."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.attestation.errors import QgsError
from swtdx.attestation.qgs import messages
from swtdx.attestation.qgs.address import UnixAddress, VsockAddress, parse_address
from swtdx.attestation.qgs.client import QgsClient
from swtdx.attestation.qgs.server import QgsServer, respond
from swtdx.attestation.tdreport import ReportKey
from swtdx.attestation.world import World


@pytest.fixture
def service(tmp_path: Path, world: World) -> Iterator[UnixAddress]:
    address = UnixAddress(tmp_path / "qgs.socket")
    with QgsServer(world.enclave(world.report_key), address):
        yield address


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        assert chunk, f"closed after {len(data)} of {size} bytes"
        data += chunk
    return data


def as_qemu(address: UnixAddress, report: bytes) -> bytes:
    """What QEMU's quote generator sends and checks, written from its description."""
    message = struct.pack("<HHIIIII", 1, 1, 0, 16 + 8 + 1024, 0, 1024, 0) + report
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(address.path))
        connection.sendall(struct.pack(">I", len(message)) + message)
        (length,) = struct.unpack(">I", exactly(connection, 4))
        answer = exactly(connection, length)
        assert connection.recv(1) == b""
    major, minor, kind, size, error, id_size, quote_size = struct.unpack("<HHIIIII", answer[:24])
    assert (major, minor, kind, size, error) == (1, 1, 1, len(answer), 0)
    assert id_size == 0
    assert quote_size == len(answer) - 24
    return answer[24:]


def test_as_qemu_speaks_it(service: UnixAddress, world: World) -> None:
    assert as_qemu(service, world.report_fields().report(world.report_key)) == world.quote()


def test_a_bare_report_gets_a_bare_quote(service: UnixAddress, world: World) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(service.path))
        connection.sendall(world.report_fields().report(world.report_key))
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received == world.quote()


def test_client_and_platform_info(service: UnixAddress, world: World) -> None:
    client = QgsClient(service)
    assert client.quote(world.report_fields().report(world.report_key)) == world.quote()
    info = client.platform_info()
    assert (info.tdqe_isvsvn, info.pce_isvsvn) == (4, 13)
    assert info.cpusvn == world.tcb.cpusvn
    assert info.platform_id == world.quote()[28:44]


def test_many_clients_at_once(service: UnixAddress, world: World) -> None:
    report = world.report_fields().report(world.report_key)
    request = messages.quote_request(report)
    connections = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for connection in connections:
        connection.settimeout(10)
        connection.connect(str(service.path))
        connection.sendall(len(request).to_bytes(4, "big"))
    # All wait inside their request now; the last to connect is the first to finish it.
    for connection in reversed(connections):
        connection.sendall(request)
    for connection in connections:
        with connection:
            answer = exactly(connection, int.from_bytes(exactly(connection, 4), "big"))
            assert messages.parse_quote_response(answer) == world.quote()


def test_a_refused_report_is_an_error_code(service: UnixAddress, world: World) -> None:
    report = world.report_fields().report(ReportKey(b"another machine"))
    with pytest.raises(QgsError, match="UNEXPECTED") as error:
        QgsClient(service).quote(report)
    assert error.value.code == 0x12001


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (struct.pack("<HHIIII", 1, 1, 0, 20, 0, 1024), 0x12006),
        (struct.pack("<HHIIIII", 1, 1, 0, 24, 0, 0, 0), 0x12003),
        (struct.pack("<HHIIIII", 1, 1, 0, 24, 0, 0xFFFFFFFF, 0xFFFFFFFF), 0x12006),
        (struct.pack("<HHIII", 2, 0, 0, 16, 0), 0x12004),
        (struct.pack("<HHIII", 1, 1, 2, 16, 0), 0x12001),
        (struct.pack("<HHIII", 1, 1, 7, 16, 0), 0x12005),
        (struct.pack("<HHIII", 1, 1, 0, 17, 0), 0x12006),
    ],
)
def test_malformed_messages_get_the_protocols_errors(world: World, request_bytes: bytes, code: int) -> None:
    answer = respond(request_bytes, world.enclave(world.report_key))
    assert struct.unpack("<I", answer[12:16]) == (code,)
    assert struct.unpack("<I", answer[8:12]) == (len(answer),)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=1200))
def test_noise_never_breaks_the_service(world: World, data: bytes) -> None:
    answer = respond(data, world.enclave(world.report_key))
    assert len(answer) == struct.unpack("<I", answer[8:12])[0]
    assert struct.unpack("<I", answer[12:16])[0] != 0


def test_noise_on_the_socket_leaves_the_service_alive(service: UnixAddress, world: World) -> None:
    for noise in (b"", b"x", b"\0" * 20, b"\xff" * 5000, struct.pack(">I", 0xFFFFFFFF) + b"\1" * 100):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(service.path))
            connection.sendall(noise)
    assert as_qemu(service, world.report_fields().report(world.report_key)) == world.quote()


def test_unreachable_and_misbehaving_services(tmp_path: Path) -> None:
    with pytest.raises(QgsError, match="cannot reach"):
        QgsClient(UnixAddress(tmp_path / "nobody")).quote(bytes(1024))
    address = UnixAddress(tmp_path / "mute")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(address.path))
        mute.listen()
        with pytest.raises(QgsError, match=r"did not answer in 0\.2 s"):
            QgsClient(address, timeout=0.2).quote(bytes(1024))


def test_socket_paths(tmp_path: Path, world: World) -> None:
    enclave = world.enclave(world.report_key)
    address = UnixAddress(tmp_path / "s")
    with QgsServer(enclave, address), pytest.raises(QgsError, match="in use"):
        QgsServer(enclave, address)
    assert not address.path.exists()
    # A socket that a dead service left behind is replaced, anything else is not.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(address.path))
    with QgsServer(enclave, address):
        assert address.path.is_socket()
    address.path.write_text("a file of somebody's")
    with pytest.raises(QgsError, match="cannot serve quotes"):
        QgsServer(enclave, address)
    assert address.path.read_text() == "a file of somebody's"
    with pytest.raises(QgsError, match="longer than 107"):
        QgsServer(enclave, UnixAddress(tmp_path / ("x" * 108)))


def test_addresses() -> None:
    assert parse_address("unix:/run/q") == UnixAddress(Path("/run/q"))
    assert parse_address("/run/q") == UnixAddress(Path("/run/q"))
    assert parse_address("vsock:2") == VsockAddress(2, 4050)
    assert str(parse_address("vsock:2:99")) == "vsock:2:99"
    with pytest.raises(QgsError, match="vsock:CID"):
        parse_address("vsock:host")
    with pytest.raises(QgsError, match="empty"):
        parse_address("unix:")


def test_vsock_where_there_is_one(world: World) -> None:
    # Loopback needs the vsock_loopback module; where it is missing there is no way to test.
    try:
        with QgsServer(world.enclave(world.report_key), VsockAddress(-1, 40501)):
            report = world.report_fields().report(world.report_key)
            quote = QgsClient(VsockAddress(1, 40501), timeout=3).quote(report)
    except QgsError as error:
        pytest.skip(f"no vsock loopback here: {error}")
    assert quote == world.quote()
