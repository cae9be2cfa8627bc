"""``swtdx setup``: sees to it that QEMU is there.

Exit status: 0 everything is there, 2 it is not and could not be installed; the message says what to type.
"""

from __future__ import annotations

import shutil
import sys

import click

from swtdx.cli.packages import CannotInstall, Manager, find_manager, install, what_to_type
from swtdx.machine.engine.protocol import EngineError
from swtdx.machine.engine.qemu.process import find_qemu


class NotSetUp(click.ClickException):
    """Something is missing and cannot be installed from here."""

    exit_code = 2


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when there is nothing to do.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the package manager prints.")
@click.option("--tests", is_flag=True, help="Also install programs that swtdx's own tests compare with.")
@click.option("--check", is_flag=True, help="Install nothing; say what is missing.")
def setup(quiet: bool, verbose: bool, tests: bool, check: bool) -> None:
    """Install QEMU by the system's package manager, if it is missing or too old."""
    manager = find_manager()
    extras = _missing_extras(manager) if tests else []
    try:
        path, version = find_qemu()
    except EngineError as error:
        _install_qemu(manager, error, extras, verbose=verbose, check=check)
        path, version = _now_there()
        extras = _missing_extras(manager) if tests else []
    if extras and not check:
        _install_extras(manager, extras, verbose=verbose)
    if not quiet:
        click.echo(f"QEMU {version[0]}.{version[1]} ({path})")


def _install_qemu(
    manager: Manager | None, reason: EngineError, extras: list[str], *, verbose: bool, check: bool
) -> None:
    if manager is None or check:
        raise NotSetUp(str(reason)) from None
    _say(f"installing {manager.qemu} ({manager.tool}) ...")
    try:
        install(manager, [manager.qemu, *extras], _show if verbose else None)
    except CannotInstall as error:
        raise NotSetUp(f"{_first_clause(reason)}; {error}") from None


def _now_there() -> tuple[str, tuple[int, int]]:
    try:
        return find_qemu()
    except EngineError as error:
        raise NotSetUp(f"the package manager has installed QEMU, but {error}") from None


def _install_extras(manager: Manager | None, extras: list[str], *, verbose: bool) -> None:
    """What only some tests need: without it they are skipped."""
    assert manager is not None
    _say(f"installing {' '.join(extras)} ({manager.tool}) ...")
    try:
        install(manager, extras, _show if verbose else None)
    except CannotInstall:
        _say(f"not installed, so some tests will be skipped; type: {what_to_type(manager, extras)}")


def _missing_extras(manager: Manager | None) -> list[str]:
    names = manager.names if manager is not None else {}
    return sorted({package for program, package in names.items() if shutil.which(program) is None})


def _first_clause(reason: EngineError) -> str:
    return str(reason).partition(";")[0]


def _say(text: str) -> None:
    click.echo(f"swtdx setup: {text}", err=True)


def _show(line: str) -> None:
    sys.stderr.write(line)
