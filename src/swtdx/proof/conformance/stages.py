"""How far a machine, or a TD, is brought up: each stage goes on from the one before."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from swtdx.arch import status
from swtdx.arch.platform_structs import TD_PARAMS, TDMR_INFO
from swtdx.arch.regs import RAX
from swtdx.arch.units import GIB, LARGE_PAGE
from swtdx.proof.conformance.world import PAMT_1G, PAMT_2M, PAMT_4K, TDMR, Td, World

#: GPAs of the stage's TD: a page that is there from the start, one that was added when it ran, one below
#: a Secure EPT page that has none, and a 2-MiB page.
FIRST: Final = 0x1000
PENDING: Final = 0x2000
EMPTY: Final = 0x5000
HUGE: Final = LARGE_PAGE
#: GPAs with no Secure EPT page at all.
FAR: Final = 1 << 40
#: DEBUG (so that the host may look inside) and SEPT_VE_DISABLE.
ATTRIBUTES: Final = 1 << 0 | 1 << 28
PRODUCTION: Final = 1 << 28


# ------------------------------------------------------------------ the module
def loaded(world: World) -> None:
    """The firmware has loaded the module; it has not been called yet."""


def initialised(world: World) -> None:
    """TDH.SYS.INIT."""
    world.ok("TDH.SYS.INIT", rcx=0)


def processors(world: World) -> None:
    """TDH.SYS.LP.INIT on every processor."""
    for lp in world.lps:
        world.ok("TDH.SYS.LP.INIT", lp=lp.index)


def tdmr_info(**changes: int) -> bytes:
    """The bench's TDMR_INFO, 512 bytes; ``changes`` are fields by name."""
    info = TDMR_INFO.new()
    fields = {
        "tdmr_base": TDMR,
        "tdmr_size": GIB,
        "pamt_4k_base": PAMT_4K,
        "pamt_4k_size": 4 << 20,
        "pamt_2m_base": PAMT_2M,
        "pamt_2m_size": 8 << 10,
        "pamt_1g_base": PAMT_1G,
        "pamt_1g_size": 4 << 10,
    }
    for name, value in (fields | changes).items():
        TDMR_INFO.integer(name).set(info, value)
    return bytes(info).ljust(512, b"\0")


def tdmr_pointers(world: World, *infos: bytes) -> int:
    """An array of pointers to TDMR_INFOs, for TDH.SYS.CONFIG (PA)."""
    addresses = [world.buffer(info) for info in infos]
    return world.buffer(struct.pack(f"<{len(addresses)}Q", *addresses))


def configured(world: World) -> None:
    """TDH.SYS.CONFIG."""
    pointers = tdmr_pointers(world, tdmr_info())
    world.ok("TDH.SYS.CONFIG", rcx=pointers, rdx=1, r8=world.first_hkid)


def keyed_module(world: World) -> None:
    """TDH.SYS.KEY.CONFIG on both packages: the module is ready."""
    for lp in world.lps:
        world.ok("TDH.SYS.KEY.CONFIG", lp=lp.index)


def ready(world: World) -> None:
    """TDH.SYS.TDMR.INIT to its end."""
    while True:
        after = world.call("TDH.SYS.TDMR.INIT", rcx=TDMR)
        if after[RAX] == status.TDX_TDMR_ALREADY_INITIALIZED:
            return
        if after[RAX]:
            raise AssertionError(f"TDH.SYS.TDMR.INIT gave {after[RAX]:#x}")


# ------------------------------------------------------------------ a TD
def td_params(world: World, **changes: int) -> bytes:
    """TD_PARAMS that TDH.MNG.INIT accepts; ``changes`` are fields by name."""
    params = TD_PARAMS.new()
    fields = {
        "attributes": ATTRIBUTES,
        "xfam": 0x3,
        "max_vcpus": 2,
        "eptp_controls": 6 | 3 << 3,
        "config_flags": 1 << 2,
        "tsc_frequency": 80,
    }
    for name, value in (fields | changes).items():
        TD_PARAMS.integer(name).set(params, value)
    return bytes(params)


def create(world: World) -> Td:
    """TDH.MNG.CREATE."""
    td = Td(world.page(), world.hkid())
    world.ok("TDH.MNG.CREATE", rcx=td.tdr, rdx=td.hkid)
    return td


def give_keys(world: World, td: Td) -> None:
    """TDH.MNG.KEY.CONFIG on both packages."""
    for lp in world.lps:
        world.ok("TDH.MNG.KEY.CONFIG", lp=lp.index, rcx=td.tdr)


def add_tdcx(world: World, td: Td, count: int = 6) -> None:
    """TDH.MNG.ADDCX."""
    for _ in range(count):
        td.tdcx.append(world.page())
        world.ok("TDH.MNG.ADDCX", rcx=td.tdcx[-1], rdx=td.tdr)


def initialise(world: World, td: Td, **changes: int) -> None:
    """TDH.MNG.INIT."""
    world.ok("TDH.MNG.INIT", rcx=td.tdr, rdx=world.buffer(td_params(world, **changes)))


def add_sept(world: World, td: Td, gpa: int = 0, levels: tuple[int, ...] = (3, 2, 1)) -> None:
    """TDH.MEM.SEPT.ADD of the pages that lead to ``gpa``."""
    for level in levels:
        page = td.sept[gpa, level] = world.page()
        world.ok("TDH.MEM.SEPT.ADD", rcx=gpa | level, rdx=td.tdr, r8=page)


def add_page(world: World, td: Td, gpa: int) -> None:
    """TDH.MEM.PAGE.ADD."""
    page = td.pages[gpa] = world.page()
    source = world.buffer(bytes(range(256)) * 16)
    world.ok("TDH.MEM.PAGE.ADD", rcx=gpa, rdx=td.tdr, r8=page, r9=source)


def augment(world: World, td: Td, gpa: int, level: int = 0) -> None:
    """TDH.MEM.PAGE.AUG."""
    page = td.pages[gpa] = world.large() if level else world.page()
    world.ok("TDH.MEM.PAGE.AUG", rcx=gpa | level, rdx=td.tdr, r8=page)


def create_vcpu(world: World, td: Td) -> None:
    """TDH.VP.CREATE."""
    td.tdvpr = world.page()
    world.ok("TDH.VP.CREATE", rcx=td.tdvpr, rdx=td.tdr)


def add_vpcx(world: World, td: Td, count: int = 5) -> None:
    """TDH.VP.ADDCX."""
    for _ in range(count):
        td.vpcx.append(world.page())
        world.ok("TDH.VP.ADDCX", rcx=td.vpcx[-1], rdx=td.tdvpr)


def block(world: World, td: Td, gpa: int, level: int = 0) -> None:
    """TDH.MEM.RANGE.BLOCK."""
    world.ok("TDH.MEM.RANGE.BLOCK", rcx=gpa | level, rdx=td.tdr)


def track(world: World, td: Td) -> None:
    """TDH.MEM.TRACK."""
    world.ok("TDH.MEM.TRACK", rcx=td.tdr)


def flush(world: World, td: Td) -> None:
    """TDH.VP.FLUSH."""
    world.ok("TDH.VP.FLUSH", rcx=td.tdvpr)


def retire(world: World, td: Td) -> None:
    """TDH.MNG.VPFLUSHDONE: the life cycle is BLOCKED."""
    world.ok("TDH.MNG.VPFLUSHDONE", rcx=td.tdr)


def free_key(world: World, td: Td) -> None:
    """TDH.PHYMEM.CACHE.WB and TDH.MNG.KEY.FREEID: the life cycle is TEARDOWN."""
    for lp in world.lps:
        world.ok("TDH.PHYMEM.CACHE.WB", lp=lp.index, rcx=0)
    world.ok("TDH.MNG.KEY.FREEID", rcx=td.tdr)


#: What makes a TD, in order: the name of a stage, and the step that leads to it.
TD_STEPS: Final[tuple[tuple[str, Callable[[World, Td], None]], ...]] = (
    ("keyed", give_keys),
    ("tdcs", add_tdcx),
    ("built", lambda world, td: initialise(world, td)),
    ("vcpu", lambda world, td: _vcpu(world, td)),
    ("vpcx", lambda world, td: add_vpcx(world, td)),
    ("vpinit", lambda world, td: _vp_init(world, td)),
    ("running", lambda world, td: _finalize(world, td)),
)


def _vcpu(world: World, td: Td) -> None:
    add_sept(world, td)
    add_page(world, td, FIRST)
    create_vcpu(world, td)


def _vp_init(world: World, td: Td) -> None:
    world.ok("TDH.VP.INIT", rcx=td.tdvpr, rdx=0)


def _finalize(world: World, td: Td) -> None:
    world.ok("TDH.MR.FINALIZE", rcx=td.tdr)
    augment(world, td, PENDING)
    augment(world, td, HUGE, 1)


def make_td(world: World, stage: str) -> Td:
    """Another TD, brought to a stage of :data:`TD_STEPS` or to ``"created"``."""
    td = create(world)
    if stage == "created":
        return td
    for name, step in TD_STEPS:
        step(world, td)
        if name == stage:
            return td
    raise ValueError(f"a TD has no stage {stage!r}")


def _of_td(world: World, step: Callable[[World, Td], None]) -> None:
    step(world, world.td)


def _created(world: World) -> None:
    world.td = create(world)


#: Every stage in order, and the step from the one before it.
STAGES: Final[dict[str, Callable[[World], None]]] = {
    "loaded": loaded,
    "initialised": initialised,
    "processors": processors,
    "configured": configured,
    "keyed_module": keyed_module,
    "ready": ready,
    "created": _created,
    **{
        name: (lambda world, step=step: _of_td(world, step))  # type: ignore[misc]
        for name, step in TD_STEPS
    },
}


def bring_up(world: World, stage: str) -> World:
    """Take a new machine to a stage.

    Raises:
        KeyError: there is no such stage.
    """
    if stage not in STAGES:
        raise KeyError(f"there is no stage {stage!r}")
    for name, step in STAGES.items():
        step(world)
        if name == stage:
            break
    return world
