"""Running the collateral service on a TCP port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

from ..errors import AttestationError, MissingDependency
from .catalogue import Catalogue

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
        raise AttestationError(f"cannot serve collateral on {host} port {port}: {error}") from None
    return listener


def _server(catalogue: Catalogue, log_level: str) -> object:
    try:
        import uvicorn

        from .app import create_app
    except ImportError as error:
        raise MissingDependency(
            f"the collateral service needs {error.name}: pip install 'swtdx[attestation]'"
        ) from error
    return uvicorn.Server(uvicorn.Config(create_app(catalogue), log_level=log_level, server_header=False))


def serve(catalogue: Catalogue, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
    """Serve until interrupted.

    Raises:
        AttestationError: the port cannot be had.
        MissingDependency: FastAPI or uvicorn is not installed.
    """
    server = _server(catalogue, "info")
    with _listen(host, port) as listener:
        server.run([listener])  # type: ignore[attr-defined]


@contextlib.contextmanager
def serving(catalogue: Catalogue, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in a thread for as long as the block lasts; gives the base URL.  Port 0 picks a free one.

    Raises:
        AttestationError: the port cannot be had, or the service does not start.
        MissingDependency: FastAPI or uvicorn is not installed.
    """
    server = _server(catalogue, "error")
    with _listen(host, port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)  # type: ignore[attr-defined]
        thread.start()
        deadline = time.monotonic() + _START_TIMEOUT
        while not server.started:  # type: ignore[attr-defined]
            if time.monotonic() > deadline or not thread.is_alive():
                raise AttestationError("the collateral service did not start")
            time.sleep(0.01)
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True  # type: ignore[attr-defined]
            thread.join(timeout=10)
