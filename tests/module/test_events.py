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
from swtdx.arch.regs import R8, R9, RAX, RCX, RDX
from swtdx.machine.engine.scripted import GuestFault, Hlt, Read, Tdcall
from swtdx.proof.conformance.stages import EMPTY, FIRST, bring_up
from swtdx.proof.conformance.world import World

EXCEPTION_OR_NMI, EXTERNAL_INTERRUPT, EPT_VIOLATION, TDCALL_EXIT = 0, 1, 48, 77
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


def test_an_nmi_waits_until_the_last_ones_handler_returns(world: World) -> None:
    """It comes right behind IRET, before the interrupted code goes on."""
    order: list[str] = []

    def handler(vector: int) -> Any:
        number = script.interrupts.count(vector)
        order.append(f"NMI {number}")
        yield Tdcall(rax=0, rcx=0)
        order.append(f"end {number}")

    def guest(_cpu: Any) -> Any:
        script.on_interrupt = handler
        yield Tdcall(rax=0, rcx=0)
        order.append("code")
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    assert world.enter()[RAX] == TDCALL_EXIT
    ask_for_nmi(world)
    assert world.enter()[RAX] == TDCALL_EXIT
    assert (order, pending(world)) == (["NMI 1"], 0)
    ask_for_nmi(world)
    assert world.enter()[RAX] == TDCALL_EXIT
    assert (order, pending(world)) == (["NMI 1", "end 1", "NMI 2"], 0)
    # Two that are asked for while one is handled are one.
    ask_for_nmi(world)
    ask_for_nmi(world)
    assert world.enter()[RAX] == TDCALL_EXIT
    assert order == ["NMI 1", "end 1", "NMI 2", "end 2", "NMI 3"]
    assert world.enter()[RAX] == TDCALL_EXIT
    assert order == ["NMI 1", "end 1", "NMI 2", "end 2", "NMI 3", "end 3", "code"]


def test_an_nmi_stays_pending_while_its_like_is_handled(world: World) -> None:
    """What the host reads, and that a flush and another processor change nothing."""

    def handler(_vector: int) -> Any:
        for _step in range(3):
            yield Tdcall(rax=0, rcx=0)

    def guest(_cpu: Any) -> Any:
        script.on_interrupt = handler
        while True:
            yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    world.enter()
    ask_for_nmi(world)
    world.enter()
    ask_for_nmi(world)
    world.enter()
    assert pending(world) == 1
    world.ok("TDH.VP.FLUSH", rcx=world.td.tdvpr)
    assert world.enter()[RAX] == TDCALL_EXIT
    assert (script.interrupts, pending(world)) == ([NMI], 1)
    assert world.enter()[RAX] == TDCALL_EXIT
    assert (script.interrupts, pending(world)) == ([NMI, NMI], 0)


def test_an_nmi_whose_handler_meets_a_missing_page_is_not_lost(world: World) -> None:
    """The TD exit comes from within the handler; afterwards it goes on, still blocked."""
    done: list[int] = []

    def handler(_vector: int) -> Any:
        yield Read(EMPTY)
        done.append(len(script.interrupts))

    def guest(_cpu: Any) -> Any:
        script.on_interrupt = handler
        yield Tdcall(rax=0, rcx=0)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    world.enter()
    ask_for_nmi(world)
    assert world.enter()[RAX] == EPT_VIOLATION
    ask_for_nmi(world)
    assert world.enter()[RAX] == EPT_VIOLATION
    assert (done, script.interrupts) == ([], [NMI])


def test_the_hosts_nmi_is_a_td_exit_that_says_so(world: World) -> None:
    """R9 has type 2 and vector 2; the next is blocked until the host's IRET; it comes before interrupts."""
    heard: list[int] = []

    def guest(_cpu: Any) -> Any:
        yield Read(FIRST)
        yield Tdcall(rax=0, rcx=0)

    script = world.guest(guest)
    processor = world.platform.host.processors[0]
    processor.on_nmi(lambda: heard.append(len(heard)))
    processor.interrupt(0x41)
    processor.nmi()
    after = world.enter()
    assert (after[RAX], after[R9]) == (EXCEPTION_OR_NMI, 1 << 31 | 2 << 8 | NMI)
    assert [after[register] for register in (RCX, RDX, R8)] == [0, 0, 0]
    assert heard == [], "the exit took it; the host has to call its handler itself"
    processor.nmi()
    world.ok("TDH.VP.RD", rcx=world.td.tdvpr, rdx=PEND_NMI)
    assert heard == []
    processor.iret()
    assert heard == [0], "the one that had waited"
    after = world.enter()
    assert (after[RAX], after[R9]) == (EXTERNAL_INTERRUPT, 1 << 31 | 0x41)
    # Outside a TD the handler runs behind SEAMRET: nothing comes while the module executes.
    processor.nmi()
    world.ok("TDH.VP.RD", rcx=world.td.tdvpr, rdx=PEND_NMI)
    assert heard == [0, 1]
    assert world.enter()[RAX] == TDCALL_EXIT
    assert script.interrupts == [], "none of them is the guest's"


def test_the_halted_host_wakes_for_an_nmi(world: World) -> None:
    heard: list[bool] = []
    processor = world.platform.host.processors[0]
    processor.on_nmi(lambda: heard.append(True))
    processor.nmi()
    processor.halt()
    assert heard == [True]
