"""A trace as JSON lines: one object for each event, as it happens."""

from __future__ import annotations

import json
import threading
from typing import TextIO

from swtdx.trace.decode import decode
from swtdx.trace.record import Record


class JsonLines:
    """A sink for :class:`~swtdx.trace.probe.Tracer` that writes to a text file.

    Several processors may call at the same time.  Numbers that may need 64 bits are hexadecimal strings.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        """Decode one record and write its events."""
        text = "".join(json.dumps(event.plain()) + "\n" for event in decode(record))
        with self._lock:
            self._out.write(text)
