"""What a leaf function is: the record that dispatch, docs, traces, explain and fuzzing read.

Sources for the tables built from it (:mod:`~swtdx.arch.host_leaves`,
:mod:`~swtdx.arch.guest_leaves`): the handlers of the TDX module 1.5.01 (``api_calls``, ``vm_exits``,
``migration_api_calls``), its dispatchers, ``op_state_lookup.c`` and ``sept_state_lookup.c``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple

from swtdx.arch import status
from swtdx.arch.bits import Bits as Bits
from swtdx.arch.operands import OPERAND_NAMES

HOST: Final = "host"
GUEST: Final = "guest"
LOADER: Final = "loader"

#: ``Leaf.support`` of a leaf that every module has; every other value names the feature it belongs to.
#: What a module offers is a :class:`~swtdx.arch.features.ModuleFeatures`.
BASE: Final = "base"
MIGRATION: Final = "migration"
SERVICE_TD: Final = "service_td"
PARTITIONING: Final = "partitioning"
TD_PRESERVING: Final = "td_preserving"
SYS_DISABLE: Final = "sys_disable"  # TDH.SYS.DISABLE, newer than 1.5.01
RESERVED: Final = "reserved"  # a number without a handler

# What happens to an output register when the leaf fails.
ZERO: Final = "zero"  # it is set to 0 before the first check
ONES: Final = "ones"  # it is set to all ones before the first check
SEPT: Final = "sept"  # 0, or what the Secure EPT walk found when a check on the entry failed
SAME: Final = "same"  # it keeps its input
LEAF: Final = "leaf"  # see the output's meaning


class Kind(Enum):
    """What an input is.  From it follow the wrappers of a hypervisor, what a fuzzer puts there, and the
    cases that every operand of the kind must pass."""

    VALUE = "any value"
    NUMBER = "a number; detail is the usual one"
    COUNT = "a small number"
    MASK = "bits to write"
    FIELD = "a metadata field id; detail is its Context"
    TDR = "a TDR page (HPA), perhaps with flags"
    TDVPR = "a TDVPR page (HPA), perhaps with flags"
    NEW_PAGE = "a free 4-KiB page (HPA)"
    NEW_PAGE_OF_LEVEL = "a free page (HPA) of the size that the level in RCX says"
    L2_PAGE = "a free page (HPA) for an L2 VM, or -1"
    ANY_PAGE = "a page (HPA), whoever it belongs to"
    OWNED_PAGE = "a page (HPA) that a TD owns"
    PAGE_AND_HKID = "a free page (HPA), with an HKID in its upper bits"
    GPA_AND_LEVEL = "a private GPA, and the level of its Secure EPT entry; levels are those allowed"
    GPA = "a private GPA, multiple of detail"
    BUFFER = "memory of the caller's (physical address of the host, GPA of a guest), aligned to detail"
    SOURCE = "a page of the host's memory to copy, aligned to detail"
    TD_PARAMS = "TD_PARAMS in the host's memory, aligned to detail"
    HKID = "a private HKID"
    TDMR = "base of a TDMR (HPA)"


#: Highest level, in ``Input.levels``, of a leaf that goes up to the root's entries.
ROOT: Final = -1


class Input(NamedTuple):
    """An input register: its meaning, its bit ranges if it has any, the version that takes it.

    ``kind``, with ``detail`` and ``levels`` (lowest, highest) where it says so, is what programs read.
    """

    register: str
    meaning: str
    bits: tuple[Bits, ...] = ()
    since: int = 0
    kind: Kind = Kind.VALUE
    detail: int = 0
    levels: tuple[int, int] = (0, 0)


class Output(NamedTuple):
    """An output register: its meaning on success, what it holds on failure, the version that has it."""

    register: str
    meaning: str
    on_error: str = SAME
    since: int = 0


class Outcome(NamedTuple):
    """A status that a leaf may return, and the check that gives it.

    ``details`` is the value of bits 31:0 (an operand id, mostly); None if it varies (an MSR address,
    a level, an index) or is not used.  ``since`` is the version that makes the check.
    """

    status: int
    details: int | None
    check: str
    since: int = 0

    @property
    def value(self) -> int:
        """The whole status, with 0 where the details vary."""
        return self.status | (self.details or 0)

    @property
    def name(self) -> str:
        """``TDX_OPERAND_INVALID | RCX``."""
        name = status.PSEAMLDR_NAMES.get(self.status) if self.status else None
        name = name or status.name_of(self.status)
        if self.details is None:
            return name
        return f"{name} | {OPERAND_NAMES.get(self.details, hex(self.details))}"


class Lock(NamedTuple):
    """A try-lock that the leaf takes, in order: ``mode`` is ``"S"`` shared or ``"X"`` exclusive."""

    object: str
    mode: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf function.

    ``sys_states``, ``op_states`` and ``sept_states`` are bit masks: bit n stands for state n of
    :class:`~swtdx.arch.states.SysState`, :class:`~swtdx.arch.states.OpState`, and for the state with
    index n in :data:`swtdx.arch.sept.STATES`.  The last two are None where the leaf makes no such
    check.  ``outcomes`` come in the order of the checks; what the dispatcher itself refuses is not
    repeated (:data:`~swtdx.arch.leaves.HOST_DISPATCH`, :data:`~swtdx.arch.leaves.GUEST_DISPATCH`).
    """

    number: int
    name: str
    side: str
    summary: str
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    locks: tuple[Lock, ...] = ()
    op_states: int | None = None
    sept_states: int | None = None
    sys_states: int = 1 << 3
    max_version: int = 0
    support: str = BASE
    #: Bits of TDX_FEATURES0 without which the leaf has version 0 alone.
    version_needs: int = 0

    @property
    def first(self) -> Leaf:
        """The leaf of a module that knows version 0 alone."""
        return replace(
            self, max_version=0, version_needs=0,
            inputs=tuple(each for each in self.inputs if not each.since),
            outputs=tuple(each for each in self.outputs if not each.since),
            outcomes=tuple(each for each in self.outcomes if not each.since),
        )  # fmt: skip

    @property
    def versions(self) -> range:
        """The versions accepted in RAX[23:16]."""
        return range(self.max_version + 1)


def matrix(row: str) -> int:
    """A row of a matrix of allowed states as a mask: ``"Y"`` in column n sets bit n.

    Raises:
        ValueError: the row contains anything but ``Y`` and ``.``.
    """
    if row.strip("Y."):
        raise ValueError(f"a row of allowed states is written with Y and '.', not {row!r}")
    return sum(1 << column for column, mark in enumerate(row) if mark == "Y")


def page_count(level: int) -> int:
    """4-KiB pages in a page of ``level`` (0, 1, 2)."""
    return 1 << (9 * level)
