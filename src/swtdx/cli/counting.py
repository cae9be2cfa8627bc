"""How far a long command is: one line on standard error, if that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Final, Self

#: Erases the line that the cursor is in.
ERASE: Final = "\r\x1b[K"


def on_terminal() -> bool:
    """Whether standard error is a terminal: what is told there on the way is for people alone."""
    return sys.stderr is not None and sys.stderr.isatty()


def tell(text: str) -> None:
    """Write to standard error as it is; a terminal that went away is not worth an error."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


class Counting:
    """The line; called with how many are done and how many there are, or None if that is not known.

    Use it as a context manager, so that the line is gone at the end.

    Args:
        what: is counted, in the plural.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = False

    def __call__(self, done: int, total: int | None = None) -> None:
        """Say how far it is."""
        if on_terminal():
            self._shown = True
            tell(f"{ERASE}{done}{'' if total is None else f' of {total}'} {self._what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._shown = False
            tell(ERASE)
