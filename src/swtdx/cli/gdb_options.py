"""``--gdb`` and ``--wait``: a debugger for a TD."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class GdbWishes:
    """What the user said: where GDB connects, and whether the TD waits for it."""

    address: str | None = None
    wait: bool = False

    def check(self, given: dict[str, Any]) -> None:
        """Refuse combinations that mean nothing.

        Raises:
            click.UsageError: one of them, by name.
        """
        if self.wait and self.address is None:
            raise click.UsageError("--wait goes with --gdb")
        if self.address is None:
            return
        if not given["td"].settings(debug=given["debug"])["attributes"] & 1:
            raise click.UsageError(
                "--gdb looks into a TD by the module's debug interfaces, as on hardware, and they serve "
                "debug TDs alone: add --debug"
            )
        warm = given["warm"]
        if warm.target is not None or warm.source is not None or (warm.asked and warm.keep):
            raise click.UsageError("--gdb and snapshots exclude each other")
        if given["restart"]:
            raise click.UsageError("--gdb and --restart exclude each other")


def gdb_options(command: _F) -> _F:
    """Add the options; ``command`` gets them as one argument ``gdb``, a :class:`GdbWishes`."""

    @functools.wraps(command)
    def called(*arguments: Any, gdb_address: str | None, gdb_wait: bool, **others: Any) -> Any:
        return command(*arguments, gdb=GdbWishes(gdb_address, gdb_wait), **others)

    options = (
        click.option("--gdb", "gdb_address", metavar="[HOST]:PORT",
                     help="With --debug: let GDB connect there (`target remote :PORT`)."),
        click.option("--wait", "gdb_wait", is_flag=True, help="With --gdb: not before GDB has connected."),
    )  # fmt: skip
    for option in reversed(options):
        called = option(called)
    return called  # type: ignore[return-value]
