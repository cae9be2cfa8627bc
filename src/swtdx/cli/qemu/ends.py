"""The host's ends of serial port, console and ports: files, Unix sockets, the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from swtdx.cli.inputs import Unusable
from swtdx.cli.qemu.channels import Channel
from swtdx.vmm.console import Console, Guest, Stream, user_console, write_all

#: Seconds that a client may leave its socket full before what is printed is dropped.
_PATIENCE: Final = 1.0
_MOST: Final = 65536
Send = Callable[[bytes], None]


def listen(path: Path) -> socket.socket:
    """A Unix socket that listens; one that an earlier process left behind is replaced.

    Raises:
        Unusable: there cannot be one.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(str(path))
        server.listen(1)
    except OSError as error:
        server.close()
        raise Unusable(f"the socket {path} cannot be listened on: {error.strerror or error}") from None
    return server


def connect(path: Path) -> socket.socket:
    """A connection to a Unix socket.

    Raises:
        Unusable: nothing listens there.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(str(path))
    except OSError as error:
        client.close()
        raise Unusable(f"nothing answers at the socket {path}: {error.strerror or error}") from None
    return client


class End:
    """One end.  This one leads nowhere."""

    #: Takes what comes from the host for the guest.
    send: Send | None = None

    def write(self, data: bytes) -> None:
        """What the guest prints."""

    def close(self) -> None:
        """Idempotent."""


class FileEnd(End):
    """A file.

    Raises:
        Unusable: it cannot be written.
    """

    def __init__(self, path: Path, *, append: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_TRUNC)
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise Unusable(f"{path} cannot be written: {error.strerror}") from None

    def write(self, data: bytes) -> None:
        """What the guest prints; a full disk does not stop it."""
        with contextlib.suppress(OSError):
            write_all(self._fd, data)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class SocketEnd(End):
    """A Unix socket, with one client at a time; without one, what the guest prints is dropped.

    Args:
        channel: the socket; a server that waits has its client when this returns.

    Raises:
        Unusable: there cannot be one.
    """

    def __init__(self, channel: Channel) -> None:
        assert channel.path is not None
        self._path = channel.path if channel.server else None
        self._server = listen(channel.path) if channel.server else None
        self._client: socket.socket | None = None
        self._over = False
        if self._server is None:
            self._take(connect(channel.path))
        elif channel.wait:
            self._take(self._server.accept()[0])
        threading.Thread(target=self._serve, name=f"swtdx {channel.path}", daemon=True).start()

    def _take(self, client: socket.socket) -> None:
        client.settimeout(_PATIENCE)
        self._client = client

    def _serve(self) -> None:
        while not self._over:
            with contextlib.suppress(OSError):
                if self._client is None:
                    if self._server is None:
                        return
                    self._take(self._server.accept()[0])
                self._read()
            client, self._client = self._client, None
            if client is not None:
                client.close()

    def _read(self) -> None:
        client = self._client
        while client is not None and not self._over:
            if not select.select([client], [], [], _PATIENCE)[0]:
                continue
            data = client.recv(4096)
            if not data:
                return
            if self.send is not None:
                self.send(data)

    def write(self, data: bytes) -> None:
        """What the guest prints."""
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(data)

    def close(self) -> None:
        """Idempotent."""
        self._over = True
        for each in (self._server, self._client):
            if each is not None:
                each.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


class StdioEnd(End):
    """The user's terminal or standard streams; keys come by its :attr:`console`."""

    def __init__(self) -> None:
        self.console: Console = standard_streams()

    def write(self, data: bytes) -> None:
        """What the guest prints.  Whoever read it may have gone."""
        with contextlib.suppress(OSError):
            self.console.write(data)


def open_end(channel: Channel | None) -> End:
    """The end of ``channel``.

    Raises:
        Unusable: it cannot be opened.
    """
    if channel is None or channel.kind == "null":
        return End()
    if channel.kind == "file":
        assert channel.path is not None
        return FileEnd(channel.path, append=channel.append)
    return SocketEnd(channel) if channel.kind == "socket" else StdioEnd()


class PipedStream(Stream):
    """Standard output, and what standard input holds as keys."""

    @contextlib.contextmanager
    def attached(self, guest: Guest) -> Iterator[None]:
        """See :class:`swtdx.vmm.console.Console`."""
        stopped, stop = os.pipe()

        def read() -> None:
            while True:
                ready, _, _ = select.select([0, stopped], [], [])
                if stopped in ready:
                    return
                data = os.read(0, _MOST)
                if not data:
                    return
                guest.send(data)

        keys = threading.Thread(target=read, name="swtdx stdin", daemon=True)
        keys.start()
        try:
            with super().attached(guest):
                yield
        finally:
            os.write(stop, b"!")
            keys.join()
            os.close(stop)
            os.close(stopped)


def standard_streams() -> Console:
    """The terminal; else standard output, with standard input as keys if there is anything to read."""
    console = user_console()
    if not isinstance(console, Stream):
        return console
    try:
        about = os.fstat(0)
    except OSError:
        return console
    # /dev/null, and a terminal whose output goes elsewhere.
    return console if stat.S_ISCHR(about.st_mode) else PipedStream()
