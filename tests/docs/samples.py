"""Code samples in documents: found, with what they need, and run.

A sample is a fenced block of ``python``, or of ``console`` whose lines behind ``$`` are commands and whose
other lines are what they print (``...`` stands for anything).  A comment right before it says what it needs::

    <!-- sample: boot -->     boots Linux; `qemu`, `slow` and `network` likewise
    <!-- sample: no, REASON -->     is not run

The blocks of one page are run in their order, in one folder; ``python`` has the names of the blocks before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(
    r"^(?:<!-- sample: (?P<needs>[^\n]*?) -->\n)?```(?P<kind>python|console)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
#: Marks of this test suite that a sample may want.
MARKS: Final = ("boot", "qemu", "slow", "network")


@dataclass(frozen=True, slots=True)
class Sample:
    """One block; ``line`` is where its fence is."""

    page: Path
    line: int
    kind: str
    text: str
    needs: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether it is run."""
        return not self.needs or self.needs[0] != "no"


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def samples(page: Path) -> Iterator[Sample]:
    """The samples of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("kind")) + 1
        needs = tuple(re.split(r"[ ,]+", found["needs"])) if found["needs"] else ()
        yield Sample(page, line, found["kind"], found["text"], needs)
