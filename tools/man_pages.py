"""Man pages, made of the commands: ``python -m tools.man_pages FOLDER``."""

from __future__ import annotations

import datetime as dt
import inspect
import os
import sys
import warnings
from pathlib import Path

import click
from click_man.core import write_man_pages

from swtdx import __version__
from swtdx.cli.main import COMMANDS, cli


def loaded() -> click.Group:
    """The command, with all that are below it: a lazy group shows none to those who look at its table."""
    with click.Context(cli) as context:
        commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    known = {name: command for name, command in commands.items() if command is not None}
    return click.Group("swtdx", known, params=cli.params, help=cli.help, callback=cli.callback)


def _prepare(command: click.Command, summary: str = "") -> None:
    """Whole first sentences for NAME, and what click prints as it is (behind ``\\b``) as it is."""
    text = inspect.cleandoc(command.help or "")
    command.short_help = (summary or " ".join(text.partition("\n\n")[0].split())).rstrip(".")
    blocks = []
    for block in text.split("\n\n"):
        mark, newline, rest = block.partition("\n")
        blocks.append(f".nf\n{_plain(rest)}\n.fi" if newline and mark.strip() == "\b" else _plain(block))
    command.help = "\n\n".join(blocks)
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _prepare(each)


def _plain(text: str) -> str:
    """No line is taken for a request to troff."""
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def write(folder: Path) -> list[Path]:
    """A page for each command, in ``folder``: its name is ``swtdx-COMMAND.1``.

    Where SOURCE_DATE_EPOCH is set, pages have its date, so that a build can be repeated.
    """
    whole = loaded()
    for name, command in whole.commands.items():
        _prepare(command, COMMANDS[name].help)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    when = dt.datetime.fromtimestamp(int(seconds), dt.UTC) if seconds else dt.datetime.now(dt.UTC)
    with warnings.catch_warnings():
        # Of click's, about what click-man calls.
        warnings.simplefilter("ignore", DeprecationWarning)
        write_man_pages("swtdx", whole, version=__version__, target_dir=str(folder), date=f"{when:%Y-%m-%d}")
    return sorted(folder.glob("*.1"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.man_pages FOLDER")
    print(f"{len(write(Path(sys.argv[1])))} man pages in {sys.argv[1]}")
