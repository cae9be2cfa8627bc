"""The order of checks: two neighbours at once, and the earlier one answers.

Each pair is made from two cases: one is run as it is, and the defect of the other is put on top of its call
(:class:`.registry.Defect`).  So it does not matter which of the two comes first in the table.  Or it is
one case whose call has the other defect anyway, which shows when the first is put right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise, product
from typing import Final

from swtdx.arch import regs
from swtdx.arch import status as s
from swtdx.arch.operands import OPERAND_NAMES
from swtdx.proof.conformance import suite
from swtdx.proof.conformance.checks import WITHOUT, Check, by_check
from swtdx.proof.conformance.reasons import reason
from swtdx.proof.conformance.registry import Case, Defect, status_text
from swtdx.proof.conformance.runner import Bench
from swtdx.proof.conformance.world import Incompatible

#: So many combinations of two checks' cases are tried.
_TRIES: Final = 12
_REGISTERS: Final = frozenset(name.lower() for name in regs.NAMES)
#: Statuses about the field that RDX names.
_FIELD_ID: Final = (
    s.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT, s.TDX_METADATA_FIELD_ID_INCORRECT,
    s.TDX_METADATA_FIELD_NOT_READABLE, s.TDX_METADATA_FIELD_NOT_WRITABLE,
)  # fmt: skip
#: Pairs of checks that no call can fail at once, or that need no case of their own.
_APART: Final = {
    ("some HKID is FLUSHED (no error)", "a flush was interrupted here"):
        "the one is looked at when a flush starts, the other when one goes on",
    ("posted interrupts: the vector was set", "posted interrupts: the descriptor address was set"):
        "a new VCPU has neither: the first one's case is the pair",
    ("not blocked yet (no error)", "an entry state that allows this leaf"):
        "an entry has one state at a time",
    ("PCONFIG: the key table", "PCONFIG: entropy"): "PCONFIG gives one answer",
}  # fmt: skip


class Apart(Enum):
    """Why two checks cannot be provoked at once."""

    UNCASED = "one of the two cannot fail here at all"
    SAME = "both give the same status"
    ONE_VALUE = "both are about the value of one operand, or the state of what it names"
    NO_OBJECT = "what the later one looks at is not there when the earlier one fails"
    EXCLUSIVE = "no call can fail both"
    PREPARED = "each needs a preparation that the other's does not allow"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two checks that follow each other in a leaf's table, and what came of provoking both at once.

    ``cases`` are the names of the cases that were put together; empty if none could be: ``apart`` is the kind
    of the reason, and ``why`` says it.  ``wrong`` says what was not as it should be.
    """

    leaf: str
    first: Check
    second: Check
    cases: tuple[str, ...] = ()
    why: str = ""
    wrong: str | None = None
    apart: Apart | None = None


def run_pairs(leaves: Iterable[str], progress: Callable[[int], None] = lambda _done: None) -> list[Pair]:
    """Every pair of the leaves' checks."""
    found = []
    with Bench() as bench:
        for leaf in leaves:
            for first, second, earlier, later in _neighbours(leaf):
                found.append(_run(bench, leaf, first, second, earlier, later))
                progress(len(found))
    return found


def _neighbours(leaf: str) -> Iterator[tuple[Check, Check, list[Case], list[Case]]]:
    cases = by_check(leaf, suite.select([leaf]))
    for (first, earlier), (second, later) in pairwise(cases.items()):
        yield first, second, earlier, later


def _run(
    bench: Bench, leaf: str, first: Check, second: Check, earlier: list[Case], later: list[Case]
) -> Pair:
    for check, cases in ((first, earlier), (second, later)):
        if not cases:
            why = f"{check.text}: {uncased(leaf, check)}"
            return Pair(leaf, first, second, why=why, apart=Apart.UNCASED)
    if first.value == second.value:
        return Pair(leaf, first, second, why=f"both give {status_text(first.value)}", apart=Apart.SAME)
    if apart := _APART.get((first.text, second.text)):
        return Pair(leaf, first, second, why=apart, apart=Apart.EXCLUSIVE)
    if (pair := _nested(bench, leaf, first, second, earlier, later)) is not None:
        return pair
    if register := _same_register(first, second):
        why = f"both are about what {register} is: it has one value at a time"
        return Pair(leaf, first, second, why=why, apart=Apart.ONE_VALUE)
    why, kind = "neither is a single defect of a call that would succeed", Apart.PREPARED
    combinations = sorted(product(earlier, later), key=lambda two: not (two[0].reusable and two[1].reusable))
    for one, other in combinations[:_TRIES]:
        for case, defect, name in ((other, one.defect, one.name), (one, other.defect, other.name)):
            if defect is None:
                continue
            clash = _clash(case, defect)
            if clash:
                why, kind = clash, Apart.ONE_VALUE
                continue
            try:
                wrong = bench.run_with(case, defect, one.value)
                if wrong is not None and bench.run_with(case, defect, case.value, apply=False) is not None:
                    why, kind = "what one prepares undoes the other", Apart.PREPARED
                    continue
            except Incompatible as difference:
                why = str(difference)
                kind = Apart.NO_OBJECT if difference.absent else Apart.PREPARED
                continue
            return Pair(leaf, first, second, (case.name, name), wrong=wrong)
    return Pair(leaf, first, second, why=why, apart=kind)


def _nested(
    bench: Bench, leaf: str, first: Check, second: Check, earlier: list[Case], later: list[Case]
) -> Pair | None:
    """A pair whose two checks look at the same thing: bits of the second's operand that the first refuses, or
    a call whose second defect shows once the first is put right.  None: there is no such pair."""
    for one, other in product(earlier, later):
        if one.defect is None:
            continue
        try:
            if one.defect.bits and other.defect is not None and one.defect.bits.keys() & other.defect.changes:
                wrong = bench.run_with(other, Defect(bits=one.defect.bits), one.value)
                return Pair(leaf, first, second, (other.name, one.name), wrong=wrong)
        except Incompatible:
            continue
    for one in earlier:
        if one.defect is None or one.defect.mend is None:
            continue
        try:
            wrong = bench.run_mended(one, one.defect.mend, second.value)
        except Incompatible:
            continue
        # Where the call has no second defect, it is none of a pair.
        if wrong is None:
            return Pair(leaf, first, second, (one.name, "what it was about put right"))
    return None


def uncased(leaf: str, check: Check) -> str:
    """Why no case provokes a check."""
    return WITHOUT.get((leaf, check.text)) or reason(leaf, check.value) or "no case of its own"


def _register(value: int) -> str:
    """The register that a status names, or that it is about; "" if none."""
    code, details = value & s.CODE_MASK, value & s.DETAILS_MASK
    if code in _FIELD_ID:
        return "RDX"
    name = OPERAND_NAMES.get(details, "") if details else "RAX" if code == s.TDX_OPERAND_INVALID else ""
    return name if name.lower() in _REGISTERS else ""


def _same_register(first: Check, second: Check) -> str:
    name = _register(first.value)
    locks = s.TDX_OPERAND_BUSY in (first.value & s.CODE_MASK, second.value & s.CODE_MASK)
    return name if name and not locks and name == _register(second.value) else ""


def _clash(case: Case, defect: Defect) -> str:
    """Why a defect cannot be put on a case's call."""
    name = _register(case.value)
    if name.lower() in defect.changes:
        return f"both are about what {name} is: it has one value at a time"
    if case.defect is None:
        return ""
    if case.defect.hold is not None and defect.changes:
        return "what one holds is what the other changes"
    for register in defect.changes:
        if register in case.defect.changes:
            return f"both are about what {register.upper()} is: it has one value at a time"
    if case.defect.rax and defect.rax:
        return "both are about RAX"
    return ""
