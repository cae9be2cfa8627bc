"""A timeline for people: an event's lines of text, at most so wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from swtdx.trace.event import GUEST, HYPERVISOR, MODULE, Event, Value

WIDTH: Final = 100
_INDENT: Final = 8
_ONLY_FOR_PROGRAMS: Final = ("tsc", "reason")


class Line(NamedTuple):
    """A line of text, and what it is: ``"event"``, ``"register"`` or ``"fact"``."""

    text: str
    what: str


#: How deep inside the TD a party is: the arrows of a timeline point right on the way in.
_DEPTH: Final = {HYPERVISOR: 0, "processor": 1, MODULE: 1, GUEST: 2}


def event_lines(event: Event, *, width: int = WIDTH, numbers: bool = True) -> Iterator[Line]:
    """The lines of one event."""
    inward = _DEPTH[event.source] <= _DEPTH[event.target]
    way = f"{event.source} → {event.target}" if inward else f"{event.target} ← {event.source}"
    front = f"{event.number:>6} cpu{event.lp} " if numbers else ""
    head = f"{front}{way:<23} {event.kind}: {event.title}"
    yield from _wrapped(head, width, " " * (len(front) + 24), "event")
    for value in event.values:
        yield from value_lines(value, width=width)
    for name, fact in event.facts.items():
        if fact and name not in _ONLY_FOR_PROGRAMS:
            yield from _wrapped(f"{'':{_INDENT}}{name}: {fact}", width, " " * (_INDENT + 4), "fact")


def value_lines(value: Value, *, width: int = WIDTH) -> Iterator[Line]:
    """The lines of one register."""
    text = f"{'':{_INDENT}}{value.register:<4} {value.value:#018x}"
    if value.meaning:
        text += f"  {value.meaning}"
    if value.bits:
        shown = (part.name if part.single else f"{part.name}={part.value:#x}" for part in value.bits)
        text += f"  [{' '.join(shown)}]"
    yield from _wrapped(text, width, " " * (_INDENT + 25), "register")


def timeline(events: Iterable[Event], *, width: int = WIDTH) -> Iterator[str]:
    """The text of many events."""
    for event in events:
        for line in event_lines(event, width=width):
            yield line.text


def _wrapped(text: str, width: int, indent: str, what: str) -> Iterator[Line]:
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        drop_whitespace=True,
        break_long_words=True,
        replace_whitespace=False,
    )
    # textwrap drops the blanks in front of the first line only if nothing else is there.
    for line in lines or [""]:
        yield Line(line, what)
