"""``swtdx verify``, ``pcs``, ``eventlog`` and ``vectors``: attestation on the command line.

Everything here works with no machine.  Exit status: 0 accepted or done, 1 rejected or different, 2
wrong use or unusable input.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.errors import AttestationError, EventLogError, QuoteFormatError
from swtdx.attestation.eventlog import format as log_format
from swtdx.attestation.eventlog import replay
from swtdx.attestation.keys import DEFAULT_SEED
from swtdx.attestation.kinds import quote_bytes
from swtdx.attestation.pcs.serve import DEFAULT_PORT
from swtdx.attestation.pki import PCS_URL
from swtdx.attestation.policy import Policy, load_policy
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.scenario import builtins, find
from swtdx.attestation.world import World
from swtdx.cli.inputs import Unusable, read_bytes, reason, write_bytes
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
        raise AttestationError(f"{text!r} is no time: give Unix seconds or 2025-06-01T00:00:00Z") from None
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


def _hex(text: str, what: str) -> bytes:
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
            self.fail(f"{value!r} is no http:// or https:// URL", param, ctx)
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


# -- verify -------------------------------------------------------------------------------------


def _collateral(
    quote: bytes, collateral: str | None, pcs: str | None, ca_file: str | None, insecure: bool
) -> Any:
    if collateral and pcs:
        raise click.UsageError("--collateral and --pcs exclude each other")
    if collateral:
        return Collateral.from_json(read_bytes(collateral, "the collateral"))
    if (ca_file or insecure) and not pcs:
        raise click.UsageError("--pcs-ca and --insecure go with --pcs")
    if pcs and (ca_file or insecure):
        from swtdx.attestation.pcs.client import PcsClient, tls_context

        ca = read_bytes(ca_file, "the CA certificate") if ca_file else None
        return PcsClient(pcs, tls_context(ca, insecure=insecure)).collateral(quote)
    if pcs:
        from swtdx.attestation.pcs.fetch import fetch_collateral

        # What dcap-qvl fetched, in our own form, of which a refusal can tell the differences.
        return Collateral.from_json(fetch_collateral(pcs, quote).to_json())
    raise click.UsageError(
        "a verifier needs collateral: give --pcs URL (for a simulated machine, that of `swtdx pcs serve`) "
        "or --collateral FILE. `swtdx show` prints what is in a quote without verifying it"
    )


@click.command()
@click.argument("quote", metavar="QUOTE")
@click.option("--policy", "policy_file", type=click.Path(), help="What to accept, in TOML.")
@click.option("--collateral", type=click.Path(), help="Collateral, JSON as dcap-qvl writes it.")
@click.option("--pcs", metavar="URL", help="Fetch the collateral from this PCS or PCCS.")
@click.option("--pcs-ca", metavar="FILE", help="Trust this CA (PEM) for the TLS of --pcs https://...")
@click.option("--insecure", is_flag=True, help="Trust anybody for the TLS of --pcs; collateral is signed.")
@click.option("--root", "root_file", type=click.Path(), help="Trusted root, PEM or DER. Default: Intel's.")
@click.option("--accept-simulated", is_flag=True, help="Accept a root that is simulated by swtdx.")
@click.option("--nonce", metavar="HEX", help="REPORTDATA must be this, padded with zeros to 64 bytes.")
@click.option("--now", "moment", metavar="TIME", help="Verify as of this time.")
@click.option("--json", "as_json", is_flag=True, help="Write the verdict as JSON.")
@click.option("--token", "token_file", type=click.Path(), help="Write an attestation result (EAR, JWT) here.")
@click.option("--token-key", type=click.Path(), help="P-256 private key in PEM that signs the token.")
@plain_errors
def verify(
    quote: str,
    policy_file: str | None,
    collateral: str | None,
    pcs: str | None,
    pcs_ca: str | None,
    insecure: bool,
    root_file: str | None,
    accept_simulated: bool,
    nonce: str | None,
    moment: str | None,
    as_json: bool,
    token_file: str | None,
    token_key: str | None,
) -> None:
    """Verify QUOTE and say what it proves, or what is wrong with it.

    QUOTE is a file, or - for standard input: binary, hex (as xxd, od or hexdump print it, too), base64,
    base64url, or JSON with the quote in it, as evidence of confidential containers, dstack and others has.
    """
    from swtdx.attestation.report import render
    from swtdx.attestation.verify import Verifier

    if bool(token_file) != bool(token_key):
        raise click.UsageError("--token and --token-key go together")
    policy = load_policy(Path(policy_file)) if policy_file else Policy()
    wanted = _hex(nonce, "the nonce") if nonce is not None else None
    if wanted is not None:
        policy = policy.with_reportdata(wanted)
    data = read_quote(quote)
    root = read_bytes(root_file, "the root certificate") if root_file else None
    verifier = Verifier(root, policy, accept_simulated=accept_simulated)
    now = parse_moment(moment) if moment else None
    verdict = verifier.verify(data, _collateral(data, collateral, pcs, pcs_ca, insecure), now)
    if token_file and token_key:
        from swtdx.attestation.token import ear_claims, sign_token

        usable = wanted if wanted is not None and len(wanted) >= 8 else None
        token = sign_token(ear_claims(verdict, nonce=usable), read_bytes(token_key, "the key"))
        write_bytes(token_file, f"{token}\n".encode(), "the token")
    click.echo(json.dumps(verdict.document(), indent=2) if as_json else render(verdict))
    raise click.exceptions.Exit(0 if verdict.accepted else 1)


# -- pcs ----------------------------------------------------------------------------------------


@click.group()
def pcs() -> None:
    """The collateral of a simulated machine: what Intel's PCS is to a real one."""


@pcs.command("serve")
@seed_option
@scenario_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--frozen", is_flag=True, help="Keep the scenario's time instead of following the clock.")
@url_option
@click.option("--tls-cert", metavar="FILE", help="Serve by TLS with this certificate (PEM, chain included).")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key (PEM).")
@plain_errors
def pcs_serve(
    seed: bytes,
    scenario: str,
    host: str,
    port: int,
    frozen: bool,
    url: str | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    """Serve collateral over HTTP, with the paths of Intel's PCS and PCCS, versions 3 and 4."""
    from swtdx.attestation.pcs.serve import Tls, serve

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")

    world = world_for(seed, scenario)

    def listening(where: str) -> None:
        click.echo(f"Serving collateral at {where} (root certificate: {where}/swtdx/root.pem)", err=True)
        if url is None and where != world.pcs_url:
            click.echo(
                f"Its certificates say that revocation lists are at {world.pcs_url}; with --url {where} (and "
                f"`swtdx quote --pcs-url {where}`) they say this place",
                err=True,
            )

    serve(
        world,
        host,
        port,
        clock=None if frozen else lambda: dt.datetime.now(dt.UTC),
        url=url,
        tls=None if tls_cert is None or tls_key is None else Tls(tls_cert, tls_key),
        listening=listening,
    )


@pcs.command("root")
@seed_option
@url_option
@plain_errors
def pcs_root(seed: bytes, url: str | None) -> None:
    """Write the machine's simulated root certificate (PEM) to standard output."""
    click.echo(at_url(world_for(seed, ""), url).pki.root.pem, nl=False)


@pcs.command("collateral")
@seed_option
@scenario_option
@click.option("--now", "moment", metavar="TIME", help="Issue it for this time. Default: now.")
@url_option
@plain_errors
def pcs_collateral(seed: bytes, scenario: str, moment: str | None, url: str | None) -> None:
    """Write collateral (JSON, for --collateral) to standard output."""
    world = at_url(world_for(seed, scenario), url)
    seconds = parse_moment(moment) if moment else int(dt.datetime.now(dt.UTC).timestamp())
    world = replace(world, now=dt.datetime.fromtimestamp(seconds, dt.UTC))
    click.echo(world.collateral().to_json(), nl=False)


@pcs.command("scenarios")
def pcs_scenarios() -> None:
    """List the scenarios that come along, with their verdicts."""
    for scenario in builtins():
        verdict = scenario.expect.status if scenario.expect.accepted else "rejected"
        click.echo(f"{scenario.name:<42} {verdict:<37} {scenario.title}")


# -- eventlog -----------------------------------------------------------------------------------


def _read_log(path: str) -> list[log_format.Event]:
    from swtdx.attestation.eventlog.reading import read_log

    try:
        return read_log(read_bytes(path, "an event log"))
    except EventLogError as error:
        raise EventLogError(f"{path}: {error}") from None


def events_table(events: list[log_format.Event]) -> list[str]:
    """An event a line."""
    lines = []
    for event in events:
        doubt = "  DIGEST IS NOT OF THE DATA" if event.data_matches is False else ""
        lines.append(
            f"{event.index:>4} {event.register_name:<6} {event.kind_name:<34} "
            f"{event.digest.hex()[:16]} {event.text()}{doubt}"
        )
    return lines


@click.command()
@click.argument("log", type=click.Path())
@click.option("--quote", metavar="QUOTE", help="Replay the log against this quote's RTMRs.")
@click.option("--reference", type=click.Path(), help="A log that is known to be good, to compare with.")
@click.option(
    "--runtime",
    type=click.IntRange(0, 3),
    multiple=True,
    metavar="N",
    help="RTMR N may differ from the log: software extends it at run time (mostly 3). May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the outcome as JSON.")
@plain_errors
def eventlog(
    log: str, quote: str | None, reference: str | None, runtime: tuple[int, ...], as_json: bool
) -> None:
    """Show an event LOG, replay it, and point at the first event that differs.

    LOG is a CCEL (/sys/firmware/acpi/tables/data/CCEL), also in hex or base64, or the JSON of dstack, of
    confidential containers, of the TCG's canonical event log or of this command. Exit status 1 if a
    register differs from the quote's, or the log from the reference.
    """
    events = _read_log(log)
    out: dict[str, Any] = {
        "events": [
            {
                "index": event.index,
                "register": event.register_name,
                "type": event.kind_name,
                "digest": event.digest.hex(),
                "data": event.data.hex(),
                "digest_is_of_data": event.data_matches,
                "text": event.text(),
            }
            for event in events
        ],
        "rtmrs": [value.hex() for value in replay.replay(events)],
    }
    lines = [*events_table(events), ""]
    lines += [f"RTMR{number} {value}" for number, value in enumerate(out["rtmrs"])]
    agrees = True
    if quote is not None:
        body = ParsedQuote(read_quote(quote)).body()
        results = replay.compare(events, [body[f"rtmr{number}"] for number in range(replay.RTMRS)])
        agrees = all(result.matches or result.rtmr in runtime for result in results)
        out["quote"] = []
        lines.append("")
        for result in results:
            where = result.event.index if result.event is not None else None
            accepted = result.matches or result.rtmr in runtime
            out["quote"].append(
                {
                    "rtmr": result.rtmr,
                    "matches": result.matches,
                    "accepted": accepted,
                    "event": where,
                    "note": result.note or None,
                }
            )
            if accepted and not result.matches:
                lines.append(
                    f"RTMR{result.rtmr} differs from the quote's {result.actual.hex()}: accepted, as it is "
                    "extended at run time (--runtime)"
                )
            elif result.matches:
                lines.append(f"RTMR{result.rtmr} matches the quote ({result.events} events)")
            else:
                at = f"event {where}: " if where is not None else ""
                lines.append(f"RTMR{result.rtmr} DIFFERS from the quote's {result.actual.hex()}")
                lines.append(f"      {at}{result.note}")
    if reference is not None:
        differences = replay.first_difference(events, _read_log(reference))
        agrees = agrees and not differences
        out["reference"] = [
            {"rtmr": rtmr, "event": event.index if event else None, "note": note}
            for rtmr, event, note in differences
        ]
        lines += [""] if differences else ["", "The log is the reference log's, event for event"]
        for rtmr, event, note in differences:
            at = f"event {event.index}" if event is not None else "its end"
            lines.append(f"RTMR{rtmr} differs from the reference log at {at}: {note}")
    click.echo(json.dumps(out, indent=2) if as_json else "\n".join(lines))
    raise click.exceptions.Exit(0 if agrees else 1)


# -- vectors ------------------------------------------------------------------------------------


@click.group()
def vectors() -> None:
    """Test vectors for people who write verifiers."""


@vectors.command("make")
@click.argument("folder", type=click.Path())
@seed_option
@plain_errors
def vectors_make(folder: str, seed: bytes) -> None:
    """Write quotes, collateral and expected verdicts into FOLDER; always the same ones."""
    from swtdx.attestation.vectors.factory import write_vectors

    number = write_vectors(Path(folder), world_for(seed, ""))
    click.echo(f"{number} vectors in {folder}")


@vectors.command("flips")
@click.option("-o", "--output", type=click.Path(), help="Write the record here. Default: standard output.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@seed_option
@plain_errors
def vectors_flips(output: str | None, workers: int, seed: bytes) -> None:
    """Flip every bit of a quote and its collateral once, and record what the verifier says (Markdown)."""
    from swtdx.attestation.vectors.flip_record import record

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{100 * done // total} %" + ("\n" if done == total else ""), err=True, nl=False)

    text, tallies = record(workers, world_for(seed, ""), progress)
    if output is None:
        click.echo(text, nl=False)
    else:
        Path(output).write_text(text, encoding="utf-8")
    harmful = sum(len(tally.harmful) for each in tallies.values() for tally in each.values())
    raise click.exceptions.Exit(1 if harmful else 0)


def register(group: click.Group) -> None:
    """Add the attestation commands to ``group``."""
    for command in (verify, pcs, eventlog, vectors):
        group.add_command(command)
