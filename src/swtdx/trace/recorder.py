"""A trace that is kept in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from swtdx.trace.decode import decode
from swtdx.trace.event import Event
from swtdx.trace.record import Record


class Recorder:
    """A sink for :class:`~swtdx.trace.probe.Tracer` that keeps everything, in order of the crossings."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __call__(self, record: Record) -> None:
        """Keep one record.  Several processors may call at the same time."""
        self.records.append(record)

    def events(self, start: int = 0) -> Iterator[Event]:
        """The events of the records from index ``start`` on."""
        for record in sorted(self.records[start:], key=lambda record: record.number):
            yield from decode(record)

    def counts(self) -> Counter[str]:
        """How many events there were of each kind."""
        return Counter(event.kind for event in self.events())
