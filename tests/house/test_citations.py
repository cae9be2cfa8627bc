"""Every page and section that a comment cites is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.house.linter import TOP

_SUFFIXES: Final = {".py", ".S", ".inc", ".sh", ".ld", ".toml"}
#: "structures.md", "structures.md §8.2", "attestation.md section 8", "attestation.md sections 2-4".
_CITATION: Final = re.compile(
    r"(?P<page>[\w/-]+\.md)(?:,?\s+(?:§+|sections?\s+)\s*(?P<first>\d+(?:\.\d+)*)(?:-(?P<last>\d+))?)?"
)
_HEADING: Final = re.compile(r"^#+ (\d+(?:\.\d+)*)\.? ", re.MULTILINE)
#: Texts that are written by a program, and names in examples.
_WRITTEN: Final = {"summary.md"}


def citations() -> Iterator[tuple[str, str, list[str]]]:
    """(where, page, sections) of every citation in the sources."""
    for folder in ("src", "tests", "benchmarks"):
        for path in sorted((TOP / folder).rglob("*")):
            if path.suffix not in _SUFFIXES or path == Path(__file__):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for found in _CITATION.finditer(line):
                    first, last = found["first"], found["last"]
                    sections = [first] if first else []
                    if first and last:
                        sections = [str(section) for section in range(int(first), int(last) + 1)]
                    yield f"{path.relative_to(TOP)}:{number}", found["page"], sections


@cache
def pages(name: str) -> list[str]:
    """The texts of the pages of that name: docs/attestation.md and docs/reference/attestation.md are two."""
    name = name.removeprefix("docs/").removeprefix("reference/")
    folders = (TOP, TOP / "docs", TOP / "docs" / "reference")
    return [(at / name).read_text(encoding="utf-8") for at in folders if (at / name).is_file()]


def test_every_citation_leads_somewhere() -> None:
    found = list(citations())
    assert len(found) > 100, "the citations have not been found"
    dangling = [
        f"{where}: {page}" + "".join(f" §{section}" for section in sections)
        for where, page, sections in found
        if page not in _WRITTEN
        and not any(set(sections) <= set(_HEADING.findall(text)) for text in pages(page))
    ]
    assert dangling == []


@pytest.mark.parametrize("path", sorted((TOP / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_link_of_the_documents_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_a_dangling_citation_is_found() -> None:
    found = _CITATION.search("see structures.md §99.1 (and so on)")
    assert found is not None
    assert (found["page"], found["first"]) == ("structures.md", "99.1")
    assert not any(found["first"] in _HEADING.findall(text) for text in pages("structures.md"))
    assert pages("nowhere.md") == []
