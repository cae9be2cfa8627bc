"""The record of all bit flips, in Markdown: how many were tried, what became of them, and what went
unnoticed, place by place with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..world import World
from .bitflips import QUOTE, Material, Tally, flip_all, reason

#: What a place says that has no reason; there must be none.
NO_REASON = "FOR NO KNOWN REASON"


@dataclass(frozen=True)
class Run:
    """Neighbouring bytes of a field with unnoticed flips for one reason."""

    field: str
    first: int
    last: int
    bits: int
    reason: str


def material(version: int, world: World | None = None) -> Material:
    """An ordinary quote of that version with its collateral."""
    world = world or World()
    return Material(
        world.quote(version=version), world.collateral(), world.pki.root.der, int(world.now.timestamp())
    )


def unnoticed_runs(subject: Material, tallies: dict[str, Tally]) -> Iterator[Run]:
    """Everything unnoticed, in order, neighbours for the same reason together."""
    for name, tally in tallies.items():
        run: Run | None = None
        for byte, bit in sorted(tally.unnoticed):
            why = reason(subject, name, byte, bit) or NO_REASON
            if run is not None and run.reason == why and byte - run.last <= 1:
                run = replace(run, last=byte, bits=run.bits + 1)
                continue
            if run is not None:
                yield run
            run = Run(name, byte, byte, 1, why)
        if run is not None:
            yield run


def _table(head: list[str], rows: list[list[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] * len(head)) + "|"]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def section(title: str, subject: Material, tallies: dict[str, Tally]) -> str:
    """The record of one run."""
    rows: list[list[object]] = []
    total = Tally()
    for name, tally in [*tallies.items(), ("all", total)]:
        if tally is not total:
            total.add(tally)
        counts = (tally.tried, tally.rejected, tally.unreadable, len(tally.unnoticed), len(tally.harmful))
        rows.append([name, *counts])
    runs = list(unnoticed_runs(subject, tallies))
    reasons: Counter[str] = Counter()
    for run in runs:
        reasons[run.reason] += run.bits
    lines = [f"## {title}", ""]
    lines += _table(["field", "tried", "rejected", "no text", "unnoticed", "harmful"], rows)
    lines += ["", "Unnoticed, by reason:", ""]
    lines += _table(["bits", "reason"], [[count, why] for why, count in reasons.most_common()])
    lines += ["", "Unnoticed, by place:", ""]
    where = [[run.field, f"{run.first}-{run.last}", run.bits, run.reason] for run in runs]
    lines += _table(["field", "bytes", "bits", "reason"], where)
    return "\n".join(lines) + "\n"


def record(
    workers: int = 2, world: World | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[str, dict[int, dict[str, Tally]]]:
    """Flip everything and write it down: the record, and the tallies by quote version.

    The collateral is the same for both versions and is flipped once.  ``progress`` is told how much of a
    version's work is done, and how much there is.
    """
    import dcap_qvl

    lines = [_HEAD.format(version=dcap_qvl.__version__)]
    tallies: dict[int, dict[str, Tally]] = {}
    for version, only, title in ((4, None, "Quote version 4 and collateral"), (5, QUOTE, "Quote version 5")):
        subject = material(version, world)
        tallies[version] = flip_all(subject, workers=workers, only=only, progress=progress)
        lines.append(section(title, subject, tallies[version]))
    return "\n".join(lines), tallies


_HEAD = """# Every bit of a quote and its collateral, flipped once

Written by `swtdx vectors flips`; the test `tests/attestation/test_bitflips.py` makes it anew and compares.
The verifier is `swtdx verify`, on dcap-qvl {version}, with the default policy, under the simulated root.

*Rejected*: the verifier refuses. *No text*: the flip makes a text field something that is not UTF-8, so that
it cannot even be handed over. *Unnoticed*: accepted, with claims, verdict and report byte for byte the
same. *Harmful* would be: accepted with anything else.
"""
