"""A processor with what the engine's has not: AVX-512, AMX, CET, UINTR, TME's CPUID bits, HLE and RTM.

CPUID and MSRs of the machine answer as such a part's would; no guest executes anything of it.  State
components: sizes and places as Intel's SDM volume 1, chapter 13, and Linux (``arch/x86/kernel/fpu/xstate.c``)
give them for Sapphire Rapids.  The rules of XFAM and TD_PARAMS: TDX Module base architecture specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest

from swtdx.arch.metadata import Context, by_name
from swtdx.arch.platform_structs import TD_PARAMS
from swtdx.machine.engine.scripted import GuestFault, MovToCr, Rdmsr, Tdcall, Wrmsr
from swtdx.machine.vmx import control_registers
from swtdx.proof.conformance.stages import TD_STEPS, bring_up, make_td, td_params
from swtdx.proof.conformance.world import Td, World

OPERAND_INVALID = 0xC0000100_00000000
INCORRECT_MSR_VALUE = 0xC0000921_00000000
XFAM, CPUID_CONFIG, EPTP_CONTROLS = 65, 69, 67
#: XSAVE components: EAX (bytes), EBX (place), ECX (1: supervisor, 2: aligned to 64 bytes).
COMPONENTS = {
    2: (256, 576, 0), 5: (64, 1088, 0), 6: (512, 1152, 0), 7: (1024, 1664, 0), 9: (8, 2688, 0),
    11: (16, 0, 1), 12: (24, 0, 1), 14: (48, 0, 1), 17: (64, 2752, 2), 18: (8192, 2816, 6),
}  # fmt: skip
USER = 0x3 | sum(1 << number for number in COMPONENTS if number not in (11, 12, 14))
SUPERVISOR = 1 << 11 | 1 << 12 | 1 << 14
#: A component that no module knows (bit 19: APX).
UNKNOWN = 1 << 19
CR4_FIXED1, EPT_VPID_CAP = 0x489, 0x48C
CET, UINTR, VMXE, MCE, PAE = 1 << 23, 1 << 25, 1 << 13, 1 << 6, 1 << 5
PG, WP, NE, PE = 1 << 31, 1 << 16, 1 << 5, 1
TME_CAPABILITY, TME_ACTIVATE, KEYID_PARTITIONING = 0x981, 0x982, 0x87
VEINFO_GET = 3
XSS = 0xDA0
#: CPUID.(EAX=0DH,ECX=1):EAX[4]; CPUID.(EAX=07H,ECX=0):ECX[4], which is 1 while the host has CR4.PKE.
XFD, OSPKE = 1 << 4, 1 << 4
#: The steps behind TDH.MNG.INIT.
AFTER_INIT = [step for name, step in TD_STEPS if name in ("vcpu", "vpcx", "vpinit", "running")]

Quad = tuple[int, int, int, int]


def wide(native: Callable[..., Quad]) -> Callable[..., Quad]:
    """CPUID of a processor like ``native`` that has more."""

    def cpuid(leaf: int, subleaf: int = 0) -> Quad:
        a, b, c, d = native(leaf, subleaf)
        if leaf == 0xD and subleaf == 0:
            return USER | UNKNOWN, 11008, 11008, d
        if leaf == 0xD and subleaf == 1:
            return a | XFD, b, c | SUPERVISOR, d
        if leaf == 0xD and subleaf in COMPONENTS:
            return (*COMPONENTS[subleaf], 0)
        if leaf == 7 and subleaf == 0:
            return (
                a,
                b | 1 << 4 | 1 << 11 | 1 << 16,
                c | OSPKE | 1 << 5 | 1 << 7 | 1 << 13,
                d | 1 << 5 | 1 << 18 | 1 << 20,
            )
        return a, b, c, d

    return cpuid


@contextmanager
def wide_world(stage: str, ept_levels: int = 5) -> Iterator[World]:
    with World() as world, ExitStack() as stack:
        for lp in world.lps:
            stack.enter_context(mock.patch.object(lp, "cpuid", wide(lp.cpuid)))
            for index, bits in ((CR4_FIXED1, CET | UINTR), (EPT_VPID_CAP, 0)):
                value = lp.msrs.peek(index) | bits
                if index == EPT_VPID_CAP and ept_levels == 4:
                    value &= ~(1 << 7)
                lp.msrs.poke(index, value)
        yield bring_up(world, stage)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with wide_world("ready") as made:
        yield made


def init(world: World, td: Td, cpuid: dict[tuple[int, int], int] | None = None, **changes: int) -> int:
    """TDH.MNG.INIT with words of CPUID_CONFIG by (row, register); RAX."""
    params = bytearray(td_params(world, **changes))
    for (row, register), value in (cpuid or {}).items():
        TD_PARAMS.cpuid_config.set(params, 4 * row + register, value)
    return world._seamcall(
        "TDH.MNG.INIT", {"rcx": td.tdr, "rdx": world.buffer(bytes(params))}, lp=0, version=0, rax=0,
        outputs=False,
    )[0]  # fmt: skip


def td_field(world: World, td: Td, name: str, index: int = 0) -> int:
    after = world.call("TDH.MNG.RD", rcx=td.tdr, rdx=by_name(Context.TD, name).element_id(index))
    assert after[0] == 0, hex(after[0])
    return after[8]


def running(world: World, xfam: int, cpuid: dict[tuple[int, int], int] | None = None) -> Td:
    """A TD that can be entered; the world's own from now on."""
    td = world.td = make_td(world, "tdcs")
    assert init(world, td, cpuid, xfam=xfam) == 0
    for step in AFTER_INIT:
        step(world, td)
    return td


# ---------------------------------------------------------------------- XFAM
AVX, AVX512, PKRU, CET_STATE, UINTR_STATE, AMX = 1 << 2, 7 << 5, 1 << 9, 3 << 11, 1 << 14, 3 << 17


@pytest.mark.parametrize(
    ("xfam", "right"),
    [
        (3 | AVX | AVX512, True), (3 | AVX512, False), (3 | AVX | 1 << 5, False), (3 | AVX | 1 << 6, False),
        (3 | AVX | 1 << 7, False), (3 | AVX | 3 << 5, False), (3 | AVX | 6 << 5, False),
        (3 | CET_STATE, True), (3 | 1 << 11, False), (3 | 1 << 12, False),
        (3 | AMX, True), (3 | 1 << 17, False), (3 | 1 << 18, False),
        (3 | UINTR_STATE, True), (3 | 1 << 8, False), (3 | UNKNOWN, False),
    ],
    ids=hex,
)  # fmt: skip
def test_state_components_come_in_groups(world: World, xfam: int, right: bool) -> None:
    """All three of AVX-512 and with AVX, both of CET, both of AMX; none that the processor has not."""
    td = make_td(world, "tdcs")
    assert init(world, td, xfam=xfam) == (0 if right else OPERAND_INVALID | XFAM)
    if not right:
        return
    assert td_field(world, td, "XFAM") == xfam
    at = 576
    for number, (size, _, flags) in COMPONENTS.items():
        if xfam >> number & 1:
            # The compact format: one behind the other, some on a 64-byte border.
            at = at + 63 & -64 if flags & 2 else at
            assert td_field(world, td, "XBUFF_OFFSETS", number) == at, number
            at += size
    assert td_field(world, td, "XBUFF_SIZE") == at


# ---------------------------------------------------------------------- CPUID leaf 7
LEAF_7 = 5
HLE, RTM, TME, PCONFIG, WAITPKG = 1 << 4, 1 << 11, 1 << 13, 1 << 18, 1 << 5


@pytest.mark.parametrize(
    ("word", "status"),
    [
        (0, 0), (HLE, OPERAND_INVALID | CPUID_CONFIG), (RTM, OPERAND_INVALID | CPUID_CONFIG),
        (HLE | RTM, INCORRECT_MSR_VALUE | 0x10A),
    ],
)  # fmt: skip
def test_hle_and_rtm_go_together(world: World, word: int, status: int) -> None:
    """With both, the host must have given TSX_CTRL its value: IA32_ARCH_CAPABILITIES decides."""
    assert init(world, make_td(world, "tdcs"), {(LEAF_7, 1): word}) == status


@pytest.mark.parametrize("configured", [False, True])
def test_tme_and_pconfig_are_the_hosts_to_give(world: World, configured: bool) -> None:
    """Their MSRs are #VE for a TD that is told of them, #GP for others (base ABI: MSR virtualization)."""
    words = {(LEAF_7, 2): TME, (LEAF_7, 3): PCONFIG} if configured else {}
    td = running(world, 3, words)
    seen: list[int] = []

    def guest(_cpu: Any) -> Any:
        for index in (TME_CAPABILITY, TME_ACTIVATE, KEYID_PARTITIONING):
            try:
                yield Rdmsr(index)
            except GuestFault as fault:
                seen.append(fault.vector)
            yield Tdcall(rax=VEINFO_GET)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    world.enter()
    assert script.error is None, script.error
    assert seen == [20 if configured else 13] * 3
    controls = td_field(world, td, "VIRTUAL_IA32_VMX_PROCBASED_CTLS2")
    assert controls >> 32 + 27 & 1 == configured, "an L2 VM may have PCONFIG"


# ---------------------------------------------------------------------- EPT levels
@pytest.mark.parametrize("levels", [4, 5])
def test_a_five_level_ept_needs_a_processor_that_has_it(levels: int) -> None:
    with wide_world("ready", ept_levels=levels) as world:
        for asked in (4, 5):
            wanted = 0 if asked <= levels else OPERAND_INVALID | EPTP_CONTROLS
            got = init(world, make_td(world, "tdcs"), eptp_controls=6 | asked - 1 << 3)
            assert got == wanted, asked


# ---------------------------------------------------------------------- CR4
def nested_mask(world: World, td: Td) -> int:
    """Bits of CR4 that the module would keep from an L2 VM."""
    field = by_name(Context.VP, "BASE_L2_CR4_GUEST_HOST_MASK").id
    return world.call("TDH.VP.RD", rcx=td.tdvpr, rdx=field)[8]


@pytest.mark.parametrize(
    ("xfam", "mine"), [(3, 0), (3 | CET_STATE, CET), (3 | UINTR_STATE, UINTR)], ids=["none", "CET", "UINTR"]
)
def test_a_bit_of_cr4_comes_with_its_state(world: World, xfam: int, mine: int) -> None:
    td = running(world, xfam)
    assert ~nested_mask(world, td) & (CET | UINTR) == mine


def test_cet_needs_write_protection(world: World) -> None:
    """CR4.CET with CR0.WP clear is #GP (SDM volume 3, 2.5), before VMXE, which a TD has not, is #VE."""
    running(world, 3 | CET_STATE)
    seen: list[int] = []
    written = CET | VMXE | MCE | PAE

    def guest(_cpu: Any) -> Any:
        for cr0 in (PG | NE | PE, PG | WP | NE | PE):
            yield MovToCr(0, cr0)
            try:
                yield MovToCr(4, written)
            except GuestFault as fault:
                seen.append(fault.vector)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    with mock.patch.object(control_registers, "cr4_bits", return_value=written):
        world.enter()
    assert script.error is None, script.error
    assert seen == [13, 20]


@pytest.mark.parametrize("configured", [False, True])
def test_a_td_with_waitpkg_waits(world: World, configured: bool) -> None:
    """UMWAIT and TPAUSE are enabled by a secondary control (bit 26), else they are #UD."""
    td = running(world, 3, {(LEAF_7, 2): WAITPKG if configured else 0})
    controls = by_name(Context.VP, "SECONDARY_CONTROLS").id
    assert world.ok("TDH.VP.RD", rcx=td.tdvpr, rdx=controls)[8] >> 26 & 1 == configured


def cpuid_values(world: World, td: Td, leaf: int, half: int, subleaf: int) -> int:
    """TDCS.CPUID_VALUES as the host reads them: EAX and EBX (half 0), ECX and EDX (1)."""
    code = leaf << 9 | subleaf << 1 | half
    after = world.call("TDH.MNG.RD", rcx=td.tdr, rdx=by_name(Context.TD, "CPUID_VALUES").id | code)
    assert after[0] == 0, hex(after[0])
    return after[8]


def test_no_td_is_told_of_xfd_or_of_the_hosts_protection_keys(world: World) -> None:
    """This processor has XFD, and its host runs with CR4.PKE: neither is the TD's."""
    native = world.lps[0].cpuid
    assert native(0xD, 1)[0] & XFD
    assert native(7, 0)[2] & OSPKE
    td = make_td(world, "tdcs")
    assert init(world, td, xfam=3 | PKRU) == 0
    assert not cpuid_values(world, td, 0xD, 0, 1) & XFD
    assert not cpuid_values(world, td, 7, 1, 0) & OSPKE


def test_xss_has_only_supervisor_components_of_xfam(world: World) -> None:
    """A component that the TD has not, or one that is no supervisor component, is #GP."""
    running(world, 3 | CET_STATE)
    seen: list[int] = []

    def guest(_cpu: Any) -> Any:
        for value in (CET_STATE, 1 << 11, UINTR_STATE, 1, 2, 0):
            try:
                yield Wrmsr(XSS, value)
                seen.append(0)
            except GuestFault as fault:
                seen.append(fault.vector)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    world.enter()
    assert script.error is None, script.error
    assert seen == [0, 0, 13, 13, 13, 0]
