"""The process as QEMU's: ``-pidfile`` and ``-daemonize``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from swtdx.cli.inputs import Unusable


@contextlib.contextmanager
def pidfile(path: Path | None) -> Iterator[None]:
    """The process's number in a file, as long as the context lasts.

    Raises:
        Unusable: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise Unusable(f"the pidfile {path} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def background() -> Callable[[], None]:
    """Go on in a process of its own; the first one ends when the TD runs, or with the error's status.

    To be called while there are no threads yet.  Gives what to call when the TD runs: from then on there are
    no standard streams.

    Raises:
        click.exceptions.Exit: in the process that was started.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        if os.read(told, 1):
            raise click.exceptions.Exit(0)
        _, status = os.waitpid(child, 0)
        raise click.exceptions.Exit(os.waitstatus_to_exitcode(status) or 1)
    os.close(told)
    os.setsid()

    def ready() -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        with contextlib.suppress(OSError):
            os.write(tell, b"!")
            os.close(tell)

    return ready
