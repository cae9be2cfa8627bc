"""``--trace FILE``: what crosses the trust boundary during a run, as JSON lines."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from swtdx.platform import Platform

#: Bytes that are collected before they are written.
_BUFFER: Final = 64 << 10


class _Written(io.RawIOBase):
    """A stream whose bytes go to a function."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = bytes(data)
        self._write(written)
        return len(written)


@contextlib.contextmanager
def tracing(platform: Platform, write: Callable[[bytes], None] | None) -> Iterator[None]:
    """Write every SEAMCALL, VM entry, VM exit, TDCALL and TDVMCALL by ``write``; nothing without it."""
    if write is None:
        yield
        return
    from swtdx.trace.jsonlines import JsonLines
    from swtdx.trace.probe import Tracer

    stream = io.BufferedWriter(_Written(write), _BUFFER)
    with io.TextIOWrapper(stream, encoding="utf-8") as out, Tracer(platform.machine, JsonLines(out)):
        yield
