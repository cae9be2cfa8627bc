"""From what the user types to explanations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Final

from swtdx.arch import ghci, status
from swtdx.arch.cpuid_table import TOPOLOGY_CPUID
from swtdx.arch.exits import ExitReason
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.metadata import TABLES
from swtdx.arch.msr_policy import RULES
from swtdx.arch.operands import OPERAND_NAMES
from swtdx.explaining import dcap, fields, leaves, linux, modules, registers, statuses
from swtdx.explaining.exits import call_by_name, exit_by_name, explain_call, explain_exit
from swtdx.explaining.model import Explanation

_CPUID: Final = re.compile(r"([0-9a-fx]+)(?:[.:,]([0-9a-fx]+))?", re.IGNORECASE)


class Unknown(LookupError):
    """Nothing is known by that name or number; ``near`` are names that look like it."""

    def __init__(self, text: str, near: list[str]) -> None:
        kind = "has the number" if number(text) is not None else "is called"
        super().__init__(f"nothing in the TDX ABI {kind} {text if number(text) is not None else repr(text)}")
        self.near = near


def number(text: str) -> int | None:
    """A number as people write it: decimal, ``0x`` and hex with ``_`` between digits, ``77h``."""
    word = text.strip().replace("_", "").lower()
    if re.fullmatch(r"[0-9][0-9a-f]*h", word):
        return int(word[:-1], 16)
    try:
        value = int(word, 0)
    except ValueError:
        # Sixteen hex digits without a prefix are a status or a field id out of a log, eight half of one.
        return int(word, 16) if re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{16}", word) else None
    return value if 0 <= value < 1 << 64 else None


def find(text: str, kind: str | None = None) -> list[Explanation]:
    """Everything that ``text`` can mean, the likeliest first.

    Args:
        text: a name or a number; without ``kind`` also a line of a log that has some in it.
        kind: look only among these: a key of :data:`KINDS`.

    Raises:
        Unknown: it means nothing.
    """
    text = text.strip()
    searches = list(KINDS.values()) if kind is None else [KINDS[kind]]
    found: list[Explanation] = []
    for search in searches:
        found += search(text, number(text), kind is not None)
    if not found:
        found = _translated(text, kind)
    if not found and kind is None:
        found = in_line(text)
    if not found:
        raise Unknown(text, near(text))
    return found


def _translated(text: str, kind: str | None) -> list[Explanation]:
    """The meanings of a name that Linux, KVM, QEMU or edk2 gives a thing of the ABI."""
    found: list[Explanation] = []
    for theirs, name in linux.translate(text):
        if theirs in ("callstatus", "quote"):
            if kind not in (None, "status"):
                continue
            names = ghci.STATUS_NAMES if theirs == "callstatus" else ghci.QUOTE_STATUS_NAMES
            explain = (
                statuses.explain_call_status if theirs == "callstatus" else statuses.explain_quote_status
            )
            found += [explain(value) for value, known in names.items() if known == name]
        elif kind in (None, theirs):
            found += KINDS[theirs](name, None, True)
    return found


#: What to look for in a line: a leaf in one of the ways in which Linux prints it, a number, a name.
_IN_LINE: Final = re.compile(
    r"""(?P<host>SEAMCALL\s*[(\[]?\s*(?:leaf\s*)?(?P<hostleaf>0x[0-9a-f]+|\d+)\b)
    |(?P<guest>TDCALL\s*[(\[]?\s*(?:leaf\s*)?(?P<guestleaf>0x[0-9a-f]+|\d+)\b)
    |(?P<leaf>\bleaf\s+(?P<anyleaf>0x[0-9a-f]+|\d+)\b)
    |(?P<number>\b0x[0-9a-f_]+\b|\b[0-9a-f]{16}\b)
    |(?P<name>\bTDG[._]VP[._]VMCALL<[^<>]+>|\b[A-Za-z][A-Za-z0-9]*(?:[._][A-Za-z0-9]+)+)""",
    re.IGNORECASE | re.VERBOSE,
)
_LEAF_BITS: Final = 0xFFFF


def in_line(text: str) -> list[Explanation]:
    """What a line of a log has in it that can be explained: statuses first, then leaves, then the rest.

    A number in it counts only when it is large enough not to be a register that happens to hold a small
    value: a status, half of one, a metadata field or a code of DCAP's.
    """
    found: list[Explanation] = []
    for match in _IN_LINE.finditer(text):
        if match[0] == text:
            return []
        for group, prefix in (("hostleaf", "TDH."), ("guestleaf", "TDG."), ("anyleaf", "TDH.")):
            if match[group]:
                leaf = int(match[group], 0) & _LEAF_BITS
                found += [each for each in _leaf("", leaf, True) if each.title.startswith(prefix)]
        if match["number"]:
            value = number(match["number"])
            for search in (_status, _half, _field, _dcap) if value else ():
                hits = search(match["number"], value, False)
                found += hits
                if hits:
                    break
        elif match["name"]:
            for search in (_leaf, _status, _call, _exit, _operand, _dcap):
                found += search(match["name"], None, False)
            found += _translated(match["name"], None)
    order = {"status": 0, "dcap": 1, "leaf": 2}
    unique = {(each.kind, each.key, each.title): each for each in found}
    return sorted(unique.values(), key=lambda each: order.get(each.kind, 3))


def near(text: str) -> list[str]:
    """Names that look like ``text``."""
    wanted = text.upper()
    by_folded = {name.upper(): name for name in _names()}
    close = difflib.get_close_matches(wanted, by_folded, n=6, cutoff=0.6)
    inside = [name for name in by_folded if len(wanted) > 2 and wanted in name and name not in close]
    return [by_folded[name] for name in (close + sorted(inside, key=len))[:8]]


def _names() -> list[str]:
    return [
        *BY_NAME,
        *(name.removeprefix("TDX_") for name in status.VALUES),
        *(call.name for call in ghci.CALLS.values()),
        *(row.name for table in TABLES.values() for row in table),
        *(rule.name for rule in RULES if rule.name[0] != "("),
        *ExitReason.__members__,
        *OPERAND_NAMES.values(),
        *linux.names(),
        *dcap.names(),
    ]


def _leaf(text: str, value: int | None, asked: bool) -> list[Explanation]:
    del asked
    if value is not None:
        return [leaves.explain_leaf(leaf) for leaf in leaves.by_number(value)]
    leaf = leaves.by_name(text)
    return [] if leaf is None else [leaves.explain_leaf(leaf)]


def _status(text: str, value: int | None, asked: bool) -> list[Explanation]:
    if value is None:
        return statuses.explain_status_name(text)
    # A small number is TDX_SUCCESS with details; it is hardly ever meant.
    if not asked and not value >> 32:
        return []
    found = statuses.explain_status(value)
    if not found and not fields.by_identifier(value):
        unknown = statuses.explain_unknown(value)
        found = [] if unknown is None else [unknown]
    return found


def _half(text: str, value: int | None, asked: bool) -> list[Explanation]:
    del text, asked
    return [] if value is None else statuses.explain_half(value)


def _dcap(text: str, value: int | None, asked: bool) -> list[Explanation]:
    return dcap.by_name(text) if value is None else dcap.by_number(value, asked=asked)


def _mrseam(text: str, value: int | None, asked: bool) -> list[Explanation]:
    del value, asked
    return modules.explain_mrseam(text)


def _field(text: str, value: int | None, asked: bool) -> list[Explanation]:
    if value is None:
        return fields.by_name(text)
    if not asked and value >> 32 and statuses.explain_status(value):
        return []
    return fields.by_identifier(value)


def _call(text: str, value: int | None, asked: bool) -> list[Explanation]:
    del asked
    call = call_by_name(text) if value is None else ghci.CALLS.get(value)
    return [] if call is None else [explain_call(call)]


def _exit(text: str, value: int | None, asked: bool) -> list[Explanation]:
    del asked
    reason = exit_by_name(text) if value is None else value
    return [explain_exit(reason)] if reason in set(ExitReason) else []


def _operand(text: str, value: int | None, asked: bool) -> list[Explanation]:
    del asked
    ids = {name: known for known, name in OPERAND_NAMES.items()}
    wanted = ids.get(text.upper()) if value is None else value
    explanation = None if wanted is None else registers.explain_operand(wanted)
    return [] if explanation is None else [explanation]


def _msr(text: str, value: int | None, asked: bool) -> list[Explanation]:
    address = registers.msr_by_name(text) if value is None else value
    if address is None or address >> 32:
        return []
    known = bool(registers.msr_name(address)) or any(rule.first <= address <= rule.last for rule in RULES)
    return [registers.explain_msr(address)] if asked or known else []


def _cpuid(text: str, value: int | None, asked: bool) -> list[Explanation]:
    match = _CPUID.fullmatch(text)
    if match is None:
        return []
    leaf, subleaf = number(match[1]), None if match[2] is None else number(match[2])
    if leaf is None or leaf >> 32 or (match[2] is not None and subleaf is None):
        return []
    found = registers.explain_cpuid(leaf, subleaf)
    # A bare number is a CPUID leaf only if a row has it: any other would be answered as the last leaf.
    if not asked and value is not None and not any(row.leaf == leaf for row in TOPOLOGY_CPUID.rows):
        return []
    return found


#: How to look among things of a kind, by the word for it, in order of likelihood.
KINDS: Final[dict[str, Callable[[str, int | None, bool], list[Explanation]]]] = {
    "leaf": _leaf,
    "status": _status,
    "field": _field,
    "tdvmcall": _call,
    "exit": _exit,
    "operand": _operand,
    "msr": _msr,
    "cpuid": _cpuid,
    "half": _half,
    "dcap": _dcap,
    "mrseam": _mrseam,
}
