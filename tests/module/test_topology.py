"""A TD's topology on modules with TDX_FEATURES0.TOPOLOGY_ENUM, and that 1.5.01 has nothing of it.

What is right: Intel's "Base Architecture Specification" of later modules (virtual platform topology), their
public sources (``check_cpuid_1f_and_compute_cpuid_0b`` in ``helpers.c``, ``tdh_vp_init.c``, ``td_cpuid.c``,
``td_msr_access.c``, ``metadata_td.c``), and what Linux does as host and as guest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.arch import status as st
from swtdx.arch.cpuid_table import NA
from swtdx.arch.features import MODULE_1_5_01, TOPOLOGY_ENUM
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.operands import OperandId
from swtdx.arch.platform_structs import TD_PARAMS, TDSYSINFO_STRUCT
from swtdx.arch.regs import R8, RAX
from swtdx.machine.engine.scripted import Cpuid, GuestFault, Operation, Rdmsr, Tdcall
from swtdx.proof.conformance.stages import (
    FIRST,
    add_page,
    add_sept,
    add_vpcx,
    bring_up,
    create_vcpu,
    make_td,
    td_params,
)
from swtdx.proof.conformance.world import World

Quad = tuple[int, int, int, int]

VM_RD, VM_WR, VEINFO = 7, 8, 3
CPUID_REASON, RDMSR_REASON = 10, 31
X2APIC_APICID = 0x802
#: What Linux gives to TDG.VM.RD and WR (arch/x86/include/asm/shared/tdx.h).
TD_CTLS, CONFIGURED = 0x1110000300000017, 0x9100000000000019
ENUM_TOPOLOGY, REDUCE_VE = 1 << 1, 1 << 3
UNRECOGNIZED = st.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED
BAD_CPUID = st.TDX_OPERAND_INVALID | OperandId.CPUID_CONFIG

#: Two packages of two dies of four cores of two threads.  (EAX shift, EBX processors, ECX type and number.)
DIES: tuple[Quad, ...] = (
    (1, 2, 1 << 8 | 0, 0), (3, 8, 2 << 8 | 1, 0), (4, 16, 5 << 8 | 2, 0),
    (0, 0, 3, 0), (0, 0, 4, 0), (0, 0, 5, 0),
)  # fmt: skip
#: No level of threads.
CORES: tuple[Quad, ...] = ((2, 4, 2 << 8, 0), *((0, 0, n, 0) for n in range(1, 6)))
NOTHING: tuple[Quad, ...] = ((0, 0, 0, 0),) * 6


def changed(levels: tuple[Quad, ...], subleaf: int, value: Quad) -> tuple[Quad, ...]:
    return (*levels[:subleaf], value, *levels[subleaf + 1 :])


#: Leaf 0x1F as no TD may have it.
WRONG = {
    "levels that do not ascend": changed(DIES, 2, (4, 16, 2 << 8 | 2, 0)),
    "a level that falls": changed(changed(DIES, 1, (3, 8, 5 << 8 | 1, 0)), 2, (4, 16, 2 << 8 | 2, 0)),
    "a level that does not exist": changed(DIES, 2, (4, 16, 6 << 8 | 2, 0)),
    "a number that is not the sub-leaf": changed(DIES, 1, (3, 8, 2 << 8 | 2, 0)),
    "threads that are not first": changed(CORES, 2, (3, 8, 1 << 8 | 2, 0)),
    "no cores": ((1, 2, 1 << 8, 0), (4, 16, 5 << 8 | 1, 0), *DIES[2:][1:], (0, 0, 5, 0)),
    "an invalid first level that is not empty": changed(DIES, 0, (1, 2, 0, 0)),
    "an empty first level, and then one": changed(NOTHING, 3, (1, 2, 2 << 8 | 3, 0)),
}


def initialise(world: World, levels: tuple[Quad, ...]) -> list[int]:
    """TDH.MNG.INIT; the registers after it.  Leaf 0x1F is configured behind the twelve of 1.5.01."""
    params = bytearray(td_params(world))
    for subleaf, level in enumerate(levels):
        for register, value in enumerate(level):
            TD_PARAMS.cpuid_config.set(params, 4 * (12 + subleaf) + register, value)
    operands = {"rcx": world.td.tdr, "rdx": world.buffer(bytes(params))}
    # RCX names the CPUID leaf that is refused.
    return world._seamcall("TDH.MNG.INIT", operands, lp=0, version=0, rax=0, outputs=False)


def cpuid_value(world: World, leaf: int, subleaf: int) -> Quad | None:
    """CPUID_VALUES as the host reads them; None if they are not readable."""
    halves = []
    for half in (0, 1):
        code = leaf << 9 | (0x1FF - 0x80 if subleaf == NA else subleaf) << 1 | half
        after = world.call("TDH.MNG.RD", rcx=world.td.tdr, rdx=by_name(Context.TD, "CPUID_VALUES").id | code)
        if after[RAX]:
            return None
        halves.append(after[R8])
    return tuple(value >> shift & 0xFFFFFFFF for value in halves for shift in (0, 32))  # type: ignore[return-value]


def td_field(world: World, name: str, index: int = 0) -> int:
    after = world.ok("TDH.MNG.RD", rcx=world.td.tdr, rdx=by_name(Context.TD, name).id + index)
    return after[R8]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield bring_up(made, "tdcs")


@pytest.fixture(scope="module")
def old() -> Iterator[World]:
    with World(MODULE_1_5_01) as made:
        yield bring_up(made, "running")


# ------------------------------------------------------------------ TDH.MNG.INIT
@pytest.mark.parametrize("what", WRONG)
def test_a_topology_that_makes_no_sense_is_refused(world: World, what: str) -> None:
    assert initialise(world, WRONG[what])[RAX] == UNRECOGNIZED


@pytest.mark.parametrize(
    ("register", "value"), [(0, 1 << 5), (1, 1 << 16), (2, 1 << 16), (3, 1)], ids=["EAX", "EBX", "ECX", "EDX"]
)
def test_bits_that_cannot_be_configured(world: World, register: int, value: int) -> None:
    level = list(DIES[1])
    level[register] |= value
    after = initialise(world, changed(DIES, 1, tuple(level)))  # type: ignore[arg-type]
    assert after[RAX] == BAD_CPUID
    assert after[1] == 0x1F | 1 << 32


def test_leaf_b_is_made_of_leaf_1f(world: World) -> None:
    """Threads are threads; its cores are whatever the last level is."""
    assert initialise(world, DIES)[RAX] == 0
    assert [cpuid_value(world, 0x1F, n) for n in range(6)] == list(DIES)
    assert [cpuid_value(world, 0xB, n) for n in range(3)] == [DIES[0], (4, 16, 2 << 8 | 1, 0), (0, 0, 0, 0)]


def test_leaf_b_of_a_topology_without_threads(world: World) -> None:
    assert initialise(world, CORES)[RAX] == 0
    assert [cpuid_value(world, 0xB, n) for n in range(3)] == [CORES[0], (0, 0, 0, 0), (0, 0, 0, 0)]


def test_nothing_configured_is_the_processors_own(world: World) -> None:
    assert initialise(world, NOTHING)[RAX] == 0
    native = world.lps[0]
    assert [cpuid_value(world, 0x1F, n) for n in range(6)] == [native.cpuid(0x1F, n) for n in range(6)]
    assert native.cpuid(0x1F, 0)[2] >> 8 == 1, "threads, or this shows nothing"
    assert cpuid_value(world, 0xB, 0) == native.cpuid(0x1F, 0)


@pytest.mark.parametrize(
    ("vcpus", "taken"), [(0, False), (1, True), (576, True), (577, False), (0xFFFF, False)]
)
def test_so_many_vcpus_a_td_may_have(world: World, vcpus: int, taken: bool) -> None:
    field = by_name(Context.SYS, "MAX_VCPUS_PER_TD").id
    assert world.ok("TDH.SYS.RD", rdx=field)[R8] == 576
    params = world.buffer(td_params(world, max_vcpus=vcpus))
    after = world.call("TDH.MNG.INIT", rcx=world.td.tdr, rdx=params)
    assert after[RAX] == (0 if taken else st.TDX_OPERAND_INVALID | OperandId.MAX_VCPUS)


# ------------------------------------------------------------------ TDH.VP.INIT
def add_vcpu(world: World) -> int:
    """A vCPU that is not initialised (HPA of its TDVPR)."""
    create_vcpu(world, world.td)
    add_vpcx(world, world.td)
    return world.td.tdvpr


def test_x2apic_ids_are_kept_and_no_two_are_the_same(world: World) -> None:
    initialise(world, DIES)
    first = add_vcpu(world)
    refused = world.call("TDH.VP.INIT", version=1, rcx=first, rdx=0, r8=1 << 32)
    assert refused[RAX] == st.TDX_OPERAND_INVALID | OperandId.R8
    assert td_field(world, "NUM_VCPUS") == 0
    world.ok("TDH.VP.INIT", version=1, rcx=first, rdx=0, r8=0xFFFFFFFF)
    second = add_vcpu(world)
    refused = world.call("TDH.VP.INIT", version=1, rcx=second, rdx=0, r8=0xFFFFFFFF)
    assert refused[RAX] == st.TDX_X2APIC_ID_NOT_UNIQUE | 0xFFFFFFFF
    assert td_field(world, "NUM_VCPUS") == 1
    world.ok("TDH.VP.INIT", version=1, rcx=second, rdx=0, r8=0x23)
    assert [td_field(world, "X2APIC_IDS", n) for n in (0, 1, 2, 575)] == [0xFFFFFFFF, 0x23, 0, 0]
    assert td_field(world, "TOPOLOGY_ENUM_CONFIGURED") == 1
    beyond = by_name(Context.TD, "X2APIC_IDS").id + 576
    after = world.call("TDH.MNG.RD", rcx=world.td.tdr, rdx=beyond)
    assert after[RAX] == st.TDX_METADATA_FIELD_ID_INCORRECT


def test_version_1_takes_the_td_exclusively(world: World) -> None:
    initialise(world, DIES)
    vcpu = add_vcpu(world)
    with world.locked_page(world.td.tdr, shared=True):
        busy = world.call("TDH.VP.INIT", version=1, rcx=vcpu, rdx=0, r8=0)
        assert busy[RAX] == st.TDX_OPERAND_BUSY | OperandId.TDR
        world.ok("TDH.VP.INIT", rcx=vcpu, rdx=0)


# ------------------------------------------------------------------ the guest
def running(world: World, levels: tuple[Quad, ...], *x2apic_ids: int | None) -> list[int]:
    """A TD that can run, with vCPUs of these x2APIC ids (None: initialised by version 0); their TDVPRs."""
    assert initialise(world, levels)[RAX] == 0
    add_sept(world, world.td)
    add_page(world, world.td, FIRST)
    vcpus = []
    for x2apic_id in x2apic_ids:
        vcpus.append(add_vcpu(world))
        if x2apic_id is None:
            world.ok("TDH.VP.INIT", rcx=vcpus[-1], rdx=0)
        else:
            world.ok("TDH.VP.INIT", version=1, rcx=vcpus[-1], rdx=0, r8=x2apic_id)
    world.ok("TDH.MR.FINALIZE", rcx=world.td.tdr)
    return vcpus


def attempt(operation: Operation) -> Any:
    """What the instruction gives; exit reason and qualification if it is #VE."""
    try:
        return (yield operation)
    except GuestFault as fault:
        told = yield Tdcall(rax=VEINFO)
        return (told.rcx, told.rdx) if fault.vector == 20 else fault


def write(value: int, mask: int) -> Any:
    """TDG.VM.WR of TD_CTLS: status, old value."""
    after = yield Tdcall(rax=VM_WR, rcx=0, rdx=TD_CTLS, r8=value, r9=mask)
    return after.rax, after.r8


def look() -> Any:
    """Everything that tells of the topology."""
    leaf_1 = yield Cpuid(1)
    seen: dict[Any, Any] = {"initial": leaf_1[1] >> 24, "msr": (yield from attempt(Rdmsr(X2APIC_APICID)))}
    for leaf in (0xB, 0x1F):
        for subleaf in range(7):
            seen[leaf, subleaf] = yield from attempt(Cpuid(leaf, subleaf))
    return seen


VE: tuple[int, int] = (CPUID_REASON, 0)
NOT_TOLD: dict[Any, Any] = {(leaf, subleaf): VE for leaf in (0xB, 0x1F) for subleaf in range(7)}


def test_a_guest_sees_its_topology_when_it_asks_for_it(world: World) -> None:
    ids = 0x123, 0x4567
    vcpus = running(world, DIES, *ids)

    def program(_cpu: Any) -> Any:
        before = yield from look()
        configured = yield Tdcall(rax=VM_RD, rcx=0, rdx=CONFIGURED)
        assert (configured.rax, configured.r8) == (0, 1)
        # As Linux does it: first what takes all reasons for #VE away, which this module has not.
        assert (yield from write(REDUCE_VE, REDUCE_VE)) == (st.TDX_METADATA_FIELD_NOT_WRITABLE, 0)
        assert (yield from write(ENUM_TOPOLOGY, ENUM_TOPOLOGY)) == (0, 1)
        after = yield from look()
        # It can be taken back.
        assert (yield from write(0, ENUM_TOPOLOGY)) == (0, 1 | ENUM_TOPOLOGY)
        again = yield from look()
        yield from write(ENUM_TOPOLOGY, ENUM_TOPOLOGY)
        return before, after, again

    world.td.tdvpr = vcpus[0]
    before, after, again = world.run_guest(program)
    assert before == again == {"initial": 0, "msr": (RDMSR_REASON, 0), **NOT_TOLD}
    wanted: dict[Any, Any] = {
        "initial": ids[0] & 0xFF, "msr": ids[0],
        **{(0x1F, n): (*DIES[n][:3], ids[0]) for n in range(6)},
        (0xB, 0): (*DIES[0][:3], ids[0]), (0xB, 1): (4, 16, 2 << 8 | 1, ids[0]), (0xB, 2): (0, 0, 0, ids[0]),
        **{(0xB, n): VE for n in range(3, 7)}, (0x1F, 6): VE,
    }  # fmt: skip
    assert after == wanted
    # TD_CTLS is the TD's, not the vCPU's.
    world.td.tdvpr = vcpus[1]
    other = world.run_guest(lambda _cpu: look())
    assert (other["initial"], other["msr"], other[0xB, 0][3]) == (ids[1] & 0xFF, ids[1], ids[1])


def test_one_vcpu_without_an_x2apic_id_is_enough_to_have_no_topology(world: World) -> None:
    running(world, DIES, 5, None)

    def program(_cpu: Any) -> Any:
        configured = yield Tdcall(rax=VM_RD, rcx=0, rdx=CONFIGURED)
        assert (configured.rax, configured.r8) == (0, 0)
        assert (yield from write(ENUM_TOPOLOGY, ENUM_TOPOLOGY)) == (st.TDX_METADATA_FIELD_VALUE_NOT_VALID, 0)
        return (yield from look())

    assert world.run_guest(program) == {"initial": 1, "msr": (RDMSR_REASON, 0), **NOT_TOLD}


# ------------------------------------------------------------------ 1.5.01
def test_1_5_01_has_nothing_of_it(old: World) -> None:
    world = old
    features = world.ok("TDH.SYS.RD", rdx=by_name(Context.SYS, "TDX_FEATURES0").id)[R8]
    assert not features & TOPOLOGY_ENUM
    assert world.ok("TDH.SYS.RD", rdx=by_name(Context.SYS, "NUM_CPUID_CONFIG").id)[R8] == 12
    for name in ("TOPOLOGY_ENUM_CONFIGURED", "X2APIC_IDS"):
        after = world.call("TDH.MNG.RD", rcx=world.td.tdr, rdx=by_name(Context.TD, name).id)
        assert after[RAX] == st.TDX_METADATA_FIELD_ID_INCORRECT
    after = world.call("TDH.SYS.RD", rdx=by_name(Context.SYS, "MAX_VCPUS_PER_TD").id)
    assert after[RAX] == st.TDX_METADATA_FIELD_ID_INCORRECT
    unknown = st.TDX_OPERAND_INVALID | OperandId.RAX
    assert world.call("TDH.VP.INIT", version=1, rcx=world.td.tdvpr, rdx=0, r8=0)[RAX] == unknown
    assert world.call("TDH.SYS.DISABLE")[RAX] == unknown
    assert cpuid_value(world, 0x1F, 0) is None
    assert cpuid_value(world, 0xB, 0) is None
    keyed = make_td(world, "tdcs")
    params = bytearray(td_params(world, max_vcpus=0xFFFF))
    refused = bytearray(params)
    TD_PARAMS.cpuid_config.set(refused, 4 * 12, 1)  # reserved here
    after = world.call("TDH.MNG.INIT", rcx=keyed.tdr, rdx=world.buffer(bytes(refused)))
    assert after[RAX] == st.TDX_OPERAND_INVALID | OperandId.RDX
    world.ok("TDH.MNG.INIT", rcx=keyed.tdr, rdx=world.buffer(bytes(params)))

    def program(_cpu: Any) -> Any:
        assert (yield from write(ENUM_TOPOLOGY, ENUM_TOPOLOGY)) == (st.TDX_METADATA_FIELD_NOT_WRITABLE, 0)
        return (yield from look())

    assert world.run_guest(program) == {"initial": 0, "msr": (RDMSR_REASON, 0), **NOT_TOLD}


def test_what_the_module_says_can_be_configured(world: World, old: World) -> None:
    for module, count in ((world, 18), (old, 12)):
        buffer = module.buffer(bytes(1024))
        module.ok("TDH.SYS.INFO", rcx=buffer, rdx=1024, r8=module.buffer(bytes(512)), r9=32)
        info = module.memory.read(buffer, 1024)
        assert TDSYSINFO_STRUCT.num_cpuid_config.get(info) == count
        entries = [struct.unpack_from("<6I", info, 132 + 24 * n) for n in range(12, 18)]
        if count == 18:
            assert entries == [(0x1F, n, 0x1F, 0xFFFF, 0xFFFF, 0) for n in range(6)]
        else:
            assert not any(any(entry) for entry in entries)
