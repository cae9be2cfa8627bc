"""What the commands of attestation have in common: options, errors, quotes, moments, worlds."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from swtdx.attestation.errors import AttestationError, QuoteFormatError
from swtdx.attestation.keys import DEFAULT_SEED
from swtdx.attestation.kinds import quote_bytes
from swtdx.attestation.pki import PCS_URL
from swtdx.attestation.scenario import find
from swtdx.attestation.world import World
from swtdx.cli.inputs import Unusable, read_bytes, reason
from swtdx.cli.seeds import Seed

P = ParamSpec("P")
R = TypeVar("R")


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn this room's errors, and those of files, into one sentence for the user."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except AttestationError as error:
            raise Unusable(str(error)) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.filename is None:
                raise
            name = f"{error.filename}: " if error.filename else ""
            raise Unusable(f"{name}{reason(error)}") from None

    return wrapped


def parse_moment(text: str) -> int:
    """Unix seconds from a number or an ISO 8601 date and time (UTC when it says no offset).

    Raises:
        AttestationError: it is neither.
    """
    if text.isdecimal():
        return int(text)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise AttestationError(f"{text!r} is not a time: give Unix seconds or 2025-06-01T00:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return int(moment.timestamp())


def read_quote(path: str) -> bytes:
    """A quote from a file (``-`` for standard input): binary, hex, base64, base64url, or in JSON.

    Raises:
        QuoteFormatError: it is a TDREPORT, or text with no quote in it.
    """
    data = read_bytes(path, "the quote")
    try:
        return quote_bytes(data)
    except QuoteFormatError as error:
        raise QuoteFormatError(f"{path}: {error}") from None


def hex_bytes(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise AttestationError(f"{what} {text!r} is not hex") from None


seed_option = click.option(
    "--seed",
    type=Seed(),
    default=DEFAULT_SEED.decode(),
    show_default=True,
    help="The machine's seed: text, 0x and hex, or @FILE.",
)
scenario_option = click.option(
    "--scenario", default="", help="A scenario file, or the name of one that comes along."
)


if TYPE_CHECKING:
    _UrlBase = click.ParamType[str]
else:
    _UrlBase = click.ParamType


class Url(_UrlBase):
    """A base URL of HTTP."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The URL without a slash at its end."""
        text = str(value).rstrip("/")
        if not text.startswith(("http://", "https://")) or len(text) < 9 or not text.isascii():
            self.fail(f"{value!r} is not an http:// or https:// URL", param, ctx)
        return text


url_option = click.option(
    "--url",
    type=Url(),
    metavar="URL",
    help=f"Where the certificates say that revocation lists are.  [default: {PCS_URL}]",
)


def at_url(world: World, url: str | None) -> World:
    """The world whose certificates say that its service is at ``url``; None for the default."""
    return world if url is None else replace(world, pcs_url=url)


def world_for(seed: bytes, scenario: str) -> World:
    """The world of a seed, or of a scenario in it.

    Raises:
        AttestationError: there is no such scenario.
    """
    base = World(seed=seed)
    return find(scenario, base).world if scenario else base
