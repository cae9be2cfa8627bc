"""TDH.MNG.*."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDR
from swtdx.arch.platform_structs import TD_PARAMS
from swtdx.arch.regs import RCX
from swtdx.proof.conformance import common
from swtdx.proof.conformance.common import Good, Operands
from swtdx.proof.conformance.kot import busy_key_table, busy_kot, no_entropy_for_keys
from swtdx.proof.conformance.operands import checked
from swtdx.proof.conformance.registry import add, provokes
from swtdx.proof.conformance.stages import (
    add_tdcx,
    create,
    flush,
    free_key,
    make_td,
    retire,
    td_params,
)
from swtdx.proof.conformance.world import World

CREATE: Final = Good("TDH.MNG.CREATE", "ready", lambda w: {"rcx": w.page(), "rdx": w.hkid()})
checked(CREATE)
CREATE.refused(s.TDX_HKID_NOT_FREE, "the HKID of another TD", rdx=lambda w: create(w).hkid)
CREATE.refused(s.TDX_HKID_NOT_FREE, "the module's own HKID", rdx=lambda w: w.first_hkid)
busy_kot(CREATE)

KEY_CONFIG: Final = Good("TDH.MNG.KEY.CONFIG", "created", lambda w: {"rcx": w.td.tdr})
checked(KEY_CONFIG)
common.fatal(KEY_CONFIG)
KEY_CONFIG.refused(
    s.TDX_LIFECYCLE_STATE_INCORRECT, "the TD has its keys", rcx=lambda w: make_td(w, "keyed").tdr
)
busy_key_table(KEY_CONFIG)
no_entropy_for_keys(KEY_CONFIG)


@provokes("TDH.MNG.KEY.CONFIG", s.TDX_KEY_CONFIGURED, "this package has the key", stage="created")
def _configured_twice(world: World) -> None:
    world.ok("TDH.MNG.KEY.CONFIG", rcx=world.td.tdr)
    world.provoke(rcx=world.td.tdr)


ADDCX: Final = Good("TDH.MNG.ADDCX", "keyed", lambda w: {"rcx": w.page(), "rdx": w.td.tdr})
checked(ADDCX)
common.fatal(ADDCX)
ADDCX.refused(s.TDX_TD_KEYS_NOT_CONFIGURED, "the TD has no keys", rdx=lambda w: create(w).tdr)


@provokes("TDH.MNG.ADDCX", s.TDX_TDCX_NUM_INCORRECT, "a tenth page", stage="keyed")
def _ten_pages(world: World) -> None:
    add_tdcx(world, world.td, 9)
    world.provoke(rcx=world.page(), rdx=world.td.tdr)


@provokes("TDH.MNG.ADDCX", s.TDX_OP_STATE_INCORRECT, "a page after TDH.MNG.INIT", stage="built")
def _page_after_init(world: World) -> None:
    world.provoke(rcx=world.page(), rdx=world.td.tdr)


# ------------------------------------------------------------------ TDH.MNG.INIT
INIT: Final = Good("TDH.MNG.INIT", "tdcs", lambda w: {"rcx": w.td.tdr, "rdx": w.buffer(td_params(w))})
checked(INIT)
common.td_state(INIT, "rcx", lock=False, wrong_stage="built")
common.tsc_adjust(INIT)
common.boot_nt4(INIT)
#: (operand, what, fields of TD_PARAMS).
_BAD_PARAMS: Final[tuple[tuple[str, str, dict[str, int]], ...]] = (
    ("ATTRIBUTES", "an attribute that does not exist", {"attributes": 1 << 1}),
    ("ATTRIBUTES", "KL", {"attributes": 1 << 31}),
    ("ATTRIBUTES", "MIGRATABLE, without migration", {"attributes": 1 << 29}),
    ("XFAM", "no x87", {"xfam": 0x2}),
    ("XFAM", "no SSE", {"xfam": 0x1}),
    ("XFAM", "MPX", {"xfam": 0x1B}),
    ("XFAM", "a third of AVX-512", {"xfam": 0x27}),
    ("XFAM", "AVX-512 without AVX", {"xfam": 0xE3}),
    ("XFAM", "half of CET", {"xfam": 0x803}),
    ("XFAM", "half of AMX", {"xfam": 0x20003}),
    ("XFAM", "bit 63", {"xfam": 1 << 63 | 3}),
    ("MAX_VCPUS", "no VCPUs", {"max_vcpus": 0}),
    ("MAX_VCPUS", "577 VCPUs", {"max_vcpus": 577}),
    ("NUM_L2_VMS", "four L2 VMs", {"num_l2_vms": 4}),
    ("EXEC_CONTROLS", "an unknown flag", {"config_flags": 1 << 3}),
    ("EPTP_CONTROLS", "uncacheable", {"eptp_controls": 3 << 3}),
    ("EPTP_CONTROLS", "three levels", {"eptp_controls": 6 | 2 << 3}),
    ("EPTP_CONTROLS", "six levels", {"eptp_controls": 6 | 5 << 3}),
    ("EPTP_CONTROLS", "accessed and dirty flags", {"eptp_controls": 6 | 3 << 3 | 1 << 6}),
    ("EPTP_CONTROLS", "a 52-bit GPA with four levels", {"config_flags": 1}),
    ("TSC_FREQUENCY", "75 MHz", {"tsc_frequency": 3}),
    ("TSC_FREQUENCY", "10.025 GHz", {"tsc_frequency": 401}),
    ("RDX", "reserved MSR controls", {"msr_config_ctls": 2}),
    ("IA32_ARCH_CAPABILITIES_CONFIG", "a bit that cannot be configured",
     {"msr_config_ctls": 1, "ia32_arch_capabilities_config": 1 << 0}),
)  # fmt: skip


def _params(change: Callable[[bytearray], None]) -> Callable[[World], int]:
    """Where TD_PARAMS with a change lies."""

    def build(world: World) -> int:
        params = bytearray(td_params(world))
        change(params)
        return world.buffer(bytes(params))

    return build


@contextlib.contextmanager
def _changed(world: World, at: int, change: Callable[[bytearray], None]) -> Iterator[None]:
    """TD_PARAMS at a physical address with a change, for a while."""
    before = world.memory.read(at, len(TD_PARAMS.new()))
    params = bytearray(before)
    change(params)
    world.memory.write(at, params)
    try:
        yield
    finally:
        world.memory.write(at, before)


def _bad_params(operand: str, what: str, change: Callable[[bytearray], None]) -> None:
    INIT.held(
        s.TDX_OPERAND_INVALID, what, lambda world, operands: _changed(world, operands["rdx"], change),
        operand, reusable=False,
    )  # fmt: skip


def _fields_to(fields: dict[str, int]) -> Callable[[bytearray], None]:
    def change(params: bytearray) -> None:
        for name, value in fields.items():
            TD_PARAMS.integer(name).set(params, value)

    return change


for _operand, _what, _fields in _BAD_PARAMS:
    _bad_params(_operand, _what, _fields_to(_fields))


def _set_byte(at: int) -> Callable[[bytearray], None]:
    def change(params: bytearray) -> None:
        params[at] = 1

    return change


for _at in (20, 42, 79, 232, 255, 256 + 18 * 16, 1023):
    _bad_params("RDX", f"reserved byte {_at} of TD_PARAMS is not 0", _set_byte(_at))


def _cpuid(entry: int, register: int, value: int) -> Callable[[bytearray], None]:
    def change(params: bytearray) -> None:
        TD_PARAMS.cpuid_config.set(params, 4 * entry + register, value)

    return change


def _levels(*ecx: int) -> Callable[[bytearray], None]:
    """Leaf 0x1F with these ECX from sub-leaf 0 on."""

    def change(params: bytearray) -> None:
        for subleaf, value in enumerate(ecx):
            _cpuid(12 + subleaf, 2, value)(params)

    return change


for _what, _ecx in (
    ("a topology of cores, then threads", (0x200, 0x101)),
    ("a topology without cores", (0x100, 0x301)),
    ("a topology with a level that does not exist", (0x100, 0x201, 0x602)),
    ("a topology whose sub-leaf 1 says 2", (0x100, 0x202)),
    ("a topology whose first level is empty", (0, 0x201)),
    ("a topology whose first level is none", (1,)),
):
    INIT.refused(s.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED, _what, reusable=False, rdx=_params(_levels(*_ecx)))


@provokes("TDH.MNG.INIT", s.TDX_SUCCESS, "a topology of threads, cores and dies", stage="tdcs")
def _topology(world: World) -> None:
    world.provoke(rcx=world.td.tdr, rdx=_params(_levels(0x100, 0x201, 0x502))(world))


@provokes(
    "TDH.MNG.INIT", s.TDX_OPERAND_INVALID, "a family, model and stepping that are not the platform's",
    details="CPUID_CONFIG", stage="tdcs", outputs=False, reusable=True,
)  # fmt: skip
def _other_part(world: World) -> None:
    params = bytearray(td_params(world))
    _cpuid(0, 0, world.lps[0].cpuid(1, 0)[0] ^ 1)(params)
    after = world.provoke(rcx=world.td.tdr, rdx=world.buffer(bytes(params)))
    assert after[RCX] == 1 | 0xFFFFFFFF << 32, f"RCX names {after[RCX]:#x}, not leaf 1"


@provokes("TDH.MNG.INIT", s.TDX_SUCCESS, "the platform's family, model and stepping", stage="tdcs")
def _same_part(world: World) -> None:
    params = bytearray(td_params(world))
    _cpuid(0, 0, world.lps[0].cpuid(1, 0)[0])(params)
    world.provoke(rcx=world.td.tdr, rdx=world.buffer(bytes(params)))


@provokes(
    "TDH.MNG.INIT", s.TDX_OPERAND_INVALID, "a CPUID bit that cannot be configured",
    details="CPUID_CONFIG", stage="tdcs", outputs=False,
)  # fmt: skip
def _bad_cpuid(world: World) -> None:
    params = bytearray(td_params(world))
    # Entry 6 is leaf 7, sub-leaf 1 (tdcall.md §5.4); EBX has no configurable bit there.
    _cpuid(6, 1, 1)(params)
    after = world.provoke(rcx=world.td.tdr, rdx=world.buffer(bytes(params)))
    assert after[1] == 7 | 1 << 32, f"RCX names {after[1]:#x}, not leaf 7, sub-leaf 1"


# ------------------------------------------------------------------ the end of a TD
def _tdr(world: World) -> Operands:
    return {"rcx": world.td.tdr}


VPFLUSHDONE: Final = Good("TDH.MNG.VPFLUSHDONE", "keyed", _tdr)
checked(VPFLUSHDONE)
busy_kot(VPFLUSHDONE)


@provokes("TDH.MNG.VPFLUSHDONE", s.TDX_LIFECYCLE_STATE_INCORRECT, "the second time", stage="keyed")
def _retired_twice(world: World) -> None:
    retire(world, world.td)
    world.provoke(rcx=world.td.tdr)


@provokes("TDH.MNG.VPFLUSHDONE", s.TDX_FLUSHVP_NOT_DONE, "a processor holds a VCPU", stage="running")
def _vcpu_held(world: World) -> None:
    world.provoke(rcx=world.td.tdr)


def _blocked(world: World) -> Operands:
    """The stage's TD is at the end of its life, its caches written back."""
    if TDR.lifecycle_state.get(world.probe.tdr(world.td.tdr)) == 1:
        retire(world, world.td)
        for lp in world.lps:
            world.ok("TDH.PHYMEM.CACHE.WB", lp=lp.index, rcx=0)
    return {"rcx": world.td.tdr}


FREEID: Final = Good("TDH.MNG.KEY.FREEID", "keyed", _blocked)
checked(FREEID)
busy_kot(FREEID)
FREEID.refused(s.TDX_LIFECYCLE_STATE_INCORRECT, "the TD has its keys", rcx=lambda w: make_td(w, "keyed").tdr)


@provokes("TDH.MNG.KEY.FREEID", s.TDX_LIFECYCLE_STATE_INCORRECT, "the second time", stage="running")
def _freed_twice(world: World) -> None:
    flush(world, world.td)
    retire(world, world.td)
    free_key(world, world.td)
    world.provoke(rcx=world.td.tdr)


@provokes("TDH.MNG.KEY.FREEID", s.TDX_WBCACHE_NOT_COMPLETE, "one package of two", stage="keyed")
def _one_package(world: World) -> None:
    retire(world, world.td)
    world.ok("TDH.PHYMEM.CACHE.WB", rcx=0)
    world.provoke(rcx=world.td.tdr)


add("TDH.MNG.KEY.RECLAIMID", s.TDX_SUCCESS, "it does nothing", lambda w: _nothing(w), stage="ready")
common.rax("TDH.MNG.KEY.RECLAIMID", "ready")
add(
    "TDH.MNG.KEY.RECLAIMID",
    s.TDX_SYS_NOT_READY,
    "before TDH.SYS.CONFIG",
    lambda w: _nothing(w),
    stage="processors",
)


def _nothing(world: World) -> None:
    world.provoke()
