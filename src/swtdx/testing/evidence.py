"""What a failing test shows of its TDs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swtdx.api.tracer import Tracer

if TYPE_CHECKING:
    import pytest

    from swtdx.api.platform import Platform
    from swtdx.api.td import Td

#: Crossings of the boundary that are kept, and how many of their events a report shows.
_KEPT: Final = 2000
_SHOWN: Final = 40
#: Bytes of a console's end that a report shows.
_CONSOLE: Final = 6000


class Evidence:
    """The TDs and traces of one test."""

    def __init__(self) -> None:
        self._tds: list[Td] = []
        self._tracers: list[Tracer] = []

    def watch(self, td: Td) -> None:
        """Show the console and the last exits of ``td``, too."""
        self._tds.append(td)

    def trace(self, platform: Platform) -> None:
        """Record what crosses the boundary of ``platform`` from now on."""
        tracer = Tracer(platform, keep=_KEPT)
        tracer.start()
        self._tracers.append(tracer)

    def sections(self) -> list[tuple[str, str]]:
        """Titles and texts for a report."""
        found = []
        for number, td in enumerate(self._tds, 1):
            name = "TD" if len(self._tds) == 1 else f"TD {number}"
            console = _printable(td.console[-_CONSOLE:])
            if console:
                found.append((f"{name}: console", console))
            exits = td.last_exits()
            if exits:
                found.append((f"{name}: last TD exits", "\n".join(exits)))
            if td.result is not None:
                found.append((f"{name}: end", str(td.result)))
        for tracer in self._tracers:
            lines = tracer.text().splitlines()
            if lines:
                found.append(("TDX trace, its end", "\n".join(lines[-_SHOWN:])))
        return found

    def add_to(self, report: pytest.TestReport, folder: str | None, nodeid: str) -> None:
        """Put it into a report, and into files in ``folder`` if there is one."""
        for title, text in self.sections():
            if (title, text) not in report.sections:
                report.sections.append((title, text))
        if folder is None or not (self._tds or self._tracers):
            return
        place = Path(folder, re.sub(r"[^\w.-]+", "-", nodeid).strip("-"))
        place.mkdir(parents=True, exist_ok=True)
        for number, td in enumerate(self._tds, 1):
            (place / f"console-{number}.txt").write_bytes(td.console)
            (place / f"exits-{number}.txt").write_text("\n".join(td.last_exits()) + "\n", encoding="utf-8")
        for number, tracer in enumerate(self._tracers, 1):
            tracer.save(place / f"trace-{number}.jsonl")


def _printable(data: bytes) -> str:
    """A terminal must not be at a guest's mercy."""
    text = data.decode("utf-8", "replace").replace("\r", "")
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text).strip("\n")
