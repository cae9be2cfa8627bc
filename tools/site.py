"""The documentation as a site: ``python -m tools.site FOLDER``.

The pages of ``docs``, and those that are made here: the ABI out of the tables of ``swtdx.arch``, the commands
out of the command line.  Built strictly: a link that leads nowhere is an error.  The site needs no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from swtdx.api.explaining import Explanation, explain
from swtdx.arch import ghci, status
from swtdx.arch.exits import ExitReason
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.metadata import TABLES, Context
from swtdx.cli.main import COMMANDS

ROOT: Final = Path(__file__).parents[1]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") or " "


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(columns)
    yield ""
    yield f"| {' | '.join(_cell(head) for head in heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    yield ""


def explained(each: Explanation) -> Iterator[str]:
    """One explanation, as ``swtdx explain`` gives it."""
    yield f"## {_cell(each.title)}"
    yield ""
    yield _cell(each.summary)
    if each.facts:
        yield from _table(("", ""), each.facts)
    for rows in each.tables:
        yield f"**{_cell(rows.title)}**"
        yield from _table(rows.columns, rows.rows)


def _page(title: str, about: str, found: Iterable[Explanation]) -> str:
    lines = [f"# {title}", "", about, ""]
    for each in found:
        lines += explained(each)
    return "\n".join(lines) + "\n"


def _first(name: str, kind: str) -> Explanation:
    return explain(name, kind)[0]


def abi_pages() -> dict[str, str]:
    """The ABI reference: text by name of the page."""
    source = "Made of the tables of `swtdx.arch`; `swtdx explain` shows the same."
    leaves = [_first(name, "leaf") for name in sorted(BY_NAME)]
    pages = {
        "host-leaves": _page(
            "SEAMCALL leaves", source, (one for one in leaves if one.title.startswith(("TDH.", "SEAMLDR.")))
        ),
        "guest-leaves": _page(
            "TDCALL leaves", source, (one for one in leaves if one.title.startswith("TDG."))
        ),
        "tdvmcalls": _page(
            "TDVMCALLs", source, (_first(call.name, "tdvmcall") for call in ghci.CALLS.values())
        ),
        "statuses": _page(
            "Completion statuses", source,
            (_first(name, "status") for name in status.NAMES.values()),
        ),
    }  # fmt: skip
    exits = ["# VM exit reasons", "", source]
    exits += _table(("Number", "Name"), ((str(int(one)), one.name) for one in ExitReason))
    pages["exits"] = "\n".join(exits) + "\n"
    fields = ["# Metadata fields", "", source]
    for context, table in TABLES.items():
        fields.append(f"## {Context(context).name}")
        fields += _table(("Identifier", "Name"), ((f"`{one.id:#018x}`", one.name) for one in table))
    pages["fields"] = "\n".join(fields) + "\n"
    return pages


def commands_page() -> str:
    """The command reference, which mkdocs-click fills in."""
    parts = ["# Commands", "", "What `swtdx COMMAND --help` says, of all commands.", ""]
    for name, lazy in COMMANDS.items():
        module, _, command = lazy.where.partition(":")
        parts += [
            "::: mkdocs-click", f"    :module: {module}", f"    :command: {command}",
            f"    :prog_name: swtdx {name}", "    :depth: 1", "    :style: table", "",
        ]  # fmt: skip
    return "\n".join(parts)


def topics(settings: str) -> str:
    """Navigation for the pages of ``docs`` that ``settings`` does not name, by their titles."""
    lines = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        if f" {page.name}\n" not in settings:
            title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            lines.append(f'      - "{title}": {page.name}\n')
    return "".join(lines)


def prepare(folder: Path) -> None:
    """Everything that the site is made of, in ``folder``: ``docs``, and ``mkdocs.yml``."""
    docs = folder / "docs"
    shutil.copytree(ROOT / "docs", docs)
    shutil.copy(ROOT / "CHANGELOG.md", docs / "changelog.md")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(settings.replace("__TOPICS__\n", topics(settings)), encoding="utf-8")
    (docs / "abi").mkdir()
    for name, text in abi_pages().items():
        (docs / "abi" / f"{name}.md").write_text(text, encoding="utf-8")
    (docs / "commands.md").write_text(commands_page(), encoding="utf-8")


def build(target: Path) -> int:
    """Build the site into ``target``; mkdocs's exit status, which a warning makes 1."""
    with tempfile.TemporaryDirectory(prefix="swtdx-site-") as temporary:
        folder = Path(temporary)
        prepare(folder)
        command = [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-d",
            str(target.resolve()),
        ]
        # Material tells of its successor at every build.
        env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, cwd=folder, env=env, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.site FOLDER")
    sys.exit(build(Path(sys.argv[1])))
