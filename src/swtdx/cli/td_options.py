"""What the user may say of the TD itself, with the names and forms of QEMU's ``-object tdx-guest``."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from swtdx.arch.report_structs import HASH_BYTES
from swtdx.arch.td_config import ATTR_DEBUG, ATTRIBUTES
from swtdx.cli.seeds import BytesParam

#: Attribute names and their bits (TD_PARAMS.ATTRIBUTES); SEPT_VE_DISABLE is on unless it is said otherwise.
_BITS: Final = {name.lower().replace("_", "-"): bit for bit, name in ATTRIBUTES.flags().items()}
_SEPT_VE_DISABLE: Final = "sept-ve-disable"
_ON: Final = {"on": True, "off": False, "yes": True, "no": False, "true": True, "false": False}

_F = TypeVar("_F", bound=Callable[..., Any])


class Digest(BytesParam):
    """48 bytes, as 96 hex digits or in base64 (64 characters), which is what QEMU takes."""

    name = "sha384"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The bytes."""
        if isinstance(value, bytes):
            return value
        text = "".join(str(value).split()).removeprefix("0x")
        data = None
        try:
            if len(text) == 2 * HASH_BYTES:
                data = bytes.fromhex(text)
            elif len(text) in (64, 65, 66):
                data = base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
        except (ValueError, binascii.Error):
            pass
        if data is None or len(data) != HASH_BYTES:
            self.fail(f"{value!r} is not {HASH_BYTES} bytes in hex (96 digits) or base64 (64)", param, ctx)
        return data


@dataclass(frozen=True, slots=True)
class Attributes:
    """ATTRIBUTES as the user wants them: the bits beside SEPT_VE_DISABLE, and whether that one is off."""

    bits: int = 0
    pending_ve: bool = False


def _attributes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Attributes:
    """``debug,pks,sept-ve-disable=off``, in one option or in several."""
    bits, pending_ve = 0, False
    for word in ",".join(values).split(",") if values else ():
        name, equals, setting = word.strip().lower().replace("_", "-").partition("=")
        if name not in _BITS or (equals and setting not in _ON):
            known = ", ".join(_BITS)
            raise click.BadParameter(f"{word.strip()!r}: give NAME or NAME=on|off of {known}", ctx, param)
        on = _ON[setting] if equals else True
        if name == _SEPT_VE_DISABLE:
            pending_ve = not on
        elif on:
            bits |= 1 << _BITS[name]
        else:
            bits &= ~(1 << _BITS[name])
    return Attributes(bits, pending_ve)


@dataclass(frozen=True, slots=True)
class TdWishes:
    """What the user said of the TD."""

    mrconfigid: bytes = bytes(HASH_BYTES)
    mrowner: bytes = bytes(HASH_BYTES)
    mrownerconfig: bytes = bytes(HASH_BYTES)
    attributes: Attributes = Attributes()

    def settings(self, *, debug: bool = False) -> dict[str, Any]:
        """Keyword arguments for :class:`swtdx.vmm.td_params.TdConfig`."""
        return {
            "mrconfigid": self.mrconfigid,
            "mrowner": self.mrowner,
            "mrownerconfig": self.mrownerconfig,
            "attributes": self.attributes.bits | (ATTR_DEBUG if debug else 0),
            "pending_ve": self.attributes.pending_ve,
        }


def td_options(command: _F) -> _F:
    """Add the options; ``command`` gets them as one argument ``td``, a :class:`TdWishes`."""

    @functools.wraps(command)
    def called(
        *arguments: Any,
        mrconfigid: bytes,
        mrowner: bytes,
        mrownerconfig: bytes,
        attributes: Attributes,
        **others: Any,
    ) -> Any:
        return command(*arguments, td=TdWishes(mrconfigid, mrowner, mrownerconfig, attributes), **others)

    zeros = bytes(HASH_BYTES)
    options = (
        click.option("--mrconfigid", type=Digest(), default=zeros, metavar="SHA384", show_default="zeros",
                     help="MRCONFIGID, in hex or base64: what the TD's owner configured."),
        click.option("--mrowner", type=Digest(), default=zeros, metavar="SHA384", show_default="zeros",
                     help="MROWNER: who the TD's owner is."),
        click.option("--mrownerconfig", type=Digest(), default=zeros, metavar="SHA384", show_default="zeros",
                     help="MROWNERCONFIG: what the owner decided, beside MRCONFIGID."),
        click.option("--attributes", multiple=True, callback=_attributes, metavar="NAME[=on|off],...",
                     show_default="sept-ve-disable", help="ATTRIBUTES by name: debug, pks, perfmon, ..."),
    )  # fmt: skip
    for option in reversed(options):
        called = option(called)
    return called  # type: ignore[return-value]
