"""``swtdx show``: what an attestation file says, unverified.

Exit status: 0 shown, 2 wrong use, or a file that is nothing that is known here.
"""

from __future__ import annotations

import json

import click

from swtdx.attestation.errors import AttestationError, EventLogError
from swtdx.cli.attesting import plain_errors
from swtdx.cli.inputs import read_bytes


@click.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@plain_errors
def show(file: str, as_json: bool) -> None:
    """Show what is in FILE without verifying it.

    FILE (- for standard input) is a quote or a TDREPORT, binary or in any text form; certificates; a
    revocation list; collateral, TCB info or an enclave identity; or an event log. `swtdx verify` verifies
    a quote.
    """
    from swtdx.attestation import show as showing

    data = read_bytes(file, "anything that attestation has")
    try:
        shown = showing.show(data)
    except AttestationError as error:
        if not _event_log(data, as_json):
            raise AttestationError(f"{file}: {error}") from None
        return
    click.echo(json.dumps(shown.document, indent=2) if as_json else shown.text())


def _event_log(data: bytes, as_json: bool) -> bool:
    """Show an event log, if it is one."""
    from swtdx.attestation.eventlog import reading, replay
    from swtdx.cli.eventlog import events_table

    try:
        events = reading.read_log(data)
    except EventLogError:
        if data[:4] == b"CCEL" or b"Spec ID Event03" in data[:64]:
            # It is one, or about one: what is wrong with it is the answer.
            raise
        return False
    rtmrs = [value.hex() for value in replay.replay(events)]
    if as_json:
        click.echo(json.dumps({"kind": "event log", "verified": False, "rtmrs": rtmrs}, indent=2))
        return True
    click.echo("event log (`swtdx eventlog` also compares it with a quote)")
    click.echo("\n".join([*events_table(events), ""]))
    click.echo("\n".join(f"RTMR{number} {value}" for number, value in enumerate(rtmrs)))
    return True
