"""From what the user types to explanations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Final

from swtdx.arch import ghci, status
from swtdx.arch.exits import ExitReason
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.metadata import TABLES
from swtdx.arch.msr_policy import RULES
from swtdx.arch.operands import OPERAND_NAMES
from swtdx.explain import fields, leaves, registers, statuses
from swtdx.explain.exits import call_by_name, exit_by_name, explain_call, explain_exit
from swtdx.explain.model import Explanation

_CPUID: Final = re.compile(r"([0-9a-fx]+)(?:[.:,]([0-9a-fx]+))?", re.IGNORECASE)


class Unknown(LookupError):
    """Nothing is known by that name or number; ``near`` are names that look like it."""

    def __init__(self, text: str, near: list[str]) -> None:
        super().__init__(f"nothing in the TDX ABI is called {text!r}")
        self.near = near


def number(text: str) -> int | None:
    """A number as people write it: decimal, ``0x`` and hex with ``_`` between digits, ``77h``."""
    word = text.strip().replace("_", "").lower()
    if re.fullmatch(r"[0-9][0-9a-f]*h", word):
        return int(word[:-1], 16)
    try:
        value = int(word, 0)
    except ValueError:
        # Sixteen hex digits without a prefix are a status or a field id out of a log.
        return int(word, 16) if re.fullmatch(r"[0-9a-f]{16}", word) else None
    return value if 0 <= value < 1 << 64 else None


def find(text: str, kind: str | None = None) -> list[Explanation]:
    """Everything that ``text`` can mean, the likeliest first.

    Args:
        text: a name or a number.
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
        raise Unknown(text, near(text))
    return found


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
    # A small number is TDX_SUCCESS with details; nobody means that unless he says so.
    return statuses.explain_status(value) if asked or value >> 32 else []


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
    known = any(rule.first <= address <= rule.last for rule in RULES)
    return [registers.explain_msr(address)] if asked or known else []


def _cpuid(text: str, value: int | None, asked: bool) -> list[Explanation]:
    match = _CPUID.fullmatch(text)
    if match is None:
        return []
    leaf, subleaf = number(match[1]), None if match[2] is None else number(match[2])
    if leaf is None or leaf >> 32 or (match[2] is not None and subleaf is None):
        return []
    found = registers.explain_cpuid(leaf, subleaf)
    # A bare number that no CPUID row has is not worth mentioning beside what else it means.
    if not asked and value is not None and not any(each.tables for each in found):
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
}
