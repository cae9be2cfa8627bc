"""A quote generation service in the same process: the protocol's bytes without a socket.

What a client sends is served when it first waits for the answer, on its own thread, by the code that serves
a socket.  So nothing listens, and nothing is to be cleaned up.
"""

from __future__ import annotations

import contextlib

from ..errors import AttestationError
from .server import CollateralSource, Enclave, serve_connection


class _Pipe:
    """The service's end: reads what the client has sent, and keeps what it is answered."""

    def __init__(self, sent: bytes) -> None:
        self._left = memoryview(sent)
        self.answer = bytearray()

    def settimeout(self, seconds: float, /) -> None:
        """Nothing is waited for."""

    def recv(self, size: int) -> bytes:
        """As of a socket: at most ``size`` bytes; none when the client has sent no more."""
        data, self._left = self._left[:size], self._left[size:]
        return bytes(data)

    def sendall(self, data: bytes) -> None:
        """Keep it for the client."""
        self.answer += data


class LoopbackConnection:
    """The client's end of one connection; the service answers one request to a connection."""

    def __init__(self, enclave: Enclave, collateral: CollateralSource | None = None) -> None:
        self._enclave = enclave
        self._collateral = collateral
        self._sent = bytearray()
        self._answer: memoryview | None = None

    def sendall(self, data: bytes) -> None:
        """Send a part of the request."""
        self._sent += data

    def settimeout(self, seconds: float, /) -> None:
        """Nothing is waited for."""

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes of the answer; none at its end."""
        if self._answer is None:
            pipe = _Pipe(bytes(self._sent))
            # As on a socket: what a client has done wrong ends its connection.
            with contextlib.suppress(AttestationError):
                serve_connection(pipe, self._enclave, self._collateral)
            self._answer = memoryview(bytes(pipe.answer))
        data, self._answer = self._answer[:size], self._answer[size:]
        return bytes(data)

    def close(self) -> None:
        """Nothing is open."""


class Loopback:
    """Where a client reaches ``enclave``; stands in for an address.  ``collateral`` as for a server."""

    def __init__(self, enclave: Enclave, collateral: CollateralSource | None = None) -> None:
        self._enclave = enclave
        self._collateral = collateral

    def __str__(self) -> str:
        return "the platform's own quoting enclave"

    def connect(self, timeout: float) -> LoopbackConnection:
        """A fresh connection.  It takes no time to wait for, so ``timeout`` does not matter."""
        return LoopbackConnection(self._enclave, self._collateral)
