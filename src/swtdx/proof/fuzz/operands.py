"""How each SEAMCALL's registers are filled: with what they are meant for, or with something wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from swtdx.arch import regs
from swtdx.arch.leaf import Leaf
from swtdx.arch.leaves import HOST_LEAVES
from swtdx.arch.metadata import Context
from swtdx.arch.regs import R8, R9, R10, R11, RAX, RBX, RCX, RDX
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


Fill = Callable[[Situation, Choose, Leaf, TdView | None, list[int]], int]


def _new(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.new_page(choose)


def _new_sized(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    if g[RCX] & 7 == 1:
        return pick(choose, s.free_large) if s.free_large else 0
    return s.new_page(choose)


def _hkid(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return pick(choose, s.hkids)


def _tdr(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return td.tdr if td else s.wrong_page(choose)


def _tdvpr(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    if td is not None and td.vcpus and choose(8):
        return pick(choose, td.vcpus).tdvpr
    return pick(choose, s.vcpus).tdvpr if s.vcpus else s.wrong_page(choose)


def _gpa_level(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.gpa_level(choose, td, leaf)


def _gpa8(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.gpa(choose, td, 8)


def _gpa256(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.gpa(choose, td, 256)


def _params(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return pick(choose, s.params if choose(4) else s.bad_params)


def _source(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return pick(choose, s.sources)


def _buffer(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return pick(choose, s.scratch)


def _owned(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return pick(choose, s.owned) if s.owned else s.new_page(choose)


def _any_page(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return pick(choose, s.owned) if s.owned and choose(2) else s.new_page(choose)


def _flushed(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.new_page(choose) | (pick(choose, s.hkids) if choose(4) else choose(64)) << s.shift


def _odd(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.odd(choose)


def _none(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return MASK64


def _zero(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return 0


def _small(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return choose(3)


def _tdmr(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return s.picture.covered[0][0] if s.picture.covered else LARGE_PAGE


def _count(value: int) -> Fill:
    return lambda s, choose, leaf, td, g: value


def _field(context: Context) -> Fill:
    return lambda s, choose, leaf, td, g: s.field(choose, context)


def _mask(s: Situation, choose: Choose, leaf: Leaf, td: TdView | None, g: list[int]) -> int:
    return MASK64 if choose(2) else s.odd(choose)


_SEPT_PAGES: Final = {R8: _new, R9: _none, R10: _none, R11: _none}
_WRITE: Final = {R8: _odd, R9: _mask}
#: What each register of a leaf is meant for.  RCX comes before the others, whose meaning may depend on it.
FILLS: Final[dict[str, dict[int, Fill]]] = {
    "TDH.SYS.INIT": {RCX: _zero},
    "TDH.SYS.INFO": {RCX: _buffer, RDX: _count(1024), R8: _buffer, R9: _count(32)},
    "TDH.SYS.RD": {RDX: _field(Context.SYS)},
    "TDH.SYS.RDALL": {RDX: _buffer, R8: _field(Context.SYS)},
    "TDH.SYS.CONFIG": {RCX: _buffer, RDX: _small, R8: _hkid},
    "TDH.SYS.TDMR.INIT": {RCX: _tdmr},
    "TDH.PHYMEM.PAGE.RDMD": {RCX: _any_page},
    "TDH.PHYMEM.PAGE.RECLAIM": {RCX: _owned},
    "TDH.PHYMEM.CACHE.WB": {RCX: _zero},
    "TDH.PHYMEM.PAGE.WBINVD": {RCX: _flushed},
    "TDH.MNG.CREATE": {RCX: _new, RDX: _hkid},
    "TDH.MNG.KEY.CONFIG": {RCX: _tdr},
    "TDH.MNG.KEY.RECLAIMID": {RCX: _tdr},
    "TDH.MNG.KEY.FREEID": {RCX: _tdr},
    "TDH.MNG.ADDCX": {RCX: _new, RDX: _tdr},
    "TDH.MNG.INIT": {RCX: _tdr, RDX: _params},
    "TDH.MNG.RD": {RCX: _tdr, RDX: _field(Context.TD)},
    "TDH.MNG.WR": {RCX: _tdr, RDX: _field(Context.TD), **_WRITE},
    "TDH.MNG.VPFLUSHDONE": {RCX: _tdr},
    "TDH.VP.CREATE": {RCX: _new, RDX: _tdr},
    "TDH.VP.ADDCX": {RCX: _new, RDX: _tdvpr},
    "TDH.VP.INIT": {RCX: _tdvpr, RDX: _odd},
    "TDH.VP.ENTER": {
        RCX: _tdvpr,
        **dict.fromkeys((RDX, RBX, 5, 6, 7, R8, R9, R10, R11, 12, 13, 14, 15), _odd),
    },
    "TDH.VP.FLUSH": {RCX: _tdvpr},
    "TDH.VP.RD": {RCX: _tdvpr, RDX: _field(Context.VP)},
    "TDH.VP.WR": {RCX: _tdvpr, RDX: _field(Context.VP), **_WRITE},
    "TDH.MEM.SEPT.ADD": {RCX: _gpa_level, RDX: _tdr, **_SEPT_PAGES},
    "TDH.MEM.PAGE.ADD": {RCX: _gpa_level, RDX: _tdr, R8: _new, R9: _source},
    "TDH.MEM.PAGE.AUG": {RCX: _gpa_level, RDX: _tdr, R8: _new_sized},
    "TDH.MEM.RANGE.BLOCK": {RCX: _gpa_level, RDX: _tdr},
    "TDH.MEM.RANGE.UNBLOCK": {RCX: _gpa_level, RDX: _tdr},
    "TDH.MEM.TRACK": {RCX: _tdr},
    "TDH.MEM.PAGE.REMOVE": {RCX: _gpa_level, RDX: _tdr},
    "TDH.MEM.SEPT.REMOVE": {RCX: _gpa_level, RDX: _tdr},
    "TDH.MEM.PAGE.DEMOTE": {RCX: _gpa_level, RDX: _tdr, **_SEPT_PAGES},
    "TDH.MEM.PAGE.PROMOTE": {RCX: _gpa_level, RDX: _tdr},
    "TDH.MEM.PAGE.RELOCATE": {RCX: _gpa_level, RDX: _tdr, R8: _new},
    "TDH.MEM.SEPT.RD": {RCX: _gpa_level, RDX: _tdr},
    "TDH.MEM.RD": {RCX: _gpa8, RDX: _tdr},
    "TDH.MEM.WR": {RCX: _gpa8, RDX: _tdr, R8: _odd},
    "TDH.MR.EXTEND": {RCX: _gpa256, RDX: _tdr},
    "TDH.MR.FINALIZE": {RCX: _tdr},
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
    td = s.td(choose, leaf)
    fills = FILLS.get(leaf.name, {})
    for register in range(1, 16):
        fill = fills.get(register)
        if fill is None:
            g[register] = 0xF111_0000_0000_0F1F + (register << 32)
            continue
        value = fill(s, choose, leaf, td, g)
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
