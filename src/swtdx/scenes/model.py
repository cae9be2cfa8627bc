"""What a scene is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from swtdx.trace.event import Event


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: a title, names of columns, rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def plain(self) -> dict[str, Any]:
        """For JSON: rows by the names of their columns."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
        }


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a scene.

    ``text`` explains it, ``events`` are what was recorded, ``facts`` and ``tables`` what was looked up.
    ``failed`` says that something happened which must not.
    """

    title: str
    text: str = ""
    events: tuple[Event, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Rows, ...] = ()
    failed: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        shown: dict[str, Any] = {"step": self.title}
        if self.text:
            shown["text"] = self.text
        if self.events:
            shown["events"] = [event.plain() for event in self.events]
        if self.facts:
            shown["facts"] = dict(self.facts)
        if self.tables:
            shown["tables"] = [rows.plain() for rows in self.tables]
        return shown | self.data


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: its name on the command line, a line about it, and the play."""

    name: str
    title: str
    play: Callable[[bytes], Iterator[Step]]
