"""Facts taken once from the reference documents into small text files, for comparison with the tables."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).parent / "data"


def lines(name: str) -> list[str]:
    """The lines of a data file without its heading."""
    text = (_DATA / name).read_text("utf-8").splitlines()
    assert text[0].startswith("#")
    assert len(text) > 1
    return text[1:]


def words(name: str) -> list[list[str]]:
    """The lines, split at blanks."""
    return [line.split() for line in lines(name)]


def masks(text: str) -> tuple[int, int, int, int]:
    """``"eax=all ecx=0x10"`` as four 32-bit masks."""
    found = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0)
    for part in text.split():
        register, _, value = part.partition("=")
        found[register] = 0xFFFF_FFFF if value == "all" else int(value, 0)
    return found["eax"], found["ebx"], found["ecx"], found["edx"]
