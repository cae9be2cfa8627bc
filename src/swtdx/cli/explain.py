"""``swtdx explain``: what a number or a name of the TDX ABI means.

Exit status: 0 explained, 2 wrong use, or nothing is known by that name or number.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Final

import click

from swtdx.cli.inputs import read_bytes
from swtdx.explaining.find import KINDS, Unknown, find
from swtdx.explaining.model import Explanation, Rows

if TYPE_CHECKING:
    from rich.console import Console

#: Bytes of a log that are read.
_MOST_TEXT: Final = 1 << 20
#: Width of text that goes into a file or a pipe.
_PIPE_WIDTH: Final = 100_000


class _NothingFound(click.ClickException):
    exit_code = 2


@click.command()
@click.argument("words", metavar="[KIND] X", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs: a list of all meanings.")
@click.option("--all", "everything", is_flag=True, help="Explain every meaning in full.")
def explain(words: tuple[str, ...], as_json: bool, everything: bool) -> None:
    """Explain X: a status code, a leaf, a metadata field, a TDVMCALL, a VM exit reason, ...

    \b
    swtdx explain 0xC000010000000001     a 64-bit status, with the checks that give it
    swtdx explain TDH.MNG.INIT           a leaf: operands, outputs, checks, locks, states
    swtdx explain 0x9110000300000010     a metadata field, by identifier or name
    swtdx explain MapGPA                 a TDVMCALL sub-function
    swtdx explain msr 0x1a0              what an MSR does in a TD
    swtdx explain cpuid 7.0              what a CPUID leaf returns in a TD

    \b
    swtdx explain 'SEAMCALL (0x21) failed: 0xc000090000000000'    a line of a log
    dmesg | swtdx explain -              whatever a log has in it
    swtdx explain 0xe044                 a code of Intel's DCAP libraries, which logs have beside these

    A number may mean several things. KIND picks one: leaf, status, field, tdvmcall, exit, operand,
    msr, cpuid, half (the upper half of a status), dcap, mrseam.
    """
    kind = words[0].lower() if len(words) > 1 and words[0].lower() in KINDS else None
    text = " ".join(words[1:] if kind else words)
    if text == "-":
        text = read_bytes("-", "what to explain", _MOST_TEXT).decode("utf-8", "replace")
    try:
        found = find(text, kind)
    except Unknown as unknown:
        hint = f"; did you mean {', '.join(unknown.near)}?" if unknown.near else ""
        raise _NothingFound(f"{unknown}{hint}") from None
    if as_json:
        click.echo(json.dumps([each.plain() for each in found], indent=2))
        return
    full = found if everything else [each for each in found if each.kind == found[0].kind]
    _show(full, [each for each in found if each not in full])


def _show(full: list[Explanation], others: list[Explanation]) -> None:
    from swtdx.cli.consoles import PlainConsole as Console

    if not sys.stdout.isatty():
        # Lines as long as they are, and no blanks at their ends.
        into = io.StringIO()
        _print(Console(file=into, highlight=False, width=_PIPE_WIDTH), full, others)
        click.echo("\n".join(line.rstrip() for line in into.getvalue().splitlines()))
        return
    _print(Console(highlight=False), full, others)


def _print(console: Console, full: list[Explanation], others: list[Explanation]) -> None:
    from rich.text import Text

    for place, each in enumerate(full):
        if place:
            console.print()
        console.print(Text(each.title, style="bold"), Text(each.summary), sep="\n")
        if each.facts:
            _facts(console, each)
        for rows in each.tables:
            _table(console, rows)
    if others:
        console.print(Text("\nIt also means:"))
        for each in others:
            console.print(Text(f"  {each.title}: swtdx explain {each.kind} {each.key}"))


def _facts(console: Console, each: Explanation) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in each.facts:
        grid.add_row(Text(label), Text(text))
    console.print(grid)


def _table(console: Console, rows: Rows) -> None:
    from rich.table import Table
    from rich.text import Text

    used = [at for at in range(len(rows.columns)) if any(row[at] for row in rows.rows)]
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for at in used:
        grid.add_column(Text(rows.columns[at]), overflow="fold")
    for row in rows.rows:
        grid.add_row(*(Text(row[at]) for at in used))
    console.print(Text(f"\n{rows.title}", style="bold"))
    console.print(grid)
