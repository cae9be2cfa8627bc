"""Virtio sockets on the host's side, with a guest that is played packet by packet."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtdx.devices.virtio.vsock import HOST_CID, STREAM, Op, Packet
from swtdx.vmm.errors import VmmError
from swtdx.vmm.peripherals.config import VsockConfig
from swtdx.vmm.peripherals.vsock_host import BUFFER, VsockHost

CID = 5
ROOM = 4096


class Guest:
    """The other end."""

    def __init__(self, path: Path) -> None:
        self.host = VsockHost(VsockConfig(CID, path))
        self.host.connect(lambda: None)

    def send(self, op: Op, ours: int, theirs: int, payload: bytes = b"", **more: int) -> None:
        fields = {"flags": 0, "buf_alloc": 1 << 16, "fwd_cnt": 0, "dst_cid": HOST_CID, "kind": STREAM} | more
        packet = Packet(
            CID, fields["dst_cid"], ours, theirs, len(payload), fields["kind"], op, fields["flags"],
            fields["buf_alloc"], fields["fwd_cnt"],
        )  # fmt: skip
        self.host.received(packet, payload)

    def next(self, room: int = ROOM) -> tuple[Packet, bytes]:
        """The next packet, which may take a moment."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if self.host.ready and (found := self.host.next(room)) is not None:
                return found
            time.sleep(0.002)
        raise AssertionError("no packet came")


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "s")
    yield guest
    guest.host.close()
    assert not (tmp_path / "s").exists()


def dial(path: Path, line: bytes) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(5)
    stream.connect(str(path))
    stream.sendall(line)
    return stream


def test_a_program_of_the_host_connects(guest: Guest, tmp_path: Path) -> None:
    with dial(tmp_path / "s", b"CONNECT 1234\nearly") as stream:
        asked, _ = guest.next()
        assert (asked.op, asked.dst_port, asked.src_cid, asked.dst_cid) == (Op.REQUEST, 1234, HOST_CID, CID)
        port = asked.src_port
        guest.send(Op.RESPONSE, 1234, port, buf_alloc=3)
        assert stream.recv(64) == b"OK %d\n" % port
        # No more than the guest has room for.
        assert guest.next()[1] == b"ear"
        assert not guest.host.ready
        guest.send(Op.CREDIT_UPDATE, 1234, port, buf_alloc=1 << 16, fwd_cnt=3)
        assert guest.next()[1] == b"ly"
        guest.send(Op.RW, 1234, port, b"answer", fwd_cnt=5)
        assert stream.recv(64) == b"answer"
        guest.send(Op.SHUTDOWN, 1234, port, flags=3, fwd_cnt=5)
        assert stream.recv(64) == b""
        assert guest.next()[0].op == Op.RST


def test_the_guest_connects(guest: Guest, tmp_path: Path) -> None:
    guest.send(Op.REQUEST, 50, 80)
    assert guest.next()[0].op == Op.RST, "nobody listens there"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s_80"))
        listener.listen()
        guest.send(Op.REQUEST, 50, 80)
        assert guest.next()[0].op == Op.RESPONSE
        stream, _ = listener.accept()
        with stream:
            stream.sendall(b"x" * 10_000)
            stream.shutdown(socket.SHUT_WR)
            got = b""
            while len(got) < 10_000:
                packet, data = guest.next()
                assert packet.op == Op.RW
                assert packet.length == len(data) <= ROOM
                got += data
            ended, _ = guest.next()
            assert (ended.op, ended.flags) == (Op.SHUTDOWN, 2)
            guest.send(Op.RW, 50, 80, b"still here")
            assert stream.recv(64) == b"still here"


def test_credit(guest: Guest, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s_80"))
        listener.listen()
        guest.send(Op.REQUEST, 50, 80)
        offered, _ = guest.next()
        assert offered.buf_alloc == BUFFER
        stream, _ = listener.accept()
        with stream:
            sent = 0
            told = 0
            # The program reads nothing: what its socket does not take waits, up to the credit.
            while sent - told + 65536 <= BUFFER:
                guest.send(Op.RW, 50, 80, bytes(65536))
                sent += 65536
                while guest.host.ready and (found := guest.host.next(ROOM)) is not None:
                    told = found[0].fwd_cnt
            guest.send(Op.CREDIT_REQUEST, 50, 80)
            assert guest.next()[0].op == Op.CREDIT_UPDATE
            guest.send(Op.RW, 50, 80, bytes(65536))
            guest.send(Op.RW, 50, 80, bytes(65536))
            assert guest.next()[0].op == Op.RST, "it has sent more than it may"


@pytest.mark.parametrize(
    ("op", "more"),
    [
        (Op.RW, {}),
        (Op.RESPONSE, {}),
        (Op.REQUEST, {"dst_cid": 99}),
        (Op.REQUEST, {"kind": 2}),
        (Op.INVALID, {}),
    ],
)
def test_what_leads_nowhere_is_reset(guest: Guest, op: Op, more: dict[str, int]) -> None:
    guest.send(op, 1, 2, b"", **more)
    assert guest.next()[0].op == Op.RST
    guest.send(Op.RST, 1, 2)
    assert not guest.host.ready


@pytest.mark.parametrize("line", [b"HELLO 1\n", b"CONNECT x\n", b"CONNECT 99999999999\n", b"C" * 100])
def test_programs_that_say_something_else(guest: Guest, tmp_path: Path, line: bytes) -> None:
    with dial(tmp_path / "s", line) as stream:
        end = time.monotonic() + 5
        stream.settimeout(0.01)
        while time.monotonic() < end:
            assert not guest.host.ready
            try:
                assert stream.recv(10) == b""
                return
            except TimeoutError:
                continue
            except ConnectionResetError:
                return
        raise AssertionError("it was not hung up on")


def test_the_path(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    VsockHost(VsockConfig(CID, path)).close()
    first = VsockHost(VsockConfig(CID, path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    with pytest.raises(VmmError, match="Address already in use"):
        VsockHost(VsockConfig(CID, path))
    first.close()
    path.write_text("mine")
    with pytest.raises(VmmError, match="Address already in use"):
        VsockHost(VsockConfig(CID, path))
    assert path.read_text() == "mine"
