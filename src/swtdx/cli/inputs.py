"""Reading what a user names: a file, a pipe, or standard input, with a limit and in words."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

#: Bytes that any quote, log, certificate or collateral fits in many times over.
LIMIT: Final = 64 << 20


class Unusable(click.ClickException):
    """What the user gave cannot be used; one sentence, no traceback, exit status 2."""

    exit_code = 2


def read_bytes(path: str | Path, what: str, limit: int = LIMIT) -> bytes:
    """The bytes of a file, of a pipe, or of standard input (``-``).

    Args:
        path: where.
        what: what it should be, for messages: ``the quote``.
        limit: bytes beyond which it cannot be that.

    Raises:
        Unusable: it cannot be read, is a folder or larger than ``limit``.
    """
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise Unusable(f"{what} should come from standard input, which is closed")
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise Unusable(f"{path}: {reason(error)}") from None
    except ValueError as error:
        raise Unusable(f"cannot read {what} from {path!r}: {error}") from None
    if len(data) > limit:
        raise Unusable(f"{path} is larger than {limit >> 20} MiB: it cannot be {what}")
    return data


def check_writable(path: str | Path, what: str) -> None:
    """See to it that a file can be written, before the work whose outcome goes into it; writes nothing.

    Raises:
        Unusable: its folder does not exist or takes no files, or it is a folder itself.
    """
    target = Path(path)
    try:
        if target.is_dir():
            problem = "Is a directory"
        elif not target.parent.is_dir():
            problem = "there is no such folder"
        elif not os.access(target.parent if not target.exists() or target.is_file() else target, os.W_OK):
            problem = "Permission denied"
        else:
            return
    except (OSError, ValueError) as error:
        problem = reason(error) if isinstance(error, OSError) else str(error)
    raise Unusable(f"cannot write {what} to {path}: {problem}")


def write_bytes(path: str | Path, data: bytes, what: str) -> None:
    """Write a file whole or not at all: what was there stays when it cannot be written.

    Raises:
        Unusable: it cannot be written.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            # A pipe or a device: there is nothing to keep.
            with target.open("wb") as file:
                file.write(data)
            return
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            beside.write_bytes(data)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise Unusable(f"cannot write {what} to {path}: {reason(error)}") from None


def reason(error: OSError) -> str:
    """Why a file could not be used, in the system's words without its number."""
    return error.strerror or str(error)
