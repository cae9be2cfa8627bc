"""Secure EPT entries: bits, states, raw values, and what the host is shown of them.

Sources: ``sept_state_lookup.{h,c}``, ``sept_manager.{h,c}`` and ``x86_defs.h`` (``ia32e_sept_t``) of
the TDX module 1.5.01; transitions from its SEAMCALL handlers.  An entry is 64 bits, little-endian in
memory.  Levels: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB, 3 for 512 GiB, 4 for 256 TiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from swtdx.arch.sept_bits import (
    ACCEPT_COUNTER,
    DIRTY,
    HPA,
    IPAT,
    LEAF,
    MEMORY_TYPE,
    MT_WB,
    RWX,
    SUPPRESS_VE,
    TDB,
    TDBW,
    TDEX,
    TDP,
)

# Flags of a state.
TLB_TRACKING: Final = 1 << 0  # must be blocked and tracked before its page may go
GUEST_READABLE: Final = 1 << 1
GUEST_WRITABLE: Final = 1 << 2
PENDING: Final = 1 << 3
ACCEPTABLE: Final = 1 << 4  # TDG.MEM.PAGE.ACCEPT succeeds
BLOCKED: Final = 1 << 5
BLOCKEDW: Final = 1 << 6
MAPPED_OR_PENDING: Final = 1 << 7
EXPORTED: Final = 1 << 8
EXPORTED_DIRTY: Final = 1 << 9
EXPORTED_CLEAN: Final = 1 << 10
LIVE_EXPORT: Final = 1 << 11
PAUSED_EXPORT: Final = 1 << 12
FIRST_EXPORT: Final = 1 << 13
RE_EXPORT: Final = 1 << 14
EXPORT_CANCEL: Final = 1 << 15
FIRST_IMPORT: Final = 1 << 16
RE_IMPORT: Final = 1 << 17
IMPORT_CANCEL: Final = 1 << 18


class SeptEntryError(ValueError):
    """A 64-bit value is not a Secure EPT entry in any state."""


@dataclass(frozen=True, slots=True)
class SeptState:
    """One state of an L1 Secure EPT entry.

    ``index`` is its column in the matrices of allowed leaves, ``code`` the 7-bit encoding that the
    module reads out of the entry, ``bits`` the same as a mask of the entry, ``public`` the number
    that the host sees in RDX[15:8].
    """

    index: int
    name: str
    code: int
    public: int
    flags: int
    bits: int

    @property
    def is_leaf(self) -> bool:
        """Whether an entry in this state maps a page."""
        return bool(self.code & 0x40)

    @property
    def tracked(self) -> bool:
        """Whether TLBs may hold a translation made from it."""
        return bool(self.flags & TLB_TRACKING)

    @property
    def pending(self) -> bool:
        """Whether the guest has yet to accept the page."""
        return bool(self.flags & PENDING)

    @property
    def blocked(self) -> bool:
        """Whether no new translation can be made from it."""
        return bool(self.flags & BLOCKED)


def _bits(code: int) -> int:
    return (code & 1) << 9 | (code >> 1 & 0xF) << 53 | (code >> 5 & 3) << 6


def _state(index: int, name: str, code: int, public: int, flags: int) -> SeptState:
    return SeptState(index, name, code, public, flags, _bits(code))


_P: Final = PAUSED_EXPORT
_LP: Final = LIVE_EXPORT | PAUSED_EXPORT
_DIRTY_FLAGS: Final = EXPORTED | EXPORTED_DIRTY | RE_EXPORT | EXPORT_CANCEL
_CLEAN_FLAGS: Final = EXPORTED | EXPORTED_CLEAN | EXPORT_CANCEL
_PRESENT: Final = MAPPED_OR_PENDING | _P | FIRST_EXPORT | RE_IMPORT | IMPORT_CANCEL
_T: Final = TLB_TRACKING

FREE: Final = _state(0, "FREE", 0x0E, 0, FIRST_IMPORT)
REMOVED: Final = _state(1, "REMOVED", 0x0C, 5, FIRST_IMPORT)
NL_MAPPED: Final = _state(2, "NL_MAPPED", 0x00, 132, _T)
NL_BLOCKED: Final = _state(3, "NL_BLOCKED", 0x08, 129, _T | BLOCKED)
MAPPED: Final = _state(4, "MAPPED", 0x60, 4, _T | GUEST_READABLE | GUEST_WRITABLE | _PRESENT)
BLOCKED_STATE: Final = _state(5, "BLOCKED", 0x68, 1, _T | BLOCKED)
BLOCKEDW_STATE: Final = _state(6, "BLOCKEDW", 0x64, 8, _T | GUEST_READABLE | BLOCKEDW | _LP | FIRST_EXPORT)
EXP_BLOCKEDW: Final = _state(7, "EXP_BLOCKEDW", 0x66, 9, GUEST_READABLE | BLOCKEDW | _LP | _CLEAN_FLAGS)
EXP_DIRTY: Final = _state(8, "EXP_DIRTY", 0x63, 11, _T | GUEST_READABLE | GUEST_WRITABLE | _P | _DIRTY_FLAGS)
EXP_DIRTY_BLOCKEDW: Final = _state(
    9, "EXP_DIRTY_BLOCKEDW", 0x67, 12, _T | GUEST_READABLE | BLOCKEDW | _LP | _DIRTY_FLAGS
)
PENDING_STATE: Final = _state(10, "PENDING", 0x70, 2, _T | PENDING | ACCEPTABLE | _PRESENT)
PENDING_BLOCKED: Final = _state(11, "PENDING_BLOCKED", 0x78, 3, _T | PENDING | BLOCKED)
PENDING_BLOCKEDW: Final = _state(
    12, "PENDING_BLOCKEDW", 0x74, 16, _T | PENDING | BLOCKEDW | _LP | FIRST_EXPORT
)
PENDING_EXP_BLOCKEDW: Final = _state(
    13, "PENDING_EXP_BLOCKEDW", 0x76, 17, PENDING | BLOCKEDW | _LP | _CLEAN_FLAGS
)
PENDING_EXP_DIRTY: Final = _state(
    14, "PENDING_EXP_DIRTY", 0x73, 19, _T | PENDING | ACCEPTABLE | _P | _DIRTY_FLAGS
)
PENDING_EXP_DIRTY_BLOCKEDW: Final = _state(
    15, "PENDING_EXP_DIRTY_BLOCKEDW", 0x77, 20, _T | PENDING | BLOCKEDW | _LP | _DIRTY_FLAGS
)

#: The 16 states in the order of the matrices of allowed leaves.
STATES: Final[tuple[SeptState, ...]] = (
    FREE, REMOVED, NL_MAPPED, NL_BLOCKED, MAPPED, BLOCKED_STATE, BLOCKEDW_STATE, EXP_BLOCKEDW,
    EXP_DIRTY, EXP_DIRTY_BLOCKEDW, PENDING_STATE, PENDING_BLOCKED, PENDING_BLOCKEDW,
    PENDING_EXP_BLOCKEDW, PENDING_EXP_DIRTY, PENDING_EXP_DIRTY_BLOCKEDW,
)  # fmt: skip
#: State by its number in RDX[15:8].
BY_PUBLIC: Final[dict[int, SeptState]] = {state.public: state for state in STATES}
#: State by its name.
BY_NAME: Final[dict[str, SeptState]] = {state.name: state for state in STATES}

_BY_CODE: Final[list[SeptState | None]] = [None] * 128
for _each in STATES:
    _BY_CODE[_each.code] = _each

#: All bits of an entry that take part in its state.
STATE_MASK: Final = DIRTY | IPAT | LEAF | TDEX | TDBW | TDB | TDP

#: A free entry, as it stands in memory.
FREE_ENTRY: Final = FREE.bits | SUPPRESS_VE


def state_of(raw: int) -> SeptState:
    """The state of a raw entry.

    Raises:
        SeptEntryError: the bits name no state, so the entry was not written by the module.
    """
    state = _BY_CODE[raw >> 9 & 1 | (raw >> 53 & 0xF) << 1 | (raw >> 6 & 3) << 5]
    if state is None:
        raise SeptEntryError(f"{raw:#018x} is not a Secure EPT entry in any known state")
    return state


def with_state(raw: int, state: SeptState) -> int:
    """``raw`` moved to ``state``: the state's bits replaced, suppress-#VE set, all else kept."""
    return raw & ~STATE_MASK | state.bits | SUPPRESS_VE


def leaf_entry(state: SeptState, hpa: int, permissions: int | None = None) -> int:
    """A leaf in ``state`` that maps ``hpa`` (without HKID), write-back, unlocked.

    ``permissions`` are the R, W and X bits; without them, RWX if the guest may write in that state
    and none otherwise.
    """
    if permissions is None:
        permissions = RWX if state.flags & GUEST_WRITABLE else 0
    return state.bits | hpa & HPA | MT_WB | IPAT | SUPPRESS_VE | permissions


def non_leaf_entry(hpa: int) -> int:
    """A NL_MAPPED entry that points to the Secure EPT page at ``hpa`` (without HKID), unlocked."""
    return NL_MAPPED.bits | RWX | hpa & HPA | SUPPRESS_VE


def block(raw: int, level: int) -> int:
    """The entry after TDH.MEM.RANGE.BLOCK.

    Permissions go; the accept counter of a pending 2-MiB page goes too, so that accepting starts
    over after an unblock.

    Raises:
        SeptEntryError: an entry in this state cannot be blocked.
    """
    state = state_of(raw)
    target = _BLOCK.get(state.index)
    if target is None:
        raise SeptEntryError(f"a Secure EPT entry in state {state.name} cannot be blocked")
    if state.flags & ACCEPTABLE and level == 1:
        raw &= ~ACCEPT_COUNTER
    return with_state(raw & ~RWX, target)


def unblock(raw: int) -> int:
    """The entry after TDH.MEM.RANGE.UNBLOCK; an entry that is not blocked stays as it is."""
    state = state_of(raw)
    if state is NL_BLOCKED:
        return with_state(raw & ~MEMORY_TYPE, NL_MAPPED) | RWX
    if state is BLOCKED_STATE:
        return with_state(raw & ~MEMORY_TYPE, MAPPED) | RWX | MT_WB
    if state is PENDING_BLOCKED:
        return with_state(raw, PENDING_STATE)
    return raw


_BLOCK: Final = {
    NL_MAPPED.index: NL_BLOCKED,
    MAPPED.index: BLOCKED_STATE,
    BLOCKEDW_STATE.index: BLOCKED_STATE,
    PENDING_STATE.index: PENDING_BLOCKED,
    PENDING_BLOCKEDW.index: PENDING_BLOCKED,
}

_LEAF_VIEW: Final = RWX | MEMORY_TYPE | IPAT | LEAF | HPA | SUPPRESS_VE
_NON_LEAF_VIEW: Final = RWX | LEAF


def architectural_view(raw: int) -> int:
    """What the host gets in RCX of an entry: lock, internal state and (non-leaf) HPA hidden.

    A free entry shows only bit 63.  Module 1.5.01 does not hide the accept counter of a pending
    2-MiB page (bits 20:12).
    """
    if raw & STATE_MASK == FREE.bits:
        return SUPPRESS_VE
    return raw & (_LEAF_VIEW if raw & LEAF else _NON_LEAF_VIEW)


def info(raw: int, level: int, vm: int = 0) -> int:
    """What the host gets in RDX of an entry: level 2:0, public state 15:8, VM 17:16."""
    return level & 7 | state_of(raw).public << 8 | (vm & 3) << 16


@dataclass(frozen=True, slots=True)
class L2SeptState:
    """One state of an entry of an L2 VM's Secure EPT.

    ``code`` is {bit 0 TDB, bit 1 IPAT, bit 2 leaf, bit 3 R}; R of a leaf is not part of its state.
    """

    name: str
    code: int
    public: int


#: States of L2 entries (TD partitioning).
L2_STATES: Final[tuple[L2SeptState, ...]] = (
    L2SeptState("L2_FREE", 0, 64),
    L2SeptState("L2_NL_MAPPED", 8, 196),
    L2SeptState("L2_NL_BLOCKED", 1, 193),
    L2SeptState("L2_MAPPED", 6, 68),
    L2SeptState("L2_BLOCKED", 7, 65),
)


class Transition(NamedTuple):
    """A leaf function that moves an L1 entry from one state to another, and when."""

    source: SeptState
    leaf: str
    target: SeptState
    when: str = ""


#: Every transition of an L1 entry.  PROMOTE and DEMOTE are told from the entry that stays.
TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(FREE, "TDH.MEM.SEPT.ADD", NL_MAPPED, "level 1 and above"),
    Transition(FREE, "TDH.MEM.PAGE.ADD", MAPPED),
    Transition(FREE, "TDH.MEM.PAGE.AUG", PENDING_STATE),
    Transition(REMOVED, "TDH.MEM.PAGE.AUG", PENDING_STATE),
    Transition(PENDING_STATE, "TDG.MEM.PAGE.ACCEPT", MAPPED),
    Transition(PENDING_EXP_DIRTY, "TDG.MEM.PAGE.ACCEPT", EXP_DIRTY),
    Transition(NL_MAPPED, "TDH.MEM.RANGE.BLOCK", NL_BLOCKED),
    Transition(MAPPED, "TDH.MEM.RANGE.BLOCK", BLOCKED_STATE),
    Transition(BLOCKEDW_STATE, "TDH.MEM.RANGE.BLOCK", BLOCKED_STATE),
    Transition(PENDING_STATE, "TDH.MEM.RANGE.BLOCK", PENDING_BLOCKED),
    Transition(PENDING_BLOCKEDW, "TDH.MEM.RANGE.BLOCK", PENDING_BLOCKED),
    Transition(NL_BLOCKED, "TDH.MEM.RANGE.UNBLOCK", NL_MAPPED, "tracked"),
    Transition(BLOCKED_STATE, "TDH.MEM.RANGE.UNBLOCK", MAPPED, "tracked"),
    Transition(PENDING_BLOCKED, "TDH.MEM.RANGE.UNBLOCK", PENDING_STATE, "tracked"),
    Transition(NL_MAPPED, "TDH.MEM.SEPT.REMOVE", FREE, "no tracking needed; all children free"),
    Transition(NL_BLOCKED, "TDH.MEM.SEPT.REMOVE", FREE, "tracked; all children free"),
    *(
        Transition(state, "TDH.MEM.PAGE.REMOVE", target, when)
        for state in (MAPPED, BLOCKED_STATE, BLOCKEDW_STATE, PENDING_STATE, PENDING_BLOCKED, PENDING_BLOCKEDW)
        for target, when in ((FREE, "not importing"), (REMOVED, "importing"))
    ),
    *(
        Transition(state, "TDH.MEM.PAGE.DEMOTE", NL_MAPPED, "tracked if needed")
        for state in (MAPPED, BLOCKED_STATE, PENDING_STATE, PENDING_BLOCKED)
    ),
    *(
        Transition(state, "TDH.MEM.PAGE.PROMOTE", target, f"512 children {target.name}")
        for state in (NL_MAPPED, NL_BLOCKED)
        for target in (MAPPED, PENDING_STATE)
    ),
    Transition(BLOCKED_STATE, "TDH.MEM.PAGE.RELOCATE", MAPPED, "tracked"),
    Transition(PENDING_BLOCKED, "TDH.MEM.PAGE.RELOCATE", PENDING_STATE, "tracked"),
    Transition(MAPPED, "TDH.EXPORT.BLOCKW", BLOCKEDW_STATE),
    Transition(PENDING_STATE, "TDH.EXPORT.BLOCKW", PENDING_BLOCKEDW),
    Transition(EXP_DIRTY, "TDH.EXPORT.BLOCKW", EXP_DIRTY_BLOCKEDW),
    Transition(PENDING_EXP_DIRTY, "TDH.EXPORT.BLOCKW", PENDING_EXP_DIRTY_BLOCKEDW),
    Transition(BLOCKEDW_STATE, "TDH.EXPORT.MEM", EXP_BLOCKEDW),
    Transition(EXP_DIRTY_BLOCKEDW, "TDH.EXPORT.MEM", EXP_BLOCKEDW),
    Transition(PENDING_BLOCKEDW, "TDH.EXPORT.MEM", PENDING_EXP_BLOCKEDW),
    Transition(PENDING_EXP_DIRTY_BLOCKEDW, "TDH.EXPORT.MEM", PENDING_EXP_BLOCKEDW),
    Transition(BLOCKEDW_STATE, "TDH.EXPORT.UNBLOCKW", MAPPED),
    Transition(PENDING_BLOCKEDW, "TDH.EXPORT.UNBLOCKW", PENDING_STATE),
    Transition(EXP_BLOCKEDW, "TDH.EXPORT.UNBLOCKW", EXP_DIRTY),
    Transition(EXP_DIRTY_BLOCKEDW, "TDH.EXPORT.UNBLOCKW", EXP_DIRTY),
    Transition(PENDING_EXP_BLOCKEDW, "TDH.EXPORT.UNBLOCKW", PENDING_EXP_DIRTY),
    Transition(PENDING_EXP_DIRTY_BLOCKEDW, "TDH.EXPORT.UNBLOCKW", PENDING_EXP_DIRTY),
    *(
        Transition(state, "TDH.EXPORT.RESTORE", PENDING_STATE if state.pending else MAPPED)
        for state in STATES
        if state.flags & EXPORTED
    ),
    *(
        Transition(state, "TDH.IMPORT.MEM", target)
        for state in (FREE, REMOVED)
        for target in (MAPPED, PENDING_STATE)
    ),
    Transition(MAPPED, "TDH.IMPORT.MEM", REMOVED, "the import is cancelled"),
    Transition(PENDING_STATE, "TDH.IMPORT.MEM", REMOVED, "the import is cancelled"),
)
