"""A quote generation service in front of a TD quoting enclave.

It serves one request to a connection and then closes it, as Intel's service does, and like it also
takes a bare TDREPORT without any header and answers with the bare quote (``qgs_server.cpp``).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, Self

from ..errors import AttestationError, QgsError, ReportRejected
from ..oserrors import words
from ..tdreport import TDREPORT_SIZE
from . import messages
from .address import Address, UnixAddress
from .connection import Connection
from .messages import MessageType, PlatformInfo, QgsStatus

#: Seconds that a client may take to say what it wants, all in all.
CLIENT_TIMEOUT = 30.0
#: Clients that are served at a time; each has a thread.
MOST_CLIENTS = 64
#: Clients that the system keeps waiting beyond these.
BACKLOG = 256


class Enclave(Protocol):
    """What the service needs of a TD quoting enclave (``enclave.TdQuotingEnclave`` is one)."""

    def quote(self, report: bytes) -> bytes:
        """The quote for a TDREPORT; raises :class:`ReportRejected`."""
        ...

    def platform_info(self) -> PlatformInfo:
        """Ids and SVNs of the platform."""
        ...


#: Gives the parts of collateral (:data:`.messages.COLLATERAL_PARTS`) for an FMSPC and the name of a PCK CA;
#: None if there is none for them.
CollateralSource = Callable[[bytes, str], Mapping[str, bytes] | None]


def respond(request: bytes, enclave: Enclave, collateral: CollateralSource | None = None) -> bytes:
    """The answer to one message (without length prefixes): always a message, errors included.

    Without a source of ``collateral``, GET_COLLATERAL is answered as Intel's service answers when it has no
    quote provider library.
    """
    try:
        kind, minor, *_ = messages.parse_header(request)
    except QgsError as error:
        return messages.error_response(MessageType.GET_QUOTE_RESP, error.code or QgsStatus.INVALID_SIZE)
    try:
        if kind == MessageType.GET_QUOTE_REQ:
            report, _ = messages.parse_quote_request(request)
            return messages.quote_response(enclave.quote(report))
        if kind == MessageType.GET_PLATFORM_INFO_REQ:
            return messages.platform_info_response(enclave.platform_info())
        if kind == MessageType.GET_COLLATERAL_REQ and collateral is not None:
            parts = collateral(*messages.parse_collateral_request(request))
            if parts is not None:
                return messages.collateral_response(parts, minor=minor)
    except ReportRejected:
        return messages.error_response(MessageType(kind + 1), QgsStatus.UNEXPECTED)
    except QgsError as error:
        return messages.error_response(MessageType(kind + 1), error.code)
    answer = MessageType.GET_COLLATERAL_RESP if kind == MessageType.GET_COLLATERAL_REQ else None
    status = QgsStatus.UNEXPECTED if answer is not None else QgsStatus.INVALID_TYPE
    return messages.error_response(answer or MessageType.GET_QUOTE_RESP, status)


def _read(connection: Connection, size: int, until: float) -> bytes:
    """Bytes, fewer if the client closes; TimeoutError at the monotonic time ``until``."""
    data = bytearray()
    while len(data) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def serve_connection(
    connection: Connection, enclave: Enclave, collateral: CollateralSource | None = None
) -> None:
    """Read one request from ``connection`` and answer it; the caller closes.

    A client that does not say within :data:`CLIENT_TIMEOUT` what it wants gets a TimeoutError; one that
    stops talking, or whose message cannot be told from noise, gets no answer.
    """
    until = time.monotonic() + CLIENT_TIMEOUT
    prefix = _read(connection, 4, until)
    if len(prefix) < 4:
        return
    length = int.from_bytes(prefix, "big")
    start = _read(connection, messages.HEADER.size, until)
    header = prefix + start
    framed = len(start) == messages.HEADER.size and messages.HEADER.length.get(start) == length
    if framed and messages.HEADER.size <= length <= messages.MAX_MESSAGE:
        request = start + _read(connection, length - len(start), until)
        if len(request) == length:
            answer = respond(request, enclave, collateral)
            connection.settimeout(CLIENT_TIMEOUT)
            connection.sendall(len(answer).to_bytes(4, "big") + answer)
        return
    report = header + _read(connection, TDREPORT_SIZE - len(header), until)
    if len(report) == TDREPORT_SIZE:
        # There is no way to say in a bare answer that the report was refused, other than silence.
        with contextlib.suppress(ReportRejected):
            connection.sendall(enclave.quote(report))


class QgsServer:
    """Serves an enclave on a socket, in threads, until stopped; a context manager.

    At most ``most`` clients are served at a time; others wait until one of these has its answer or its time
    is over.

    Raises:
        QgsError: the address cannot be bound.
    """

    def __init__(
        self,
        enclave: Enclave,
        address: Address,
        collateral: CollateralSource | None = None,
        most: int = MOST_CLIENTS,
    ) -> None:
        self.enclave = enclave
        self.collateral = collateral
        self._places = threading.Semaphore(most)
        self.address = address
        self._thread: threading.Thread | None = None
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._socket, target = address.socket()
        try:
            if isinstance(address, UnixAddress):
                _remove_stale(address)
            self._socket.bind(target)  # type: ignore[arg-type]
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise QgsError(f"cannot serve quotes on {address}: {words(error)}") from None

    def start(self) -> Self:
        """Serve in the background."""
        self._thread = threading.Thread(target=self.serve, name=f"qgs {self.address}", daemon=True)
        self._thread.start()
        return self

    def serve(self) -> None:
        """Serve until :meth:`stop` is called from elsewhere."""
        while True:
            self._places.acquire()
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self._clients.add(connection)
            threading.Thread(target=self._client, args=(connection,), daemon=True).start()

    def _client(self, connection: socket.socket) -> None:
        # A client's mistakes are its own: they end its connection, not the service.
        with connection, contextlib.suppress(OSError, AttestationError):
            serve_connection(connection, self.enclave, self.collateral)
        with self._lock:
            self._clients.discard(connection)
        self._places.release()

    def stop(self) -> None:
        """Stop serving, drop open connections, remove the socket's path."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        # It may wait for a place.
        self._places.release()
        with self._lock:
            for connection in self._clients:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(timeout=5)
        if isinstance(self.address, UnixAddress):
            self.address.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket without a listener; leave anything else to fail at bind."""
    if not address.path.is_socket():
        return
    probe, target = address.socket()
    with probe:
        try:
            probe.connect(target)  # type: ignore[arg-type]
        except ConnectionRefusedError:
            address.path.unlink(missing_ok=True)
