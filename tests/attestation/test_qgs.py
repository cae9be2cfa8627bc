"""The quote generation service on a real socket, spoken to as QEMU and Intel's library speak."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dcap_qvl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.attestation.errors import QgsError, ReportRejected
from swtdx.attestation.qgs import messages, server
from swtdx.attestation.qgs.address import UnixAddress, VsockAddress, parse_address
from swtdx.attestation.qgs.client import QgsClient
from swtdx.attestation.qgs.collateral import collateral_source
from swtdx.attestation.qgs.loopback import Loopback
from swtdx.attestation.qgs.messages import MessageType
from swtdx.attestation.qgs.server import QgsServer, respond
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.tdreport import ReportKey
from swtdx.attestation.verify import Verifier
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


@pytest.mark.parametrize(
    "sent",
    [
        lambda report: (
            len(messages.quote_request(report)).to_bytes(4, "big") + messages.quote_request(report)
        ),
        lambda report: report,
        lambda report: b"\0\0\0\x10" + messages.platform_info_request(),
        lambda report: b"\0\0\0\x14" + struct.pack("<HHIIII", 1, 1, 0, 20, 0, 1024),
        lambda report: b"\0\0\0\x18" + messages.quote_request(report)[:8],
        lambda report: report[:-1] + b"?",
        lambda report: b"x",
        lambda report: b"",
    ],
    ids=["quote", "bare", "platform info", "malformed", "short", "refused", "noise", "nothing"],
)
@pytest.mark.parametrize("chunk", [1 << 16, 7])
def test_a_loopback_answers_as_a_socket_does(
    service: UnixAddress, world: World, sent: Callable[[bytes], bytes], chunk: int
) -> None:
    """The same bytes, however they are cut; and the end of the connection where the service closes it."""
    data = sent(world.report_fields().report(world.report_key))
    answers = []
    loopback = Loopback(world.enclave(world.report_key))
    for connection in (service.connect(10), loopback.connect(10)):
        with contextlib.closing(connection):
            for start in range(0, len(data), chunk):
                connection.sendall(data[start : start + chunk])
            if isinstance(connection, socket.socket):
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := connection.recv(chunk):
                received += part
            answers.append(received)
    assert answers[0] == answers[1]


def test_a_client_on_a_loopback(world: World) -> None:
    client = QgsClient(Loopback(world.enclave(world.report_key)))
    assert client.quote(world.report_fields().report(world.report_key)) == world.quote()
    assert client.platform_info().cpusvn == world.tcb.cpusvn
    with pytest.raises(QgsError, match="UNEXPECTED"):
        client.quote(world.report_fields().report(ReportKey(b"another machine")))
    with pytest.raises(QgsError, match="the platform's own quoting enclave closed the connection"):
        client.exchange(b"noise")


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


def test_answers_have_the_sizes_of_intels_library(service: UnixAddress, world: World) -> None:
    """``qgs_msg_lib.cpp``: an error is the response's structure; a platform's answer ends in four zeros."""
    client = QgsClient(service)
    info = client.exchange(messages.platform_info_request())
    assert len(info) == 64
    assert struct.unpack_from("<HHIIIHHII", info) == (1, 1, 5, 64, 0, 4, 13, 16, 16)
    assert info[60:] == bytes(4)
    enclave = world.enclave(world.report_key)
    refused = world.report_fields().report(ReportKey(b"another machine"))
    for request, kind, size in (
        (messages.quote_request(refused), 1, 24),
        (messages.collateral_request(b"\1" * 6, "platform"), 3, 48),
        (struct.pack("<HHIII", 1, 1, 4, 17, 0), 1, 24),
    ):
        answer = respond(request, enclave)
        assert struct.unpack_from("<HHII", answer) == (1, 1, kind, size)
        assert len(answer) == size
        assert struct.unpack_from("<I", answer, 12)[0] & 0xFFFFF000 == 0x12000
        assert not any(answer[16:])
    assert len(messages.error_response(MessageType.GET_PLATFORM_INFO_RESP, 0x12001)) == 28


def test_collateral_verifies_the_services_own_quote(tmp_path: Path, world: World) -> None:
    address = UnixAddress(tmp_path / "qgs.socket")
    with QgsServer(world.enclave(world.report_key), address, collateral_source(world, frozen=True)):
        client = QgsClient(address)
        parts = client.collateral(world.platform_identity.fmspc, "platform")
        for fmspc, ca in ((b"\1" * 6, "platform"), (world.platform_identity.fmspc, "processor")):
            with pytest.raises(QgsError, match="UNEXPECTED"):
                client.collateral(fmspc, ca)
        request = messages.collateral_request(world.platform_identity.fmspc, "platform")
        answer = client.exchange(request)
        # A client of protocol 1.0 gets the two version numbers' size counted twice.
        old = client.exchange(messages.collateral_request(world.platform_identity.fmspc, "platform", minor=0))
        assert len(old) == len(answer) + 4
        assert messages.parse_collateral_response(old) == parts
        assert len(answer) == 48 + sum(len(each) for each in parts.values())
        quote = client.quote(world.report_fields().report(world.report_key))
    info, identity = json.loads(parts["tcb_info"]), json.loads(parts["qe_identity"])
    text = parts["tcb_info"].decode()
    collateral = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=parts["pck_crl_issuer_chain"].decode(),
        root_ca_crl=parts["root_ca_crl"],
        pck_crl=parts["pck_crl"],
        tcb_info_issuer_chain=parts["tcb_info_issuer_chain"].decode(),
        tcb_info=text[len('{"tcbInfo":') : text.rindex(',"signature"')],
        tcb_info_signature=bytes.fromhex(info["signature"]),
        qe_identity_issuer_chain=parts["qe_identity_issuer_chain"].decode(),
        qe_identity=json.dumps(identity["enclaveIdentity"], separators=(",", ":")),
        qe_identity_signature=bytes.fromhex(identity["signature"]),
    )
    report = dcap_qvl.verify_with_root_ca(quote, collateral, world.pki.root.der, int(world.now.timestamp()))
    assert report.status == "UpToDate"


def test_a_cap_on_clients(tmp_path: Path, world: World) -> None:
    """More clients than places: none is lost, and no more threads run than there are places."""
    address = UnixAddress(tmp_path / "qgs.socket")
    before = threading.active_count()
    with QgsServer(world.enclave(world.report_key), address, most=2):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(6)]
        for each in idle:
            each.connect(str(address.path))
        time.sleep(0.2)
        # The server's own thread, and two clients.
        assert threading.active_count() - before <= 3
        for each in idle:
            each.close()
        assert QgsClient(address).platform_info().cpusvn == world.tcb.cpusvn


def test_a_client_that_dribbles_has_one_time_limit(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENT_TIMEOUT", 0.5)
    address = UnixAddress(tmp_path / "qgs.socket")
    with QgsServer(world.enclave(world.report_key), address), socket.socket(socket.AF_UNIX) as dribbling:
        dribbling.settimeout(10)
        dribbling.connect(str(address.path))
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            while time.monotonic() - start < 5:
                dribbling.sendall(b"\0")
                time.sleep(0.1)
        assert time.monotonic() - start < 4


def test_the_enclave_of_a_seed_quotes_for_that_machine(tmp_path: Path) -> None:
    """Two processes need only the seed in common: the report of a machine, the service outside of it."""
    from swtdx.machine.cpu.fuses import Fuses
    from swtdx.quoting import enclave_of_seed

    world = World(seed=b"a seed of its own")
    report = world.report_fields().report(ReportKey(Fuses(b"a seed of its own").report_key))
    quote = enclave_of_seed(world).quote(report)
    assert ParsedQuote(quote).version == 4
    assert ParsedQuote(enclave_of_seed(world, 5).quote(report)).version == 5
    verdict = Verifier(world.pki.root.der, accept_simulated=True).verify(quote, world.collateral(), world.now)
    assert verdict.accepted
    with pytest.raises(ReportRejected):
        enclave_of_seed(World(seed=b"another")).quote(report)


@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_serve_on_the_command_line(tmp_path: Path, world: World, end: signal.Signals, status: int) -> None:
    path = tmp_path / "s.socket"
    command = [sys.executable, "-m", "swtdx.cli.main", "qgs", "serve", f"unix:{path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"Serving quotes on unix:{path}\n"
        quote = QgsClient(UnixAddress(path)).quote(world.report_fields().report(world.report_key))
        assert quote == world.quote()
        assert QgsClient(UnixAddress(path)).collateral(world.platform_identity.fmspc, "platform")
    finally:
        process.send_signal(end)
        process.communicate(timeout=20)
        assert process.returncode == status
    assert not path.exists()
