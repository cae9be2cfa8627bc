"""A trace of what crosses the trust boundary of a platform."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from swtdx.api.platform import Platform
from swtdx.trace.decode import decode
from swtdx.trace.event import Event
from swtdx.trace.probe import Tracer as Probe
from swtdx.trace.record import Record
from swtdx.trace.text import timeline


class Tracer:
    """Records SEAMCALLs, VM entries and exits, TDCALLs, TDVMCALLs and interrupts of ``platform``.

    A context manager, or :meth:`start` and :meth:`stop`; between runs of TDs only.  It changes nothing that a
    TD can see but time: a traced boot of Linux takes two or three times as long.

    Args:
        keep: how many of the latest crossings are kept; None for all.
    """

    def __init__(self, platform: Platform, keep: int | None = None) -> None:
        self._records: deque[Record] = deque(maxlen=keep)
        self._probe = Probe(platform.internals.machine, self._records.append)

    def start(self) -> None:
        """Begin to record, or go on."""
        self._probe.attach()

    def stop(self) -> None:
        """Record no more.  What was recorded stays.  Idempotent."""
        self._probe.detach()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._records.clear()

    def events(self) -> Iterator[Event]:
        """What was recorded, decoded, in order.

        Of an event ``kind``, ``name``, ``status``, ``title``, ``source``, ``target``, ``values``, ``facts``
        and ``plain()`` can be used; ``docs/demo.md`` says what they hold.
        """
        for record in sorted(self._records, key=lambda record: record.number):
            yield from decode(record)

    def counts(self) -> Counter[str]:
        """How many events there are of each kind."""
        return Counter(event.kind for event in self.events())

    def text(self, width: int = 100) -> str:
        """The events as a timeline for people, at most ``width`` characters wide."""
        return "\n".join(timeline(self.events(), width=width))

    def save(self, path: str | Path) -> None:
        """Write the events as JSON lines, as ``swtdx run --trace`` does.

        Raises:
            OSError: the file cannot be written.
        """
        with open(path, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(event.plain()) + "\n" for event in self.events())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
