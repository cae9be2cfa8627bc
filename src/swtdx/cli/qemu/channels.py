"""Where a serial port, a console or a monitor leads: QEMU's character devices, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swtdx.cli.inputs import Unusable
from swtdx.cli.qemu.reading import Given, Line


@dataclass(frozen=True, slots=True)
class Channel:
    """One end on the host.

    Args:
        kind: ``null``, ``stdio``, ``file`` or ``socket``.
        path: of a file or a Unix socket.
        append: the file keeps what it has.
        server: the socket is listened on; otherwise connected to.
        wait: a server waits for its client before the TD starts.
        monitor: a monitor shares it (``mon:``).
    """

    kind: str = "null"
    path: Path | None = None
    append: bool = False
    server: bool = False
    wait: bool = True
    monitor: bool = False


NOWHERE = Channel()
STDIO = Channel("stdio")


class Channels:
    """Those of a line, by their ids."""

    def __init__(self, line: Line) -> None:
        self._by_id: dict[str, Channel] = {}
        for given in line.all("chardev"):
            name = given.take("id")
            if not name:
                raise Unusable(f"{given.title} needs an id")
            if name in self._by_id:
                raise Unusable(f"{given.title}: there are two chardevs with the id {name}")
            self._by_id[name] = _channel(given)

    def named(self, given: Given, name: str) -> Channel:
        """The chardev with this id.

        Raises:
            Unusable: there is none.
        """
        if name not in self._by_id:
            raise given.wrong(f"chardev={name}", "there is no -chardev with this id")
        return self._by_id[name]

    def written(self, given: Given, text: str) -> Channel:
        """The short form of ``-serial``, ``-monitor`` and their like.

        Raises:
            Unusable: it is none that there is here.
        """
        if text.startswith("mon:"):
            inner = self.written(given, text.removeprefix("mon:"))
            return Channel(inner.kind, inner.path, inner.append, inner.server, inner.wait, monitor=True)
        if text in ("none", "null", "/dev/null"):
            return NOWHERE
        if text == "stdio":
            return STDIO
        kind, _, rest = text.partition(":")
        if kind == "chardev":
            return self.named(given, rest)
        if kind == "file" and rest:
            return Channel("file", Path(rest))
        if kind == "unix" and rest:
            path, *settings = rest.split(",")
            keys = dict(each.partition("=")[::2] for each in settings)
            server = keys.get("server", "off") in ("on", "") and "server" in keys
            wait = keys.get("wait", "on") in ("on", "") and "nowait" not in keys
            return Channel("socket", Path(path), server=server, wait=wait)
        raise given.wrong(
            text, "give stdio, mon:stdio, file:PATH, unix:PATH,server=on,wait=off, chardev:ID or none"
        )


def _channel(given: Given) -> Channel:
    assert given.kind is not None
    kind = given.kind.name
    mux = given.switch("mux")
    if kind == "file":
        path = given.take("path")
        if not path:
            raise given.wrong("", "a file needs a path=")
        return Channel("file", Path(path), given.switch("append"))
    if kind == "socket":
        path = given.take("path")
        if not path:
            raise given.wrong(
                "", "only Unix sockets that the line names by a path: path=FILE,server=on,wait=off"
            )
        server = given.switch("server")
        return Channel("socket", Path(path), server=server, wait=given.switch("wait", default=True))
    return Channel(kind, monitor=mux)
