"""NMIs that the host asks for, and external interrupts that end a TD's run, through SEAMCALLs only.

Sources: ``tdh_vp_enter.c``, ``tdx_td_dispatcher.c`` and ``td_other_exits.c`` of the TDX module 1.5.01 (an
NMI waits for the guest to have read a #VE); Intel SDM volume 3, 25.7.1 and 27.2.2 (acknowledge interrupt).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from swtdx.arch.metadata import Context, by_name
from swtdx.arch.regs import R8, R9, RAX
from swtdx.machine.engine.scripted import GuestFault, Hlt, Read, Tdcall
from swtdx.proof.conformance.stages import FIRST, bring_up
from swtdx.proof.conformance.world import World

EXTERNAL_INTERRUPT, TDCALL_EXIT = 1, 77
VEINFO_GET = 3
NMI = 2
PEND_NMI = by_name(Context.VP, "PEND_NMI").element_id(0)


@pytest.fixture
def world() -> Iterator[World]:
    with bring_up(World(), "running") as made:
        yield made


def ask_for_nmi(world: World) -> None:
    world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=PEND_NMI, r8=1, r9=0xFF)


def pending(world: World) -> int:
    return world.ok("TDH.VP.RD", rcx=world.td.tdvpr, rdx=PEND_NMI)[R8]


def reading(seen: list[Any], taken: list[int], steps: int) -> Any:
    """Read a few times; note how many events had come by each."""
    for _step in range(steps):
        yield Read(FIRST)
        seen.append(list(taken))


def test_an_nmi_comes_at_the_next_entry(world: World) -> None:
    seen: list[Any] = []

    def guest(_cpu: Any) -> Any:
        yield Tdcall(rax=0, rcx=0)
        yield from reading(seen, script.interrupts, 2)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    assert world.enter()[RAX] == TDCALL_EXIT
    ask_for_nmi(world)
    assert pending(world) == 1
    assert world.enter()[RAX] == TDCALL_EXIT
    assert seen == [[NMI], [NMI]], "once, before anything else"
    assert pending(world) == 0


def test_an_nmi_waits_until_the_ve_is_read(world: World) -> None:
    seen: list[Any] = []

    def guest(_cpu: Any) -> Any:
        with suppress(GuestFault):
            yield Hlt()
        yield Tdcall(rax=0, rcx=0)
        yield from reading(seen, script.interrupts, 1)
        yield Tdcall(rax=VEINFO_GET)
        yield from reading(seen, script.interrupts, 1)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    assert world.enter()[RAX] == TDCALL_EXIT
    ask_for_nmi(world)
    assert world.enter()[RAX] == TDCALL_EXIT
    assert seen == [[], [NMI]]


def test_the_exit_acknowledges_the_interrupt(world: World) -> None:
    """R9 has the vector, and the local APIC has it no longer; the other one is next."""

    def guest(_cpu: Any) -> Any:
        yield Read(FIRST)
        yield Tdcall(rax=0, rcx=0)

    world.guest(guest)
    processor = world.platform.host.processors[0]
    processor.interrupt(0x41)
    processor.interrupt(0x52)
    for vector, left in ((0x52, [0x41]), (0x41, [])):
        after = world.enter()
        assert (after[RAX], after[R9]) == (EXTERNAL_INTERRUPT, 1 << 31 | vector)
        assert list(processor.pending) == left
    assert world.enter()[RAX] == TDCALL_EXIT
