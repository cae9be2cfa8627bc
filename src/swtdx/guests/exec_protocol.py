r"""How one command's output and exit status come back over a console that others also write to.

The guest's ``init`` (``init.sh``) prints, on the console that it has set to raw,

    ``\x1e`` token `` BEGIN\n``     just before the command starts,
    ``\x1e`` token `` END status\n``     after it has ended and everything it left behind was killed.

What lies between is the command's standard output and standard error, byte for byte; what lies outside
is the kernel's log.  The token keeps a command's output from looking like a marker by accident.  It is
derived from the command, not drawn at random, because it is part of the measured initrd: the same
command gives the same RTMR2.  A command that reads the token and forges its own end only fools its own
caller.
"""

from __future__ import annotations

import hashlib
from typing import Final

_RS: Final = b"\x1e"
#: Digits of an exit status at most, and what stands for one that is none.
_DIGITS: Final = 3
#: Bytes of a line at most; longer ones are not ours.
LONGEST_LINE: Final = 4096
NO_STATUS: Final = 255


def default_token(command: str) -> str:
    """The token for ``command``: 32 hexadecimal digits."""
    return hashlib.sha256(b"swtdx exec token\0" + command.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class ExecStream:
    """Separates a console's bytes into kernel log, command output and exit status.

    Feed what the console delivers, in pieces of any size; get back what belongs to the command, as
    soon as it is certain that it does.
    """

    def __init__(self, token: str) -> None:
        self._begin = _RS + token.encode() + b" BEGIN\n"
        self._end = _RS + token.encode() + b" END "
        self._pending = b""
        self._started = False
        self._log = bytearray()
        #: The command's exit status, 0..255, once it is known.
        self.status: int | None = None

    @property
    def started(self) -> bool:
        """Whether the command has begun to run."""
        return self._started

    @property
    def log(self) -> bytes:
        """What came before the command's output and after it, and was not taken: the kernel's messages."""
        return bytes(self._log)

    def take_log(self) -> bytes:
        """The kernel's messages since the last time; they are then forgotten."""
        log = bytes(self._log)
        self._log.clear()
        return log

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the console; return the command's part of what is now certain."""
        self._pending += data
        if self.status is not None:
            self._to_log(len(self._pending))
            return b""
        if not self._started:
            at = self._pending.find(self._begin)
            if at < 0:
                self._to_log(len(self._pending) - _overlap(self._pending, self._begin))
                return b""
            self._to_log(at)
            self._pending = self._pending[len(self._begin) :]
            self._started = True
        return self._output()

    def finish(self) -> bytes:
        """The console has closed: return what was held back because it might have been a marker."""
        rest, self._pending = self._pending, b""
        if self._started and self.status is None:
            return rest
        self._log += rest
        return b""

    def _output(self) -> bytes:
        at = self._pending.find(self._end)
        if at < 0:
            certain = len(self._pending) - _overlap(self._pending, self._end)
            out, self._pending = self._pending[:certain], self._pending[certain:]
            return out
        out, rest = self._pending[:at], self._pending[at:]
        digits, newline, after = rest[len(self._end) :].partition(b"\n")
        if not newline and len(digits) <= _DIGITS:
            # The line's end is still on its way.
            self._pending = rest
            return out
        self.status = int(digits) if len(digits) <= _DIGITS and digits.isdigit() else NO_STATUS
        if self.status > NO_STATUS:
            self.status = NO_STATUS
        if not newline:
            after = digits
        self._pending = after
        self._to_log(len(after))
        return out

    def _to_log(self, count: int) -> None:
        self._log += self._pending[:count]
        self._pending = self._pending[count:]


def _overlap(data: bytes, marker: bytes) -> int:
    """Length of the longest end of ``data`` that is a start of ``marker``."""
    for size in range(min(len(data), len(marker) - 1), 0, -1):
        if data.endswith(marker[:size]):
            return size
    return 0
