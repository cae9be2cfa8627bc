"""The whole suite: every case, and the table of what the leaves declare and the cases provoke."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import GUEST, HOST, Leaf
from swtdx.arch.leaves import BY_NAME
from swtdx.proof.conformance import (
    cases_enter,
    cases_guest,
    cases_mem,
    cases_metadata,
    cases_mng,
    cases_phymem,
    cases_servtd,
    cases_sys,
    cases_unsupported,
    cases_vp,
)
from swtdx.proof.conformance.reasons import reason
from swtdx.proof.conformance.registry import CASES, Case, covers, statuses
from swtdx.proof.conformance.runner import Outcome
from swtdx.proof.probe import implemented

#: The modules whose import fills the registry.
MODULES: Final = (
    cases_enter, cases_guest, cases_mem, cases_metadata, cases_mng, cases_phymem, cases_servtd, cases_sys,
    cases_unsupported, cases_vp,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A leaf of the table.

    ``state`` is ``"implemented"``, ``"missing"`` (declared as implemented, without a handler), or
    ``"unsupported: FEATURE"``.  ``provoked`` maps each declared status to the names of the cases that
    provoked it; ``unreached`` gives the statuses without a case a reason, or "".
    """

    leaf: Leaf
    state: str
    provoked: dict[int, tuple[str, ...]]
    unreached: dict[int, str]
    failed: tuple[Outcome, ...]


def state(leaf: Leaf) -> str:
    """Whether the module has the leaf."""
    if not BASE_MODULE.serves(leaf):
        return f"unsupported: {leaf.support.replace('_', ' ')}"
    return "implemented" if implemented(leaf) else "missing"


def select(names: Iterable[str]) -> list[Case]:
    """The cases of the leaves ``names``; of all, if there are none."""
    wanted = set(names)
    return [case for case in CASES.values() if not wanted or case.leaf in wanted]


def table(outcomes: Iterable[Outcome], names: Iterable[str] = ()) -> list[Row]:
    """The conformance table, from what has been run."""
    by_leaf: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_leaf.setdefault(outcome.case.leaf, []).append(outcome)
    wanted = set(names)
    rows = []
    for name, leaf in BY_NAME.items():
        if leaf.side not in (HOST, GUEST) or (wanted and name not in wanted):
            continue
        provoked: dict[int, tuple[str, ...]] = dict.fromkeys(statuses(name), ())
        failed = []
        for outcome in by_leaf.get(name, ()):
            if outcome.wrong is not None:
                failed.append(outcome)
                continue
            value = covers(name, outcome.case)
            provoked[value] = (*provoked[value], outcome.case.name)
        unreached = {value: reason(name, value) or "" for value, cases in provoked.items() if not cases}
        rows.append(Row(leaf, state(leaf), provoked, unreached, tuple(failed)))
    return rows
