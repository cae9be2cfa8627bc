"""The host's side of virtio sockets, as Firecracker has it: Unix sockets at a path.

A program on the host connects to PATH, writes ``CONNECT PORT\\n`` and reads ``OK HOSTPORT\\n``, and has a
connection to that port of the guest; where nobody listens there, it is closed.  A connection of the guest to
port N of the host (context id 2) leads to the Unix socket PATH_N, if a program listens there.

Everything but :class:`~swtdx.vmm.peripherals.watch.Watch` happens on the thread that runs vCPUs; no call
waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from swtdx.arch.units import MASK32
from swtdx.devices.virtio.vsock import HOST_CID, STREAM, Op, Packet
from swtdx.vmm.peripherals.config import VsockConfig
from swtdx.vmm.peripherals.errors import PeripheralError
from swtdx.vmm.peripherals.watch import READABLE, WRITABLE, Watch

#: Connections at a time, and programs that have connected but not said where to.
_MOST: Final = 256
_MOST_UNDECIDED: Final = 64
#: Seconds that such a program may take.
_PATIENCE: Final = 10.0
#: Longest line of CONNECT.
_LONGEST_LINE: Final = 32
#: Bytes that the guest may send before a program has read them.
BUFFER: Final = 256 << 10
#: Bytes that were read since the guest was told so last.
_TELL: Final = BUFFER // 4
_PIECE: Final = 64 << 10
#: Answers without data that may wait for the guest.
_MOST_ANSWERS: Final = 512
#: The first of the ports that connections from the host get.
_FIRST_PORT: Final = 1 << 30
#: Flags of SHUTDOWN: no more will be received, no more will be sent.
_NO_RECEIVE: Final = 1
_NO_SEND: Final = 2


class _Connection:
    """One connection."""

    def __init__(self, stream: socket.socket, guest_port: int, host_port: int) -> None:
        self.stream = stream
        self.guest_port = guest_port
        self.host_port = host_port
        #: The guest has agreed, or asked.
        self.open = False
        #: The stream may have something.
        self.readable = False
        self.ended = False
        #: The guest will send nothing more; with ``closing`` nothing at all goes on once its data is out.
        self.guest_ended = False
        self.closing = False
        #: Bytes for the stream that it has not taken.
        self.waiting = bytearray()
        self.forwarded = 0
        self.told = 0
        #: What the guest has room for, has read, and was sent, modulo 2**32.
        self.guest_room = 0
        self.guest_read = 0
        self.sent = 0

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(0, self.guest_room - (self.sent - self.guest_read & MASK32))


class VsockHost:
    """The sockets (:class:`swtdx.devices.virtio.vsock.Sockets`).

    Args:
        config: the guest's context id, and the path.

    Raises:
        PeripheralError: the path cannot be listened at.
    """

    def __init__(self, config: VsockConfig) -> None:
        self._cid = config.cid
        self._path = config.path
        self._listener = _listen(config.path)
        self._watch = Watch()
        self._answers: deque[Packet] = deque()
        self._connections: dict[tuple[int, int], _Connection] = {}
        self._by_fd: dict[int, _Connection] = {}
        #: Programs that have not said CONNECT: what they have said, and until when they may.
        self._undecided: dict[int, tuple[socket.socket, bytearray, float]] = {}
        self._next_port = _FIRST_PORT
        self._turns: deque[_Connection] = deque()

    def close(self) -> None:
        """End everything, and take the path away."""
        self.reset()
        for stream, _, _ in self._undecided.values():
            stream.close()
        self._undecided.clear()
        self._watch.close()
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def connect(self, wake: Callable[[], None]) -> None:
        """See :class:`swtdx.devices.virtio.vsock.Sockets`."""
        self._watch.wake = wake
        self._watch.arm(self._listener.fileno(), READABLE)

    def reset(self) -> None:
        """See :class:`swtdx.devices.virtio.vsock.Sockets`."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._answers.clear()

    # ------------------------------------------------------------------ from the guest
    @property
    def full(self) -> bool:
        """See :class:`swtdx.devices.virtio.vsock.Sockets`."""
        return len(self._answers) >= _MOST_ANSWERS

    def received(self, packet: Packet, payload: bytes) -> None:
        """See :class:`swtdx.devices.virtio.vsock.Sockets`."""
        if packet.src_cid != self._cid or packet.dst_cid != HOST_CID or packet.kind != STREAM:
            self._refuse(packet)
            return
        connection = self._connections.get((packet.src_port, packet.dst_port))
        if packet.op == Op.REQUEST:
            self._asked(packet, connection)
            return
        if connection is None:
            self._refuse(packet)
            return
        connection.guest_room = packet.buf_alloc
        connection.guest_read = packet.fwd_cnt
        if packet.op == Op.RESPONSE and not connection.open:
            self._agreed(connection)
        elif packet.op == Op.RW and connection.open and not connection.guest_ended:
            self._forward(connection, payload)
        elif packet.op == Op.SHUTDOWN:
            self._shut(connection, packet.flags)
        elif packet.op == Op.CREDIT_REQUEST:
            self._answer(connection, Op.CREDIT_UPDATE)
        elif packet.op == Op.RST:
            self._drop(connection)
        elif packet.op != Op.CREDIT_UPDATE:
            self._break(connection)

    def _refuse(self, packet: Packet) -> None:
        """RST to where ``packet`` came from, which is not told that it was reset itself."""
        if packet.op != Op.RST:
            self._answers.append(
                Packet(packet.dst_cid, packet.src_cid, packet.dst_port, packet.src_port, 0, packet.kind,
                       Op.RST, 0, 0, 0)
            )  # fmt: skip

    def _answer(self, connection: _Connection, op: Op, flags: int = 0) -> None:
        self._answers.append(self._packet(connection, op, 0, flags))

    def _packet(self, connection: _Connection, op: Op, length: int = 0, flags: int = 0) -> Packet:
        connection.told = connection.forwarded
        return Packet(
            HOST_CID, self._cid, connection.host_port, connection.guest_port, length, STREAM, op, flags,
            BUFFER, connection.forwarded & MASK32,
        )  # fmt: skip

    def _asked(self, packet: Packet, known: _Connection | None) -> None:
        """The guest connects to a port of the host."""
        if known is not None:
            self._break(known)
            return
        stream = None
        if len(self._connections) < _MOST:
            stream = _connected(f"{self._path}_{packet.dst_port}")
        if stream is None:
            self._refuse(packet)
            return
        connection = self._add(stream, packet.src_port, packet.dst_port)
        connection.open = connection.readable = True
        connection.guest_room, connection.guest_read = packet.buf_alloc, packet.fwd_cnt
        self._answer(connection, Op.RESPONSE)

    def _add(self, stream: socket.socket, guest_port: int, host_port: int) -> _Connection:
        connection = _Connection(stream, guest_port, host_port)
        self._connections[guest_port, host_port] = connection
        self._by_fd[stream.fileno()] = connection
        self._turns.append(connection)
        return connection

    def _agreed(self, connection: _Connection) -> None:
        connection.open = connection.readable = True
        connection.waiting += b"OK %d\n" % connection.host_port
        # These bytes are ours, not the guest's.
        connection.forwarded = connection.told = -len(connection.waiting)
        self._flush(connection)

    def _forward(self, connection: _Connection, payload: bytes) -> None:
        if len(connection.waiting) + len(payload) > BUFFER + _LONGEST_LINE:
            self._break(connection)  # it has sent more than it may
            return
        connection.waiting += payload
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        """Hand to the stream what it takes."""
        try:
            while connection.waiting:
                done = connection.stream.send(connection.waiting)
                del connection.waiting[:done]
                connection.forwarded += done
        except BlockingIOError:
            self._arm(connection)
        except OSError:
            self._break(connection)
            return
        if connection.forwarded - connection.told >= _TELL:
            self._answer(connection, Op.CREDIT_UPDATE)
        if connection.guest_ended and not connection.waiting:
            with contextlib.suppress(OSError):
                connection.stream.shutdown(socket.SHUT_WR)
            if connection.closing:
                self._break(connection)

    def _shut(self, connection: _Connection, flags: int) -> None:
        if flags & _NO_RECEIVE:
            connection.ended = True
        if flags & _NO_SEND:
            connection.guest_ended = True
        connection.closing = connection.ended and connection.guest_ended
        self._flush(connection)

    def _break(self, connection: _Connection) -> None:
        """End a connection, and tell the guest."""
        self._answer(connection, Op.RST)
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop((connection.guest_port, connection.host_port), None)
        fd = connection.stream.fileno()
        if self._by_fd.pop(fd, None) is not None:
            self._watch.forget(fd)
            connection.stream.close()
            self._turns.remove(connection)

    def _arm(self, connection: _Connection) -> None:
        """Hear of what the connection waits for."""
        wanted = WRITABLE if connection.waiting else 0
        if connection.open and not connection.readable and not connection.ended:
            wanted |= READABLE
        if wanted:
            self._watch.arm(connection.stream.fileno(), wanted)

    # ------------------------------------------------------------------ from the host
    def _look(self) -> None:
        """Take notice of what has become ready."""
        for fd, events in self._watch.take().items():
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._undecided:
                self._listen_to(fd)
            elif (connection := self._by_fd.get(fd)) is not None:
                if events & ~WRITABLE:
                    connection.readable = True
                if connection.waiting:
                    self._flush(connection)

    def _accept(self) -> None:
        now = time.monotonic()
        for fd, (stream, _, until) in list(self._undecided.items()):
            if now > until:
                self._forget(fd, stream)
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                stream.setblocking(False)
                if len(self._undecided) >= _MOST_UNDECIDED:
                    stream.close()
                    continue
                self._undecided[stream.fileno()] = (stream, bytearray(), now + _PATIENCE)
                self._watch.arm(stream.fileno(), READABLE)
        self._watch.arm(self._listener.fileno(), READABLE)

    def _forget(self, fd: int, stream: socket.socket) -> None:
        self._undecided.pop(fd, None)
        self._watch.forget(fd)
        stream.close()

    def _listen_to(self, fd: int) -> None:
        """Read a program's CONNECT line, a byte at a time: what follows is the guest's."""
        stream, line, _ = self._undecided[fd]
        try:
            while not line.endswith(b"\n"):
                got = stream.recv(1)
                if not got or len(line) >= _LONGEST_LINE:
                    self._forget(fd, stream)
                    return
                line += got
        except BlockingIOError:
            self._watch.arm(fd, READABLE)
            return
        except OSError:
            self._forget(fd, stream)
            return
        word, _, port = bytes(line).strip().partition(b" ")
        if (
            word.upper() != b"CONNECT"
            or not port.isdigit()
            or int(port) > MASK32
            or len(self._connections) >= _MOST
        ):
            self._forget(fd, stream)
            return
        del self._undecided[fd]
        self._watch.forget(fd)
        connection = self._add(stream, int(port), self._free_port(int(port)))
        self._answer(connection, Op.REQUEST)

    def _free_port(self, guest_port: int) -> int:
        while True:
            port = self._next_port
            self._next_port = _FIRST_PORT + (port + 1 - _FIRST_PORT) % (1 << 30)
            if (guest_port, port) not in self._connections:
                return port

    @property
    def ready(self) -> bool:
        """See :class:`swtdx.devices.virtio.vsock.Sockets`."""
        self._look()
        if self._answers:
            return True
        return any(one.readable and not one.ended and one.credit for one in self._turns)

    def next(self, room: int) -> tuple[Packet, bytes] | None:
        """See :class:`swtdx.devices.virtio.vsock.Sockets`."""
        if self._answers:
            return self._answers.popleft(), b""
        for _ in range(len(self._turns)):
            connection = self._turns[0]
            self._turns.rotate(-1)
            if connection.readable and not connection.ended and connection.credit:
                found = self._read(connection, room)
                if found is not None:
                    return found
        return (self._answers.popleft(), b"") if self._answers else None

    def _read(self, connection: _Connection, room: int) -> tuple[Packet, bytes] | None:
        """Data of a connection, or its end."""
        try:
            data = connection.stream.recv(max(1, min(room, connection.credit, _PIECE)))
        except BlockingIOError:
            connection.readable = False
            self._arm(connection)
            return None
        except OSError:
            self._break(connection)
            return None
        if not data:
            connection.ended = True
            return self._packet(connection, Op.SHUTDOWN, flags=_NO_SEND), b""
        connection.sent = connection.sent + len(data) & MASK32
        return self._packet(connection, Op.RW, len(data)), data


def _listen(path: Path) -> socket.socket:
    """Listen at ``path``; what an earlier run has left there is replaced.

    Raises:
        PeripheralError: something else is there, or it is too long.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                raise
            path.unlink()
            listener.bind(str(path))
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise PeripheralError(
            f"the vsock's path {path} cannot be listened at: {error.strerror or error}"
        ) from error
    return listener


def _is_left_over(path: Path) -> bool:
    """Whether nobody listens at a socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _connected(path: str) -> socket.socket | None:
    """A connection to a program that listens at ``path``, or None."""
    stream = socket.socket(socket.AF_UNIX)
    stream.setblocking(False)
    try:
        stream.connect(path)
    except OSError:
        stream.close()
        return None
    return stream
