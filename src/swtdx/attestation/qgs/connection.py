"""What the two ends of the QGS protocol need of a connection, whatever carries it."""

from __future__ import annotations

from typing import Protocol


class Connection(Protocol):
    """A stream of bytes both ways; sockets are some."""

    def settimeout(self, seconds: float, /) -> None:
        """From now on every wait ends after ``seconds``, with TimeoutError."""

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none when the other end has closed."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""
        ...


class Closable(Connection, Protocol):
    """A connection as the one who has opened it holds it."""

    def close(self) -> None:
        """End it."""


class Service(Protocol):
    """Where a quote generation service is: an address, or a loopback.  ``str`` names it in messages."""

    def connect(self, timeout: float) -> Closable:
        """A fresh connection, on which every wait ends after ``timeout`` seconds.

        Raises:
            OSError: nothing answers.
            QgsError: there cannot be such a service here.
        """
        ...
