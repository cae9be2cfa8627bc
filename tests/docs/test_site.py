"""The documentation site builds without a warning, and needs no network to be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tools.site import ROOT, abi_pages, build

from swtdx.arch import ghci
from swtdx.arch.leaves import BY_NAME
from swtdx.cli.main import COMMANDS

#: Elements whose address a browser loads by itself.
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Loaded(HTMLParser):
    """Addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get(LOADING.get(tag, ""))
        if address and values.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.found.append(address)


def test_the_reference_has_every_leaf_and_tdvmcall() -> None:
    pages = abi_pages()
    leaves = pages["host-leaves"] + pages["guest-leaves"]
    assert [name for name in BY_NAME if f"## {name}\n" not in leaves] == []
    assert [call.name for call in ghci.CALLS.values() if call.name not in pages["tdvmcalls"]] == []


@pytest.mark.slow
def test_the_site(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    assert build(site) == 0, capfd.readouterr().err
    told = capfd.readouterr()
    assert told.out + told.err == ""
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").rglob("*.md")))
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert [address for address in loaded.found if re.match(r"(https?:)?//", address)] == [], page
        for address in loaded.found:
            # The server may show it at any address.
            if not address.startswith("data:") and page.name != "404.html":
                assert (page.parent / address.partition("?")[0].partition("#")[0]).exists(), (page, address)
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"swtdx {name}" in commands
    assert "--merge-stderr" in commands
