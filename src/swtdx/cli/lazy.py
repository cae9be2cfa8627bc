"""A click group that knows its commands by name only, until one of them is wanted."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is (``package.module:attribute``), and one line about it."""

    where: str
    help: str

    @property
    def module(self) -> str:
        """The module's name."""
        return self.where.partition(":")[0]

    def exists(self) -> bool:
        """Whether the module is there; it is not imported."""
        return importlib.util.find_spec(self.module) is not None

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            ImportError: the module, or something that it needs, cannot be imported.
            AttributeError: the module has no such command.
        """
        module, _, attribute = self.where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """A group whose commands come from a table of :class:`Lazy`, besides those added as usual."""

    def __init__(self, *args: Any, commands_table: dict[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = commands_table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order; commands whose module does not exist are left out."""
        there = [name for name, lazy in self._table.items() if lazy.exists()]
        return there + [name for name in super().list_commands(ctx) if name not in self._table]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if need be.  What fails on import is not hidden."""
        lazy = self._table.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        return lazy.load() if lazy.exists() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, out of the table."""
        rows = []
        for name in self.list_commands(ctx):
            lazy = self._table.get(name)
            command = super().get_command(ctx, name) if lazy is None else None
            text = lazy.help if lazy else command.get_short_help_str() if command else ""
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
