"""A line on the terminal from the start until the guest's first byte: it takes some seconds.

With much memory or many vCPUs it takes longer, so the line says how long it has been.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from swtdx.cli.counting import ERASE, on_terminal, tell

if TYPE_CHECKING:
    from swtdx.vmm.console import Console, Guest

#: Seconds between two looks at the clock.
_EVERY: Final = 1.0


class Starting:
    """The line, on standard error, if that is a terminal; it goes with the first output or at the end.

    Args:
        label: what boots.
        line: what is said of it.
    """

    def __init__(self, label: str, line: str = "booting {} as a trust domain ...") -> None:
        self._line = line.format(label)
        self._shown = False
        self._lock = threading.Lock()
        self._gone = threading.Event()

    def __enter__(self) -> Starting:
        if on_terminal():
            self._shown = True
            tell(self._line)
            threading.Thread(target=self._tick, name="starting", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.erase()

    def _tick(self) -> None:
        started = time.monotonic()
        while not self._gone.wait(_EVERY):
            with self._lock:
                if self._shown:
                    tell(f"{ERASE}{self._line} {time.monotonic() - started:.0f} s")

    def erase(self) -> None:
        """Take the line away.  Idempotent."""
        if not self._shown:
            return
        with self._lock:
            if self._shown:
                self._shown = False
                self._gone.set()
                tell(ERASE)

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
        return Writing(console, self.before(console.write)) if self._shown else console


class Writing:
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
