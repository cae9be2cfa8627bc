"""A machine's seed on the command line: the same words give the same machine, and the same maker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swtdx.attestation.errors import AttestationError
from swtdx.attestation.keys import check_seed

if TYPE_CHECKING:  # generic only in newer releases of click
    BytesParam = click.ParamType[bytes]
else:
    BytesParam = click.ParamType


def parse_seed(text: str) -> bytes:
    """The seed in ``text``: the text itself, ``0x`` and hex digits, or ``@`` and a file's path.

    Raises:
        AttestationError: the hex is none, or the seed is empty.
        OSError: the file cannot be read.
    """
    if text.startswith("@"):
        return check_seed(Path(text[1:]).read_bytes())
    if text.startswith("0x"):
        try:
            return check_seed(bytes.fromhex(text[2:]))
        except ValueError as error:
            raise AttestationError(f"the seed {text!r} cannot be used: {error}") from None
    return check_seed(text.encode("utf-8", "surrogateescape"))


class Seed(BytesParam):
    """A seed: text, ``0x`` and hex, or ``@FILE``; bytes for the program."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The seed's bytes."""
        if isinstance(value, bytes):
            return value
        try:
            return parse_seed(str(value))
        except AttestationError as error:
            self.fail(str(error), param, ctx)
        except OSError as error:
            self.fail(f"{error.filename}: {error.strerror}", param, ctx)
