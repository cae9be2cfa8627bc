"""Standard streams that are not there: a daemon closes them, and commands work all the same."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def fill_standard_streams() -> None:
    """Put ``/dev/null`` where standard input, output or error is closed.

    Otherwise Python has no such stream, and the next file that is opened takes its descriptor: what a
    command prints would be written into that file.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = _stream(0, "r")
    if sys.stdout is None:
        sys.stdout = _stream(1, "w")
    if sys.stderr is None:
        sys.stderr = _stream(2, "w")


def _stream(number: int, mode: str) -> TextIO:
    return open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # type: ignore[return-value]
