"""What the hypervisor's EPT may lead a guest, or the module on a guest's behalf, to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.arch.regs import RAX, RCX
from swtdx.machine.engine.scripted import GuestFault, Read, Tdcall
from swtdx.proof.conformance.stages import FIRST, bring_up, make_td
from swtdx.proof.conformance.world import World
from swtdx.proof.invariants import check

SHARED = 1 << 47
EPT_MISCONFIGURATION, TDCALL_EXIT = 49, 77
SHARED_EPTP, REPORT = 0x203C, 4
RWX_WB = 7 | 6 << 3


def tables(world: World, target: int, types: int = RWX_WB) -> None:
    """A shared EPT that maps the first shared page to ``target``."""
    root, third, second, first = (world.buffer() for _ in range(4))
    for table, entry in (
        (root, third | 7),
        (third, second | 7),
        (second, first | 7),
        (first, target | types),
    ):
        world.memory.write_u64(table, entry)
    world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=SHARED_EPTP, r8=root, r9=(1 << 64) - 1)


def other_private(world: World) -> int:
    """A page of another TD, with that TD's key in the address."""
    other = make_td(world, "running")
    return other.pages[FIRST] | other.hkid << world.platform.host.keyid_shift


TARGETS: dict[str, Callable[[World], int]] = {
    "another TD's page, with its key": other_private,
    "the TD's own page, with its key": lambda w: w.td.pages[FIRST] | w.td.hkid << w.platform.host.keyid_shift,
    "the SEAM range": lambda w: w.seam_range,
    "no memory": lambda w: w.machine.memory.size + (1 << 30),
}


#: The module's write to where no memory is is lost, as on hardware.
CASES = [("the guest", where) for where in TARGETS]
CASES += [("the module", where) for where in TARGETS if where != "no memory"]


@pytest.mark.parametrize(("by", "where"), CASES)
def test_not_there(by: str, where: str) -> None:
    with bring_up(World(), "running") as world:
        target = TARGETS[where](world)
        tables(world, target)

        def guest(_cpu: Any) -> Any:
            if by == "the guest":
                yield Read(SHARED)
            else:
                yield Tdcall(rax=REPORT, rcx=SHARED, rdx=FIRST, r8=0)

        hpa = target & (1 << world.platform.host.keyid_shift) - 1
        kept = bytes(world.machine.memory.frames[hpa : hpa + 4096])
        world.guest(guest)
        after = world.enter()
        assert after[RAX] == EPT_MISCONFIGURATION
        assert bytes(world.machine.memory.frames[hpa : hpa + 4096]) == kept
        check(world.machine)


def test_a_table_behind_a_private_key() -> None:
    with bring_up(World(), "running") as world:
        root = world.buffer()
        world.memory.write_u64(root, root | world.first_hkid << world.platform.host.keyid_shift | 7)
        world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=SHARED_EPTP, r8=root, r9=(1 << 64) - 1)

        def guest(_cpu: Any) -> Any:
            yield Read(SHARED)

        world.guest(guest)
        assert world.enter()[RAX] == EPT_MISCONFIGURATION


@pytest.mark.parametrize("memory_type", [2, 3, 7])
def test_memory_types_that_do_not_exist(memory_type: int) -> None:
    with bring_up(World(), "running") as world:
        tables(world, world.buffer(b"shared"), 7 | memory_type << 3)

        def guest(_cpu: Any) -> Any:
            yield Read(SHARED)

        world.guest(guest)
        assert world.enter()[RAX] == EPT_MISCONFIGURATION


def test_no_alias_above_the_shared_bit() -> None:
    """GPA bits that a 4-level EPT does not translate: #PF with RSVD, not the page below."""
    with bring_up(World(), "running") as world:
        seen = []

        def guest(_cpu: Any) -> Any:
            yield Read(FIRST)
            for bit in (48, 50, 51):
                try:
                    yield Read(1 << bit | FIRST)
                except GuestFault as fault:
                    seen.append((fault.vector, fault.error_code))
            yield Tdcall(rax=0, rcx=0)

        world.guest(guest)
        assert world.enter()[RAX] == TDCALL_EXIT
        assert seen == [(14, 9)] * 3  # P and RSVD


def test_shared_memory_is_there() -> None:
    with bring_up(World(), "running") as world:
        buffer = world.buffer(b"shared..")
        tables(world, buffer)
        seen = []

        def guest(_cpu: Any) -> Any:
            try:
                seen.append((yield Read(SHARED)))
                yield Tdcall(rax=REPORT, rcx=SHARED, rdx=FIRST, r8=0)
            except GuestFault as fault:
                seen.append(fault.vector)
            yield Tdcall(rax=0, rcx=0)

        world.guest(guest)
        after = world.enter()
        assert (after[RAX], after[RCX]) == (TDCALL_EXIT, 0)
        assert seen == [int.from_bytes(b"shared..", "little")]
        assert world.memory.read(buffer, 1) == b"\x81"  # REPORTTYPE: TDX
