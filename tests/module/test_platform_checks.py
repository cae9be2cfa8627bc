"""What TDH.SYS.INIT and TDH.SYS.LP.INIT insist on, bit by bit, on a processor that answers otherwise.

The bits are those of Intel's module 1.5.01 (``td_vmcs_init.h``, ``virt_msr_helpers.h``, ``tdh_sys_init.c``)
by their names in the SDM; a bit that nobody asks about may be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from swtdx.arch.cpuid_table import NA, ROWS
from swtdx.proof.conformance.stages import bring_up
from swtdx.proof.conformance.world import TDMR, World

INCORRECT_MSR, INCORRECT_CPUID, INCONSISTENT_CPUID = 0xC0000921, 0xC0000900, 0xC0000902
CMR_LIST_INVALID, LEAF_NOT_SUPPORTED, INCONSISTENT_MSR = 0xC0000A22, 0xC0000908, 0xC0000920
SMRR_OVERLAPS_CMR = 0xC0000912
ARCH_CAPABILITIES, BASIC, MISC, EPT_VPID = 0x10A, 0x480, 0x485, 0x48C
PIN, PROC, EXIT, ENTRY, PROC2 = 0x48D, 0x48E, 0x48F, 0x490, 0x48B
Change = Callable[[int], int]


def state(world: World) -> Any:
    """The module's state: what it has read of CMRs and CPUID is put there for a test."""
    return world.machine.seam.module.state


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield bring_up(made, "loaded")


def init(world: World, changes: dict[int, Change]) -> int:
    """TDH.SYS.INIT where some MSRs read otherwise; RAX."""
    lp = world.lps[0]
    native = lp.rdmsr

    def answer(index: int) -> int:
        value: int = native(index)
        change = changes.get(index)
        return value if change is None else change(value)

    with mock.patch.object(lp, "rdmsr", answer):
        return world.call("TDH.SYS.INIT", rcx=0)[0]


def without(*bits: int) -> Change:
    return lambda value: value & ~sum(1 << bit for bit in bits)


def with_(*bits: int) -> Change:
    return lambda value: value | sum(1 << bit for bit in bits)


#: Bits that may not be missing, by MSR.
NEEDED: dict[int, tuple[int, ...]] = {
    # RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, MISC_PACKAGE_CTLS,
    # ENERGY_FILTERING_CTL, DOITM, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, XAPIC_DISABLE_STATUS.
    ARCH_CAPABILITIES: (0, 1, 3, 5, 6, 8, 10, 11, 12, 13, 14, 15, 21),
    # INS/OUTS information, TRUE_ MSRs.
    BASIC: (54, 55),
    # LMA in the entry controls, HLT and shutdown activity states, PT in VMX, VMWRITE to any field.
    MISC: (5, 6, 7, 14, 29),
    # Execute-only, 4 levels, WB, 2 MiB, 1 GiB, INVEPT, accessed and dirty, INVEPT of one and of all contexts,
    # INVVPID, of an address.
    EPT_VPID: (0, 6, 14, 16, 17, 20, 21, 25, 26, 32, 40),
    # External interrupts, NMI, virtual NMIs; posted interrupts must be free to vary.
    PIN: (32 + 0, 32 + 3, 32 + 5, 32 + 7),
    # TSC offset, HLT, tertiary, TPR shadow, I/O, MSR bitmaps, secondary; MWAIT, RDPMC, NMI window, MONITOR.
    PROC: tuple(32 + bit for bit in (3, 7, 17, 21, 24, 28, 31, 10, 11, 22, 29)),
    # EPT ... TSC scaling; PAUSE-loop exiting, USER WAIT, PCONFIG.  (ENCLV, bit 28, may be missing.)
    PROC2: tuple(
        32 + bit for bit in (1, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 18, 19, 20, 21, 24, 25, 10, 26, 27)
    ),
    EXIT: tuple(32 + bit for bit in (2, 9, 15, 18, 19, 20, 21, 24, 25, 26, 27, 28, 12, 30)),
    ENTRY: tuple(32 + bit for bit in (2, 14, 15, 17, 18, 19, 20, 21, 9, 13, 22)),
    # CR0 may have PE and NE, CR4 may have MCE and VMXE.
    0x487: (0, 5),
    0x489: (6, 13),
    # MISC_PACKAGE_CTLS, full-width counters, the lock of TME_ACTIVATE.
    0xBC: (0,),
    0x345: (13,),
    0x982: (0,),
}  # fmt: skip
#: Bits that may not be there.
REFUSED: dict[int, tuple[int, ...]] = {
    ARCH_CAPABILITIES: (2,),  # RSBA
    # Controls that the module varies, and one that it never sets, must not be forced.
    PIN: (7,),
    PROC: (10, 11, 22, 29),
    PROC2: (10, 26, 27, 0, 2, 11),
    EXIT: (12, 30),
    ENTRY: (9, 13, 22),
    0x486: (1, 3, 16, 29),
    0x488: (0, 5, 12),
    0xBD: (1,),
}


@pytest.mark.parametrize("index", NEEDED, ids=hex)
def test_what_is_needed(world: World, index: int) -> None:
    wrong = [
        bit for bit in NEEDED[index] if init(world, {index: without(bit)}) != INCORRECT_MSR << 32 | index
    ]
    assert not wrong


@pytest.mark.parametrize("index", REFUSED, ids=hex)
def test_what_is_refused(world: World, index: int) -> None:
    wrong = [bit for bit in REFUSED[index] if init(world, {index: with_(bit)}) != INCORRECT_MSR << 32 | index]
    assert not wrong


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (BASIC, lambda value: value & ~(0x1FFF << 32) | 2049 << 32),
        (MISC, lambda value: value & ~(0x1FF << 16) | 3 << 16),
        (0x981, lambda value: value & ~0xF),
        (0x982, lambda value: value & ~(0xF << 48)),
        (0xBD, lambda value: 0),
    ],
    ids=["a VMCS of more than half a page", "3 CR3 targets", "no AES-XTS", "no AES-XTS activated", "xAPIC"],
)
def test_numbers(world: World, index: int, change: Change) -> None:
    assert init(world, {index: change}) == INCORRECT_MSR << 32 | index


def test_what_it_does_not_ask_about() -> None:
    """A VMCS of half a page, 4 CR3 targets, 2047 KeyIDs, and every bit that no check names."""
    changes: dict[int, Change] = {
        ARCH_CAPABILITIES: lambda value: value ^ (1 << 4 | 1 << 7 | 1 << 9 | 0x1F << 16 | 1 << 22 | 1 << 24),
        BASIC: lambda value: (value & ~(0x1FFF << 32) | 2048 << 32) ^ (1 << 49 | 1 << 56 | 0x7FFFFFFF),
        MISC: lambda value: (value & ~(0x1FF << 16) | 4 << 16) ^ (0x1F | 1 << 8 | 1 << 15 | 1 << 28),
        EPT_VPID: lambda value: value ^ (1 << 7 | 1 << 8 | 1 << 22 | 1 << 23 | 0x3F << 48),
        0x486: with_(0, 5, 31),
        0x487: lambda value: value ^ (1 << 8 | 1 << 20),
        0x488: with_(6, 13),
        0x489: lambda value: value ^ (1 << 12 | 1 << 23),
        0xBC: lambda value: value ^ 0xFE,
        0x345: lambda value: value ^ 0x1FFF,
        PIN: lambda value: value | 1 << 1 | 1 << 2 | 1 << 4,
        PROC: lambda value: value | 1 << 1 | 1 << 4 | 1 << 26,
        0x87: lambda value: 1024 << 32 | 1023,
    }  # fmt: skip
    with World() as world:
        assert init(bring_up(world, "loaded"), changes) == 0


# ---------------------------------------------------------------------- CMRs
def test_cmrs(world: World) -> None:
    info = state(world).sysinfo
    good = info.cmrs
    limit = 1 << state(world).hpa_bits
    bad = {
        "overlap by a page": ((0x10000, 0x10000), (0x1F000, 0x10000)),
        "a base that is not aligned": ((0x10800, 0x10000),),
        "a size that is not": ((0x10000, 0x10010),),
        "beyond the last address": ((limit - 0x1000, 0x2000),),
        "out of order": ((0x20000, 0x1000), (0x10000, 0x1000)),
        "the same twice": ((0x20000, 0x1000), (0x20000, 0x1000)),
    }
    for what, cmrs in bad.items():
        with mock.patch.dict(info.__dict__, {"cmrs": cmrs}):
            assert world.call("TDH.SYS.INIT", rcx=0)[0] == CMR_LIST_INVALID << 32, what
    assert info.cmrs == good


def test_cmrs_may_touch_and_reach_the_end() -> None:
    with World() as world:
        bring_up(world, "loaded")
        info = state(world).sysinfo
        limit = 1 << state(world).hpa_bits
        last = limit - 0x1000
        with mock.patch.dict(info.__dict__, {"cmrs": (*info.cmrs, (last - 0x1000, 0x1000), (last, 0x1000))}):
            assert world.call("TDH.SYS.INIT", rcx=0)[0] == 0


def test_smrr_borders() -> None:
    """SMRR may touch a CMR at either end; one byte more is an overlap (in pages: SMRR has that unit)."""
    with World() as world:
        bring_up(world, "loaded")
        info = state(world).sysinfo
        for cmrs, status in (
            (((0x7000_0000, 0x1000_0000), (0x8080_0000, 0x1000)), 0),
            (((0x7000_0000, 0x1000_1000),), SMRR_OVERLAPS_CMR << 32),
            (((0x1000, 0x1000), (0x807F_F000, 0x1000)), SMRR_OVERLAPS_CMR << 32 | 1 << 8),
        ):
            with (
                mock.patch.dict(info.__dict__, {"cmrs": cmrs}),
                world.msr(0x1F2, 0x8000_0006),
                world.msr(0x1F3, 0xFF80_0C00),
            ):
                assert world.call("TDH.SYS.INIT", rcx=0)[0] >> 32 == status >> 32, cmrs
            if not status:
                return


# ---------------------------------------------------------------------- CPUID
def test_a_failure_says_what_was_expected() -> None:
    """RCX is the leaf; RDX:R8 the mask, R9:R10 the value, which a good processor has and this one has not."""
    with World() as world:
        bring_up(world, "loaded")
        facts = state(world).facts
        native = facts.native_cpuid
        for leaf, subleaf, register, bit in ((1, NA, 3, 0), (7, 0, 1, 7), (1, NA, 2, 25)):

            def answer(
                asked: int,
                sub: int,
                leaf: int = leaf,
                subleaf: int = subleaf,
                n: int = register,
                bit: int = bit,
            ) -> Any:
                values = list(native(asked, sub))
                if (asked, sub) == (leaf, subleaf):
                    values[n] ^= 1 << bit
                return tuple(values)

            facts.__dict__.pop("sampled", None)
            with mock.patch.object(facts, "native_cpuid", answer):
                after = world._seamcall("TDH.SYS.INIT", {"rcx": 0}, lp=0, version=0, rax=0, outputs=False)
            facts.__dict__.pop("sampled", None)
            assert after[0] == INCORRECT_CPUID << 32, (hex(leaf), register, bit)
            assert after[1] == leaf | subleaf << 32
            pairs = [(after[n] & 0xFFFFFFFF, after[n] >> 32) for n in (2, 8, 9, 10)]
            mask, value = [*pairs[0], *pairs[1]], [*pairs[2], *pairs[3]]
            right, here = native(leaf, subleaf), answer(leaf, subleaf)
            row = next(row for row in ROWS if (row.leaf, row.subleaf) == (leaf, subleaf))
            assert (mask[register] >> bit & 1) == 1
            differing = [mask[n] & ~row.verify_mask[n] for n in range(4)]
            assert differing == [0] * 4, "no more than the published mask"
            known = {"edx": 3, "ecx": 2}
            for n in known.values():
                assert right[n] & mask[n] == value[n] & mask[n]
            assert here[register] & mask[register] != value[register]
            assert all(value[n] & ~mask[n] == 0 for n in range(4))
            # Something is insisted on in more than one register of these leaves.
            assert sum(1 for each in mask if each) >= 2


def test_a_crystal_that_does_not_tick() -> None:
    with World() as world:
        bring_up(world, "loaded")
        facts = state(world).facts
        native = facts.native_cpuid

        def answer(leaf: int, subleaf: int) -> Any:
            found = native(leaf, subleaf)
            return (found[0], 0, *found[2:]) if leaf == 0x15 else found

        facts.__dict__.pop("sampled", None)
        with mock.patch.object(facts, "native_cpuid", answer):
            assert world.call("TDH.SYS.INIT", rcx=0)[0] == LEAF_NOT_SUPPORTED << 32 | 0x15


def test_processors_that_differ_in_one_cpuid_bit() -> None:
    with World() as world:
        bring_up(world, "initialised")
        lp = world.lps[1]
        native = lp.cpuid
        for leaf, register, bit in ((7, 1, 3), (1, 3, 25), (0x80000001, 3, 20)):

            def answer(asked: int, sub: int = 0, leaf: int = leaf, n: int = register, bit: int = bit) -> Any:
                values = list(native(asked, sub))
                if asked == leaf and not sub:
                    values[n] ^= 1 << bit
                return tuple(values)

            with mock.patch.object(lp, "cpuid", answer):
                after = world._seamcall("TDH.SYS.LP.INIT", {}, lp=1, version=0, rax=0, outputs=False)
            assert after[0] == INCONSISTENT_CPUID << 32, hex(leaf)
            assert after[1] == leaf | (0 if leaf == 7 else NA) << 32
            mask = (after[2] & 0xFFFFFFFF, after[2] >> 32, after[8] & 0xFFFFFFFF, after[8] >> 32)
            row = next(row for row in ROWS if row.leaf == leaf)
            assert mask == row.verify_same
            assert mask[register] >> bit & 1


@pytest.mark.parametrize(
    "index",
    [0x480, 0x48D, 0x48E, 0x48B, 0x48F, 0x490, 0x485, 0x48C, 0x486, 0x487, 0x488, 0x489, 0x345, 0x981, 0x982,
     0x87, 0x10A, 0xBD, 0xBC, 0xCF],
    ids=hex,
)  # fmt: skip
def test_processors_that_differ_in_one_msr(others: World, index: int) -> None:
    lp = others.lps[1]
    native = lp.rdmsr
    with mock.patch.object(lp, "rdmsr", lambda asked: native(asked) ^ (asked == index) << 40):
        after = others.call("TDH.SYS.LP.INIT", lp=1)
    assert after[0] == INCONSISTENT_MSR << 32 | index


@pytest.fixture(scope="module")
def others() -> Iterator[World]:
    with World() as made:
        yield bring_up(made, "initialised")


def test_the_bench_is_what_it_seems() -> None:
    """With nothing changed it works, up to a TD: else refusals above would prove nothing."""
    with World() as world:
        bring_up(world, "ready")
        assert world.call("TDH.PHYMEM.PAGE.RDMD", rcx=TDMR)[0] == 0
