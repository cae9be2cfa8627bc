"""TDH.SYS.*: bringing the module up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final
from unittest import mock

from swtdx.arch import status as s
from swtdx.arch.cpuid_table import NA, Quad
from swtdx.arch.msrs import IA32_WBNOINVDP
from swtdx.arch.regs import RAX
from swtdx.arch.units import GIB, PAGE
from swtdx.machine import seamops
from swtdx.proof.conformance import common
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.kot import busy_key_table, no_entropy_for_keys
from swtdx.proof.conformance.operands import checked
from swtdx.proof.conformance.registry import add, provokes
from swtdx.proof.conformance.stages import bring_up, make_td, tdmr_info, tdmr_pointers
from swtdx.proof.conformance.world import OUTSIDE, PAMT_2M, PAMT_4K, TDMR, World


def _global_lock(good: Good) -> None:
    """Another processor holds the module's global lock."""
    good.held(
        s.TDX_SYS_BUSY, "another processor holds the global lock",
        lambda world, _: world.locked(world.probe.sys_lock),
    )  # fmt: skip


# ------------------------------------------------------------------ TDH.SYS.DISABLE
DISABLE: Final = Good("TDH.SYS.DISABLE", "ready", lambda w: {})
checked(DISABLE, early=True)
_global_lock(DISABLE)


@provokes("TDH.SYS.DISABLE", s.TDX_SYS_BUSY, "another processor runs a TD", stage="running", reusable=True)
def _a_td_runs(world: World) -> None:
    with mock.patch.object(world.lps[1], "in_guest", new=True):
        world.provoke()


@provokes("TDH.SYS.DISABLE", s.TDX_SUCCESS, "and the module comes up again", stage="running")
def _all_comes_back(world: World) -> None:
    pages = [world.td.tdr, world.td.tdvpr, *world.td.tdcx, *world.td.vpcx, *world.td.pages.values()]
    world.provoke()
    for page in (*pages, PAMT_4K, PAMT_2M):
        assert not any(world.memory.read(page, PAGE)), f"{page:#x} is not cleared"
    assert world.call("TDH.MNG.CREATE", rcx=world.td.tdr, rdx=world.td.hkid)[RAX] == s.TDX_SYS_NOT_READY
    bring_up(world, "ready")
    make_td(world, "running")


# ------------------------------------------------------------------ TDH.SYS.INIT
INIT: Final = Good("TDH.SYS.INIT", "loaded", lambda w: {"rcx": 0})
checked(INIT, early=True)
_global_lock(INIT)
common.boot_nt4(INIT)
INIT.refused(s.TDX_OPERAND_INVALID, "attributes", "RCX", rcx=1)
INIT.refused(s.TDX_SYS_INIT_NOT_PENDING, "the second time", stage="initialised")


def _msr_case(
    value: int, what: str, index: int, content: Callable[[int], int], details: int, *, reusable: bool = True
) -> None:
    INIT.held(
        value, what, lambda world, _: world.msr(index, content(world.lps[0].msrs.peek(index))), details,
        reusable=reusable,
    )  # fmt: skip


for _what, _index, _change in (
    ("ARCH_CAPABILITIES without RDCL_NO", 0x10A, lambda value: value & ~1),
    ("ARCH_CAPABILITIES with RSBA", 0x10A, lambda value: value | 1 << 2),
    ("xAPIC is not disabled", 0xBD, lambda value: 0),
    ("no energy filtering", 0xBC, lambda value: value & ~1),
    ("no full-width counters", 0x345, lambda value: value & ~(1 << 13)),
):
    _msr_case(s.TDX_INCORRECT_MSR_VALUE, _what, _index, _change, _index)
for _what, _index, _change in (
    ("a VMCS region of more than 2 KiB", 0x480, lambda value: value + (1 << 32)),
    ("tertiary controls without bit 7", 0x492, lambda value: value & ~(1 << 7)),
    ("tertiary controls without bit 3, which L2 VMs need", 0x492, lambda value: value & ~(1 << 3)),
    ("secondary controls without bit 2, which L2 VMs need", 0x48B, lambda value: value & ~(1 << 32 + 2)),
    (
        "primary controls without bit 2, which L2 VMs need",
        0x48E,
        lambda value: value & ~(1 << 32 + 2),
    ),
):
    _msr_case(s.TDX_INCORRECT_MSR_VALUE, _what, _index, _change, _index)
_msr_case(
    s.TDX_SUCCESS, 'no "ENCLV exiting"', 0x48B, lambda value: value & ~(1 << 32 + 28), 0, reusable=False
)
_msr_case(s.TDX_SMRR_NOT_SUPPORTED, "MTRRcap without SMRR", 0xFE, lambda value: value & ~(1 << 11), 0)
_msr_case(
    s.TDX_SMRR_LOCK_NOT_SUPPORTED, "MTRRcap without SMRR lock", 0xFE, lambda value: value & ~(1 << 14), 0
)
_msr_case(s.TDX_SMRR_NOT_LOCKED, "an SMRR that is not locked", 0x1F3, lambda value: value & ~(1 << 10), 0)

_msr_case(
    s.TDX_INVALID_SMRR_CONFIGURATION, "an SMRR mask with a hole", 0x1F3, lambda value: value ^ 1 << 30, 0
)
_msr_case(s.TDX_NUM_ACTIVATED_HKIDS_NOT_SUPPORTED, "2048 KeyIDs", 0x87, lambda value: 1024 << 32 | 1024, 2048)
_msr_case(s.TDX_SMRR_OVERLAPS_CMR, "an SMRR in the first CMR", 0x1F2, lambda value: 0x2000_0006, 0)


def _cpuid_case(
    value: int, what: str, row: tuple[int, int], change: Callable[[Quad], Quad], details: int = 0, **more: Any
) -> None:
    """TDH.SYS.INIT on processors that answer one CPUID leaf otherwise."""

    def answer(leaf: int, subleaf: int, native: Quad) -> Quad:
        return change(native) if (leaf, subleaf & 0xFF if subleaf != NA else 0) == row else native

    INIT.held(value, what, lambda world, _: world.probe.cpuid_says(answer), details, reusable=False, **more)


_cpuid_case(s.TDX_CPUID_LEAF_NOT_SUPPORTED, "no leaf 0x1F", (0, 0), lambda q: (0x1E, *q[1:]), details=0x1F)
_cpuid_case(
    s.TDX_INCORRECT_CPUID_VALUE, "no FPU", (1, 0), lambda q: (q[0], q[1], q[2], q[3] & ~1), outputs=False
)
_cpuid_case(
    s.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED, "levels in the wrong order", (0x1F, 1),
    lambda q: (q[0], q[1], 1 | 1 << 8, q[3]),
)  # fmt: skip
_cpuid_case(
    s.TDX_INVALID_WBINVD_SCOPE, "a last-level cache of half a package", (4, 3),
    lambda q: (q[0] & ~(0xFFF << 14), *q[1:]),
)  # fmt: skip


def _sub_blocks(world: World, _operands: dict[str, int]) -> AbstractContextManager[object]:
    lp = world.lps[0]
    native = lp.rdmsr
    return mock.patch.object(lp, "rdmsr", lambda index: native(index) + (index == IA32_WBNOINVDP))


INIT.held(
    s.TDX_INCORRECT_MSR_VALUE, "WBINVDP and WBNOINVDP differ", _sub_blocks, IA32_WBNOINVDP, reusable=False
)
INIT.held(
    s.TDX_CMR_LIST_INVALID, "CMRs in the wrong order", lambda world, _: world.probe.cmrs_reversed(),
    reusable=False,
)  # fmt: skip
for _leaf in (4, 5):
    INIT.held(
        s.TDX_INCOMPATIBLE_SEAM_CAPABILITIES, f"no SEAMOPS leaf {_leaf}",
        lambda _world, _operands, leaf=_leaf: mock.patch.object(  # type: ignore[misc]
            seamops, "capabilities", return_value=seamops.capabilities() & ~(1 << leaf)
        ),
        reusable=False,
    )  # fmt: skip


@provokes(
    "TDH.SYS.INIT",
    s.TDX_SUCCESS,
    "no SEAMDB_INSERT, which the module does not use",
    stage="loaded",
)
def _no_insert(world: World) -> None:
    native = seamops.capabilities()
    with mock.patch.object(seamops, "capabilities", return_value=native & ~(1 << 3)):
        world.provoke(rcx=0)


# ------------------------------------------------------------------ TDH.SYS.LP.INIT
LP_INIT: Final = Good("TDH.SYS.LP.INIT", "initialised", lambda w: {})
checked(LP_INIT, early=True)
_global_lock(LP_INIT)
common.boot_nt4(LP_INIT)
common.tsc_adjust(LP_INIT)
LP_INIT.refused(s.TDX_SYS_LP_INIT_NOT_PENDING, "before TDH.SYS.INIT", stage="loaded")
LP_INIT.refused(s.TDX_SYS_LP_INIT_NOT_PENDING, "after TDH.SYS.CONFIG", stage="configured")


@provokes("TDH.SYS.LP.INIT", s.TDX_SYS_LP_INIT_DONE, "the second time", stage="initialised")
def _twice(world: World) -> None:
    world.ok("TDH.SYS.LP.INIT")
    world.provoke()


def _other_msrs(what: str, *indices: int) -> None:
    """The second processor's MSRs differ in bit 4; the first of them is what it answers."""

    def action(world: World) -> None:
        msrs = world.lps[1].msrs
        with contextlib.ExitStack() as changed:
            for index in indices:
                changed.enter_context(world.msr(index, msrs.peek(index) ^ 1 << 4, lp=1))
            world.provoke(lp=1)

    add(
        "TDH.SYS.LP.INIT", s.TDX_INCONSISTENT_MSR, what, action, details=indices[0], stage="initialised",
        reusable=True,
    )  # fmt: skip


for _what, _index in (
    ("IA32_ARCH_CAPABILITIES", 0x10A), ("IA32_MTRRCAP", 0xFE), ("IA32_SMRR_PHYSBASE", 0x1F2),
    ("IA32_SMRR_PHYSMASK", 0x1F3), ("IA32_VMX_BASIC", 0x480), ("IA32_PERF_CAPABILITIES", 0x345),
    ("IA32_TME_ACTIVATE", 0x982),
):  # fmt: skip
    _other_msrs(f"another {_what}", _index)
_other_msrs("package controls come before the xAPIC status", 0xBC, 0xBD)
_other_msrs("SMRRs come before VMX", 0xFE, 0x1F2, 0x1F3, 0x480)
_other_msrs("a base comes before its mask", 0x1F2, 0x1F3)


@provokes(
    "TDH.SYS.LP.INIT", s.TDX_INCONSISTENT_CPUID_FIELD, "another CPUID(7)", stage="initialised",
    outputs=False,
)  # fmt: skip
def _other_cpuid(world: World) -> None:
    lp = world.lps[1]
    native = lp.cpuid

    def answer(leaf: int, subleaf: int = 0) -> Quad:
        eax, ebx, ecx, edx = native(leaf, subleaf)
        return eax, ebx ^ (1 << 3 if leaf == 7 and not subleaf else 0), ecx, edx

    with mock.patch.object(lp, "cpuid", answer):
        world.provoke(lp=1)


# ------------------------------------------------------------------ TDH.SYS.INFO
INFO: Final = Good(
    "TDH.SYS.INFO", "ready", lambda w: {"rcx": w.buffer(), "rdx": 1024, "r8": w.buffer(), "r9": 32}
)
checked(INFO, early=True)
INFO.refused(s.TDX_OPERAND_INVALID, "a buffer of 1023 bytes", "RDX", rdx=1023)
INFO.refused(s.TDX_OPERAND_INVALID, "room for 31 CMRs", "R9", r9=31)

# ------------------------------------------------------------------ TDH.SYS.CONFIG
CONFIG: Final = Good(
    "TDH.SYS.CONFIG", "processors",
    lambda w: {"rcx": tdmr_pointers(w, tdmr_info()), "rdx": 1, "r8": w.first_hkid},
)  # fmt: skip
checked(CONFIG, early=True)
_global_lock(CONFIG)
CONFIG.refused(s.TDX_OPERAND_INVALID, "no TDMR", "RDX", rdx=0)
CONFIG.refused(s.TDX_OPERAND_INVALID, "65 TDMRs", "RDX", rdx=65)
CONFIG.refused(s.TDX_SYS_CONFIG_NOT_PENDING, "processors are missing", stage="initialised")
CONFIG.refused(s.TDX_SYS_CONFIG_NOT_PENDING, "the second time", stage="configured")
CONFIG.refused(
    s.TDX_OPERAND_INVALID, "a TDMR_INFO that is not aligned", "RCX",
    rcx=lambda w: w.buffer((w.buffer(tdmr_info()) + 64).to_bytes(8, "little")),
)  # fmt: skip

_4K, _2M, _1G = range(3)
#: (status, what, details, fields of TDMR_INFO).
_BAD_TDMRS: Final[tuple[tuple[int, str, int, dict[str, int]], ...]] = (
    (s.TDX_INVALID_TDMR, "a base that is no multiple of 1 GiB", 0, {"tdmr_base": TDMR + PAGE}),
    (s.TDX_INVALID_TDMR, "a size that is no multiple of 1 GiB", 0, {"tdmr_size": GIB - PAGE}),
    (s.TDX_INVALID_TDMR, "no size", 0, {"tdmr_size": 0}),
    (s.TDX_INVALID_TDMR, "an end beyond 64 bits", 0, {"tdmr_base": -GIB & (1 << 64) - 1}),
    (s.TDX_INVALID_TDMR, "an HKID in the base", 0, {"tdmr_base": 1 << 51}),
    (s.TDX_INVALID_PAMT, "a PAMT that is too small", _4K << 8, {"pamt_4k_size": (4 << 20) - PAGE}),
    (s.TDX_INVALID_PAMT, "a PAMT that is not aligned", _2M << 8, {"pamt_2m_base": PAMT_2M + 16}),
    (s.TDX_INVALID_PAMT, "a PAMT with an HKID", _1G << 8, {"pamt_1g_base": 1 << 51}),
    (s.TDX_PAMT_OVERLAP, "two PAMTs in one place", _4K << 8, {"pamt_2m_base": PAMT_4K}),
    (s.TDX_PAMT_OVERLAP, "a PAMT in the TDMR itself", _4K << 8, {"pamt_4k_base": TDMR}),
    (s.TDX_PAMT_OUTSIDE_CMRS, "a PAMT where no memory is", _4K << 8, {"pamt_4k_base": 0x9000_0000}),
    (s.TDX_TDMR_OUTSIDE_CMRS, "a TDMR over a hole", 0, {"tdmr_base": 2 * GIB}),
)


def _tdmr(**changes: int) -> Callable[[World], int]:
    return lambda world: tdmr_pointers(world, tdmr_info(**changes))


for _status, _what, _details, _fields in _BAD_TDMRS:
    CONFIG.refused(_status, _what, _details, rcx=_tdmr(**_fields))


def _reserved(*areas: tuple[int, int]) -> Callable[[World], int]:
    def build(world: World) -> int:
        info = bytearray(tdmr_info())
        for number, (offset, size) in enumerate(areas):
            at = 64 + 16 * number
            info[at : at + 16] = offset.to_bytes(8, "little") + size.to_bytes(8, "little")
        return tdmr_pointers(world, bytes(info))

    return build


for _status, _what, _details, _areas in (
    (s.TDX_INVALID_RESERVED_IN_TDMR, "an area that is not aligned", 0, ((64, PAGE),)),
    (s.TDX_INVALID_RESERVED_IN_TDMR, "an area that leaves the TDMR", 0, ((GIB - PAGE, 2 * PAGE),)),
    (s.TDX_INVALID_RESERVED_IN_TDMR, "the second area leaves it", 1 << 8, ((0, PAGE), (GIB, PAGE))),
    (s.TDX_NON_ORDERED_RESERVED_IN_TDMR, "areas in the wrong order", 1 << 8,
     ((4 * PAGE, PAGE), (0, PAGE))),
    (s.TDX_NON_ORDERED_RESERVED_IN_TDMR, "areas that overlap", 1 << 8, ((0, 2 * PAGE), (PAGE, PAGE))),
    (s.TDX_NON_ORDERED_RESERVED_IN_TDMR, "an area after an empty one", 0, ((0, 0), (0, PAGE))),
):  # fmt: skip
    CONFIG.refused(_status, _what, _details, rcx=_reserved(*_areas))
for _what, _second in (
    ("two TDMRs in the wrong order", GIB),
    ("the same TDMR twice", TDMR),
    ("the order is looked at before the alignment", TDMR + PAGE),
):
    CONFIG.refused(
        s.TDX_NON_ORDERED_TDMR, _what, 1, rdx=2,
        rcx=lambda w, base=_second: tdmr_pointers(w, tdmr_info(), tdmr_info(tdmr_base=base)),  # type: ignore[misc]
    )  # fmt: skip

for _status, _what, _size in (
    (s.TDX_INVALID_TDMR, "an end at 64 bits is looked at before the order", (1 << 64) - TDMR),
    (s.TDX_NON_ORDERED_TDMR, "an end far beyond memory is looked at behind the order", 1 << 63),
):
    CONFIG.refused(
        _status, _what, 1, rdx=2,
        rcx=lambda w, size=_size: tdmr_pointers(w, tdmr_info(), tdmr_info(tdmr_size=size)),  # type: ignore[misc]
    )  # fmt: skip

# ------------------------------------------------------------------ TDH.SYS.KEY.CONFIG
KEY_CONFIG: Final = Good("TDH.SYS.KEY.CONFIG", "configured", lambda w: {})
checked(KEY_CONFIG, early=True)
_global_lock(KEY_CONFIG)
busy_key_table(KEY_CONFIG)
no_entropy_for_keys(KEY_CONFIG)
KEY_CONFIG.refused(s.TDX_SYS_KEY_CONFIG_NOT_PENDING, "before TDH.SYS.CONFIG", stage="processors")
KEY_CONFIG.refused(s.TDX_SYS_KEY_CONFIG_NOT_PENDING, "when all packages are done", stage="keyed_module")


@provokes("TDH.SYS.KEY.CONFIG", s.TDX_KEY_CONFIGURED, "the same package twice", stage="configured")
def _same_package(world: World) -> None:
    world.ok("TDH.SYS.KEY.CONFIG")
    world.provoke()


# ------------------------------------------------------------------ TDH.SYS.TDMR.INIT, LP.SHUTDOWN
TDMR_INIT: Final = Good("TDH.SYS.TDMR.INIT", "keyed_module", lambda w: {"rcx": TDMR})
checked(TDMR_INIT)
for _what, _base in (
    ("not the base", TDMR + PAGE),
    ("no TDMR there", 2 * TDMR),
    ("an HKID", TDMR | 1 << 51),
    ("memory outside TDMRs", OUTSIDE),
):
    TDMR_INIT.refused(s.TDX_OPERAND_INVALID, _what, "RCX", rcx=_base)
TDMR_INIT.refused(s.TDX_TDMR_ALREADY_INITIALIZED, "when all is done", stage="ready")


@provokes(
    "TDH.SYS.TDMR.INIT", s.TDX_OPERAND_BUSY, "another processor is at it", details="RCX",
    stage="keyed_module", reusable=True,
)  # fmt: skip
def _tdmr_busy(world: World) -> None:
    with world.poked(world.probe.region_mutex(0), 1, 1):
        world.provoke(rcx=TDMR)


LP_SHUTDOWN: Final = Good("TDH.SYS.LP.SHUTDOWN", "ready", lambda w: {})
checked(LP_SHUTDOWN, early=True)
