"""``--snapshot-to``, ``--from`` and ``--warm``: what the user may say of saved TDs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

_F = TypeVar("_F", bound=Callable[..., Any])
#: What says something of a TD, and so nothing of one that is saved.
_OF_A_NEW_TD = (
    "firmware", "kernel", "initrd", "append", "cmdline", "version", "tiny", "force", "cpus", "module",
    "added", "seed", "debug", "mrconfigid", "mrowner", "mrownerconfig", "attributes", "disks", "nets",
    "vsock", "shares", "rng", "restart", "firmware_log",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WarmWishes:
    """What the user said.

    Args:
        target: save the TD there.
        at: when so many seconds have passed.
        when: when the guest has printed this.
        source: go on with the TD that is saved there.
        keep: keep such a file in the cache, and use it.
        asked: ``keep`` was asked for on the command line, and not by the environment.
    """

    target: Path | None = None
    at: float | None = None
    when: str | None = None
    source: Path | None = None
    keep: bool = False
    asked: bool = False

    def check(self, given: dict[str, Any]) -> None:
        """Refuse combinations that mean nothing.

        Raises:
            click.UsageError: one of them, by name.
        """
        if self.target is None and (self.at is not None or self.when is not None):
            raise click.UsageError("--snapshot-at and --snapshot-when go with --snapshot-to")
        if self.at is not None and self.when is not None:
            raise click.UsageError("--snapshot-at and --snapshot-when exclude each other")
        if self.target is not None and self.source is not None:
            raise click.UsageError("--snapshot-to and --from exclude each other")
        if self.asked and self.keep and (self.target is not None or self.source is not None):
            raise click.UsageError("--warm chooses its own snapshot: leave out --snapshot-to and --from")
        command = given["command"] is not None
        if self.asked and self.keep and not command:
            raise click.UsageError("--warm goes with --exec")
        if self.target is not None:
            self._check_target(given)
        if self.source is not None:
            self._check_source()

    def _check_target(self, given: dict[str, Any]) -> None:
        if given["tiny"]:
            raise click.UsageError("the tiny guest is over before it could be saved: leave out --tiny")
        if self.at is None and self.when is None and given["firmware"] is not None:
            raise click.UsageError(
                "--firmware and --snapshot-to: say when, by --snapshot-at or --snapshot-when"
            )
        for name, value in (("--get", given["brought"]), ("--restart", given["restart"])):
            if value:
                raise click.UsageError(f"{name} and --snapshot-to exclude each other")

    def _check_source(self) -> None:
        context = click.get_current_context()
        for parameter in context.command.params:
            name = parameter.name or ""
            if name in _OF_A_NEW_TD and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--from goes on with a TD as it was saved: leave out {parameter.opts[0]}"
                )


def warm_options(command: _F) -> _F:
    """Add the options; ``command`` gets them as one argument ``warm``, a :class:`WarmWishes`."""

    @functools.wraps(command)
    def called(
        *arguments: Any,
        snapshot_to: Path | None,
        snapshot_at: float | None,
        snapshot_when: str | None,
        source: Path | None,
        keep: bool,
        **others: Any,
    ) -> Any:
        where = click.get_current_context().get_parameter_source("keep")
        wishes = WarmWishes(
            snapshot_to, snapshot_at, snapshot_when, source, keep, where is ParameterSource.COMMANDLINE
        )
        return command(*arguments, warm=wishes, **others)

    path = click.Path(path_type=Path, dir_okay=False)
    options = (
        click.option("--snapshot-to", type=path, metavar="FILE",
                     help="Save the TD when it has come up (and has run CMD of --exec), in plain text."),
        click.option("--snapshot-at", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                     help="With --snapshot-to: when it has run so long instead."),
        click.option("--snapshot-when", metavar="TEXT",
                     help="With --snapshot-to: when its console shows TEXT instead."),
        click.option("--from", "source", type=path, metavar="FILE",
                     help="Go on with a TD that --snapshot-to has saved, as often as wanted."),
        click.option("--warm/--cold", "keep", default=False, envvar="SWTDX_WARM",
                     help="With --exec: keep a snapshot for the next time, and use it [SWTDX_WARM]."),
    )  # fmt: skip
    for option in reversed(options):
        called = option(called)
    return called  # type: ignore[return-value]
