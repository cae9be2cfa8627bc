"""The user's end of the guest's console: a terminal in raw mode, or a plain stream.

In a terminal every key goes to the guest, except after Ctrl-A: then x leaves, h or ? helps, and a second
Ctrl-A is sent.  Whatever happens (an exception, a signal, the interpreter's exit) the terminal's settings
are put back.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, Protocol

_PREFIX: Final = 0x01
HELP: Final = (
    "\r\nCtrl-A x   leave (the TD is ended)\r\n"
    "Ctrl-A h   this help\r\n"
    "Ctrl-A Ctrl-A   send Ctrl-A to the guest\r\n"
)
#: Signals that end us: the terminal is restored first.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Guest(Protocol):
    """What the console needs of the guest's side; every method may be called from any thread."""

    def send(self, data: bytes) -> None:
        """Keys for the guest."""

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's size."""

    def leave(self, why: str) -> None:
        """The user, or a signal, wants to end the run."""


class Console(Protocol):
    """Where the guest's console goes."""

    def write(self, data: bytes) -> None:
        """What the guest prints."""

    def attached(self, guest: Guest) -> contextlib.AbstractContextManager[None]:
        """Carry keys to ``guest`` for as long as the context lasts."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Columns and rows, if it is a terminal."""


class EscapeKeys:
    """Takes Ctrl-A sequences out of a stream of keys, in pieces of any size."""

    def __init__(self) -> None:
        self._prefixed = False

    def feed(self, data: bytes) -> tuple[bytes, str]:
        """The keys for the guest, and the commands in order: ``x`` leave, ``h`` help.

        Keys behind ``x`` are dropped; an unknown key after Ctrl-A is, too.
        """
        keys = bytearray()
        commands = ""
        for byte in data:
            if not self._prefixed:
                if byte == _PREFIX:
                    self._prefixed = True
                else:
                    keys.append(byte)
                continue
            self._prefixed = False
            if byte == _PREFIX:
                keys.append(byte)
            elif byte in b"xX":
                return bytes(keys), commands + "x"
            elif byte in b"hH?":
                commands += "h"
        return bytes(keys), commands


def write_all(fd: int, data: bytes) -> None:
    """Write everything to a file descriptor, also one that does not block.

    Raises:
        OSError: it is closed.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Stream:
    """A console that is not a terminal: output goes to a file descriptor, keys come from nowhere."""

    size = None

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """See :class:`Console`.

        Raises:
            OSError: the reader has gone.
        """
        write_all(self._fd, data)

    @contextlib.contextmanager
    def attached(self, guest: Guest) -> Iterator[None]:
        """See :class:`Console`: SIGTERM and Ctrl-C end the run in an orderly way."""
        with _signals(lambda number: guest.leave(signal.Signals(number).name), (*_SIGNALS, signal.SIGINT)):
            yield


class Terminal:
    """A console in the user's terminal."""

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        self._in = stdin
        self._out = stdout
        self._saved: list[Any] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """See :class:`Console`."""
        try:
            columns, rows = os.get_terminal_size(self._out)
        except OSError:
            return None
        return columns, rows

    def write(self, data: bytes) -> None:
        """See :class:`Console`.

        Raises:
            OSError: the terminal has gone.
        """
        write_all(self._out, data)

    def restore(self) -> None:
        """Put the terminal's settings back.  Idempotent."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._in, termios.TCSAFLUSH, saved)

    @contextlib.contextmanager
    def attached(self, guest: Guest) -> Iterator[None]:
        """See :class:`Console`."""

        def at_once(number: int) -> None:
            if number in _SIGNALS:
                self.restore()

        def then(number: int) -> None:
            if number in _SIGNALS:
                guest.leave(signal.Signals(number).name)
            else:
                self._resized(guest)

        stop, stopped = os.pipe()
        keys = threading.Thread(target=self._read, args=(guest, stop), name="swtdx console", daemon=True)
        self._saved = termios.tcgetattr(self._in)
        atexit.register(self.restore)
        try:
            tty.setraw(self._in, termios.TCSANOW)
            keys.start()
            with _signals(then, (*_SIGNALS, signal.SIGWINCH), at_once):
                yield
        finally:
            self.restore()
            atexit.unregister(self.restore)
            os.write(stopped, b"!")
            if keys.ident is not None:
                keys.join()
            os.close(stop)
            os.close(stopped)

    def _resized(self, guest: Guest) -> None:
        size = self.size
        if size is not None:
            guest.resize(*size)

    def _read(self, guest: Guest, stop: int) -> None:
        """The thread that carries keys."""
        escapes = EscapeKeys()
        while True:
            ready, _, _ = select.select([self._in, stop], [], [])
            if stop in ready:
                return
            try:
                data = os.read(self._in, 4096)
            except OSError:
                data = b""
            if not data:
                guest.leave("the terminal was closed")
                return
            sent, commands = escapes.feed(data)
            if sent:
                guest.send(sent)
            if "h" in commands:
                self.write(HELP.encode())
            if "x" in commands:
                guest.leave("Ctrl-A x")


def user_console() -> Console:
    """A terminal if standard input and output are one, else a stream to standard output."""
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        return Terminal(sys.stdin.fileno(), sys.stdout.fileno())
    return Stream()


@contextlib.contextmanager
def _signals(
    handle: Callable[[int], None],
    numbers: tuple[signal.Signals, ...],
    at_once: Callable[[int], None] = lambda _number: None,
) -> Iterator[None]:
    """Have signals handled while the context lasts; only possible on the main thread, else nothing.

    ``handle`` is called on a thread of its own: a handler runs in the middle of whatever the main thread
    is doing, which may hold the very lock that ending a run takes.  ``at_once`` is called in the handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught, tell = os.pipe()

    def handler(number: int, _frame: FrameType | None) -> None:
        at_once(number)
        os.write(tell, bytes((number,)))

    def watch() -> None:
        while (number := os.read(caught, 1)[0]) != 0:
            handle(number)

    watcher = threading.Thread(target=watch, name="swtdx signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        os.write(tell, b"\0")
        watcher.join()
        os.close(caught)
        os.close(tell)
