"""``swtdx vectors``: material for people who write verifiers.

Exit status: 0 done, 1 a flipped bit did harm, 2 wrong use or unusable input.
"""

from __future__ import annotations

from pathlib import Path

import click

from swtdx.cli.attesting import plain_errors, seed_option, world_for
from swtdx.cli.counting import Counting
from swtdx.cli.inputs import check_writable, write_bytes


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

    with Counting("vectors") as counting:
        number = write_vectors(Path(folder), world_for(seed, ""), counting)
    click.echo(f"{number} vectors in {folder}")


@vectors.command("flips")
@click.option("-o", "--output", type=click.Path(), help="Write the record here. Default: standard output.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@seed_option
@plain_errors
def vectors_flips(output: str | None, workers: int, seed: bytes) -> None:
    """Flip every bit of a quote and its collateral once, and record what the verifier says (Markdown)."""
    from swtdx.attestation.vectors.flip_record import record

    if output is not None:
        check_writable(output, "the record")

    with Counting("pieces of the work") as counting:
        text, tallies = record(workers, world_for(seed, ""), counting)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_bytes(output, text.encode(), "the record")
    harmful = sum(len(tally.harmful) for each in tallies.values() for tally in each.values())
    raise click.exceptions.Exit(1 if harmful else 0)
