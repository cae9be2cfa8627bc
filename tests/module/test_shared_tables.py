"""What the hypervisor's EPT may lead a guest, or the module on a guest's behalf, to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.arch.regs import RAX, RCX
from swtdx.machine.engine.scripted import GuestFault, Read, Tdcall, Write
from swtdx.proof.conformance.stages import FIRST, bring_up, make_td
from swtdx.proof.conformance.world import World
from swtdx.proof.invariants import check

SHARED = 1 << 47
EPT_VIOLATION, EPT_MISCONFIGURATION, TDCALL_EXIT = 48, 49, 77
SUPPRESS_VE, LEAF = 1 << 63, 1 << 7
SHARED_EPTP, REPORT = 0x203C, 4
RWX_WB = 7 | 6 << 3


def tables(world: World, target: int, types: int = RWX_WB, upper: tuple[int, int, int] = (7, 7, 7)) -> None:
    """A shared EPT that maps the first shared page to ``target``.

    The shared bit takes part in the walk, as in Intel's module and in KVM: it leads to entry 256 of the root.
    ``upper`` are the other bits of the entries above, from the root's on.
    """
    root, third, second, first = (world.buffer() for _ in range(4))
    for table, entry in (
        (root + 8 * 256, third | upper[0]),
        (third, second | upper[1]),
        (second, first | upper[2]),
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
        world.memory.write_u64(root + 8 * 256, root | world.first_hkid << world.platform.host.keyid_shift | 7)
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


def outcomes(world: World, write: bool = False) -> list[tuple[int, int]]:
    """(RAX, RCX) of TDH.VP.ENTER after an access to shared memory by the guest, and by the module for it.

    RAX is the exit reason; RCX of an EPT violation its qualification.
    """
    found = []
    for by_module in (False, True):

        def guest(_cpu: Any, by_module: bool = by_module) -> Any:
            if by_module:
                yield Tdcall(rax=REPORT, rcx=SHARED, rdx=FIRST, r8=0)
            elif write:
                yield Write(SHARED, 1)
            else:
                yield Read(SHARED)
            yield Tdcall(rax=0, rcx=0)

        world.guest(guest)
        after = world.enter()
        found.append((after[RAX], after[RCX]))
    return found


@pytest.mark.parametrize("level", range(3))
def test_rights_of_the_entries_above_count(level: int) -> None:
    """A directory that may only be read makes everything below it so."""
    with bring_up(World(), "running") as world:
        upper = [7, 7, 7]
        upper[level] = 1
        tables(world, world.buffer(b"shared"), RWX_WB | SUPPRESS_VE, (upper[0], upper[1], upper[2]))
        # A write, although the leaf allows it; bits 5:3 are what all entries allow: R.
        by_guest, by_module = outcomes(world, write=True)
        assert by_guest == (EPT_VIOLATION, 2 | 1 << 3)
        assert by_module == (EPT_VIOLATION, 2 | 1 << 3)
    with bring_up(World(), "running") as world:
        tables(world, world.buffer(b"shared"), RWX_WB | SUPPRESS_VE, (upper[0], upper[1], upper[2]))
        assert outcomes(world)[0] == (TDCALL_EXIT, 0), "it may be read"


@pytest.mark.parametrize(
    ("level", "bit"), [(0, 3), (0, 5), (0, 7), (1, 3), (1, 6), (2, 4), (2, 6)]
)  # fmt: skip
def test_reserved_bits_of_directories(level: int, bit: int) -> None:
    with bring_up(World(), "running") as world:
        upper = [7, 7, 7]
        upper[level] |= 1 << bit
        tables(world, world.buffer(b"shared"), RWX_WB, (upper[0], upper[1], upper[2]))
        assert outcomes(world) == [(EPT_MISCONFIGURATION, 0)] * 2


@pytest.mark.parametrize(("level", "aligned"), [(1, False), (2, False), (2, True)])
def test_large_pages_are_aligned(level: int, aligned: bool) -> None:
    """A leaf in a directory whose address is not a multiple of its size."""
    with bring_up(World(), "running") as world:
        root, third, second = (world.buffer() for _ in range(3))
        size = 1 << 30 if level == 1 else 2 << 20
        leaf = world.buffer() & -size | (0 if aligned else 1 << 12) | RWX_WB | LEAF
        world.memory.write_u64(root + 8 * 256, third | 7)
        world.memory.write_u64(third, leaf if level == 1 else second | 7)
        world.memory.write_u64(second, leaf)
        world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=SHARED_EPTP, r8=root, r9=(1 << 64) - 1)
        if aligned:
            assert outcomes(world)[0] == (TDCALL_EXIT, 0)
        else:
            assert outcomes(world) == [(EPT_MISCONFIGURATION, 0)] * 2


def test_the_shared_bit_is_part_of_the_walk() -> None:
    """Tables without it (entry 0 of the root) map nothing: #VE, which entries of zeros do not suppress."""
    with bring_up(World(), "running") as world:
        tables(world, world.buffer(b"shared"))
        root = world.buffer()
        world.memory.write_u64(root, world.memory.read_u64(root - 4 * 4096 + 8 * 256))
        world.ok("TDH.VP.WR", rcx=world.td.tdvpr, rdx=SHARED_EPTP, r8=root, r9=(1 << 64) - 1)
        seen = []

        def guest(_cpu: Any) -> Any:
            try:
                yield Read(SHARED)
            except GuestFault as fault:
                seen.append(fault.vector)
            yield Tdcall(rax=0, rcx=0)

        world.guest(guest)
        assert world.enter()[RAX] == TDCALL_EXIT
        assert seen == [20]


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
