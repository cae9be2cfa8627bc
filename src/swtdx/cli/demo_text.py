"""A step of a scene as text: at most 100 columns, in colour only on a terminal.

Rich decides about colour: not in a pipe, and not where NO_COLOR is set.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import Final

from rich.text import Text

from swtdx.cli.consoles import PlainConsole as Console
from swtdx.scenes.model import Rows, Step
from swtdx.trace.text import WIDTH, Line, event_lines

_INDENT: Final = "    "
_STYLES: Final = {
    "title": "bold",
    "failed": "bold red",
    "text": "",
    "event": "cyan",
    "register": "",
    "fact": "green",
    "table": "bold",
    "head": "dim",
    "row": "",
}


def show(number: int, step: Step) -> None:
    """Print a step."""
    console = Console(file=sys.stdout, highlight=False, width=WIDTH + 20, soft_wrap=True)
    for line in step_lines(number, step):
        console.print(Text(line.text.rstrip(), style=_STYLES[line.what]), soft_wrap=True)


def step_lines(number: int, step: Step, width: int = WIDTH) -> Iterator[Line]:
    """The lines of a step."""
    mark = "FAILED: " if step.failed else ""
    yield Line(f"{number:>2}. {mark}{step.title}", "failed" if step.failed else "title")
    for text in textwrap.wrap(step.text, width - len(_INDENT)):
        yield Line(_INDENT + text, "text")
    for event in step.events:
        for line in event_lines(event, width=width - len(_INDENT), numbers=False):
            yield Line(_INDENT + line.text, line.what)
    widest = max((len(name) for name, _ in step.facts), default=0)
    for name, fact in step.facts:
        front = f"{_INDENT}{name:<{widest}}  "
        yield from _wrapped(front + fact, width, " " * len(front), "fact")
    for rows in step.tables:
        yield from table_lines(rows, width)
    yield Line("", "text")


def table_lines(rows: Rows, width: int = WIDTH) -> Iterator[Line]:
    """The lines of a table; cells of the last column are folded where they are too long."""
    if rows.title:
        yield Line(f"{_INDENT}{rows.title}:", "table")
    widths = [max(len(row[n]) for row in (rows.columns, *rows.rows)) for n in range(len(rows.columns))]
    # What is left when every column has its width is the last one's; long ones before it are folded, too.
    room = width - 2 * len(_INDENT) - 2 * (len(widths) - 1)
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    yield from _row(rows.columns, widths, "head")
    for row in rows.rows:
        yield from _row(row, widths, "row")


def _row(cells: tuple[str, ...], widths: list[int], what: str) -> Iterator[Line]:
    folded = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    for at in range(max(len(lines) for lines in folded)):
        parts = (
            (lines[at] if at < len(lines) else "").ljust(width)
            for lines, width in zip(folded, widths, strict=True)
        )
        yield Line((2 * _INDENT + "  ".join(parts)).rstrip(), what)


def _wrapped(text: str, width: int, indent: str, what: str) -> Iterator[Line]:
    for line in textwrap.wrap(text, width, subsequent_indent=indent, drop_whitespace=False) or [""]:
        yield Line(line.rstrip(), what)
