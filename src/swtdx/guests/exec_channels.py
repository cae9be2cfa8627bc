r"""The channels on which one command's streams, exit status and files come back.

Each is a port of a virtio console (:mod:`swtdx.devices.virtio.ports`), so that nothing else gets in: not the
kernel's messages, whatever ``console=`` says, and no terminal.  ``exec.sh`` is the guest's end.

==========  ==========================================================================================
swtdx.out   the command's standard output, byte for byte
swtdx.err   its standard error; without this channel it goes to swtdx.out
swtdx.in    its standard input, to the end; without this channel that is empty
swtdx.ctl   ``BEGIN\n`` before the command starts; then, when it has ended and everything that it left
            behind was killed, for each file that is wanted ``FILE n bytes\n`` and the bytes, or
            ``NOFILE n why\n``; last ``END status\n``
==========  ==========================================================================================

Every byte of output has been handed over before END: a write to a port returns when the device has it.
A command that opens the control channel itself only fools its own caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.guests.exec_protocol import LONGEST_LINE, NO_STATUS

OUT: Final = "swtdx.out"
ERR: Final = "swtdx.err"
IN: Final = "swtdx.in"
CTL: Final = "swtdx.ctl"


class ControlStream:
    """Understands what comes over the control channel, in pieces of any size.

    Args:
        wanted: how many files the guest was asked for.
        file_bytes: takes a piece of file ``n``; called at least once for each file that arrives.
    """

    def __init__(self, wanted: int = 0, file_bytes: Callable[[int, bytes], None] | None = None) -> None:
        self._wanted = wanted
        self._file_bytes = file_bytes or (lambda _number, _data: None)
        self._line = bytearray()
        #: The file whose bytes come now, and how many are missing.
        self._file = -1
        self._left = 0
        #: Whether the command has begun to run.
        self.started = False
        #: The command's exit status, 0..255, once it is known.
        self.status: int | None = None
        #: Numbers of the files that have arrived whole.
        self.files: set[int] = set()
        #: Why others do not come, by number, in the guest's words.
        self.missing: dict[int, str] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes; what makes no sense is ignored."""
        at = 0
        while at < len(data) or (self._file >= 0 and not self._left):
            if self._file >= 0:
                piece = data[at : at + self._left]
                self._file_bytes(self._file, piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    return
                self.files.add(self._file)
                self._file = -1
                continue
            end = data.find(b"\n", at)
            self._line += data[at:] if end < 0 else data[at:end]
            if len(self._line) > LONGEST_LINE:
                del self._line[LONGEST_LINE:]
            if end < 0:
                return
            line, self._line = bytes(self._line), bytearray()
            at = end + 1
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        number, _, more = rest.partition(b" ")
        if word == b"BEGIN":
            self.started = True
        elif word == b"END":
            status = int(rest) if rest.isdigit() and len(rest) <= 3 else NO_STATUS
            self.status = min(status, NO_STATUS)
        elif word in (b"FILE", b"NOFILE") and number.isdigit() and int(number) < self._wanted:
            if word == b"NOFILE":
                self.missing[int(number)] = more.decode("utf-8", "replace").strip()
            elif more.isdigit() and len(more) < 19:
                self._file, self._left = int(number), int(more)
