"""The suite's table for programs: ``swtdx abi --json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swtdx.arch import status
from swtdx.proof.conformance.checks import by_check
from swtdx.proof.conformance.pairs import Pair
from swtdx.proof.conformance.registry import CASES, status_text
from swtdx.proof.conformance.suite import Row


def _plain_pair(pair: Pair | None) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {
        "answers": bool(pair.cases) and pair.wrong is None,
        "cases": list(pair.cases),
        "apart": pair.apart.name if pair.apart is not None else None,
        "why": pair.wrong or pair.why,
    }


def plain(rows: Iterable[Row], pairs: Iterable[Pair] = ()) -> list[dict[str, Any]]:
    """The table for JSON: statuses, checks in order, and what came of each and the next at once."""
    of_check = {(pair.leaf, pair.first): pair for pair in pairs}
    return [
        {
            "leaf": row.leaf.name,
            "number": row.leaf.number,
            "side": row.leaf.side,
            "state": row.state,
            "statuses": [
                {
                    "status": status_text(value),
                    "value": f"{value:#018x}",
                    "error": status.is_error(value),
                    "cases": list(cases),
                    "reason": row.unreached.get(value, ""),
                }
                for value, cases in row.provoked.items()
            ],
            "checks": [
                {
                    "status": status_text(check.value),
                    "check": check.text,
                    "cases": [case.name for case in cases],
                    "before_the_next": _plain_pair(of_check.get((row.leaf.name, check))),
                }
                for check, cases in by_check(row.leaf.name, CASES.values()).items()
            ],
            "failed": [{"case": each.case.name, "wrong": each.wrong} for each in row.failed],
        }
        for row in rows
    ]
