"""``--timeout``: a limit for all that a command does, fetching and building included."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class TimeIsOver(Exception):
    """The time was over before the guest ran."""


class Deadline:
    """``seconds`` from now; None: no limit."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds, at least a millisecond; None: no limit."""
        return None if self._end is None else max(0.001, self._end - time.monotonic())

    @contextlib.contextmanager
    def watched(self, doing: str) -> Iterator[None]:
        """Break off what happens in the context when the time is over.  Only the main thread can.

        Raises:
            TimeIsOver: it is; the message names ``doing``.
        """
        left = self.left()
        if left is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def over(_number: int, _frame: FrameType | None) -> None:
            raise TimeIsOver(f"the time was over ({self.seconds:g} s) while {doing}")

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
