"""Explaining a 64-bit completion status."""

from __future__ import annotations

from typing import Final

from swtdx.arch import ghci, status, status_notes
from swtdx.arch.exits import reason_name
from swtdx.arch.leaf import GUEST, HOST, Outcome
from swtdx.arch.leaves import BY_NAME, GUEST_DISPATCH, HOST_DISPATCH
from swtdx.explaining import linux, registers
from swtdx.explaining.model import Explanation, Rows, table

_COLUMNS: Final = ("Leaf", "Status", "What must hold")
_LOADERS: Final = (
    ("P-SEAMLDR", status.PSEAMLDR_NAMES, status_notes.PSEAMLDR_NOTES),
    ("NP-SEAMLDR", status.NPSEAMLDR_NAMES, status_notes.NPSEAMLDR_NOTES),
)


def explain_status(value: int) -> list[Explanation]:
    """Every meaning of a status value: the module's, Linux's, the loaders', software's, the GHCI's."""
    found = []
    decoded = status_notes.decode(value)
    if decoded is not None:
        found.append(_module(value, decoded))
    variant = linux.VARIANTS.get(value & status.CODE_MASK)
    if variant is not None and decoded is None:
        found.append(_linux(value, variant))
    if value in status.SW_NAMES:
        found.append(_simple(value, status.SW_NAMES[value], "software-defined", status_notes.SW_NOTES[value]))
    if value:
        for who, names, notes in _LOADERS:
            if value in names:
                found.append(_loader(value, who, names[value], notes[value]))
        if value in ghci.STATUS_NAMES:
            note = "R10 after a TDVMCALL, from the hypervisor"
            found.append(_simple(value, ghci.STATUS_NAMES[value], "GHCI", note))
        if value in ghci.QUOTE_STATUS_NAMES:
            found.append(explain_quote_status(value))
    return found


def explain_call_status(value: int) -> Explanation:
    """A status in R10 after a TDVMCALL; 0 included, which is many other things besides."""
    note = "R10 after a TDVMCALL, from the hypervisor"
    return _simple(value, ghci.STATUS_NAMES[value], "GHCI", note)


def explain_quote_status(value: int) -> Explanation:
    """A status in the header of the buffer of a GetQuote."""
    note = "in the header of a GetQuote buffer (/sys/kernel/config/tsm/report reads it), from the hypervisor"
    return _simple(value, f"GET_QUOTE_{ghci.QUOTE_STATUS_NAMES[value]}", "GetQuote", note)


def explain_half(value: int) -> list[Explanation]:
    """The status whose upper half this 32-bit number is: many logs print no more."""
    whole = value << 32
    if not value or value >> 32 or whole & _FLAGS == 0:
        return []
    if status_notes.decode(whole) is None and whole not in linux.VARIANTS:
        return []
    found = []
    for each in explain_status(whole):
        facts = (
            ("Written", f"{value:#010x}: bits 63:32 only; bits 31:0 would have the details"),
            *each.facts,
        )
        title = f"upper half of {each.title.partition(' | ')[0]}"
        found.append(Explanation("status", f"{whole:#x}", title, each.summary, facts, each.tables))
    return found


def explain_unknown(value: int) -> Explanation | None:
    """What can be said of a number with error bits that is no status: its class, and the nearest ones.

    None if bits 63 and 62 are both clear: then it need not be a status at all.
    """
    if not value & (status.ERROR | status.NON_RECOVERABLE):
        return None
    flags = [name for bit, name in _FLAG_NAMES.items() if value & bit]
    class_code, code = value >> 40 & 0xFF, value >> 32 & 0xFF
    class_name = status_notes.CLASSES.get(class_code)
    parts = [f"{' and '.join(flags)} bit{'s' if len(flags) > 1 else ''} set"]
    if value >> 48 & 0xFFF:
        parts.append("bits 59:48, which no status uses, are not zero")
    parts.append(f"class {class_code:#04x} ({class_name or 'no such class'}), code {code:#04x}")
    close = _nearest(value)
    if close:
        parts.append("nearest: " + ", ".join(f"{name} {number:#018x}" for number, name in close))
    rows = [(name, f"{number:#018x}") for number, name in _of_class(class_code)]
    return Explanation(
        "status",
        f"{value:#x}",
        f"{value:#018x}: no status of this module",
        "; ".join(parts),
        (("Value", f"{value:#018x}"), ("Bits 31:0", f"{value & status.DETAILS_MASK:#x}")),
        table(f"Statuses of class {class_code:#04x}", ("Name", "Value"), rows),
    )


_FLAG_NAMES: Final = {
    status.ERROR: "error",
    status.NON_RECOVERABLE: "non-recoverable",
    status.FATAL: "fatal",
    status.HOST_RECOVERABILITY_HINT: "host-recoverability hint",
}
_FLAGS: Final = sum(_FLAG_NAMES)
_NEAREST: Final = 2


def _of_class(class_code: int) -> list[tuple[int, str]]:
    known = [*status.NAMES.items(), (status.SW_ERROR, "SW_ERROR")]
    return [
        (value, name) for value, name in known if value >> 40 & 0xFF == class_code and value >> 48 != 0xFFFF
    ]


def _nearest(value: int) -> list[tuple[int, str]]:
    """Statuses whose class and code are this one's or next to them, whatever their flags."""
    if value >> 32 == status.ERROR >> 32:
        # No code: the loaders and the GHCI put theirs into the low half.
        others = [
            (number, f"{prefix}{name}")
            for prefix, names in (("P-SEAMLDR's ", status.PSEAMLDR_NAMES), ("the GHCI's ", ghci.STATUS_NAMES))
            for number, name in names.items()
            if number >> 32 == value >> 32
        ]
        return sorted(others, key=lambda each: abs(each[0] - value))[:_NEAREST]
    code, flags = value >> 32 & 0xFF, value & _FLAGS
    ranked = sorted(
        _of_class(value >> 40 & 0xFF),
        key=lambda each: (abs((each[0] >> 32 & 0xFF) - code), (each[0] & _FLAGS ^ flags).bit_count()),
    )
    same = [each for each in ranked if each[0] >> 32 & 0xFF == code]
    return same or ranked[:_NEAREST]


def explain_status_name(text: str) -> list[Explanation]:
    """The statuses called so, with or without ``TDX_``; ``| RCX`` after it names the operand."""
    name, bar, operand = (part.strip() for part in text.upper().partition("|"))
    details = 0
    if bar:
        ids = {known: number for number, known in status.OPERAND_NAMES.items()}
        address = registers.msr_by_name(operand)
        try:
            details = ids[operand] if operand in ids else address if address else int(operand, 0)
        except ValueError:
            return []
    for candidate in (name, f"TDX_{name}"):
        if candidate in status.VALUES:
            found = explain_status(status.VALUES[candidate] | details)
            return found + [_linux(each.value | details, each) for each in _variants(candidate)]
        variants = _variants(candidate)
        if variants:
            return [_linux(each.value | details, each) for each in variants]
    for names in (status.PSEAMLDR_NAMES, status.NPSEAMLDR_NAMES, status.SW_NAMES, ghci.STATUS_NAMES):
        for value, known in names.items():
            if value and name in (known, known.removeprefix("PSEAMLDR_"), known.removeprefix("NPSEAMLDR_")):
                return explain_status(value)
    return []


def _variants(name: str) -> list[linux.Variant]:
    return [each for each in linux.VARIANTS.values() if each.name == name]


def _linux(value: int, variant: linux.Variant) -> Explanation:
    """A status with the value that Linux's headers give it."""
    details = value & status.DETAILS_MASK
    intel = variant.intel | details
    own = status.NAMES[variant.intel]
    decoded = status_notes.decode(intel)
    assert decoded is not None
    meaning = _module(intel, decoded)
    calls = f"what Linux calls {variant.name}"
    return Explanation(
        "status",
        f"{value:#x}",
        f"{value:#018x}: {calls}",
        f"Intel's module returns {intel:#018x} {own}, never this value ({variant.where})",
        (("Value", f"{value:#018x}"), ("Intel's value", f"{intel:#018x}"), ("Meaning", decoded.status.note),
         *(fact for fact in meaning.facts if fact[0] == "Bits 31:0")),
        meaning.tables,
    )  # fmt: skip


def _module(value: int, decoded: status_notes.Decoded) -> Explanation:
    entry = decoded.status
    failed = status.is_error(value)
    if not failed:
        recover = "not an error"
    elif status.is_retryable(value):
        recover = "yes: the same call may succeed later"
    else:
        recover = "no: the same call will fail again"
    title = status.name_of(value) + (f" | {decoded.text.removeprefix('operand ')}" if decoded.text else "")
    if decoded.text and entry.details == "msr" and (name := registers.msr_name(decoded.details)):
        title += f" {name}"
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
        elif entry.details == "msr" and (name := registers.msr_name(decoded.details)):
            text += f" ({name})"
        elif entry.details == "leaf" and (what := registers.cpuid_name(decoded.details)):
            text += f" ({what})"
        facts.append(("Bits 31:0", text))
    return Explanation(
        "status",
        f"{value:#x}",
        title,
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
