"""Cases that follow from the kind of an operand, as the leaf tables declare it.

:func:`checked` is what a new leaf's cases begin with: its operands' cases need not be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaf import ROOT, Input, Kind
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.sept_bits import HPA
from swtdx.arch.units import PAGE
from swtdx.proof.conformance.common import Good, basics
from swtdx.proof.conformance.stages import FIRST, create
from swtdx.proof.conformance.world import OUTSIDE, World

#: The highest physical address bit, MAXPA - 1 (52 bits): part of the KeyID.
_KEYID: Final = 1 << 51
#: Level of the root's entries of the TDs here, whose Secure EPT has four levels; levels that RCX can name.
_ROOT_LEVEL: Final = 3
_LEVELS: Final = 8


# ------------------------------------------------------------------ pages
def page(good: Good, register: str, wrong: Callable[[World], int], *, exclusive: bool = True) -> None:
    """A private page operand: its address, its TDMR, its PAMT lock, its type.

    Args:
        wrong: a page of another type.
        exclusive: the leaf needs the lock exclusively, so that a reader stands in its way.
    """
    name = register.upper()

    def operand(world: World) -> int:
        return good.operands(world)[register]

    good.refused(
        s.TDX_OPERAND_INVALID, f"{name} is not page-aligned", name,
        at={register: lambda world: operand(world) | 0x800}, bits={register: 0x800},
    )  # fmt: skip
    good.refused(
        s.TDX_OPERAND_INVALID, f"{name} has KeyID bits", name,
        at={register: lambda world: operand(world) | _KEYID}, bits={register: _KEYID},
    )  # fmt: skip
    good.refused(
        s.TDX_OPERAND_INVALID, f"{name} is beyond MAXPA", name,
        at={register: lambda world: operand(world) | 1 << 62}, bits={register: 1 << 62},
    )  # fmt: skip
    outside(good, register)
    good.refused(
        s.TDX_PAGE_METADATA_INCORRECT, f"{name} is a page of another type", name, at={register: wrong}
    )
    busy_page(good, register, exclusive=exclusive)


def outside(good: Good, register: str) -> None:
    """A page operand outside every TDMR."""
    name = register.upper()
    good.refused(
        s.TDX_OPERAND_ADDR_RANGE_ERROR, f"{name} is in no TDMR", name,
        at={register: lambda world: OUTSIDE | good.operands(world)[register] & PAGE - 1},
    )  # fmt: skip


def busy_page(good: Good, register: str, *, exclusive: bool) -> None:
    """The PAMT lock of a page operand is taken."""
    name = register.upper()
    for shared in (False, True) if exclusive else (False,):
        how = "shared" if shared else "exclusively"
        good.held(
            s.TDX_OPERAND_BUSY, f"another processor holds the page in {name} {how}",
            lambda world, operands, shared=shared: world.locked_page(  # type: ignore[misc]
                operands[register] & HPA, shared=shared
            ),
            name,
        )  # fmt: skip


def new_page(good: Good, register: str) -> None:
    """A page operand that must be free."""

    def taken(world: World) -> int:
        # Of another TD, where this one's TDR may be what the call holds.
        return world.td.tdcx[0] if world.td.tdcx else create(world).tdr

    page(good, register, taken)
    for holder in _holders(good):
        # What the call has locked as another operand is busy, whatever its type.
        good.refused(
            s.TDX_OPERAND_BUSY, f"{register.upper()} is the {holder.upper()} that the call holds",
            register.upper(),
            at={register: lambda world, holder=holder: getattr(world.td, holder)},  # type: ignore[misc]
        )  # fmt: skip


def _holders(good: Good) -> tuple[str, ...]:
    """Pages of the stage's TD (names of :class:`~swtdx.proof.conformance.world.Td`) that the call locks."""
    kinds = {operand.kind for operand in BY_NAME[good.leaf].inputs}
    if Kind.TDVPR in kinds:
        return "tdvpr", "tdr"
    return ("tdr",) if Kind.TDR in kinds else ()


def tdr(good: Good, register: str, *, exclusive: bool) -> None:
    """A TDR operand."""
    page(good, register, lambda world: world.page(), exclusive=exclusive)


def tdvpr(good: Good, register: str, *, exclusive: bool) -> None:
    """A TDVPR operand, and the lock of the TDR that owns it."""
    page(good, register, lambda world: world.td.tdr, exclusive=exclusive)
    good.held(
        s.TDX_OPERAND_BUSY, "another processor holds the TDR exclusively",
        lambda world, operands: world.locked_page(world.tdr_of(good.leaf, operands)), "TDR",
    )  # fmt: skip


# ------------------------------------------------------------------ the hypervisor's memory
_WRONG: Final[tuple[tuple[str, Callable[[World, int], int]], ...]] = (
    ("with a private HKID", lambda w, pa: pa | w.first_hkid << w.hpa_bits),
    ("beyond MAXPA", lambda w, pa: pa | 1 << 52),
    ("in the SEAM range", lambda w, pa: w.seam_range),
)


def shared(good: Good, register: str, alignment: int) -> None:
    """A buffer by its PA, with a shared HKID or none, aligned, outside the SEAM range."""
    name = register.upper()

    def operand(world: World) -> int:
        return good.operands(world)[register]

    wrong = (*_WRONG, (f"not aligned to {alignment}", lambda w, pa: pa + alignment // 2))
    for what, change in wrong:
        good.refused(
            s.TDX_OPERAND_INVALID, f"{name} is {what}", name,
            at={register: lambda w, change=change: change(w, operand(w))},  # type: ignore[misc]
        )  # fmt: skip


# ------------------------------------------------------------------ Secure EPT
def gpa_and_level(good: Good, register: str, allowed: range) -> None:
    """Reserved bits, level, alignment, shared bit, width."""
    name = register.upper()

    def operand(world: World) -> int:
        return good.operands(world)[register]

    for what, bit in (("bit 3", 3), ("bit 52", 52), ("the shared bit", 47), ("a GPA beyond the width", 48)):
        good.refused(
            s.TDX_OPERAND_INVALID, f"{name} has {what}", name,
            at={register: lambda world, bit=bit: operand(world) | 1 << bit},  # type: ignore[misc]
            bits={register: 1 << bit},
        )  # fmt: skip
    for level in range(_LEVELS):
        if level in allowed:
            continue
        good.refused(
            s.TDX_OPERAND_INVALID, f"{name} has level {level}", name,
            at={register: lambda world, level=level: operand(world) & ~7 | level},  # type: ignore[misc]
        )  # fmt: skip
    if allowed[0]:
        good.refused(
            s.TDX_OPERAND_INVALID, "the GPA is not aligned to its level", name,
            at={register: lambda world: operand(world) | PAGE},
        )  # fmt: skip


def gpa(good: Good, register: str, alignment: int) -> None:
    """A private GPA, aligned, within the TD's width."""
    for what, value, bits in (
        (f"not a multiple of {alignment}", FIRST + alignment // 2, alignment // 2),
        ("shared", 1 << 47, 1 << 47),
        ("too wide", 1 << 48, 1 << 48),
    ):
        good.refused(
            s.TDX_OPERAND_INVALID, what, register.upper(), at={register: value}, bits={register: bits}
        )


# ------------------------------------------------------------------ keys
def hkid(good: Good, register: str) -> None:
    """A private HKID."""
    for what, value in (
        ("HKID 0", lambda w: 0),
        ("the last shared HKID", lambda w: w.first_hkid - 1),
        ("beyond the last HKID", lambda w: w.first_hkid + w.hkids),
        ("bits above the HKID", lambda w: w.first_hkid | 1 << 16),
        ("all ones", lambda w: (1 << 64) - 1),
    ):
        good.refused(s.TDX_OPERAND_INVALID, what, register.upper(), at={register: value})


# ------------------------------------------------------------------ all of a leaf
def _locked(good: Good, name: str) -> bool:
    """Whether the leaf's table has it take the lock of ``name`` exclusively."""
    return any(lock.object == name and lock.mode == "X" for lock in BY_NAME[good.leaf].locks)


def _gpa_and_level(good: Good, register: str, operand: Input) -> None:
    lowest, highest = operand.levels
    gpa_and_level(good, register, range(lowest, (_ROOT_LEVEL if highest == ROOT else highest) + 1))


#: The cases of an operand, by its kind.  The others' are the leaf's own business.
_CASES: Final[dict[Kind, Callable[[Good, str, Input], None]]] = {
    Kind.TDR: lambda good, register, _: tdr(good, register, exclusive=_locked(good, "TDR")),
    Kind.TDVPR: lambda good, register, _: tdvpr(good, register, exclusive=_locked(good, "TDVPR")),
    Kind.NEW_PAGE: lambda good, register, _: new_page(good, register),
    Kind.NEW_PAGE_OF_LEVEL: lambda good, register, _: new_page(good, register),
    Kind.GPA_AND_LEVEL: _gpa_and_level,
    Kind.GPA: lambda good, register, operand: gpa(good, register, operand.detail),
    Kind.BUFFER: lambda good, register, operand: shared(good, register, operand.detail),
    Kind.SOURCE: lambda good, register, operand: shared(good, register, operand.detail),
    Kind.TD_PARAMS: lambda good, register, operand: shared(good, register, operand.detail),
    Kind.HKID: lambda good, register, _: hkid(good, register),
}


def operands(good: Good) -> None:
    """The cases that follow from the kinds of the leaf's operands."""
    for operand in BY_NAME[good.leaf].inputs:
        if operand.kind in _CASES and operand.since <= good.version:
            _CASES[operand.kind](good, operand.register.lower(), operand)


def checked(good: Good, *, early: bool = False) -> None:
    """What every leaf must pass: :func:`.common.basics`, and the cases of its operands."""
    basics(good, early=early)
    operands(good)
