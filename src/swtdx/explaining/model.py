"""An explanation: plain data for a terminal or for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: a title, names of columns, rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What something is.

    ``kind`` is the word that asks for it (``"leaf"``: ``swtdx explain leaf 21``), ``key`` what comes
    after it; ``title`` names it, ``summary`` is one sentence; then facts and tables.
    """

    kind: str
    key: str
    title: str
    summary: str
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Rows, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The same for JSON: facts and tables by their names."""
        return {
            "kind": self.kind,
            "key": self.key,
            "title": self.title,
            "summary": self.summary,
            "facts": dict(self.facts),
            "tables": {
                table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
                for table in self.tables
            },
        }


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> tuple[Rows, ...]:
    """A table as a tuple of one, of none if it has no rows."""
    return (Rows(title, columns, tuple(rows)),) if rows else ()


def bits_text(name: str, high: int, low: int) -> str:
    """``"51:12 gpa"``."""
    return f"{high}:{low} {name}" if high != low else f"{high} {name}"
