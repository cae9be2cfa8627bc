"""TDH.VP.*, but for TDH.VP.ENTER."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaves import VERSION_SHIFT
from swtdx.proof.conformance import common
from swtdx.proof.conformance.common import Good, Operands
from swtdx.proof.conformance.operands import checked
from swtdx.proof.conformance.registry import Defect, add, provokes
from swtdx.proof.conformance.stages import add_vpcx, create_vcpu, flush, make_td, retire
from swtdx.proof.conformance.world import Td, World

CREATE: Final = Good("TDH.VP.CREATE", "built", lambda w: {"rcx": w.page(), "rdx": w.td.tdr})
checked(CREATE)
common.td_state(CREATE, "rdx", wrong_stage="tdcs")
CREATE.refused(s.TDX_OP_STATE_INCORRECT, "the TD runs", rdx=lambda w: make_td(w, "running").tdr)

ADDCX: Final = Good("TDH.VP.ADDCX", "vcpu", lambda w: {"rcx": w.page(), "rdx": w.td.tdvpr})
checked(ADDCX)
common.fatal(ADDCX)
common.op_state_lock(ADDCX)
ADDCX.refused(s.TDX_OP_STATE_INCORRECT, "the TD runs", rdx=lambda w: make_td(w, "running").tdvpr)
ADDCX.refused(s.TDX_VCPU_STATE_INCORRECT, "the VCPU is initialised", rdx=lambda w: make_td(w, "vpinit").tdvpr)


@provokes("TDH.VP.ADDCX", s.TDX_TDCX_NUM_INCORRECT, "a sixteenth page", stage="vpcx")
def _too_many_pages(world: World) -> None:
    add_vpcx(world, world.td, 9)  # as many as a VCPU with three L2 VMs has
    world.provoke(rcx=world.page(), rdx=world.td.tdvpr)


INIT: Final = Good("TDH.VP.INIT", "vpcx", lambda w: {"rcx": w.td.tdvpr, "rdx": 0x1234})
checked(INIT)
common.fatal(INIT)
common.op_state_lock(INIT)
common.tsc_adjust(INIT)
INIT.refused(s.TDX_OP_STATE_INCORRECT, "the TD runs", rcx=lambda w: make_td(w, "running").tdvpr)
INIT.refused(s.TDX_VCPU_STATE_INCORRECT, "the VCPU is initialised", rcx=lambda w: make_td(w, "vpinit").tdvpr)
INIT.refused(s.TDX_TDCX_NUM_INCORRECT, "pages are missing", rcx=lambda w: make_td(w, "vcpu").tdvpr)


@provokes("TDH.VP.INIT", s.TDX_MAX_VCPUS_EXCEEDED, "a third VCPU of two", stage="vpinit")
def _third_vcpu(world: World) -> None:
    for _ in range(2):
        create_vcpu(world, world.td)
        add_vpcx(world, world.td)
        if _ == 0:
            world.ok("TDH.VP.INIT", rcx=world.td.tdvpr, rdx=0)
    world.provoke(rcx=world.td.tdvpr, rdx=0)


add(
    "TDH.VP.INIT", s.TDX_SUCCESS, "with an x2APIC id",
    lambda w: w.provoke(version=1, **INIT.operands(w), r8=7), stage="vpcx",
)  # fmt: skip
add(
    "TDH.VP.INIT", s.TDX_OPERAND_INVALID, "an x2APIC id of 33 bits",
    lambda w: w.provoke(version=1, **INIT.operands(w), r8=1 << 32), details="R8", stage="vpcx", reusable=True,
    defect=Defect({"r8": 1 << 32}, rax=1 << VERSION_SHIFT),
)  # fmt: skip


@provokes("TDH.VP.INIT", s.TDX_X2APIC_ID_NOT_UNIQUE, "the first VCPU's x2APIC id", details=7, stage="vpcx")
def _same_x2apic_id(world: World) -> None:
    world.ok("TDH.VP.INIT", version=1, rcx=world.td.tdvpr, rdx=0, r8=7)
    create_vcpu(world, world.td)
    add_vpcx(world, world.td)
    world.provoke(version=1, rcx=world.td.tdvpr, rdx=0, r8=7)


# ------------------------------------------------------------------ TDH.VP.FLUSH
def _vcpu(world: World) -> Operands:
    return {"rcx": world.td.tdvpr}


FLUSH: Final = Good("TDH.VP.FLUSH", "running", _vcpu)
checked(FLUSH)
FLUSH.refused(s.TDX_TDCX_NUM_INCORRECT, "pages are missing", rcx=lambda w: make_td(w, "vcpu").tdvpr)


@provokes("TDH.VP.FLUSH", s.TDX_VCPU_NOT_ASSOCIATED, "the second time", stage="running")
def _flushed_twice(world: World) -> None:
    flush(world, world.td)
    world.provoke(rcx=world.td.tdvpr)


@provokes("TDH.VP.FLUSH", s.TDX_VCPU_NOT_ASSOCIATED, "another processor holds it", stage="running")
def _flushed_elsewhere(world: World) -> None:
    world.provoke(lp=1, rcx=world.td.tdvpr)


def retired_vcpu(world: World) -> int:
    """A VCPU of a TD whose life cycle is BLOCKED."""
    td = make_td(world, "running")
    flush(world, td)
    retire(world, td)
    return td.tdvpr


FLUSH.refused(s.TDX_TD_KEYS_NOT_CONFIGURED, "the TD's key is retired", rcx=retired_vcpu)
for _good, _register in ((ADDCX, "rdx"), (INIT, "rcx")):
    _good.refused(s.TDX_TD_KEYS_NOT_CONFIGURED, "the TD's key is retired", at={_register: retired_vcpu})

# ------------------------------------------------------------------ TDH.VP.RD, TDH.VP.WR
VCPU_INDEX: Final = 0xA020000200000002
RIP: Final = 0x002400030000681E
PEND_NMI: Final = 0x202000000000000B
_NO_FIELD: Final = 0x00240003000007FE

RD: Final = Good("TDH.VP.RD", "running", lambda w: {"rcx": w.td.tdvpr, "rdx": VCPU_INDEX})
WR: Final = Good("TDH.VP.WR", "running", lambda w: {"rcx": w.td.tdvpr, "rdx": PEND_NMI, "r8": 0, "r9": 0xFF})
for _good in (RD, WR):
    checked(_good)
    common.fatal(_good)
    common.op_state_lock(_good)
    common.op_state(_good, 0)
    _good.refused(s.TDX_TD_KEYS_NOT_CONFIGURED, "the TD's key is retired", rcx=retired_vcpu)
    _good.refused(
        s.TDX_TDCX_NUM_INCORRECT, "pages are missing", rcx=lambda w: make_td(w, "vcpu").tdvpr,
        mend=lambda world, operands: add_vpcx(world, Td(0, 0, tdvpr=operands["rcx"])),
    )  # fmt: skip
    _good.refused(
        s.TDX_VCPU_STATE_INCORRECT, "the VCPU is not initialised", rcx=lambda w: make_td(w, "vpcx").tdvpr
    )
    _good.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, "no such field", rdx=_NO_FIELD)
    _good.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, "a reserved bit", rdx=VCPU_INDEX | 1 << 24)
    _good.refused(s.TDX_METADATA_FIELD_ID_INCORRECT, "a count of elements", rdx=VCPU_INDEX | 1 << 34)
    add(
        _good.leaf, s.TDX_VCPU_ASSOCIATED, "another processor holds the VCPU",
        lambda w, good=_good: w.provoke(lp=1, **good.operands(w)),  # type: ignore[misc]
        stage="running", reusable=True,
    )  # fmt: skip
add(
    "TDH.VP.RD", s.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT, "version 1, field id -1",
    lambda w: w.provoke(version=1, rcx=w.td.tdvpr, rdx=(1 << 64) - 1), stage="running", outputs=False,
)  # fmt: skip
RD.refused(s.TDX_METADATA_FIELD_NOT_READABLE, "RSP's place among the GPRs", rdx=0x1020000300000004)
WR.refused(s.TDX_METADATA_FIELD_NOT_WRITABLE, "VCPU_INDEX", rdx=VCPU_INDEX, r9=(1 << 64) - 1)
VECTOR: Final = 0x0024000100000002
DESCRIPTOR: Final = 0x0024000300002016
PIN_CONTROLS: Final = 0x0024000200004000
SHARED_EPTP: Final = 0x002400030000203C
WR.refused(s.TDX_METADATA_FIELD_NOT_WRITABLE, "no bit of the mask", rdx=PIN_CONTROLS, r8=0, r9=1)
WR.refused(
    s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "a bit that is not to be written", rdx=PIN_CONTROLS, r8=0,
    r9=0xFFFF_FFFF,
)  # fmt: skip
WR.refused(s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "vector 256", rdx=VECTOR, r8=256, r9=0xFFFF)
WR.refused(
    s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "a shared EPT in private memory", rdx=SHARED_EPTP,
    r8=lambda w: w.first_hkid << w.hpa_bits, r9=(1 << 64) - 1,
)  # fmt: skip
WR.refused(
    s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "a descriptor in the SEAM range", rdx=DESCRIPTOR,
    r8=lambda w: w.seam_range, r9=(1 << 64) - 1,
)  # fmt: skip
WR.refused(
    s.TDX_TD_VMCS_FIELD_NOT_INITIALIZED, "posted interrupts without a vector", VECTOR & 0xFFFF,
    rdx=PIN_CONTROLS, r8=1 << 7, r9=1 << 7,
)  # fmt: skip


@provokes(
    "TDH.VP.WR", s.TDX_TD_VMCS_FIELD_NOT_INITIALIZED, "posted interrupts without a descriptor",
    details=DESCRIPTOR & 0xFFFF, stage="running",
)  # fmt: skip
def _no_descriptor(world: World) -> None:
    world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=VECTOR, r8=0xF2, r9=0xFFFF)
    world.provoke(rcx=world.td.tdvpr, rdx=PIN_CONTROLS, r8=1 << 7, r9=1 << 7)
