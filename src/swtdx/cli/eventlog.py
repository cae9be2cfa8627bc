"""``swtdx eventlog``: an event log in words, replayed, and compared with a quote or another log.

Exit status: 0 shown, and it fits; 1 it differs; 2 wrong use, or no event log.  ``swtdx eventlog diff A B``
compares two boots: 0 the same was measured, 1 it was not.
"""

from __future__ import annotations

import json
from typing import Any

import click

from swtdx.attestation.errors import EventLogError
from swtdx.attestation.eventlog import format as log_format
from swtdx.attestation.eventlog import replay
from swtdx.attestation.quote import ParsedQuote
from swtdx.cli.attesting import plain_errors, read_quote
from swtdx.cli.inputs import read_bytes


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


class _WithDiff(click.Command):
    """A command of which one first word, ``diff``, makes another (a file of that name is ``./diff``)."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """A context of the command that was asked for."""
        if args[:1] == ["diff"]:
            return diff.make_context("diff", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


@click.command("diff")
@click.argument("first", metavar="A", type=click.Path())
@click.argument("second", metavar="B", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write the outcome as JSON.")
@plain_errors
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two boots event by event, and say in words what differs.

    A and B are event logs in any form that `swtdx eventlog` takes, or what `swtdx measure --firmware F
    --json` prints. The latter also holds what was measured: then the bytes of ACPI tables and the words of
    the kernel's command line can be shown. Exit status as diff's: 0 the same was measured, 1 it was not.
    """
    from swtdx.attestation.eventlog.diff import differences

    mine, theirs = _read_log(first), _read_log(second)
    found = differences(mine, theirs)
    rtmrs = replay.replay(mine), replay.replay(theirs)
    if as_json:
        document = {
            "first": {"log": first, "events": len(mine), "rtmrs": [value.hex() for value in rtmrs[0]]},
            "second": {"log": second, "events": len(theirs), "rtmrs": [value.hex() for value in rtmrs[1]]},
            "differences": [each.document() for each in found],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        lines = [f"A  {first}, {len(mine)} events", f"B  {second}, {len(theirs)} events"]
        for number, (one, other) in enumerate(zip(*rtmrs, strict=True)):
            register = f"RTMR{number}"
            lines.append("")
            if one == other:
                lines.append(f"{register} is the same")
            else:
                lines.append(f"{register} differs: {one.hex()[:16]}... in A, {other.hex()[:16]}... in B")
            for each in found:
                if each.register == register:
                    lines.append(f"  {_place(each.first, each.second)}: {each.words}")
                    lines += [f"      {detail}" for detail in each.details]
        click.echo("\n".join(lines))
    raise click.exceptions.Exit(1 if found else 0)


def _place(first: log_format.Event | None, second: log_format.Event | None) -> str:
    """Which events, as the logs number them."""
    if first is not None and second is not None and first.index != second.index:
        return f"event {first.index} of A, {second.index} of B"
    event = first or second
    return "" if event is None else f"event {event.index}"


@click.command(cls=_WithDiff)
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

    `swtdx eventlog diff A B` compares two boots and says in words what differs.
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
                at = f"event {where} ({result.event.text()}): " if result.event is not None else ""
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
            at = f"event {event.index} ({event.text()})" if event is not None else "its end"
            lines.append(f"RTMR{rtmr} differs from the reference log at {at}: {note}")
    click.echo(json.dumps(out, indent=2) if as_json else "\n".join(lines))
    raise click.exceptions.Exit(0 if agrees else 1)
