"""A line on the terminal from the start until the guest's first byte: it takes some seconds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from swtdx.vmm.console import Console, Guest

_ERASE: Final = "\r\x1b[K"


class Starting:
    """The line, on standard error, if that is a terminal; it goes with the first output or at the end.

    Args:
        label: what boots.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = False

    def __enter__(self) -> Starting:
        if sys.stderr is not None and sys.stderr.isatty():
            self._shown = True
            sys.stderr.write(f"booting {self._label} as a trust domain ...")
            sys.stderr.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.erase()

    def erase(self) -> None:
        """Take the line away.  Idempotent."""
        if self._shown:
            self._shown = False
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(_ERASE)
                sys.stderr.flush()

    def before(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """``write`` that first takes the line away."""
        if not self._shown:
            return write

        def erasing(data: bytes) -> None:
            self.erase()
            write(data)

        return erasing

    def console(self, console: Console) -> Console:
        """``console`` that takes the line away before it writes."""
        return _Erasing(console, self.before(console.write)) if self._shown else console


class _Erasing:
    """A console with another ``write``."""

    def __init__(self, console: Console, write: Callable[[bytes], None]) -> None:
        self._console = console
        self.write = write

    def attached(self, guest: Guest) -> contextlib.AbstractContextManager[None]:
        """See :class:`swtdx.vmm.console.Console`."""
        return self._console.attached(guest)

    @property
    def size(self) -> tuple[int, int] | None:
        """See :class:`swtdx.vmm.console.Console`."""
        return self._console.size
