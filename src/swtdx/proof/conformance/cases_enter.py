"""TDH.VP.ENTER: what keeps a VCPU from running, and how it leaves."""

from __future__ import annotations

from typing import Any, Final
from unittest import mock

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDCS, TDR, TDVPS
from swtdx.arch.exits import ENTER_HINT, ENTER_RESUME_L1, ENTRY_FAILURE, ExitReason
from swtdx.arch.msrs import IA32_MISC_ENABLE, MISC_ENABLE_MONITOR
from swtdx.arch.platform_structs import TD_PARAMS
from swtdx.arch.sept_bits import HPA, TDHP
from swtdx.arch.x86 import CR0_PG
from swtdx.machine import seamops
from swtdx.machine.engine.scripted import MovFromCr, MovToCr, Read, Tdcall, TripleFault
from swtdx.proof.conformance import common
from swtdx.proof.conformance.cases_vp import retired_vcpu
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.operands import operands
from swtdx.proof.conformance.registry import add, provokes
from swtdx.proof.conformance.stages import (
    EMPTY,
    FIRST,
    PENDING,
    PRODUCTION,
    TD_STEPS,
    add_tdcx,
    create,
    give_keys,
    initialise,
    make_td,
    td_params,
)
from swtdx.proof.conformance.world import World
from swtdx.proof.probe import Place

_LEAF: Final = "TDH.VP.ENTER"
_TRIPLE_FAULT, _EPT_VIOLATION, _TDCALL = 2, 48, 77
#: CPUID_CONFIG of TD_PARAMS: ECX of CPUID leaf 1.
_LEAF_1_ECX: Final = 2

ENTER: Final = Good(_LEAF, "running", lambda w: {"rcx": w.td.tdvpr})
common.rax(_LEAF, "running", ENTER.operands)
add(_LEAF, s.TDX_SYS_NOT_READY, "before TDH.SYS.CONFIG", lambda w: _unready(w), stage="processors")
common.boot_nt4(ENTER)
operands(ENTER)
common.fatal(ENTER)
common.op_state_lock(ENTER)
common.tsc_adjust(ENTER)
ENTER.refused(s.TDX_TD_KEYS_NOT_CONFIGURED, "the TD's key is retired", rcx=retired_vcpu)
ENTER.refused(s.TDX_OP_STATE_INCORRECT, "the TD is not finalised", rcx=lambda w: make_td(w, "vpinit").tdvpr)
ENTER.refused(s.TDX_OPERAND_INVALID, "bit 54", "RCX", rcx=lambda w: w.td.tdvpr | 1 << 54)
ENTER.refused(
    s.TDX_OPERAND_INVALID,
    "a hint after no trap",
    "RCX",
    rcx=lambda w: w.td.tdvpr | ENTER_HINT,
)
ENTER.refused(s.TDX_OPERAND_INVALID, "to L1, not from L2", "RCX", rcx=lambda w: w.td.tdvpr | ENTER_RESUME_L1)


def _unready(world: World) -> None:
    world.provoke()


def _with_another_vcpu(world: World, pages: int) -> int:
    """A VCPU of a TD that runs, with as many TDCX pages; it is not initialised."""
    from swtdx.proof.conformance.stages import add_vpcx, create_vcpu

    td = create(world)
    for name, step in TD_STEPS:
        if name == "running":
            first = td.tdvpr
            create_vcpu(world, td)
            add_vpcx(world, td, pages)
            second, td.tdvpr = td.tdvpr, first
            step(world, td)
            return second
        step(world, td)
    raise AssertionError("a TD has no stage 'running'")


ENTER.refused(s.TDX_TDCX_NUM_INCORRECT, "pages are missing", rcx=lambda w: _with_another_vcpu(w, 4))
ENTER.refused(s.TDX_VCPU_STATE_INCORRECT, "not initialised", rcx=lambda w: _with_another_vcpu(w, 5))
add(
    _LEAF, s.TDX_VCPU_ASSOCIATED, "another processor holds it",
    lambda w: w.provoke(lp=1, rcx=w.td.tdvpr), stage="running", reusable=True,
)  # fmt: skip


@provokes(_LEAF, s.TDX_VCPU_STATE_INCORRECT, "after a triple fault", stage="running")
def _disabled(world: World) -> None:
    world.guest(_triple_fault)
    world.enter()
    world.provoke(rcx=world.td.tdvpr)


ENTER.held(
    s.TDX_TSC_ROLLBACK, "the TSC went back",
    lambda world, operands: world.poked(
        Place(
            world.probe.tdvps(operands["rcx"] & HPA, world.tdr_of(_LEAF, operands)),
            TDVPS.last_exit_tsc.offset,
        ),
        world.machine.tsc() + (1 << 40), 8,
    ),
)  # fmt: skip
ENTER.held(
    s.TDX_OPERAND_BUSY, "the TLB epoch changes",
    lambda world, operands: world.locked(world.tdcs_field(TDCS.epoch_lock, world.tdr_of(_LEAF, operands))),
    "TD_EPOCH",
)  # fmt: skip


@provokes(
    _LEAF, s.TDX_INCORRECT_MSR_VALUE, "a TD with MONITOR on a processor that has switched it off",
    details=IA32_MISC_ENABLE, stage="ready",
)  # fmt: skip
def _no_monitor(world: World) -> None:
    td = world.td = create(world)
    give_keys(world, td)
    add_tdcx(world, td)
    params = bytearray(td_params(world))
    TD_PARAMS.cpuid_config.set(params, _LEAF_1_ECX, 1 << 3)
    world.ok("TDH.MNG.INIT", rcx=td.tdr, rdx=world.buffer(bytes(params)))
    for name, step in TD_STEPS:
        if name in ("vcpu", "vpcx", "vpinit", "running"):
            step(world, td)
    old = world.lps[0].msrs.peek(IA32_MISC_ENABLE)
    with world.msr(IA32_MISC_ENABLE, old & ~MISC_ENABLE_MONITOR):
        world.provoke(rcx=td.tdvpr)


# ------------------------------------------------------------------ TD exits
def _triple_fault(_cpu: Any) -> Any:
    yield TripleFault()


def _reads(gpa: int) -> Any:
    def program(_cpu: Any) -> Any:
        yield Read(gpa)

    return program


add(
    _LEAF, s.TDX_SUCCESS, "TDG.VP.VMCALL",
    lambda w: w.exits(_vmcall), details=_TDCALL, stage="running",
)  # fmt: skip
add(
    _LEAF, s.TDX_NON_RECOVERABLE_VCPU, "a triple fault",
    lambda w: w.exits(_triple_fault), details=_TRIPLE_FAULT, stage="running",
)  # fmt: skip


@provokes(
    _LEAF, s.TDX_NON_RECOVERABLE_TD, "a state that VM entry refuses",
    details=ENTRY_FAILURE | ExitReason.ENTRY_FAILURE_GUEST_STATE, stage="ready",
)  # fmt: skip
def _lost(world: World) -> None:
    """CR0.PG cleared in 64-bit code, together with a bit that makes the write an exit."""
    td = world.td = create(world)
    give_keys(world, td)
    add_tdcx(world, td)
    initialise(world, td, attributes=PRODUCTION)
    for name, step in TD_STEPS:
        if name in ("vcpu", "vpcx", "vpinit", "running"):
            step(world, td)

    def program(_cpu: Any) -> Any:
        cr0 = yield MovFromCr(0)
        yield MovToCr(0, cr0 & ~CR0_PG | 1 << 6)

    world.exits(program)


def _vmcall(_cpu: Any) -> Any:
    yield Tdcall(rax=0, rcx=0xFC00, r10=0, r11=0x10000, r12=0)


@provokes(_LEAF, s.TDX_SUCCESS, "an EPT violation", details=_EPT_VIOLATION, stage="running")
def _violation(world: World) -> None:
    after = world.exits(_reads(EMPTY + 0x123))
    assert after[8] == EMPTY, f"R8 is {after[8]:#x}, not the page's GPA"
    assert after[1] & 7 == 1, f"RCX is {after[1]:#x}, not a read"
    zeroed = [after[number] for number in (3, 5, 6, 7, *range(10, 16))]
    assert not any(zeroed), f"registers of the guest are shown: {zeroed}"


def _many_faults(world: World) -> None:
    """The same instruction faults until the module looks at every entry."""
    world.guest(_reads(EMPTY))
    for _ in range(8):
        world.enter()


@provokes(
    _LEAF, s.TDX_OPERAND_BUSY, "looks zero-stepped, and the tree is locked", details="SEPT_TREE",
    stage="running",
)  # fmt: skip
def _stepping(world: World) -> None:
    _many_faults(world)
    with world.locked(world.tdcs_field(TDCS.secure_ept_lock)):
        world.provoke(rcx=world.td.tdvpr)


@provokes(
    _LEAF, s.TDX_NON_RECOVERABLE_TD_CORRUPTED_MD, "no report from the processor", details=0,
    stage="running",
)  # fmt: skip
def _no_report(world: World) -> None:
    def program(_cpu: Any) -> Any:
        yield Tdcall(rax=4, rcx=FIRST, rdx=FIRST, r8=0)

    def refuse(*_: Any, **__: Any) -> Any:
        raise seamops.SeamOpsError(seamops.Result.SUCCESS, "the bench says no")

    world.guest(program)
    with mock.patch.object(seamops, "seamreport", refuse):
        world.provoke(rcx=world.td.tdvpr)


@provokes(
    _LEAF, s.TDX_HOST_PRIORITY_BUSY_TIMEOUT, "the guest waits too long for a lock", stage="running"
)  # fmt: skip
def _timeout(world: World) -> None:
    def program(_cpu: Any) -> Any:
        for _ in range(2_000):
            yield Tdcall(rax=6, rcx=PENDING)

    world.guest(program)
    entry = world.probe.sept_entry(world.td.tdr, PENDING, 0)
    # A host-priority bit that is never cleared, and a short time-out.
    timeout = TDCS.hp_lock_timeout
    with (
        world.poked(entry, entry.read(8) | TDHP, 8),
        world.poked(world.tdcs_field(timeout), 200_000, timeout.size),
    ):
        world.provoke(rcx=world.td.tdvpr)


@provokes(
    _LEAF, s.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE, "a machine check on another processor meanwhile",
    details=_TDCALL, stage="running",
)  # fmt: skip
def _machine_check(world: World) -> None:
    tdr = world.probe.tdr(world.td.tdr)

    def program(_cpu: Any) -> Any:
        tdr[TDR.fatal.offset] = 1
        yield Tdcall(rax=1)

    world.exits(program)
