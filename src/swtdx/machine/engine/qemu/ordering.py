"""The order in which Python's plain stores and loads reach the memory that it shares with the stub.

A memoryview's items are stored and loaded by plain instructions.  x86 keeps stores in order, and loads, but
lets a load pass an earlier store to another place; other processors keep no order at all.  Python has no
fence, but its locks order what is before them and what is behind them, even if nothing else takes them.
"""

from __future__ import annotations

import platform
import threading
from contextlib import AbstractContextManager
from typing import Any, Final

#: Whether the processor keeps stores in order, and loads, by itself.
IN_ORDER: Final = platform.machine() in ("x86_64", "AMD64", "i686")


class _Twice:
    """A lock lets in what surrounds it, from both sides; between two nothing can pass."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            pass
        with self._lock:
            pass

    def __exit__(self, *_: object) -> None:
        pass


def fence() -> AbstractContextManager[Any]:
    """A fence for one thread at a time: what is before ``with`` it is done before what is behind it."""
    return threading.Lock() if IN_ORDER else _Twice()
