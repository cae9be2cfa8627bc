r"""Commands and files for a guest that serves them one after another: the channel ``swtdx.agent``.

It is a port of a virtio console (:mod:`swtdx.devices.virtio.ports`), in both directions; ``serve.sh`` is the
guest's end.  The guest says ``READY\n`` once.  Then the hypervisor makes one request at a time:

=============================================  ========================================================
``RUN lines input seconds merge\n``, lines     runs them by ``sh -c``; ``merge`` 1: standard error to
                                               standard output; killed after ``seconds``, 0 for never
``PUT kind mode size\npath\n``                 takes a file (``kind`` file), or a tar archive to be
                                               unpacked in a folder (tree); ``mode`` octal
``GET\npath\n``                                wants a file, or a folder as a tar archive
``RENEW hex\n``                                sets the clock, and seeds the random source, after a
                                               snapshot: :func:`renew_request`
``EXEC lines err in gets\n``, lines, paths     runs them with the streams of
                                               :mod:`swtdx.guests.exec_channels`, and switches off
``OFF\n``                                      switches off
=============================================  ========================================================

``MORE\n`` asks for the ``input`` or ``size`` bytes that were announced: the guest's shell reads ahead, so
nothing may be sent before.  Answers are lines, some with bytes behind them:

======================================================  ===============================================
``OUT n\n`` bytes, ``ERR n\n`` bytes, ``END status\n``  a command has ended; ``LATE\n`` before END if it
                                                        was killed, because its time was over
``DONE\n``                                              a file is there
``FILE n\n`` bytes, ``TREE n\n`` bytes                  the file, or the folder's archive
``FAIL why\n``                                          it cannot be had, in the guest's words
======================================================  ===============================================

A command that opens the channel itself only fools its own caller: the guest is what is tested, not trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from swtdx.guests.errors import GuestError
from swtdx.guests.exec_protocol import LONGEST_LINE, NO_STATUS

NAME: Final = "swtdx.agent"

#: Most that one answer may bring, in bytes: a guest must not fill the host's memory.
MOST: Final = 1 << 30
SEED_BYTES: Final = 64
#: Answers with bytes behind them.
_WITH_BYTES: Final = (b"OUT", b"ERR", b"FILE", b"TREE")
#: Answers that end a request.
_LAST: Final = (b"END", b"DONE", b"FAIL", b"FILE", b"TREE")


@dataclass(slots=True)
class Answer:
    """What came of a request.

    ``status`` is a command's, 0 to 255, and ``killed`` whether the guest killed it because its time was
    over; ``parts`` are the bytes that came, by the word in front of them (``OUT``, ``ERR``, ``FILE``,
    ``TREE``); ``failure`` says in the guest's words why there is nothing.
    """

    status: int | None = None
    parts: dict[str, bytes] = field(default_factory=dict)
    failure: str | None = None
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent: ``head`` at once, ``body`` when the guest asks for it."""

    head: bytes
    body: bytes = b""


def _lines(command: str) -> bytes:
    """A command as whole lines."""
    data = command.encode("utf-8", "surrogateescape")
    if not data.strip():
        raise GuestError("there is no command to run in the TD")
    if b"\0" in data:
        raise GuestError("a command cannot hold a NUL byte")
    return data if data.endswith(b"\n") else data + b"\n"


def run_request(command: str, stdin: bytes = b"", seconds: float | None = None, *, merge: bool) -> Request:
    """Run ``command`` by ``sh -c`` with ``stdin`` as its input.

    Args:
        seconds: after which the guest kills it; None for never.
        merge: its standard error goes to its standard output.

    Raises:
        GuestError: the command is empty or holds a NUL byte.
    """
    text = _lines(command)
    limit = 0 if seconds is None else max(1, round(seconds))
    head = f"RUN {text.count(10)} {len(stdin)} {limit} {int(merge)}\n".encode() + text
    return Request(head, stdin)


def put_request(path: str, data: bytes, mode: int = 0o644, *, tree: bool = False) -> Request:
    """Make the file ``path`` of ``data``, or unpack ``data``, a tar archive, in the folder ``path``.

    Raises:
        GuestError: ``path`` cannot be one.
    """
    kind = "tree" if tree else "file"
    return Request(f"PUT {kind} {mode:o} {len(data)}\n".encode() + _path(path), data)


def get_request(path: str) -> Request:
    """Bring the file or folder ``path``.

    Raises:
        GuestError: ``path`` cannot be one.
    """
    return Request(b"GET\n" + _path(path))


def renew_request(now: float, seed: bytes) -> Request:
    """Tell a guest that goes on from a snapshot what time it is, and something that no sibling knows.

    Args:
        now: seconds since 1970 in UTC.
        seed: 64 random bytes, for the kernel's random source, which is then reseeded.

    Raises:
        GuestError: the seed has another size.
    """
    if len(seed) != SEED_BYTES:
        raise GuestError(f"a seed for the guest has {SEED_BYTES} bytes, not {len(seed)}")
    seconds, fraction = divmod(now, 1)
    words = struct.pack("<qq", int(seconds), int(fraction * 1e9))
    return Request(b"RENEW " + (words + seed).hex().encode() + b"\n")


def exec_request(command: str, gets: Sequence[str] = (), *, stderr: bool, stdin: bool) -> Request:
    """Run ``command`` on the channels of an exec job, and switch off.

    Args:
        gets: files that are wanted afterwards.
        stderr: standard error has a channel of its own.
        stdin: there is input.

    Raises:
        GuestError: the command is empty or holds a NUL byte, or a path cannot be one.
    """
    text = _lines(command)
    head = f"EXEC {text.count(10)} {int(stderr)} {int(stdin)} {len(gets)}\n".encode()
    return Request(head + text + b"".join(map(_path, gets)))


#: Switch off.
OFF: Final = Request(b"OFF\n")


def _path(path: str) -> bytes:
    if not path or "\n" in path or "\0" in path:
        raise GuestError("a path in the guest cannot be empty or hold a line's end or a NUL byte")
    if path.startswith("-"):
        # What programs would take for an option.
        path = f"./{path}"
    return path.encode("utf-8", "surrogateescape") + b"\n"


class AgentStream:
    """Understands what the guest sends, in pieces of any size."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._part = ""
        self._left = 0
        self._bytes = bytearray()
        self._answer = Answer()
        #: The guest can take requests.
        self.ready = False
        #: The guest waits for the request's body.
        self.more = False
        #: The answer, once it is complete.
        self.answer: Answer | None = None

    def expect(self) -> None:
        """A request is made: forget the last one's answer."""
        self._answer, self.answer, self.more = Answer(), None, False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; what makes no sense is ignored."""
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._bytes += piece
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._complete()
                continue
            end = data.find(b"\n", at)
            self._line += data[at:] if end < 0 else data[at:end]
            del self._line[LONGEST_LINE:]
            if end < 0:
                return
            line, self._line = bytes(self._line), bytearray()
            at = end + 1
            self._hear(line)

    def _complete(self) -> None:
        self._answer.parts[self._part] = bytes(self._bytes)
        self._bytes.clear()
        if self._part.encode() in _LAST:
            self.answer = self._answer

    def _hear(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if word == b"READY":
            self.ready = True
        elif word == b"MORE":
            self.more = True
        elif word == b"LATE":
            self._answer.killed = True
        elif word in _WITH_BYTES and rest.isdigit() and len(rest) < 19 and int(rest) <= MOST:
            self._part, self._left = word.decode(), int(rest)
            if not self._left:
                self._complete()
        elif word in _LAST:
            if word == b"END":
                status = int(rest) if rest.isdigit() and len(rest) <= 3 else NO_STATUS
                self._answer.status = min(status, NO_STATUS)
            elif word != b"DONE":
                self._answer.failure = rest.decode("utf-8", "replace").strip() or "the guest did not say why"
            self.answer = self._answer
