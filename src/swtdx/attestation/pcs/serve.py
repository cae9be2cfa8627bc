"""Running the collateral service on a TCP port."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ..errors import AttestationError, MissingDependency
from ..oserrors import words
from .catalogue import Catalogue

if TYPE_CHECKING:
    from ..world import World

#: Port of a PCCS by default, and of the URLs in simulated certificates.
DEFAULT_PORT: Final = 8081

_START_TIMEOUT: Final = 15.0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AttestationError(f"cannot serve collateral on {host} port {port}: {words(error)}") from None
    return listener


@dataclass(frozen=True)
class Tls:
    """The service's own certificate and key, files in PEM."""

    certificate: str
    key: str

    def check(self) -> None:
        """Whether a server can use them.

        Raises:
            AttestationError: it cannot; says why.
        """
        for path, what in ((self.certificate, "certificate"), (self.key, "key")):
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise AttestationError(f"the TLS {what} {path}: {error.strerror or error}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            why = getattr(error, "reason", None) or str(error)
            raise AttestationError(
                f"{self.certificate} and {self.key} do not fit together as a certificate in PEM and its key: "
                f"{why}"
            ) from None


def _server(catalogue: Catalogue, log_level: str, tls: Tls | None, listening: Callable[[], None]) -> Any:
    try:
        import uvicorn

        from .app import create_app
    except ImportError as error:
        raise MissingDependency(
            f"the collateral service needs {error.name}: pip install fastapi uvicorn"
        ) from error

    class Server(uvicorn.Server):
        """Says when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """As uvicorn's, and then the word."""
            await super().startup(sockets)
            if self.started:
                listening()

    config = uvicorn.Config(
        create_app(catalogue),
        log_level=log_level,
        server_header=False,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    return Server(config)


def base_url(host: str, port: int, *, tls: bool = False) -> str:
    """Where clients on this computer reach a service on ``host`` and ``port``."""
    if host in ("127.0.0.1", "::1", "0.0.0.0", "::", ""):
        host = "localhost"
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    world: World,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    clock: Callable[[], dt.datetime] | None = None,
    url: str | None = None,
    tls: Tls | None = None,
    listening: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a world's documents until interrupted.

    Args:
        world: what is served.
        host: address to listen on.
        port: TCP port; 0 picks a free one.
        clock: tells the time; None freezes the world's.
        url: base URL in the certificates' CRL distribution points; None for the world's.  A quote must
            have the same one: some verifiers compare the roots of all chains byte by byte.
        tls: serve by TLS with this certificate.
        listening: called with the base URL once requests are answered.

    Raises:
        AttestationError: the port cannot be had, or the TLS files cannot be used.
        MissingDependency: FastAPI or uvicorn is not installed.
    """
    if tls is not None:
        tls.check()
    with _listen(host, port) as listener:
        where = base_url(host, listener.getsockname()[1], tls=tls is not None)
        catalogue = Catalogue(replace(world, pcs_url=url or world.pcs_url), clock)
        server = _server(catalogue, "info", tls, lambda: listening(where))
        server.run([listener])


@contextlib.contextmanager
def serving(
    catalogue: Catalogue, host: str = "127.0.0.1", port: int = 0, tls: Tls | None = None
) -> Iterator[str]:
    """Serve in a thread for as long as the block lasts; gives the base URL.  Port 0 picks a free one.

    Raises:
        AttestationError: the port cannot be had, or the service does not start.
        MissingDependency: FastAPI or uvicorn is not installed.
    """
    server = _server(catalogue, "error", tls, lambda: None)
    with _listen(host, port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        deadline = time.monotonic() + _START_TIMEOUT
        while not server.started:
            if time.monotonic() > deadline or not thread.is_alive():
                raise AttestationError("the collateral service did not start")
            time.sleep(0.01)
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
