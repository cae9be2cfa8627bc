"""A machine's seed on the command line: the same words give the same machine, and the same maker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swtdx.attestation.errors import AttestationError
from swtdx.attestation.keys import check_seed

if TYPE_CHECKING:  # generic only in newer releases of click
    BytesParam = click.ParamType[bytes]
else:
    BytesParam = click.ParamType


#: Bytes of a seed at most.
_LARGEST: Final = 1 << 20


def parse_seed(text: str) -> bytes:
    """The seed in ``text``: the text itself, ``0x`` and hex digits, or ``@`` and a file's path.

    Raises:
        AttestationError: the hex is none, or the seed is empty, or larger than 1 MiB.
        OSError: the file cannot be read.
    """
    if text.startswith("@"):
        with Path(text[1:]).open("rb") as file:
            seed = file.read(_LARGEST + 1)
        if len(seed) > _LARGEST:
            raise AttestationError(f"{text[1:]} is larger than {_LARGEST >> 20} MiB: it cannot be a seed")
        return check_seed(seed)
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
