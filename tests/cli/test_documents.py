"""What the documents name exists: files, commands and options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from swtdx.cli.main import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A word that a reader would take for a file of the repository.
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|S|sh|md|toml)|(?:src|tests|docs|benchmarks)/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"(?:^ {4}|^\$ |`)(swtdx (?!simulated)[^`\n]+)", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_exist(document: Path) -> None:
    text = document.read_text()
    named = FILE.findall(text)
    absent = [
        name for name in named if not (ROOT / name).exists() and not (ROOT / "src/swtdx" / name).exists()
    ]
    absent += [name for name in LINK.findall(text) if not (document.parent / name).exists()]
    assert absent == []


def commands() -> list[tuple[str, str]]:
    return [(path.name, line) for path in DOCUMENTS for line in COMMAND.findall(path.read_text())]


def test_some_commands_are_found() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_exist_with_their_options(document: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words and words[0].isupper():
        return  # swtdx COMMAND --help
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{document}: {line}"
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{document}: {line}"
