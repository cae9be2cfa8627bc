"""Where a quote generation service listens: a Unix socket or a vsock port."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from ..errors import QgsError
from ..oserrors import words
from .messages import VSOCK_PORT

#: Addresses have a method called socket.
Socket = socket.socket
#: Length of a Unix socket's path that Linux takes (sun_path is 108 bytes with its NUL).
_MAX_PATH = 107


class _SocketAddress:
    """What both kinds of socket have in common."""

    def socket(self) -> tuple[socket.socket, object]:
        """A fresh socket, and what to bind or connect it to.

        Raises:
            QgsError: there cannot be such a socket here.
        """
        raise NotImplementedError

    def connect(self, timeout: float) -> Socket:
        """A connection to the service, on which every wait ends after ``timeout`` seconds.

        Raises:
            OSError: nothing answers.
            QgsError: see :meth:`socket`.
        """
        connection, target = self.socket()
        try:
            connection.settimeout(timeout)
            connection.connect(target)  # type: ignore[arg-type]
        except BaseException:
            connection.close()
            raise
        return connection


@dataclass(frozen=True)
class UnixAddress(_SocketAddress):
    """A Unix stream socket, by path."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def socket(self) -> tuple[socket.socket, object]:
        """A fresh socket, and what to bind or connect it to."""
        if len(str(self.path).encode()) > _MAX_PATH:
            raise QgsError(f"the socket path {self.path} is longer than {_MAX_PATH} bytes; use a shorter one")
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(self.path)


@dataclass(frozen=True)
class VsockAddress(_SocketAddress):
    """A vsock port.  ``cid`` 2 is the host; a server binds to -1, any."""

    cid: int
    port: int = VSOCK_PORT

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"

    def socket(self) -> tuple[socket.socket, object]:
        """A fresh socket, and what to bind or connect it to.

        Raises:
            QgsError: this system has no vsock.
        """
        try:
            return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (self.cid & 0xFFFFFFFF, self.port)
        except OSError as error:
            raise QgsError(f"this system has no vsock ({words(error)}); use a Unix socket") from None


Address = UnixAddress | VsockAddress


def parse_address(text: str) -> Address:
    """An address from ``unix:PATH``, ``PATH`` or ``vsock:CID[:PORT]``.

    Raises:
        QgsError: it is none of these.
    """
    if text.startswith("vsock:"):
        cid, _, port = text.removeprefix("vsock:").partition(":")
        try:
            return VsockAddress(int(cid), int(port or VSOCK_PORT))
        except ValueError:
            raise QgsError(f"{text!r} is not vsock:CID or vsock:CID:PORT") from None
    path = text.removeprefix("unix:")
    if not path:
        raise QgsError("an empty socket path; give unix:PATH or vsock:CID:PORT")
    return UnixAddress(Path(path))
