"""The checks of a leaf in the order of its table, and which case provokes which.

A status tells which check gave it, unless a leaf gives the same one at several places: then the words of a
case decide (:data:`_WORDS`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from swtdx.arch import status as s
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import HOST
from swtdx.arch.leaves import BY_NAME, GUEST_DISPATCH, HOST_DISPATCH
from swtdx.arch.operands import OperandId
from swtdx.proof.conformance.registry import Case, covers, statuses

#: Words of a case, and of the check that it provokes: the first that fits, else it is the first check that
#: gives the status.  By leaf, or for all leaves.
_RAX: Final = (
    ("version", "version 0 or 1"),
    ("version", "has this version"),
    ("not in this module", "the leaf exists"),
)
_WORDS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "TDH.VP.ENTER": (
        ("RCX ", "4-KiB aligned"), ("a hint", "host_recoverability_hint"), ("to L1", "resume_l1"),
    ),
    "TDH.MEM.SEPT.ADD": (
        ("RDX ", "4-KiB aligned"), ("a page is there", "free; or NL_MAPPED"),
        ("a 2-MiB page is there", "free; or NL_MAPPED"), ("no page for an entry", "free; or NL_MAPPED"),
        ("R8 ", "4-KiB aligned"),
    ),
    "TDH.MEM.PAGE.RELOCATE": (("the page that goes", "PAMT lock of the page"), ("R8 ", "4-KiB aligned")),
    "TDH.MEM.PAGE.DEMOTE": (("RDX ", "4-KiB aligned"), ("the page that goes", "PAMT locks of the page")),
    "TDH.MEM.PAGE.PROMOTE": (
        ("the page that goes", "PAMT lock of the page that goes"),
        ("the large page", "PAMT locks of the page"), ("a small entry", "512 small pages"),
    ),
    "TDH.MEM.PAGE.REMOVE": (("the page that goes", "PAMT lock of the page"),),
    "TDH.MEM.SEPT.REMOVE": (("the page that goes", "PAMT lock of the page"),),
    "TDG.VM.WR": (("PENDING_VE", "the value is"),),
    "TDH.VP.WR": (
        ("vector", "the value is"), ("a shared EPT", "the value is"), ("a descriptor", "the value is"),
    ),
    "TDH.MNG.WR": (("9.999", "the value is"), ("100.0", "the value is")),
    "TDH.MEM.RD": (("shared", "private"), ("too wide", "private")),
    "TDH.MEM.WR": (("shared", "private"), ("too wide", "private")),
    "TDH.MEM.SEPT.RD": (("L2 attributes", "bit 0 only"),),
    "TDH.MNG.INIT": (
        ("reserved byte 20 ", "bytes at 20 "), ("reserved byte 42 ", "bytes at 42 "),
        ("reserved byte 79 ", "bytes at 42 "), ("reserved MSR controls", "MSR_CONFIG_CTLS"),
        ("reserved byte 232 ", "bytes at 232 "), ("reserved byte 255 ", "bytes at 232 "),
        ("reserved byte", "after CPUID_CONFIG"),
    ),
    "TDH.PHYMEM.PAGE.RECLAIM": (("inside a", "page's own size"),),
    "TDH.SYS.INIT": (("VMCS region", "the VMX"), ("controls without", "the VMX")),
    "TDH.SYS.LP.INIT": (
        ("another IA32_ARCH", "capabilities"), ("another IA32_PERF", "capabilities"),
        ("package controls", "capabilities"), ("", "SMRRs"),
    ),
    "TDH.SYS.CONFIG": (
        ("a TDMR_INFO", "each TDMR_INFO"), ("no multiple", "multiples of 1 GiB"), ("no size", "multiples of"),
        ("an HKID in the base", "multiples of"),
    ),
    "TDH.SYS.DISABLE": (("runs a TD", "no processor"),),
    "TDG.MR.REPORT": (("beyond", "within GPAW"),),
}  # fmt: skip


#: Checks, of those that share a status with others, that no case provokes, and why.
WITHOUT: Final = {
    ("TDH.MNG.WR", "bits not writable keep their value"):
        "the one field of a TD that its host may write is written whole",
    ("TDH.MNG.INIT", "6 TDCX pages, and one for each L2 VM"): "a TD of ours has no L2 VMs",
    ("TDH.MNG.INIT", "ATTRIBUTES, XFAM and the rest go together"):
        "what ATTRIBUTES and XFAM may be here always goes together",
    ("TDG.MR.VERIFYREPORT", "the processor can verify reports"): "the modelled processors can",
}  # fmt: skip


class Check(NamedTuple):
    """A check of a leaf: its place in the order, the status with details that it gives, what it looks at."""

    place: int
    value: int
    text: str


def checks(leaf: str) -> list[Check]:
    """The dispatcher's checks and the leaf's own, in order; of a leaf that there is not, that it exists."""
    row = BY_NAME[leaf]
    if not BASE_MODULE.serves(row):
        return [Check(0, s.TDX_OPERAND_INVALID | OperandId.RAX, "the leaf exists")]
    dispatch = HOST_DISPATCH if row.side == HOST else GUEST_DISPATCH
    known = set(statuses(leaf))
    #: There is the leaf, and one of several versions looks at the version itself.
    others = {"the leaf exists", "the leaf has this version" if row.max_version else ""}
    found = [
        Check(0, outcome.value, outcome.check)
        for outcome in (*(each for each in dispatch if each.check not in others), *row.outcomes)
        if outcome.value in known
    ]
    return [check._replace(place=place) for place, check in enumerate(found)]


def check_of(case: Case) -> Check | None:
    """The check that a case provokes; None if it provokes none (it succeeds, or another leaf's)."""
    value = covers(case.leaf, case)
    known = [check for check in checks(case.leaf) if check.value == value]
    if len(known) > 1:
        for words, text in (*_RAX, *_WORDS.get(case.leaf, ())):
            if words in case.what:
                for check in known:
                    if text in check.text:
                        return check
    return known[0] if known else None


def by_check(leaf: str, cases: Iterable[Case]) -> dict[Check, list[Case]]:
    """Every check of a leaf, and its cases."""
    found: dict[Check, list[Case]] = {check: [] for check in checks(leaf)}
    for case in cases:
        if case.leaf == leaf and (check := check_of(case)) is not None:
            found[check].append(case)
    return found
