"""QEMU's monitors on Unix sockets: QMP, and a human one, as far as a TD can be controlled here.

Source: QEMU's ``docs/interop/qmp-spec.rst`` and ``qapi/``.  A command that is not here is answered as QEMU
answers one that it does not know (``CommandNotFound``).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from swtdx import __version__
from swtdx.cli.qemu.channels import Channel
from swtdx.cli.qemu.ends import connect, listen

#: A line of a client's that is longer is no command.
_LONGEST: Final = 1 << 20
#: The QEMU whose QMP this is.
_VERSION: Final = {"qemu": {"major": 10, "minor": 1, "micro": 0}, "package": f"swtdx {__version__}"}


class Controls:
    """What monitors may do to the run; made once, handed from TD to TD.

    Attributes:
        status: QEMU's run state: ``prelaunch``, ``running``, ``shutdown``.
    """

    def __init__(self, name: str, vcpus: int) -> None:
        self.name = name
        self.vcpus = vcpus
        self.status = "prelaunch"
        self.quit_wanted = threading.Event()
        self.go = threading.Event()
        self.end: Callable[[str], None] = lambda _why: None
        self.reset: Callable[[], None] = lambda: None
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        self._lock = threading.Lock()

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """``listener`` hears of events from now on."""
        with self._lock:
            self._listeners.append(listener)

    def forget(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """The opposite of :meth:`listen`."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def event(self, name: str, **data: Any) -> None:
        """Tell all clients."""
        now = time.time_ns() // 1000
        message: dict[str, Any] = {
            "event": name,
            "timestamp": {"seconds": now // 1_000_000, "microseconds": now % 1_000_000},
        }
        if data:
            message["data"] = data
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(message)

    def cont(self) -> None:
        """Let a TD that was not started (-S) start."""
        self.go.set()

    def quit(self) -> None:
        """End the process."""
        self.quit_wanted.set()
        self.go.set()
        self.end("quit on a monitor")


class _Refused(Exception):
    """A command that is not carried out: QMP's error class, and words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class Monitor:
    """A monitor behind a socket.

    Args:
        channel: where.
        controls: what it may do.
        qmp: QMP; otherwise for people.

    Raises:
        Unusable: there cannot be such a socket.
    """

    def __init__(self, channel: Channel, controls: Controls, *, qmp: bool) -> None:
        assert channel.path is not None
        self._controls = controls
        self._session = self._qmp if qmp else self._human
        self._path = channel.path if channel.server else None
        self._server = listen(channel.path) if channel.server else None
        self._clients: set[socket.socket] = set()
        if self._server is None:
            self._start(connect(channel.path))
        else:
            if channel.wait:
                self._start(self._server.accept()[0])
            threading.Thread(target=self._accept, name=f"swtdx {channel.path}", daemon=True).start()

    def close(self) -> None:
        """Idempotent."""
        for each in (self._server, *self._clients):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):
            while True:
                self._start(self._server.accept()[0])

    def _start(self, client: socket.socket) -> None:
        self._clients.add(client)
        threading.Thread(target=self._serve, args=(client,), name="swtdx monitor", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._session(client)
        self._clients.discard(client)
        client.close()

    # ------------------------------------------------------------------ QMP
    def _qmp(self, client: socket.socket) -> None:
        lock = threading.Lock()

        def say(message: dict[str, Any]) -> None:
            with lock, contextlib.suppress(OSError):
                client.sendall(json.dumps(message).encode() + b"\r\n")

        say({"QMP": {"version": _VERSION, "capabilities": []}})
        negotiated = False
        try:
            for raw in _requests(client):
                answer, name = self._answer(raw, negotiated)
                say(answer)
                if name == "qmp_capabilities" and "return" in answer and not negotiated:
                    negotiated = True
                    self._controls.listen(say)
                elif name == "quit" and "return" in answer:
                    self._controls.quit()
                    return
        finally:
            self._controls.forget(say)

    def _answer(self, raw: bytes, negotiated: bool) -> tuple[dict[str, Any], str]:
        answer: dict[str, Any] = {}
        name = ""
        try:
            try:
                request = json.loads(raw)
            except (ValueError, RecursionError):
                raise _Refused("GenericError", "JSON parse error") from None
            if not isinstance(request, dict) or not isinstance(request.get("execute"), str):
                raise _Refused("GenericError", "QMP input lacks member 'execute'")
            if "id" in request:
                answer["id"] = request["id"]
            name = request["execute"]
            if not negotiated and name != "qmp_capabilities":
                raise _Refused(
                    "CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"
                )
            if negotiated and name == "qmp_capabilities":
                raise _Refused(
                    "CommandNotFound", "Capabilities negotiation is already complete, command ignored"
                )
            answer["return"] = self._execute(name)
        except _Refused as refused:
            answer["error"] = {"class": refused.kind, "desc": str(refused)}
        return answer, name

    def _execute(self, name: str) -> Any:
        controls = self._controls
        running = controls.status == "running"
        match name:
            case "qmp_capabilities" | "quit":
                return {}
            case "query-status":
                return {"status": controls.status, "running": running, "singlestep": False}
            case "query-version":
                return _VERSION
            case "query-name":
                return {"name": controls.name}
            case "query-kvm":
                return {"enabled": True, "present": True}
            case "query-cpus-fast":
                return [
                    {"cpu-index": number, "thread-id": 0, "target": "x86_64", "qom-path": "", "props": {}}
                    for number in range(controls.vcpus)
                ]
            case "query-commands":
                return [{"name": each} for each in _COMMANDS]
            case "cont":
                controls.cont()
                return {}
            case "system_reset":
                controls.reset()
                return {}
            case "stop" | "system_powerdown":
                raise _Refused(
                    "GenericError", f"{name}: a TD cannot be stopped from outside here; quit ends it"
                )
        raise _Refused("CommandNotFound", f"The command {name} has not been found")

    # ------------------------------------------------------------------ for people
    def _human(self, client: socket.socket) -> None:
        controls = self._controls
        client.sendall(f"swtdx {__version__} monitor - type 'help' for more information\r\n(qemu) ".encode())
        with client.makefile("rb") as lines:
            while raw := lines.readline(_LONGEST):
                words = raw.decode("utf-8", "replace").split()
                match words:
                    case []:
                        said = ""
                    case ["quit" | "q"]:
                        controls.quit()
                        return
                    case ["info", "status"]:
                        running = "running" if controls.status == "running" else f"paused ({controls.status})"
                        said = f"VM status: {running}"
                    case ["info", "name"]:
                        said = controls.name
                    case ["cont" | "c"]:
                        controls.cont()
                        said = ""
                    case ["system_reset"]:
                        controls.reset()
                        said = ""
                    case ["help" | "?"]:
                        said = "cont, help, info name, info status, quit, system_reset"
                    case _:
                        said = f"unknown command: '{' '.join(words)[:80]}'"
                client.sendall(f"{said}\r\n(qemu) ".encode() if said else b"(qemu) ")


def _requests(client: socket.socket) -> Iterator[bytes]:
    """JSON values as they come, with or without newlines between them; a line that is none is one, too.

    Raises:
        ValueError: one is longer than any command.
    """
    found = bytearray()
    depth, quoted, escaped = 0, False, False
    while data := client.recv(4096):
        for byte in data:
            found.append(byte)
            char = chr(byte)
            if quoted:
                quoted, escaped = escaped or char != '"', not escaped and char == "\\"
                continue
            if char == '"':
                quoted = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth = max(0, depth - 1)
            if not depth and char in "}]\n":
                raw = bytes(found).strip()
                found.clear()
                if raw:
                    yield raw
        if len(found) > _LONGEST:
            raise ValueError("a request longer than any command")


_COMMANDS: Final = (
    "qmp_capabilities", "quit", "query-status", "query-version", "query-name", "query-kvm", "query-cpus-fast",
    "query-commands", "cont", "system_reset",
)  # fmt: skip
