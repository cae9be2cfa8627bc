"""How each SEAMCALL's registers are filled: with what its operands are meant for, or something wrong.

What an operand is meant for is its kind, which the leaf tables declare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from swtdx.arch import regs
from swtdx.arch.leaf import Input, Kind, Leaf
from swtdx.arch.leaves import HOST_LEAVES
from swtdx.arch.metadata import Context
from swtdx.arch.regs import RAX, RCX
from swtdx.arch.units import LARGE_PAGE, MASK64
from swtdx.proof.fuzz.situation import ODD_VALUES, Choose, Situation, pick
from swtdx.proof.invariants import TdView


@dataclass(slots=True)
class Call:
    """A SEAMCALL to be made: processor and all 16 registers."""

    lp: int
    gpr: list[int] = field(default_factory=lambda: [0] * 16)

    @property
    def leaf(self) -> Leaf | None:
        """The leaf it names, if that exists."""
        return HOST_LEAVES.get(self.gpr[RAX] & 0xFFFF)

    def __str__(self) -> str:
        leaf = self.leaf
        name = leaf.name if leaf else f"leaf {self.gpr[RAX] & 0xFFFF}"
        values = " ".join(f"{regs.NAMES[n]}={self.gpr[n]:#x}" for n in range(16) if n != regs.RSP)
        return f"{name} on processor {self.lp}: {values}"


@dataclass(slots=True)
class Draw:
    """What an operand is drawn from: the situation, the leaf, a TD for it, the registers filled so far."""

    s: Situation
    choose: Choose
    leaf: Leaf
    td: TdView | None
    g: list[int]


def _new_of_level(d: Draw, _: Input) -> int:
    if d.g[RCX] & 7 == 1:
        return pick(d.choose, d.s.free_large) if d.s.free_large else 0
    return d.s.new_page(d.choose)


def _tdvpr(d: Draw, _: Input) -> int:
    if d.td is not None and d.td.vcpus and d.choose(8):
        return pick(d.choose, d.td.vcpus).tdvpr
    return pick(d.choose, d.s.vcpus).tdvpr if d.s.vcpus else d.s.wrong_page(d.choose)


def _owned(d: Draw, _: Input) -> int:
    return pick(d.choose, d.s.owned) if d.s.owned else d.s.new_page(d.choose)


def _any_page(d: Draw, _: Input) -> int:
    return pick(d.choose, d.s.owned) if d.s.owned and d.choose(2) else d.s.new_page(d.choose)


def _page_and_hkid(d: Draw, _: Input) -> int:
    hkid = pick(d.choose, d.s.hkids) if d.choose(4) else d.choose(64)
    return d.s.new_page(d.choose) | hkid << d.s.shift


def _tdmr(d: Draw, _: Input) -> int:
    return d.s.picture.covered[0][0] if d.s.picture.covered else LARGE_PAGE


#: What an operand of each kind is meant for.
FILLS: Final[dict[Kind, Callable[[Draw, Input], int]]] = {
    Kind.VALUE: lambda d, _: d.s.odd(d.choose),
    Kind.NUMBER: lambda d, operand: operand.detail,
    Kind.COUNT: lambda d, _: d.choose(3),
    Kind.MASK: lambda d, _: MASK64 if d.choose(2) else d.s.odd(d.choose),
    Kind.FIELD: lambda d, operand: d.s.field(d.choose, Context(operand.detail)),
    Kind.TDR: lambda d, _: d.td.tdr if d.td else d.s.wrong_page(d.choose),
    Kind.TDVPR: _tdvpr,
    Kind.NEW_PAGE: lambda d, _: d.s.new_page(d.choose),
    Kind.NEW_PAGE_OF_LEVEL: _new_of_level,
    Kind.L2_PAGE: lambda d, _: MASK64,
    Kind.ANY_PAGE: _any_page,
    Kind.OWNED_PAGE: _owned,
    Kind.PAGE_AND_HKID: _page_and_hkid,
    Kind.GPA_AND_LEVEL: lambda d, _: d.s.gpa_level(d.choose, d.td, d.leaf),
    Kind.GPA: lambda d, operand: d.s.gpa(d.choose, d.td, operand.detail),
    Kind.BUFFER: lambda d, _: pick(d.choose, d.s.scratch),
    Kind.SOURCE: lambda d, _: pick(d.choose, d.s.sources),
    Kind.TD_PARAMS: lambda d, _: pick(d.choose, d.s.params if d.choose(4) else d.s.bad_params),
    Kind.HKID: lambda d, _: pick(d.choose, d.s.hkids),
    Kind.TDMR: _tdmr,
}


def wrong_value(s: Situation, choose: Choose, value: int) -> int:
    """Something else than ``value``: near to it, or not at all."""
    kind = choose(6)
    if kind == 0:
        return value ^ 1 << choose(64)
    if kind == 1:
        return s.wrong_page(choose)
    if kind == 2:
        return s.any_gpa_level(choose)
    if kind == 3:
        return pick(choose, ODD_VALUES)
    if kind == 4:
        return value & (1 << s.shift) - 1 | (1 + choose(63)) << s.shift
    return s.odd(choose)


def make_call(s: Situation, choose: Choose, leaf: Leaf, *, wrong_of: int = 24, processors: int = 2) -> Call:
    """A call of ``leaf``; each register is wrong in about one case of ``wrong_of``, 0 for never."""
    call = Call(choose(processors))
    g = call.gpr
    version = choose(leaf.max_version + 1)
    g[RAX] = leaf.number | version << 16
    draw = Draw(s, choose, leaf, s.td(choose, leaf), g)
    operands = {regs.number(operand.register): operand for operand in leaf.inputs}
    # RCX comes before the others, whose meaning may depend on it.
    for register in range(1, 16):
        operand = operands.get(register)
        if operand is None:
            g[register] = 0xF111_0000_0000_0F1F + (register << 32)
            continue
        value = FILLS[operand.kind](draw, operand)
        if wrong_of and not choose(wrong_of):
            value = wrong_value(s, choose, value)
        g[register] = value & MASK64
    if leaf.name == "TDH.VP.FLUSH" and choose(4):
        _where_held(s, call)
    if wrong_of and not choose(4 * wrong_of):
        g[RAX] = (g[RAX] ^ 1 << choose(63)) & ~(1 << 63)
    return call


def _where_held(s: Situation, call: Call) -> None:
    """Make the call on the processor that holds the vCPU."""
    for vcpu in s.vcpus:
        if vcpu.tdvpr == call.gpr[RCX] and vcpu.holder < len(s.world.lps):
            call.lp = vcpu.holder
