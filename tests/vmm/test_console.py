"""The user's console: key sequences, and a real terminal (a pty) that is always left as it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from swtdx.vmm.console import HELP, EscapeKeys, Stream, Terminal, write_all


# ------------------------------------------------------------------ keys
@pytest.mark.parametrize(
    ("typed", "keys", "commands"),
    [
        (b"ls\r", b"ls\r", ""),
        (b"\x01x", b"", "x"),
        (b"\x01X", b"", "x"),
        (b"\x01\x01", b"\x01", ""),
        (b"\x01h", b"", "h"),
        (b"\x01?\x01H", b"", "hh"),
        (b"a\x01qb", b"ab", ""),  # an unknown key is dropped
        (b"a\x01xb", b"a", "x"),  # nothing goes to the guest any more
        (b"\x03\x04\x1a\x1c", b"\x03\x04\x1a\x1c", ""),  # Ctrl-C and friends are the guest's
        ("ü€".encode(), "ü€".encode(), ""),
        (b"", b"", ""),
    ],
)
def test_key_sequences(typed: bytes, keys: bytes, commands: str) -> None:
    assert EscapeKeys().feed(typed) == (keys, commands)


@given(
    some.lists(some.sampled_from([b"\x01", b"a", b"h", b"\x00", b"\xff"]), max_size=20), some.integers(1, 5)
)
def test_pieces_do_not_matter(parts: list[bytes], size: int) -> None:
    data = b"".join(parts)
    whole = EscapeKeys().feed(data)
    escapes = EscapeKeys()
    fed = [escapes.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert (b"".join(keys for keys, _ in fed), "".join(commands for _, commands in fed)) == whole


# ------------------------------------------------------------------ a terminal
class Keys:
    """The guest's side."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self.why: str | None = None
        self.changed = threading.Condition()

    def send(self, data: bytes) -> None:
        with self.changed:
            self.sent += data
            self.changed.notify_all()

    def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))

    def leave(self, why: str) -> None:
        with self.changed:
            self.why = why
            self.changed.notify_all()

    def wait(self, count: int) -> bytes:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.sent) >= count or self.why, 5)
        return bytes(self.sent)

    def wait_for_leave(self) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: self.why, 5)
        assert self.why is not None
        return self.why


class Pty:
    def __init__(self) -> None:
        self.user, self.ours = pty.openpty()
        self.terminal = Terminal(self.ours, self.ours)

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.ours)

    @property
    def is_raw(self) -> bool:
        lflag = self.settings[3]
        return not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            ready, _, _ = select.select([self.user], [], [], 5)
            assert ready, data
            data += os.read(self.user, count - len(data))
        return data


@pytest.fixture
def terminal() -> Iterator[Pty]:
    made = Pty()
    yield made
    for fd in (made.user, made.ours):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_raw_while_attached_and_back(terminal: Pty) -> None:
    before = terminal.settings
    keys = Keys()
    with terminal.terminal.attached(keys):
        assert terminal.is_raw
        os.write(terminal.user, b"\x03ls\r")
        assert keys.wait(4) == b"\x03ls\r"
        terminal.terminal.write(b"one\ntwo")
        assert terminal.read(7) == b"one\ntwo"  # no translation, no echo
    assert terminal.settings == before
    # A second time, on the same object.
    with terminal.terminal.attached(keys):
        assert terminal.is_raw
    assert terminal.settings == before


def test_leaving_by_keys(terminal: Pty) -> None:
    keys = Keys()
    with terminal.terminal.attached(keys):
        os.write(terminal.user, b"a\x01")
        os.write(terminal.user, b"h\x01x")
        assert keys.wait_for_leave() == "Ctrl-A x"
        assert terminal.read(len(HELP)) == HELP.encode()
    assert keys.sent == b"a"


def test_back_after_an_exception(terminal: Pty) -> None:
    before = terminal.settings
    with pytest.raises(ZeroDivisionError), terminal.terminal.attached(Keys()):
        _ = 1 // 0
    assert terminal.settings == before
    assert not [one for one in threading.enumerate() if one.name == "swtdx console"]


def test_the_terminal_goes_away(terminal: Pty) -> None:
    keys = Keys()
    with terminal.terminal.attached(keys):
        os.close(terminal.user)
        assert keys.wait_for_leave() == "the terminal was closed"


def test_size_and_resizing(terminal: Pty) -> None:
    fcntl.ioctl(terminal.ours, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    assert terminal.terminal.size == (120, 40)
    keys = Keys()
    handler = signal.getsignal(signal.SIGWINCH)
    with terminal.terminal.attached(keys):
        fcntl.ioctl(terminal.user, termios.TIOCSWINSZ, struct.pack("4H", 50, 132, 0, 0))
        signal.raise_signal(signal.SIGWINCH)
    assert keys.sizes == [(132, 50)]
    assert signal.getsignal(signal.SIGWINCH) is handler
    read, write = os.pipe()
    assert Terminal(read, write).size is None
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_run_with_the_terminal_sane(terminal: Pty, number: signal.Signals) -> None:
    before = terminal.settings
    keys = Keys()
    handler = signal.getsignal(number)
    with terminal.terminal.attached(keys):
        signal.raise_signal(number)
        assert terminal.settings == before  # at once, not only when the run has ended
        assert keys.wait_for_leave() == number.name
    assert signal.getsignal(number) is handler


def test_another_thread_may_attach(terminal: Pty) -> None:
    """Signals are only for the main thread; everything else works."""
    before = terminal.settings
    keys = Keys()

    def run() -> None:
        with terminal.terminal.attached(keys):
            os.write(terminal.user, b"k")
            keys.wait(1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert keys.sent == b"k"
    assert terminal.settings == before


def test_a_signal_while_the_main_thread_holds_the_lock_that_ending_takes(terminal: Pty) -> None:
    """The handler runs in the middle of anything, a processor's halt for instance: it must not wait."""
    lock = threading.Lock()

    class Locked(Keys):
        def leave(self, why: str) -> None:
            with lock:
                super().leave(why)

    for console in (terminal.terminal, Stream()):
        keys = Locked()
        with console.attached(keys):
            with lock:
                signal.raise_signal(signal.SIGTERM)
            assert keys.wait_for_leave() == "SIGTERM"


CHILD = """
    import os, signal, sys, time
    from swtdx.vmm.console import Terminal

    class Guest:
        def send(self, data): pass
        def resize(self, columns, rows): pass
        def leave(self, why): os.write(1, why.encode() + b"!"); left.append(why)

    left = []
    terminal = Terminal(0, 1)
    with terminal.attached(Guest()):
        os.write(1, b"ready")
        {body}
"""


@pytest.mark.parametrize(
    ("body", "send"),
    [
        ("sys.exit(3)", None),
        ("raise RuntimeError", None),
        ("time.sleep(30)", signal.SIGINT),
        ("while not left: time.sleep(0.01)", signal.SIGTERM),
        ("while not left: time.sleep(0.01)", signal.SIGHUP),
    ],
)
def test_a_process_that_ends(terminal: Pty, body: str, send: signal.Signals | None) -> None:
    before = terminal.settings
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD).format(body=body)],
        stdin=terminal.ours, stdout=terminal.ours, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert terminal.read(5) == b"ready"
    if send is not None:
        assert terminal.is_raw
        process.send_signal(send)
    process.wait(20)
    assert terminal.settings == before


def test_at_exit_without_a_with_block(terminal: Pty) -> None:
    """A daemon thread attached it, and the interpreter exits under it."""
    before = terminal.settings
    code = """
        import os, threading
        from swtdx.vmm.console import Terminal

        class Guest:
            def send(self, data): pass
            def resize(self, columns, rows): pass
            def leave(self, why): pass

        def run():
            with Terminal(0, 1).attached(Guest()):
                os.write(1, b"ready")
                threading.Event().wait()

        threading.Thread(target=run, daemon=True).start()
        os.read(0, 1)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=terminal.ours, stdout=terminal.ours, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert terminal.read(5) == b"ready"
    assert terminal.is_raw
    while process.poll() is None:
        os.write(terminal.user, b"kk")
        time.sleep(0.02)
    assert terminal.settings == before


# ------------------------------------------------------------------ a plain stream
def test_stream() -> None:
    read, write = os.pipe()
    stream = Stream(write)
    assert stream.size is None
    keys = Keys()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stream.attached(keys):
        stream.write(b"hello")
        signal.raise_signal(signal.SIGINT)
        assert keys.wait_for_leave() == "SIGINT"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert os.read(read, 5) == b"hello"
    os.close(read)
    with pytest.raises(OSError):
        stream.write(b"nobody reads")
    os.close(write)


def test_write_all_to_a_pipe_that_is_full() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    data = bytes(range(256)) * 4096
    got = bytearray()

    def drain() -> None:
        while len(got) < len(data):
            got.extend(os.read(read, 65536))

    thread = threading.Thread(target=drain)
    threading.Timer(0.05, thread.start).start()
    write_all(write, data)
    while len(got) < len(data):
        time.sleep(0.001)
    assert got == data
    os.close(read)
    os.close(write)
