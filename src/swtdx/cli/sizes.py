"""Sizes in bytes on the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"(0x[0-9a-f]+|\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)

if TYPE_CHECKING:  # generic only in newer releases of click
    _SizeBase = click.ParamType[int]
else:
    _SizeBase = click.ParamType


class Size(_SizeBase):
    """Bytes: a decimal or 0x number with an optional K, M, G or T."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size; write 4G, 512M or 0x80000000", param, ctx)
        return int(found[1], 0) * _UNITS[found[2].lower()]


def size_text(count: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}" if count * 4 % unit == 0 else f"{count / unit:.2f} {name}"
    return f"{count} bytes"
