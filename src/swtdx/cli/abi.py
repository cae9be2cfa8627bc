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
    from swtdx.proof.conformance.pairs import Pair
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
    as TDH.MNG.CREATE; by default all. Two checks that follow each other in a leaf's table are provoked at
    once, and the earlier one must answer.

    With --order, every check is listed with the number of its cases, and what came of it and the next; where
    the two cannot be provoked at once, it says why.
    """
    from swtdx.arch.leaves import BY_NAME
    from swtdx.explaining.find import near
    from swtdx.proof.conformance import suite
    from swtdx.proof.conformance.report import plain
    from swtdx.proof.conformance.runner import run_all

    names = [name.upper() for name in leaves]
    for name in names:
        if name not in BY_NAME:
            close = [each for each in near(name) if each in BY_NAME]
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise click.UsageError(f"there is no leaf {name}{hint}")
    chosen = [row.leaf.name for row in suite.table([], names)]
    if order:
        pairs = _run_pairs(chosen)
        _show_order(pairs, chosen)
        _show_pairs(pairs)
    else:
        with Counting("cases") as counting:
            outcomes = [] if only_list else run_all(suite.select(names), counting)
        pairs = [] if only_list else _run_pairs(chosen)
        rows = suite.table(outcomes, names)
        if as_json:
            click.echo(json.dumps(plain(rows, pairs), indent=2))
        else:
            _show(rows, pairs, len(outcomes), ran=not only_list, missing=missing)
        if any(row.failed for row in rows):
            sys.exit(1)
    if any(pair.wrong is not None for pair in pairs):
        sys.exit(1)


def _run_pairs(leaves: list[str]) -> list[Pair]:
    from swtdx.proof.conformance.pairs import run_pairs

    with Counting("pairs of checks") as counting:
        return run_pairs(leaves, counting)


def _show_order(found: list[Pair], leaves: list[str]) -> None:
    from swtdx.proof.conformance.checks import by_check
    from swtdx.proof.conformance.registry import CASES, status_text

    pairs = {(pair.leaf, pair.first): pair for pair in found}
    for leaf in leaves:
        click.echo(leaf)
        for check, cases in by_check(leaf, CASES.values()).items():
            click.echo(f"  {status_text(check.value):<45} {len(cases):>3}  {check.text}")
            pair = pairs.get((leaf, check))
            if pair is not None:
                answer = f"WRONG: {pair.wrong}" if pair.wrong else "answers" if pair.cases else pair.why
                click.echo(f"      before the next: {answer}")


def _show_pairs(pairs: list[Pair]) -> None:
    from swtdx.proof.conformance.pairs import Apart

    tried = [pair for pair in pairs if pair.cases]
    wrong = [pair for pair in tried if pair.wrong is not None]
    click.echo(
        f"\n{len(pairs)} pairs of neighbours, provoked at once: the earlier check answers in "
        f"{len(tried) - len(wrong)} and does not in {len(wrong)}; {len(pairs) - len(tried)} cannot be"
    )
    for kind in Apart:
        count = sum(pair.apart is kind for pair in pairs)
        if count:
            click.echo(f"  {count:>3}  {kind.value}")


def _show(rows: list[Row], pairs: list[Pair], cases: int, *, ran: bool, missing: bool) -> None:
    from swtdx.proof.conformance.checks import by_check
    from swtdx.proof.conformance.registry import CASES, status_text

    width = max(len(row.leaf.name) for row in rows)
    provoked = {row.leaf.name: by_check(row.leaf.name, CASES.values()) for row in rows}
    head = f"{'Leaf':<{width}}  Number  Statuses  Checks"
    click.echo(f"{head}{'  Provoked  Cases  Pairs  At once' if ran else ''}  State")
    for row in rows:
        found = provoked[row.leaf.name]
        line = f"{row.leaf.name:<{width}}  {row.leaf.number:>6}  {len(row.provoked):>8}  {len(found):>6}"
        if ran:
            own = [pair for pair in pairs if pair.leaf == row.leaf.name]
            answered = sum(bool(pair.cases) for pair in own)
            line += f"  {sum(map(bool, found.values())):>8}  {sum(map(len, found.values())):>5}"
            line += f"  {len(own):>5}  {answered:>7}"
        click.echo(f"{line}  {row.state}")
        if missing and ran:
            for value, why in row.unreached.items():
                click.echo(f"    {status_text(value)}: {why or 'no case yet'}")
        for outcome in row.failed:
            click.echo(f"    WRONG {outcome.case.name}: {outcome.wrong}")
        for pair in pairs:
            if pair.leaf == row.leaf.name and pair.wrong is not None:
                click.echo(f"    WRONG {pair.first.text}, then {pair.second.text}: {pair.wrong}")
    if not ran:
        return
    declared = sum(len(row.provoked) for row in rows)
    unreached = [why for row in rows for why in row.unreached.values()]
    wrong = sum(len(row.failed) for row in rows)
    checks = [found for each in provoked.values() for found in each.values()]
    click.echo(
        f"\n{declared - len(unreached)} of {declared} declared statuses provoked by {cases} cases; "
        f"{sum(bool(why) for why in unreached)} cannot occur here (--missing says why), "
        f"{sum(not why for why in unreached)} have no case yet; {wrong} cases went wrong\n"
        f"{sum(map(bool, checks))} of {len(checks)} checks have cases of their own (--order lists them)"
    )
    _show_pairs(pairs)
