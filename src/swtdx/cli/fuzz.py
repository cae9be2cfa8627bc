"""``swtdx fuzz``: any call with any registers, as host and as guest, and what must hold all the same.

Exit status: 0 every call ended as it may, 1 one did not, 2 wrong use.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from swtdx.proof.fuzz import FuzzReport


@click.command()
@click.option(
    "--calls",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="SEAMCALLs and TDCALLs to make.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Make this run again.  [default: a new one]")
@click.option(
    "--side",
    type=click.Choice(["both", "host", "guest"]),
    default="both",
    show_default=True,
    help="Whose calls are random.",
)
@click.option(
    "--check-every",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Calls between two checks of the invariants.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on the terminal.")
def fuzz(calls: int, seed: int | None, side: str, check_every: int, as_json: bool, quiet: bool) -> None:
    """Fuzz the TDX Module from both sides.

    Feeds arbitrary registers and memory to every leaf, on the scripted engine (no QEMU needed).  Each call
    must end in a status that the leaf declares, in a TD exit, or in a machine check that was provoked, and
    the module's tables must agree with each other.  The seed determines the run.
    """
    from swtdx.proof.fuzz import Fuzzer, FuzzFailure

    seed = secrets.randbits(32) if seed is None else seed
    fuzzer = Fuzzer(seed, side, check_every)
    failure: FuzzFailure | None = None
    log = logging.getLogger("swtdx")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what a guest does wrong is not news here
    try:
        with _Progress(calls, hidden=quiet or as_json) as show:
            fuzzer.run(calls, show)
    except FuzzFailure as error:
        failure = error
    finally:
        log.setLevel(level)
    if as_json:
        click.echo(json.dumps(_summary(fuzzer.report, failure), indent=2))
    elif failure is None:
        _print(fuzzer.report)
    if failure is not None:
        if not as_json:
            click.echo(f"seed {seed}: {failure}", err=True)
        raise click.exceptions.Exit(1)


class _Progress:
    """A progress bar on standard error, or nothing."""

    def __init__(self, calls: int, *, hidden: bool) -> None:
        self._bar: Any = None
        self._done = 0
        if not hidden and sys.stderr.isatty():
            self._bar = click.progressbar(length=calls, label="Fuzzing", file=sys.stderr)

    def __enter__(self) -> Any:
        if self._bar is not None:
            self._bar.__enter__()
        return self._show

    def _show(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._done)
            self._done = done

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*exception)


def _summary(report: FuzzReport, failure: Exception | None) -> dict[str, Any]:
    return {"ok": failure is None, "failure": None if failure is None else str(failure), **report.as_dict()}


def _print(report: FuzzReport) -> None:
    found = report.as_dict()
    click.echo(
        f"{report.calls:,} calls, seed {report.seed}: {report.seamcalls:,} SEAMCALLs"
        f" ({report.nested:,} while a guest ran), {report.tdcalls:,} TDCALLs, {report.entries:,} TD entries,"
        f" {report.tds:,} TDs, {report.machines} machines, {report.machine_checks} machine checks provoked"
    )
    click.echo(
        f"{found['statuses_reached']} of {found['statuses_declared']} declared statuses reached;"
        f" {report.checks:,} checks of the invariants; {report.seconds:.1f} s"
    )
    click.echo("Every call ended as it may.")
