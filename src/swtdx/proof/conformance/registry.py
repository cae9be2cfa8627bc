"""Cases: what each provokes, and where they are collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from swtdx.arch import status
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaves import BY_NAME, GUEST_DISPATCH, HOST_DISPATCH
from swtdx.arch.operands import OPERAND_NAMES, OperandId

if TYPE_CHECKING:
    from swtdx.proof.conformance.world import World

Action = Callable[["World"], object]
#: The value of an operand, or what makes it in a world.
Operand = int | Callable[["World"], int]
#: What makes something wrong with the world for a while, given a call's operands.
Hold = Callable[["World", dict[str, int]], AbstractContextManager[object]]
#: What puts one thing right, given a call's operands.
Mend = Callable[["World", dict[str, int]], object]
_IDS: Final[dict[str, int]] = {name: value for value, name in OPERAND_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong with a call that would succeed: operands that differ, or a state of the world.

    It can be put on top of another case's call (see :mod:`.pairs`).  ``rax`` are further bits of RAX;
    ``bits`` are bits of an operand that are wrong whatever the rest of it says; ``mend`` takes away what is
    wrong, given the call's operands, in a world where the next check of the leaf fails, too.
    """

    changes: Mapping[str, Operand] = field(default_factory=dict)
    hold: Hold | None = None
    rax: int = 0
    bits: Mapping[str, int] = field(default_factory=dict)
    mend: Mend | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One call and the exact RAX that it must give.

    ``action`` brings a world (in the state that ``stage`` names) to the point, and calls
    ``world.provoke``.  A case that leaves the world as it found it is ``reusable``: the next one may use
    the same.  ``outputs`` is False where the outputs after the error carry more than the table says.
    ``defect`` is what the case consists of, if it is a call that would succeed with one defect.
    """

    leaf: str
    value: int
    what: str
    stage: str
    action: Action
    reusable: bool
    outputs: bool
    defect: Defect | None = None

    @property
    def name(self) -> str:
        """``TDH.MNG.CREATE-TDX_HKID_NOT_FREE-the HKID is taken``, unique."""
        return f"{self.leaf}-{status_text(self.value)}-{self.what}"


#: Every case, by name.
CASES: Final[dict[str, Case]] = {}


def status_text(value: int) -> str:
    """``TDX_OPERAND_BUSY|TDR``."""
    name = status.name_of(value)
    details = value & status.DETAILS_MASK
    code = value & status.CODE_MASK
    operand = code in (
        status.TDX_OPERAND_INVALID,
        status.TDX_OPERAND_BUSY,
        status.TDX_OPERAND_ADDR_RANGE_ERROR,
        status.TDX_PAGE_METADATA_INCORRECT,
    )
    if details or operand:
        return f"{name}|{OPERAND_NAMES.get(details, hex(details)) if details < 256 else hex(details)}"
    return name


def add(
    leaf: str,
    value: int,
    what: str,
    action: Action,
    *,
    stage: str,
    details: int | str = 0,
    reusable: bool = False,
    outputs: bool = True,
    defect: Defect | None = None,
) -> None:
    """Register a case.

    Raises:
        ValueError: the leaf does not exist, does not declare the status, or has a case of that name.
    """
    value |= details if isinstance(details, int) else _IDS[details]
    if leaf not in BY_NAME:
        raise ValueError(f"there is no leaf {leaf}")
    if value and not declared(leaf, value):
        raise ValueError(f"{leaf} does not declare {status_text(value)}")
    case = Case(leaf, value, what, stage, action, reusable, outputs, defect)
    if case.name in CASES:
        raise ValueError(f"there are two cases {case.name}")
    CASES[case.name] = case


def provokes(
    leaf: str,
    value: int,
    what: str,
    *,
    stage: str,
    details: int | str = 0,
    reusable: bool = False,
    outputs: bool = True,
) -> Callable[[Action], Action]:
    """:func:`add` as a decorator."""

    def register(action: Action) -> Action:
        add(leaf, value, what, action, stage=stage, details=details, reusable=reusable, outputs=outputs)
        return action

    return register


def statuses(leaf: str) -> list[int]:
    """Every status that the leaf declares, with its details where they are fixed; in order, once each.

    What the dispatcher refuses counts for each leaf that its table lets it refuse.
    """
    row = BY_NAME[leaf]
    if not BASE_MODULE.serves(row):
        return [status.TDX_OPERAND_INVALID | OperandId.RAX]
    dispatch = {"host": HOST_DISPATCH, "guest": GUEST_DISPATCH}.get(row.side, ())
    found: dict[int, None] = {status.TDX_SUCCESS: None}
    for outcome in dispatch:
        early = row.sys_states & 0b111 == 0b111
        always = row.sys_states >> 4 & 1
        if (outcome.status == status.TDX_SYS_NOT_READY and early) or (
            outcome.status == status.TDX_SYS_SHUTDOWN
            # Nothing shuts our module down: TDH.SYS.SHUTDOWN belongs to TD-preserving updates.
            and (always or not BASE_MODULE.serves(BY_NAME["TDH.SYS.SHUTDOWN"]))
        ):
            continue
        found[outcome.value] = None
    for outcome in row.outcomes:
        found[outcome.value] = None
    return list(found)


def declared(leaf: str, value: int) -> bool:
    """Whether the leaf declares the status; details that vary are not compared."""
    known = statuses(leaf)
    return value in known or value & status.CODE_MASK in known


def covers(leaf: str, case: Case) -> int:
    """The declared status that a case provokes."""
    return case.value if case.value in statuses(leaf) else case.value & status.CODE_MASK
