"""What ends a command before a guest or a host has run: the status, and one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import click

from swtdx.cli.deadline import TimeIsOver
from swtdx.cli.failures import complain, explanation
from swtdx.cli.run_report import NOT_STARTED, TIMED_OUT


@contextlib.contextmanager
def nothing_run() -> Iterator[None]:
    """End the command with 124 when its time is over, and with 125 for an error that the user can mend.

    Raises:
        click.exceptions.Exit: with that status, after the message.
        Exception: a mistake of ours, or any error with ``SWTDX_TRACEBACK=1``, as it is.
    """
    try:
        yield
    except TimeIsOver as over:
        complain(str(over))
        raise click.exceptions.Exit(TIMED_OUT) from None
    except click.exceptions.Exit:
        raise
    except Exception as error:
        words = explanation(error)
        if words is None or os.environ.get("SWTDX_TRACEBACK", "") not in ("", "0"):
            raise
        complain(words)
        raise click.exceptions.Exit(NOT_STARTED) from None
