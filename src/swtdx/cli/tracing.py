"""``--trace FILE``: what crosses the trust boundary during a run, as JSON lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.platform import Platform


@contextlib.contextmanager
def tracing(platform: Platform, path: str | None) -> Iterator[None]:
    """Write every SEAMCALL, VM entry, VM exit, TDCALL and TDVMCALL to the file; nothing without a path.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        yield
        return
    from swtdx.trace.jsonlines import JsonLines
    from swtdx.trace.probe import Tracer

    with open(path, "w", encoding="utf-8") as out, Tracer(platform.machine, JsonLines(out)):
        yield
