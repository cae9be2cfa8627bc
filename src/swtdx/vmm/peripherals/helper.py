"""Programs that work for a TD: started for it, and ended with it, however we end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Final

from swtdx.vmm.peripherals.errors import PeripheralError

_PR_SET_PDEATHSIG: Final = 1
#: Seconds that a program gets to end by itself.
_GRACE: Final = 5.0
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Helper:
    """One program.

    Args:
        command: its words.
        pass_fds: descriptors that it inherits.

    Raises:
        PeripheralError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.name = command[0].rsplit("/", 1)[-1]
        self._words: IO[bytes] = tempfile.TemporaryFile("a+b", prefix="swtdx-words-")  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                pass_fds=pass_fds,
                preexec_fn=_die_with_parent,
                # The terminal's Ctrl-C is for us alone: we end it in order.
                process_group=0,
            )
        except OSError as error:
            self._words.close()
            raise PeripheralError(f"{self.name} could not be started: {error.strerror}") from error

    def words(self) -> str:
        """The last that it said."""
        return "; ".join(line.strip() for line in self.lines()[-3:])

    def lines(self) -> list[str]:
        """What it has said until now."""
        # It has the same file open: not a word by read, which would move its place, too.
        return os.pread(self._words.fileno(), 1 << 20, 0).decode("utf-8", "replace").strip().splitlines()

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.process.poll() is not None

    def wait(self) -> None:
        """Give it time to end by itself, because it has nothing to do any more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)

    def close(self) -> None:
        """Make it end."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._words.close()
