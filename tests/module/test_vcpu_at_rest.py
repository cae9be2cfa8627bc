"""What rests of a vCPU between its runs: registers that move with it, and what its host may change of them.

Sources: TDX Module base architecture specification (TDH.VP.ENTER, TDH.VP.FLUSH, TD exit; a debuggable TD's
host reads and writes its vCPUs' registers), Intel SDM volume 3, 27.8.2 (an exit clears the valid bit of the
event at VM entry, and nothing else of it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest

from swtdx.arch import vmcs as f
from swtdx.arch.metadata import Context, by_name
from swtdx.machine.engine.scripted import (
    GuestFault,
    Hlt,
    Rdmsr,
    Read,
    Script,
    Tdcall,
    Undefined,
    Wrmsr,
    Xsetbv,
)
from swtdx.machine.vmx.unit import VmxUnit
from swtdx.machine.vmx.vmcs import Vmcs
from swtdx.proof.conformance.stages import (
    FIRST,
    PRODUCTION,
    TD_STEPS,
    block,
    bring_up,
    make_td,
    td_params,
    track,
)
from swtdx.proof.conformance.world import World

TDCALL_EXIT, EPT_VIOLATION, HLT = 77, 48, 12
CROSS_TD_TRAP, NOT_BOUND = 0x90000009_00000000, 0xC0000D05_00000000
HP_TIMEOUT, BUSY_RCX = 0x90000205_00000000, 0x80000200_00000001
SERVTD_RD, ACCEPT, VEINFO_GET = 18, 6, 3
HINT = 1 << 60
ENTER_HINT = 1 << 52
ONES = (1 << 64) - 1


@pytest.fixture
def world() -> Iterator[World]:
    with bring_up(World(), "running") as made:
        yield made


def enter(world: World, lp: int = 0, flags: int = 0) -> list[int]:
    return world.call("TDH.VP.ENTER", lp=lp, rcx=world.td.tdvpr | flags)


def field(name: str) -> int:
    return by_name(Context.VP, name).element_id(0)


def write(world: World, name: str, value: int) -> None:
    world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=field(name), r8=value, r9=ONES)


def read(world: World, name: str, lp: int = 0) -> int:
    return world.ok("TDH.VP.RD", lp=lp, rcx=world.td.tdvpr, rdx=field(name))[8]


def vmcs_of(world: World) -> Vmcs:
    """The TD VMCS, as the first processor has it."""
    (vmcs,) = world.lps[0].vmx.active.values()
    return vmcs


# ---------------------------------------------------------------------- moving
DEBUG = {0: 0x1111_2000, 1: 0x2222_3000, 2: 0x3333_4000, 3: 0x4444_5000}
#: IA32_STAR, LSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX.
MSRS = {
    0xC0000081: 0x11,
    0xC0000082: 0x1234_5678_9000,
    0xC0000084: 0x700,
    0xC0000102: 0x5555_0000,
    0xC0000103: 3,
}


def test_registers_go_with_a_vcpu_to_another_processor(world: World) -> None:
    seen: dict[str, Any] = {}

    def guest(cpu: Script) -> Any:
        for number, value in DEBUG.items():
            cpu.context.write_dr(number, value)
        cpu.context.cr2 = 0xABC000
        for index, value in MSRS.items():
            yield Wrmsr(index, value)
        cpu.set_xmm(5, 0x5EC2E7)
        yield Tdcall(rax=0, rcx=0)
        seen["debug"] = {number: cpu.context.read_dr(number) for number in DEBUG}
        seen["cr2"] = cpu.context.cr2
        seen["msrs"] = found = {}
        for index in MSRS:
            found[index] = yield Rdmsr(index)
        seen["xmm"] = cpu.xmm(5)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    assert enter(world)[0] == TDCALL_EXIT
    world.ok("TDH.VP.FLUSH", rcx=world.td.tdvpr)
    assert enter(world, lp=1)[0] == TDCALL_EXIT, script.error
    assert seen == {"debug": DEBUG, "cr2": 0xABC000, "msrs": MSRS, "xmm": 0x5EC2E7}
    assert [read(world, f"DR{number}", lp=1) for number in DEBUG] == list(DEBUG.values())


# ---------------------------------------------------------------------- what the host writes
def test_rax_and_rcx_do_not_come_from_the_host_after_a_tdvmcall(world: World) -> None:
    """Even if it wrote a mask into RCX with which no TDVMCALL is accepted."""
    seen: list[tuple[int, ...]] = []

    def guest(cpu: Script) -> Any:
        yield Tdcall(rax=0, rcx=0x400, r10=1)
        seen.append(tuple(cpu.gpr[number] for number in (0, 1, 10)))
        yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    assert enter(world)[0] == TDCALL_EXIT
    write(world, "RCX", 0x403)
    assert world.call("TDH.VP.ENTER", rcx=world.td.tdvpr, r10=0x7777)[0] == TDCALL_EXIT
    assert seen == [(0, 0x403, 0x7777)]


@pytest.mark.parametrize("hint", [False, True])
@pytest.mark.parametrize("before", [NOT_BOUND, NOT_BOUND | HINT, 0x5555 | HINT])
def test_the_host_says_whether_trying_again_may_help(world: World, hint: bool, before: int) -> None:
    """After a cross-TD trap bit 60 of RAX is what TDH.VP.ENTER says; the rest stays as it is."""
    tdr, seen = world.td.tdr, list[int]()
    uuid_field = by_name(Context.TD, "TD_UUID")
    uuid = [world.ok("TDH.MNG.RD", rcx=tdr, rdx=uuid_field.element_id(n))[8] for n in range(4)]

    def guest(cpu: Script) -> Any:
        yield Tdcall(
            rax=SERVTD_RD, rcx=tdr + uuid[0] & ONES, rdx=0,
            r10=uuid[0], r11=uuid[1], r12=uuid[2], r13=uuid[3],
        )  # fmt: skip
        seen.append(cpu.gpr[0])
        yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    after = enter(world)
    assert (after[0], after[2], after[8]) == (CROSS_TD_TRAP, NOT_BOUND, tdr)
    assert read(world, "RAX") == NOT_BOUND
    write(world, "RAX", before)
    assert enter(world, flags=ENTER_HINT if hint else 0)[0] == TDCALL_EXIT
    assert seen == [before & ~HINT | (HINT if hint else 0)]


# ---------------------------------------------------------------------- events
def test_an_event_that_was_delivered_is_over(world: World) -> None:
    """After #DF its type and vector stay in the VMCS: an exception then is no second one on top of it."""
    seen: list[int] = []

    def guest(_cpu: Script) -> Any:
        yield Tdcall(rax=0, rcx=0)
        try:
            yield Hlt()
        except GuestFault as fault:
            seen.append(fault.vector)
        info = yield Tdcall(rax=VEINFO_GET)
        seen.append(info.rcx)
        yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    assert enter(world)[0] == TDCALL_EXIT
    vmcs_of(world).controls[f.ENTRY_INTERRUPTION_INFO] = 3 << 8 | 8
    assert enter(world)[0] == TDCALL_EXIT
    assert seen == [20, HLT]


def test_a_suspicion_of_stepping_is_told_whatever_event_came_before(world: World) -> None:
    """NOTIFY_ENABLES: a #VE once the page is there.  What was delivered before does not hold it back."""
    notify = by_name(Context.TD, "NOTIFY_ENABLES").id
    world.ok("TDH.MNG.WR", rcx=world.td.tdr, rdx=notify, r8=1, r9=1)
    seen: list[int] = []

    def guest(_cpu: Script) -> Any:
        for _ in range(2):
            try:
                yield Read(FIRST)
                seen.append(0)
            except GuestFault as fault:
                seen.append(fault.vector)
                info = yield Tdcall(rax=VEINFO_GET)
                assert info.rcx == EPT_VIOLATION
        yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    block(world, world.td, FIRST)
    track(world, world.td)
    for _ in range(8):
        assert enter(world)[0] & 0xFFFFFFFF == EPT_VIOLATION
    world.ok("TDH.MEM.RANGE.UNBLOCK", rcx=FIRST, rdx=world.td.tdr)
    vmcs_of(world).controls[f.ENTRY_INTERRUPTION_INFO] = 3 << 8 | 14
    assert enter(world)[0] == TDCALL_EXIT
    assert seen == [20, 0]


def test_an_exception_at_an_instruction_that_exited_has_the_resume_flag(world: World) -> None:
    """RFLAGS.RF in the image that the handler finds: no breakpoint again (SDM volume 3, 18.3.1.1)."""
    entries: list[tuple[int, int]] = []
    real = VmxUnit.enter

    def watched(unit: VmxUnit) -> Any:
        vmcs = unit.current
        assert vmcs is not None
        event = vmcs.controls[f.ENTRY_INTERRUPTION_INFO]
        entries.append((event & 0xFF if event >> 31 else 0, vmcs.read(f.GUEST_RFLAGS) >> 16 & 1))
        return real(unit)

    def guest(_cpu: Script) -> Any:
        for operation in (Hlt(), Wrmsr(0x8B, 1), Undefined(b"\x0f\x01\xc1")):
            with suppress(GuestFault):
                yield operation
            yield Tdcall(rax=VEINFO_GET)
        yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    with mock.patch.object(VmxUnit, "enter", watched):
        assert enter(world)[0] == TDCALL_EXIT
    events = [entry for entry in entries if entry[0]]
    assert events[0] == (20, 1)
    assert all(flag for _, flag in events)


def test_xsetbv_looks_at_32_bits_of_each_register(world: World) -> None:
    """SDM volume 2: the upper halves of RAX, RCX and RDX are ignored."""
    seen: list[Any] = []

    def guest(cpu: Script) -> Any:
        cpu.context.cr4 |= 1 << 18
        for operation in (Xsetbv(3), DirtyXsetbv(3)):
            try:
                yield operation
                seen.append(cpu.context.xcr0)
            except GuestFault as fault:
                seen.append(fault.vector)
            cpu.context.xcr0 = 1
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    assert enter(world)[0] == TDCALL_EXIT, script.error
    assert seen == [3, 3]


class DirtyXsetbv(Xsetbv):
    """XSETBV with something in the upper halves of its registers."""

    def load(self, context: Any) -> None:
        super().load(context)
        for number in (0, 1, 2):
            context.gpr[number] |= 0x5A5A << 32


# ---------------------------------------------------------------------- controls
def test_controls_of_entry_and_exit(world: World) -> None:
    """IA32_PERF_GLOBAL_CTRL is the TD's own if the TD is debuggable (or has PERFMON), and PKRS with it.

    Entry: bits 10 and 11 must be 0 outside SMM, what the capability MSRs say must be 1 (SDM volume 3, A.5).
    """
    for attributes in (1 << 28 | 1, PRODUCTION):
        debug = attributes & 1
        td = world.td
        if not debug:
            world.ok("TDH.VP.FLUSH", rcx=td.tdvpr)
            td = world.td = make_td(world, "tdcs")
            params = world.buffer(td_params(world, attributes=attributes))
            world.ok("TDH.MNG.INIT", rcx=td.tdr, rdx=params)
            for name, step in TD_STEPS:
                if name in ("vcpu", "vpcx", "vpinit"):
                    step(world, td)
        vmcs = vmcs_of(world)
        entry, leave = vmcs.read(f.ENTRY_CONTROLS), vmcs.read(f.EXIT_CONTROLS)
        assert entry >> 13 & 1 == debug, "load at entry"
        assert entry >> 22 & 1 == debug, "PKRS"
        assert (leave >> 12 & 1, leave >> 30 & 1) == (debug, debug), "load and save at exit"
        assert not entry & (3 << 10 | 0xFF << 24), "SMM, and what is reserved"
        for value, capability in ((entry, 0x490), (leave, 0x48F)):
            setting = world.lps[0].rdmsr(capability)
            assert value & setting & 0xFFFFFFFF == setting & 0xFFFFFFFF, "must be 1"
            assert not value & ~(setting >> 32), "may be 1"


def test_a_guests_clock_runs_as_td_params_say(world: World) -> None:
    """TSC_FREQUENCY 80 is 2 GHz, in units of 25 MHz; the multiplier has 48 bits of fraction."""
    identifier = by_name(Context.TD, "TSC_MULTIPLIER").id
    multiplier = world.ok("TDH.MNG.RD", rcx=world.td.tdr, rdx=identifier)[8]
    below, above, crystal, _ = world.lps[0].cpuid(0x15, 0)
    assert multiplier / (1 << 48) * (crystal * above / below) == pytest.approx(2_000_000_000, abs=1)


def test_a_new_vcpu_has_no_posted_interrupt_vector(world: World) -> None:
    """All ones until the host of a TD sets one (TD VMCS: posted-interrupt notification vector, 16 bits)."""
    assert read(world, "POSTED_INTERRUPT_NOTIFICATION_VECTOR") == 0xFFFF


def test_the_host_of_a_debug_td_reads_extended_state_as_it_is_now(world: World) -> None:
    """XBUFF, while the vCPU is still on its processor: XMM0 is at byte 160 of the XSAVE area (SDM)."""
    values = 0x5EC2E7_0000_0001, 0x5EC2E7_0000_0002

    def guest(cpu: Script) -> Any:
        for value in values:
            cpu.set_xmm(0, value)
            yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    identifier = by_name(Context.VP, "XBUFF").element_id(160 // 8)
    for value in values:
        assert enter(world)[0] == TDCALL_EXIT
        assert world.ok("TDH.VP.RD", rcx=world.td.tdvpr, rdx=identifier)[8] == value
