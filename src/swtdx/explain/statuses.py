"""Explaining a 64-bit completion status."""

from __future__ import annotations

from typing import Final

from swtdx.arch import ghci, status, status_notes
from swtdx.arch.exits import reason_name
from swtdx.arch.leaf import GUEST, HOST, Outcome
from swtdx.arch.leaves import BY_NAME, GUEST_DISPATCH, HOST_DISPATCH
from swtdx.explain.model import Explanation, Rows, table

_COLUMNS: Final = ("Leaf", "Status", "What must hold")
_LOADERS: Final = (
    ("P-SEAMLDR", status.PSEAMLDR_NAMES, status_notes.PSEAMLDR_NOTES),
    ("NP-SEAMLDR", status.NPSEAMLDR_NAMES, status_notes.NPSEAMLDR_NOTES),
)


def explain_status(value: int) -> list[Explanation]:
    """Every meaning of a status value: the module's, the loaders', software's, the GHCI's."""
    found = []
    decoded = status_notes.decode(value)
    if decoded is not None:
        found.append(_module(value, decoded))
    if value in status.SW_NAMES:
        found.append(_simple(value, status.SW_NAMES[value], "software-defined", status_notes.SW_NOTES[value]))
    if value:
        for who, names, notes in _LOADERS:
            if value in names:
                found.append(_loader(value, who, names[value], notes[value]))
        if value in ghci.STATUS_NAMES:
            note = "R10 after a TDVMCALL, from the hypervisor"
            found.append(_simple(value, ghci.STATUS_NAMES[value], "GHCI", note))
    return found


def explain_status_name(text: str) -> list[Explanation]:
    """The statuses called so, with or without ``TDX_``; ``| RCX`` after it names the operand."""
    name, bar, operand = (part.strip() for part in text.upper().partition("|"))
    details = 0
    if bar:
        ids = {known: number for number, known in status.OPERAND_NAMES.items()}
        try:
            details = ids[operand] if operand in ids else int(operand, 0)
        except ValueError:
            return []
    for candidate in (name, f"TDX_{name}"):
        if candidate in status.VALUES:
            return explain_status(status.VALUES[candidate] | details)
    for names in (status.PSEAMLDR_NAMES, status.NPSEAMLDR_NAMES, status.SW_NAMES, ghci.STATUS_NAMES):
        for value, known in names.items():
            if value and name in (known, known.removeprefix("PSEAMLDR_"), known.removeprefix("NPSEAMLDR_")):
                return explain_status(value)
    return []


def _module(value: int, decoded: status_notes.Decoded) -> Explanation:
    entry = decoded.status
    failed = status.is_error(value)
    if not failed:
        recover = "not an error"
    elif status.is_retryable(value):
        recover = "yes: the same call may succeed later"
    else:
        recover = "no: the same call will fail again"
    facts = [
        ("Value", f"{value:#018x}"),
        ("Class", f"{entry.class_code:#04x}, {entry.class_name}"),
        ("Error", "yes" if failed else "no"),
        ("Recoverable", recover),
    ]
    if value & status.FATAL:
        facts.append(("Fatal", "yes: the TD can only be torn down"))
    if entry.hint:
        facts.append(("Hint", "the host may cure the cause and say so at the next TDH.VP.ENTER"))
    if decoded.text:
        text = decoded.text
        if entry.details == "reason":
            text += f" ({reason_name(decoded.details)})"
        facts.append(("Bits 31:0", text))
    return Explanation(
        "status",
        f"{value:#x}",
        status.name_of(value) + (f" | {decoded.text.removeprefix('operand ')}" if decoded.text else ""),
        entry.note,
        tuple(facts),
        _given_by(value),
    )


def _given_by(value: int) -> tuple[Rows, ...]:
    code, details = value & status.CODE_MASK, value & status.DETAILS_MASK
    if not code:
        return ()
    entry = status_notes.STATUSES.get(code) or status_notes.STATUSES[code & ~status.FATAL]
    # Operand 0 is RAX where operands are named; elsewhere no details were given, and all are meant.
    exact = entry.details == "operand"
    rows = [
        (f"every {word}", outcome.name, outcome.check)
        for word, outcomes in (("SEAMCALL", HOST_DISPATCH), ("TDCALL", GUEST_DISPATCH))
        for outcome in outcomes
        if _matches(outcome, code, details, exact=exact)
    ]
    rows += [
        (leaf.name, outcome.name, outcome.check)
        for leaf in BY_NAME.values()
        if leaf.side in (HOST, GUEST)
        for outcome in leaf.outcomes
        if _matches(outcome, code, details, exact=exact)
    ]
    return table("Given by", _COLUMNS, rows)


def _matches(outcome: Outcome, code: int, details: int, *, exact: bool) -> bool:
    if outcome.status & status.CODE_MASK != code:
        return False
    if outcome.details is None or (not exact and not details):
        return True
    return outcome.details == details


def _loader(value: int, who: str, name: str, note: str) -> Explanation:
    rows = [
        (leaf.name, outcome.name, outcome.check)
        for leaf in BY_NAME.values()
        if who == "P-SEAMLDR" and leaf.name.startswith("SEAMLDR.")
        for outcome in leaf.outcomes
        if outcome.status == value
    ]
    explanation = _simple(value, name, who, note)
    return Explanation(
        "status",
        explanation.key,
        explanation.title,
        note,
        explanation.facts,
        table("Given by", _COLUMNS, rows),
    )


def _simple(value: int, name: str, who: str, note: str) -> Explanation:
    return Explanation(
        "status", f"{value:#x}", f"{name} ({who})", note, (("Value", f"{value:#018x}"), ("Of", who))
    )
