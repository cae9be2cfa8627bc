"""A TD that runs under a debugger: where it connects, when the TD runs, and when it stands still."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

from swtdx.gdb.packets import Decoder, Packet, Signal, encode
from swtdx.gdb.session import SIGINT, Action, Resume, Session, Stop
from swtdx.gdb.td import DebugTd
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.launch import Launch
from swtdx.vmm.result import EndReason, RunResult


def listen(address: str) -> socket.socket:
    """A socket that listens at ``[HOST]:PORT``; only this computer reaches it, if no HOST is given.

    Raises:
        ConfigError: that is no address, or cannot be had.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 0xFFFF:
        raise ConfigError(f"{address!r} is no address for GDB: give :PORT, or HOST:PORT")
    try:
        return socket.create_server((host.strip("[]") or "127.0.0.1", int(port)))
    except OSError as error:
        raise ConfigError(f"GDB cannot be listened for at {address}: {error.strerror or error}") from None


class Debugging:
    """A run of ``launch`` that debuggers may look at, one after another.

    Args:
        server: listens for them.
        monitor: a debugger's ``monitor`` commands, with the TD standing still.
    """

    def __init__(self, launch: Launch, server: socket.socket, monitor: Callable[[str], str]) -> None:
        self._launch = launch
        self._server = server
        self._monitor = monitor
        self._line: socket.socket | None = None
        self._target: DebugTd | None = None
        self._session: Session | None = None
        self._decoder = Decoder()
        self._waiting: list[Packet | Signal] = []

    def run(self, left: Callable[[], float | None], *, wait: bool) -> RunResult:
        """Run the TD to its end.

        Args:
            left: how many seconds it may run yet.
            wait: until a debugger is there, before the first instruction.
        """
        try:
            step = self._begin() if wait else None
            while True:
                result = self._run(left(), step)
                if result.reason is not EndReason.PAUSED:
                    self._tell_end()
                    return result
                if self._line is None:
                    step = self._begin()
                else:
                    step = self._talk(self._why())
        except _Killed:
            return RunResult(EndReason.STOPPED, "the debugger ended it", stats=self._launch.runner.stats())
        finally:
            self._hang_up()
            self._server.close()

    # ------------------------------------------------------------------ while it runs
    def _run(self, seconds: float | None, step: int | None) -> RunResult:
        """Let it run until it ends, or the debugger wants something."""
        if self._target is not None:
            self._target.resume(step)
        over, ended = socket.socketpair()
        listener = threading.Thread(target=self._listen, args=(over,), name="swtdx gdb", daemon=True)
        listener.start()
        try:
            return self._launch.run(seconds)
        finally:
            ended.close()
            listener.join()
            over.close()

    def _listen(self, over: socket.socket) -> None:
        """Wait for the debugger to connect, to interrupt, or to go; or for the run to be over."""
        line = self._server if self._line is None else self._line
        while True:
            ready, _, _ = select.select([line, over], [], [])
            if over in ready:
                return
            if self._line is not None:
                data = b""
                with contextlib.suppress(OSError):
                    data = self._line.recv(4096)
                self._waiting += self._decoder.feed(data)
                if data and Signal.INTERRUPT not in self._waiting:
                    continue
                if not data:
                    self._line.close()
            self._launch.runner.stop(EndReason.PAUSED)
            return

    # ------------------------------------------------------------------ while it stands still
    def _begin(self) -> int | None:
        """A debugger connects; go on as it says."""
        self._line, _ = self._server.accept()
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder()
        self._target = DebugTd(self._launch)
        self._session = Session(self._target, self._monitor)
        return self._talk(None)

    def _why(self) -> Stop:
        assert self._target is not None
        assert self._session is not None
        return self._target.halted() or Stop(SIGINT, self._session.stop.thread)

    def _talk(self, stop: Stop | None) -> int | None:
        """Answer packets until the TD is to run; the thread that is to step, if one is.

        Raises:
            _Killed: the debugger ends it.
        """
        session, target = self._session, self._target
        assert session is not None
        assert target is not None
        self._waiting = [one for one in self._waiting if one is not Signal.INTERRUPT]
        if stop is not None:
            self._send(session.stopped(stop))
        while True:
            self._waiting = self._receive()
            while self._waiting:
                one = self._waiting.pop(0)
                if not isinstance(one, Packet):
                    continue
                if one.payload is None:
                    self._raw(b"-")
                    continue
                if session.acknowledges:
                    self._raw(b"+")
                answer = session.answer(one.payload)
                if isinstance(answer, bytes):
                    self._send(answer)
                    continue
                return self._act(answer, target)
            if self._line is None or self._line.fileno() < 0:
                self._leave(target)
                return None

    def _act(self, action: Action, target: DebugTd) -> int | None:
        if action.resume is Resume.KILL:
            raise _Killed
        if action.resume is Resume.DETACH:
            self._send(b"OK")
            self._leave(target)
            return None
        return action.thread if action.resume is Resume.STEP else None

    def _leave(self, target: DebugTd) -> None:
        """The debugger has gone: the TD runs as if it had not been there, and another may come."""
        target.halted()
        target.release()
        self._hang_up()
        self._target = self._session = None

    def _receive(self) -> list[Packet | Signal]:
        waiting, self._waiting = self._waiting, []
        if waiting or self._line is None:
            return waiting
        data = b""
        with contextlib.suppress(OSError):
            data = self._line.recv(4096)
        if not data:
            self._line.close()
        return self._decoder.feed(data)

    def _raw(self, data: bytes) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.sendall(data)

    def _send(self, payload: bytes) -> None:
        self._raw(encode(payload))

    def _tell_end(self) -> None:
        if self._session is not None:
            self._send(b"W00")

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()


class _Killed(Exception):
    """The debugger ends the TD."""
