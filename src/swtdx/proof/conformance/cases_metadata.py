"""TDH.MNG.RD and WR, TDH.SYS.RD and RDALL."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.units import NULL_PA
from swtdx.proof.conformance import common
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.operands import checked
from swtdx.proof.conformance.registry import add
from swtdx.proof.conformance.stages import make_td
from swtdx.proof.conformance.world import World

NUM_VCPUS: Final = 0x9010000200000001
HP_LOCK_TIMEOUT: Final = 0x9110000300000011
VIRTUAL_TSC: Final = 0x111000030000000D
XFAM: Final = 0x1110000300000001
MICROSECONDS: Final = 1_000_000
MAJOR: Final = 0x0800000100000004

RD: Final = Good("TDH.MNG.RD", "built", lambda w: {"rcx": w.td.tdr, "rdx": NUM_VCPUS})
WR: Final = Good(
    "TDH.MNG.WR", "built",
    lambda w: {"rcx": w.td.tdr, "rdx": HP_LOCK_TIMEOUT, "r8": MICROSECONDS, "r9": NULL_PA},
)  # fmt: skip
for _good in (RD, WR):
    checked(_good)
    common.td_state(_good, "rcx", wrong_stage="tdcs")
    for _what, _id in (
        ("no such class", 0x3F10000300000000),
        ("no such code", NUM_VCPUS & ~0xFFFFFF | 0xFFFFFF),
        ("a reserved bit", NUM_VCPUS | 1 << 62),
        ("a count of elements", NUM_VCPUS | 1 << 34),
        ("a count of fields", NUM_VCPUS | 1 << 38),
        ("an L2 VM that the TD has not", 0x2510000300000000),
    ):
        _good.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, _what, rdx=_id)
RD.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, "version 0, field id -1", rdx=NULL_PA)
RD.refused(s.TDX_METADATA_FIELD_NOT_READABLE, "a field that nobody may read", rdx=VIRTUAL_TSC)
add(
    "TDH.MNG.RD", s.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT, "version 1, field id -1",
    lambda w: w.provoke(version=1, rcx=w.td.tdr, rdx=NULL_PA), stage="built",
)  # fmt: skip
add(
    "TDH.MNG.RD", s.TDX_METADATA_FIELD_ID_INCORRECT, "version 1, no such field",
    lambda w: w.provoke(version=1, rcx=w.td.tdr, rdx=0x3F10000300000000), stage="built", reusable=True,
)  # fmt: skip
WR.refused(s.TDX_METADATA_FIELD_NOT_WRITABLE, "XFAM", rdx=XFAM)
WR.refused(s.TDX_METADATA_WR_MASK_NOT_VALID, "half of HP_LOCK_TIMEOUT", r9=0xFFFF_FFFF)
WR.refused(s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "9.999 ms", r8=9_999)
WR.refused(s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "100.000001 s", r8=100_000_001)
WR.refused(s.TDX_OP_STATE_INCORRECT, "TD not initialised", rcx=lambda w: make_td(w, "tdcs").tdr)


# ------------------------------------------------------------------ the module's own
SYS_RD: Final = Good("TDH.SYS.RD", "ready", lambda w: {"rdx": MAJOR})
checked(SYS_RD, early=True)
for _what, _id in (("no such field", 0x3F00000300000000), ("a reserved bit", MAJOR | 1 << 24)):
    SYS_RD.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, _what, rdx=_id)
add(
    "TDH.SYS.RD", s.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT, "field id -1",
    lambda w: w.provoke(rdx=NULL_PA), stage="ready",
)  # fmt: skip

RDALL: Final = Good("TDH.SYS.RDALL", "ready", lambda w: {"rdx": w.buffer(), "r8": NULL_PA})
checked(RDALL, early=True)
RDALL.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, "no such field", r8=0x3F00000300000000)


def _no_lp_init(world: World) -> None:
    world.provoke(rcx=world.buffer(), rdx=world.buffer(), r8=world.buffer(), r9=32)


for _leaf in ("TDH.SYS.RD", "TDH.SYS.RDALL", "TDH.SYS.INFO"):
    add(_leaf, s.TDX_SYS_LP_INIT_NOT_DONE, "before TDH.SYS.LP.INIT", _no_lp_init, stage="initialised")
