"""``swtdx abi``: every leaf of the TDX Module, and whether a call provokes each status it declares.

Exit status: 0 all is as declared, 1 some case went wrong, 2 wrong use.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from swtdx.cli.counting import Counting

if TYPE_CHECKING:
    from swtdx.proof.conformance.suite import Row


@click.command()
@click.argument("leaves", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Show the table without running anything.")
@click.option("--missing", is_flag=True, help="Show each status that no case provokes, and why.")
@click.option("--order", is_flag=True, help="Show each check in order, and provoke neighbours at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def abi(leaves: tuple[str, ...], only_list: bool, missing: bool, order: bool, as_json: bool) -> None:
    """Run the conformance suite against the TDX Module and print its table.

    Every leaf is listed as implemented or declared unsupported; for every status that it declares, the
    suite has a call that provokes it, and looks at RAX and at all other registers. LEAVES are names such
    as TDH.MNG.CREATE; by default all.

    With --order, every check of the leaves' tables is listed with the number of its cases. Two that follow
    each other are provoked at once, and the earlier one must answer; where that cannot be done, it says why.
    """
    from swtdx.arch.leaves import BY_NAME
    from swtdx.explain.find import near
    from swtdx.proof.conformance import suite
    from swtdx.proof.conformance.runner import run_all

    names = [name.upper() for name in leaves]
    for name in names:
        if name not in BY_NAME:
            close = [each for each in near(name) if each in BY_NAME]
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise click.UsageError(f"there is no leaf {name}{hint}")
    if order:
        _show_order(names)
        return
    with Counting("cases") as counting:
        outcomes = [] if only_list else run_all(suite.select(names), counting)
    rows = suite.table(outcomes, names)
    if as_json:
        click.echo(json.dumps(suite.plain(rows), indent=2))
    else:
        _show(rows, len(outcomes), ran=not only_list, missing=missing)
    if any(row.failed for row in rows):
        sys.exit(1)


def _show_order(names: list[str]) -> None:
    from swtdx.proof.conformance import suite
    from swtdx.proof.conformance.checks import by_check
    from swtdx.proof.conformance.pairs import run_pairs
    from swtdx.proof.conformance.registry import CASES, status_text

    leaves = [row.leaf.name for row in suite.table([], names)]
    with Counting("pairs of checks") as counting:
        pairs = {(pair.leaf, pair.first): pair for pair in run_pairs(leaves, counting)}
    for leaf in leaves:
        click.echo(leaf)
        for check, cases in by_check(leaf, CASES.values()).items():
            click.echo(f"  {status_text(check.value):<45} {len(cases):>3}  {check.text}")
            pair = pairs.get((leaf, check))
            if pair is not None:
                answer = f"WRONG: {pair.wrong}" if pair.wrong else "answers" if pair.cases else pair.why
                click.echo(f"      before the next: {answer}")
    tried = [pair for pair in pairs.values() if pair.cases]
    wrong = sum(pair.wrong is not None for pair in tried)
    click.echo(
        f"\n{len(pairs)} pairs of neighbours: in {len(tried) - wrong} the earlier check answers, "
        f"in {wrong} it does not, {len(pairs) - len(tried)} cannot be provoked at once"
    )
    if wrong:
        sys.exit(1)


def _show(rows: list[Row], cases: int, *, ran: bool, missing: bool) -> None:
    from swtdx.proof.conformance.registry import status_text

    width = max(len(row.leaf.name) for row in rows)
    click.echo(f"{'Leaf':<{width}}  Number  Statuses  {'Provoked' if ran else ''}  State".rstrip())
    for row in rows:
        declared = len(row.provoked)
        hit = declared - len(row.unreached)
        provoked = f"{hit:>8}" if ran else ""
        number = row.leaf.number
        click.echo(f"{row.leaf.name:<{width}}  {number:>6}  {declared:>8}  {provoked}  {row.state}".rstrip())
        if missing and ran:
            for value, why in row.unreached.items():
                click.echo(f"    {status_text(value)}: {why or 'no case yet'}")
        for outcome in row.failed:
            click.echo(f"    WRONG {outcome.case.name}: {outcome.wrong}")
    if not ran:
        return
    declared = sum(len(row.provoked) for row in rows)
    unreached = [why for row in rows for why in row.unreached.values()]
    wrong = sum(len(row.failed) for row in rows)
    click.echo(
        f"\n{declared - len(unreached)} of {declared} declared statuses provoked by {cases} cases; "
        f"{sum(bool(why) for why in unreached)} cannot occur here (--missing says why), "
        f"{sum(not why for why in unreached)} have no case yet; {wrong} cases went wrong"
    )
