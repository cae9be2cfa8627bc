"""What the module tells of a TD and of itself is what the TD has: metadata, CPUID, TDREPORT."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.arch.cpuid_table import TOPOLOGY_CPUID
from swtdx.arch.metadata import Context, by_name
from swtdx.machine.engine.scripted import Cpuid, Tdcall, read_bytes, write_bytes
from swtdx.module.virtual_msrs import arch_capabilities
from swtdx.proof.conformance.stages import FIRST, add_page, add_sept, bring_up, make_td, td_params
from swtdx.proof.conformance.world import World

NOT_READABLE, OPERAND_INVALID = 0xC0000C02, 0xC000010000000000
REPORT = 4
#: Some CPUID leaves that a host configures, in their order, and bits that are what it says (base ABI).
CONFIGURABLE = {
    0: (1, 0xFFFFFFFF, 0x0FFF3FFF, 0x00FF0000, 0, 0),
    1: (4, 0, 0xFFFFC3FF, 0xFFFFF000, 0xFFFFFFFF, 0xFFFFFFFB),
    4: (4, 3, 0xFFFFC3FF, 0xFFFFF000, 0xFFFFFFFF, 0x7),
    5: (7, 0, 0, 0, 0, 0),
    9: (0x80000008, 0xFFFFFFFF, 0, 0, 0, 0),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield bring_up(made, "running")


def td_field(world: World, name: str, index: int = 0) -> tuple[int, int]:
    """(RAX, R8) of TDH.MNG.RD."""
    after = world.call("TDH.MNG.RD", rcx=world.td.tdr, rdx=by_name(Context.TD, name).id + index)
    return after[0], after[8]


def test_the_default_of_the_lock_timeout_is_a_second(world: World) -> None:
    assert td_field(world, "HP_LOCK_TIMEOUT") == (0, 1_000_000)


def test_cpuid_that_may_be_configured(world: World) -> None:
    leaves = by_name(Context.SYS, "CPUID_CONFIG_LEAVES").id
    values = by_name(Context.SYS, "CPUID_CONFIG_VALUES").id
    for index, (leaf, subleaf, *words) in CONFIGURABLE.items():
        assert world.call("TDH.SYS.RD", rdx=leaves + index)[8] == leaf | subleaf << 32
        found = [world.call("TDH.SYS.RD", rdx=values + 2 * index + half)[8] for half in (0, 1)]
        assert found == [words[0] | words[1] << 32, words[2] | words[3] << 32], index


def test_a_td_is_what_its_metadata_and_report_say(world: World) -> None:
    seen: dict[Any, Any] = {}
    changing = (1, 7, 0xD, 0x80000001, 0xB, 0x1F)  # at each execution; topology: test_topology.py
    rows = [row for row in TOPOLOGY_CPUID.rows if not row.faulting and row.leaf not in changing]

    def program(_cpu: Any) -> Any:
        for row in rows:
            subleaf = 0 if row.subleaf == 0xFFFFFFFF else row.subleaf
            seen[row.index] = yield Cpuid(row.leaf, subleaf)
        yield from write_bytes(FIRST, bytes(range(64)))
        seen["status"] = (yield Tdcall(rax=REPORT, rcx=FIRST + 0x400, rdx=FIRST, r8=0)).rax
        seen["report"] = yield from read_bytes(FIRST + 0x400, 1024)

    world.run_guest(program)
    assert seen["status"] == 0
    report = seen["report"]
    attributes, xfam = struct.unpack_from("<QQ", report, 512)
    assert (attributes, xfam) == (1 << 0 | 1 << 28, 3), "as the bench's TD_PARAMS ask for"
    assert report[512 + 16 : 512 + 64] == b"".join(
        td_field(world, "MRTD", index)[1].to_bytes(8, "little") for index in range(6)
    )
    assert any(report[512 + 16 : 512 + 64])
    assert td_field(world, "ATTRIBUTES") == (0, attributes)
    assert td_field(world, "XFAM") == (0, xfam)
    for row in rows:
        eax, ebx, ecx, edx = seen[row.index]
        found = [cpuid_value(world, row.leaf, row.subleaf, half) for half in (0, 1)]
        assert found == [(0, eax | ebx << 32), (0, ecx | edx << 32)], hex(row.leaf)
    for row in TOPOLOGY_CPUID.rows:
        if row.faulting:
            assert cpuid_value(world, row.leaf, row.subleaf, 0)[0] >> 32 == NOT_READABLE, hex(row.leaf)


def cpuid_value(world: World, leaf: int, subleaf: int, half: int) -> tuple[int, int]:
    """A half of a leaf's value; field code: leaf bit 31, leaf 6:0, no sub-leaf, sub-leaf 6:0, half."""
    none = subleaf == 0xFFFFFFFF
    code = (leaf >> 31) << 16 | (leaf & 0x7F) << 9 | none << 8 | (0x7F if none else subleaf) << 1 | half
    base = by_name(Context.TD, "CPUID_VALUES").id & ~0xFFFFFF
    after = world.call("TDH.MNG.RD", rcx=world.td.tdr, rdx=base | code)
    return after[0], after[8]


def test_a_vpid_is_of_one_td(world: World) -> None:
    """Not 0, with which VM entry fails (SDM volume 3, 27.2.1.1), and by the HKID, which is the TD's alone."""
    after = world.call("TDH.VP.RD", rcx=world.td.tdvpr, rdx=by_name(Context.VP, "VPID").id)
    assert (after[0], after[8] & 0xFFFF) == (0, world.td.hkid << 2)


# ---------------------------------------------------------------------- the TD VMCS of a debug TD
def vp_field(world: World, name: str) -> int:
    after = world.call("TDH.VP.RD", rcx=world.td.tdvpr, rdx=by_name(Context.VP, name).id)
    assert after[0] == 0, hex(after[0])
    return after[8]


def test_which_bits_of_control_registers_the_module_owns(world: World) -> None:
    """CR0: PE, NE, NW, CD and what is reserved, not PG; CR4: MCE, VMXE, SMXE, what the TD has not, 63:26."""
    cr0, cr4 = vp_field(world, "CR0_GUEST_HOST_MASK"), vp_field(world, "CR4_GUEST_HOST_MASK")
    nested = vp_field(world, "BASE_L2_CR0_GUEST_HOST_MASK")
    for bit in (5, 29, 30, 32, 63):
        assert nested >> bit & 1, bit
    for bit in (0, 5, 6, 15, 17, 19, 28, 29, 30, 32, 63):
        assert cr0 >> bit & 1, bit
    for bit in (1, 2, 3, 16, 18, 31):
        assert not cr0 >> bit & 1, bit
    for bit in (6, 13, 14, 15, 19, 22, 23, 24, 25, 26, 63):
        assert cr4 >> bit & 1, bit
    for bit in (2, 3, 4, 5, 7, 8, 9, 10, 16, 18, 20, 21):
        assert not cr4 >> bit & 1, bit


PML = 1 << 17
VALUE_NOT_VALID = 0xC0000C03


def write_controls(world: World, value: int, mask: int) -> int:
    field = by_name(Context.VP, "SECONDARY_CONTROLS")
    return world.call("TDH.VP.WR", rcx=world.td.tdvpr, rdx=field.id, r8=value, r9=mask)[0]


def test_page_modification_logging_needs_an_address(world: World) -> None:
    """A debug TD's host may turn it on, once it has said where the log is."""
    assert write_controls(world, PML, PML) >> 32 == VALUE_NOT_VALID
    assert write_controls(world, 0, PML) == 0
    address = by_name(Context.VP, "PML_ADDRESS")
    log = world.buffer()
    assert world.call("TDH.VP.WR", rcx=world.td.tdvpr, rdx=address.id, r8=log, r9=(1 << 64) - 1)[0] == 0
    assert write_controls(world, PML, PML) == 0
    assert vp_field(world, "SECONDARY_CONTROLS") & PML
    assert write_controls(world, 0, PML) == 0


def test_what_a_guest_reads_of_control_registers(world: World) -> None:
    owned = vp_field(world, "CR0_GUEST_HOST_MASK"), vp_field(world, "CR4_GUEST_HOST_MASK")
    assert vp_field(world, "CR0_READ_SHADOW") & owned[0] == 0x21, "PE and NE"
    assert vp_field(world, "CR4_READ_SHADOW") & owned[1] == 0x40, "MCE, and no VMXE"
    assert vp_field(world, "BASE_L2_CR4_READ_SHADOW") == 0x2040, "an L2 VM: MCE and VMXE"


def test_a_write_tells_what_was_there(world: World) -> None:
    """TDH.MNG.WR and TDH.MEM.WR give the old value back, and only that."""
    field = by_name(Context.TD, "HP_LOCK_TIMEOUT").id
    for new, old in ((20_000, 1_000_000), (1_000_000, 20_000)):
        after = world.call("TDH.MNG.WR", rcx=world.td.tdr, rdx=field, r8=new, r9=(1 << 64) - 1)
        assert (after[0], after[8]) == (0, old)
    at = FIRST + 0xFF0
    first = world.call("TDH.MEM.RD", rcx=at, rdx=world.td.tdr)[8]
    for new, old in ((0x1122334455667788, first), (first, 0x1122334455667788)):
        after = world.call("TDH.MEM.WR", rcx=at, rdx=world.td.tdr, r8=new)
        assert (after[0], after[8]) == (0, old)


# ---------------------------------------------------------------------- IA32_ARCH_CAPABILITIES
@pytest.mark.parametrize("bit", range(64))
def test_arch_capabilities_by_the_bit(bit: int) -> None:
    """SSB_NO, BHI_NO and PBRSB_NO pass if the host says so, RRSBA is the host's; TSX_CTRL goes with TSX."""
    ones = (1 << 64) - 1
    zero = {9, 10, 11, 16, 17, 18, 21, 22, 23, *range(25, 64)}
    configurable = {4, 19, 20, 24}
    made = arch_capabilities(ones, 0, given=False, tsx=False)
    assert made is not None
    assert made >> bit & 1 == (bit not in zero | {4, 7, 20, 24})
    with_tsx = arch_capabilities(ones, 0, given=False, tsx=True)
    assert with_tsx is not None
    assert with_tsx >> bit & 1 == (bit not in zero | {4, 20, 24})
    asked = arch_capabilities(0, 1 << bit, given=True, tsx=False)
    assert (asked is None) == (bit not in configurable)
    if asked is not None:
        assert asked == (1 << 19 if bit == 19 else 0), "only RRSBA without the processor having it"
        assert arch_capabilities(ones, 1 << bit, given=True, tsx=False) == made | 1 << bit
    assert arch_capabilities(ones, 1 << bit, given=False, tsx=False) is None


# ---------------------------------------------------------------------- borders
def test_a_buffer_may_end_where_the_seam_range_begins(world: World) -> None:
    world.memory.clear(world.seam_range - 4096, 4096)
    assert world.call("TDH.SYS.RDALL", rdx=world.seam_range - 4096, r8=(1 << 64) - 1)[0] == 0
    assert world.call("TDH.SYS.RDALL", rdx=world.seam_range, r8=(1 << 64) - 1)[0] == OPERAND_INVALID | 2


@pytest.mark.parametrize(
    "components",
    [7 << 5, 1 << 8, 3 << 11, 1 << 14, 1 << 15, 3 << 17],
    ids=["AVX-512", "PT", "CET", "UINTR", "LBR", "AMX"],
)
def test_components_that_the_processor_has_not(world: World, components: int) -> None:
    native = world.lps[0].cpuid
    assert not (native(0xD, 0)[0] | native(0xD, 1)[2]) & components, (
        "the engine's processor has none of these"
    )
    td = make_td(world, "tdcs")
    params = td_params(world, xfam=7 | components)
    assert world.call("TDH.MNG.INIT", rcx=td.tdr, rdx=world.buffer(params))[0] == OPERAND_INVALID | 65
    assert world.call("TDH.MNG.INIT", rcx=td.tdr, rdx=world.buffer(td_params(world, xfam=7)))[0] == 0


def test_the_structure_that_came_before_metadata(world: World) -> None:
    """TDSYSINFO_STRUCT by its published offsets."""
    info = world.buffer()
    assert world.call("TDH.SYS.INFO", rcx=info, rdx=1024, r8=world.buffer(), r9=32)[0] == 0
    data = world.memory.read(info, 1024)
    vendor, built, build, minor, major = struct.unpack_from("<IIHHH", data, 4)
    assert (vendor, built, build, major, minor) == (0x8086, 20240101, 0, 1, 5), "as 1.5.01's SIGSTRUCT has it"
    assert world.ok("TDH.SYS.RD", rdx=by_name(Context.SYS, "BUILD_DATE").id)[8] == built
    assert data[18] & 1 == 1, "TDH.SYS.RD and RDALL are there"
    assert struct.unpack_from("<HHH", data, 32) == (64, 16, 16), "TDMRs, reserved areas of each, PAMT entry"


# ---------------------------------------------------------------------- parts
@pytest.mark.parametrize(
    ("part", "signatures"),
    [
        ("sierra-forest", [0xA06F3, 0xC06F2, 0x806F8]),
        ("emerald-rapids", [0xC06F2, 0x806F8]),
        ("sapphire-rapids", [0x806F8]),
    ],
)
def test_parts_that_a_td_may_be_told_it_runs_on(part: str, signatures: list[int]) -> None:
    """CPUID(1).EAX: this part with its own stepping, then those that came before it, newest first."""
    with World(part=part) as made:
        bring_up(made, "processors")

        def read(name: str, index: int = 0) -> int:
            identifier = by_name(Context.SYS, name).element_id(index)
            return made.ok("TDH.SYS.RD", rdx=identifier)[8]

        assert read("NUM_ALLOWED_FMS") == len(signatures)
        assert [read("ALLOWED_FMS", index) for index in range(len(signatures) + 1)] == [*signatures, 0]
        assert read("PKG_FMS") == made.lps[0].cpuid(1)[0]


def test_a_page_is_added_only_where_none_is() -> None:
    """EPT_ENTRY_STATE_INCORRECT, and what was there stays."""
    with bring_up(World(), "built") as world:
        add_sept(world, world.td)
        add_page(world, world.td, FIRST)
        before = world.ok("TDH.MEM.SEPT.RD", rcx=FIRST, rdx=world.td.tdr)[1:3]
        page, source = world.page(), world.buffer(bytes(4096))
        after = world.call("TDH.MEM.PAGE.ADD", rcx=FIRST, rdx=world.td.tdr, r8=page, r9=source)
        assert after[0] == 0xC0000B0D_00000001
        assert world.ok("TDH.MEM.SEPT.RD", rcx=FIRST, rdx=world.td.tdr)[1:3] == before
