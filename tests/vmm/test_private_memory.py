"""Private memory against the strict fake module: which calls are made, in which order, what they leave."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swtdx.arch import status as st
from swtdx.vmm.errors import SeamcallError, VmmError
from swtdx.vmm.private_memory import PrivateMemory, Verdict
from swtdx.vmm.td import Td
from swtdx.vmm.td_params import TdConfig
from tests.vmm.support import Setup

PAGE, BLOCK, MIB = 4096, 2 << 20, 1 << 20
AUG, BLOCK_LEAF, DEMOTE, PROMOTE, REMOVE, SEPT_ADD, SEPT_REMOVE, TRACK, UNBLOCK, WBINVD = (
    6, 7, 15, 23, 29, 3, 30, 38, 39, 41,
)  # fmt: skip
EPOCH_BUSY, NOT_TRACKED = st.TDX_PREVIOUS_TLB_EPOCH_BUSY, st.TDX_TLB_TRACKING_NOT_DONE
RAM = [(0, 16 * MIB), (32 * MIB, 33 * MIB)]


class World:
    def __init__(self, **arguments: Any) -> None:
        self.setup = Setup(ram=RAM, **arguments)
        self.td: Td = self.setup.td
        self.private: PrivateMemory = self.td.private
        self.cpu = self.td.cpu
        self.module = self.setup.module
        self.module.log.clear()

    @property
    def leaves(self) -> dict[int, Any]:
        """The module's Secure EPT, by GPA; without the shim's page."""
        fake = self.module.tds[self.td.root]
        return {gpa: entry for gpa, entry in fake.leaves.items() if gpa < 1 << 31}

    def calls(self) -> list[int]:
        """The leaves called since the last time."""
        called = [leaf for leaf, _ in self.module.log]
        self.module.log.clear()
        return called

    def accept(self, start: int, end: int) -> None:
        for gpa, entry in self.leaves.items():
            if start <= gpa < end and entry.state == "PENDING":
                entry.state = "MAPPED"


@pytest.fixture
def world() -> World:
    return World()


def test_augment_takes_large_pages_where_it_can(world: World) -> None:
    world.private.augment_range(world.cpu, MIB, 8 * MIB)
    sizes = Counter(entry.level for entry in world.leaves.values())
    assert sizes == {1: 3, 0: 256}
    assert world.private.mapped_bytes == 7 * MIB + PAGE  # and the shim
    calls = world.calls()
    world.private.augment_range(world.cpu, MIB, 8 * MIB)
    assert not world.calls()  # all there
    assert set(calls) == {AUG, SEPT_ADD}


@pytest.mark.parametrize(
    ("gpa", "level", "pages"),
    [
        (3 * MIB + 5, None, {2 * MIB: 1}),
        (3 * MIB, 1, {2 * MIB: 1}),
        (3 * MIB + 5, 0, {3 * MIB: 0}),
        (32 * MIB + PAGE, None, {32 * MIB + PAGE: 0}),  # RAM ends inside these 2 MiB
        (32 * MIB, 1, {32 * MIB: 0}),
    ],
)
def test_resolve_gives_what_is_asked_for(
    world: World, gpa: int, level: int | None, pages: dict[int, int]
) -> None:
    assert world.private.resolve(world.cpu, gpa, level) is Verdict.RESOLVED
    assert {at: entry.level for at, entry in world.leaves.items()} == pages
    assert all(entry.state == "PENDING" for entry in world.leaves.values())


@pytest.mark.parametrize("gpa", [16 * MIB, 31 * MIB, 33 * MIB, 1 << 40])
def test_resolve_outside(world: World, gpa: int) -> None:
    assert world.private.resolve(world.cpu, gpa) is Verdict.OUTSIDE
    assert not world.calls()


def test_resolve_what_is_there(world: World) -> None:
    for gpa, level in ((0, 0), (4 * MIB, None)):
        world.private.resolve(world.cpu, gpa, level)
    world.calls()
    assert world.private.resolve(world.cpu, 0) is Verdict.PRESENT
    assert world.private.resolve(world.cpu, 5 * MIB) is Verdict.PRESENT
    assert world.private.resolve(world.cpu, 5 * MIB, 1) is Verdict.PRESENT
    assert not world.calls()


def test_a_guest_that_accepts_small_pages_of_a_large_one(world: World) -> None:
    """tdcall.md section 3: a TD exit, and the host should DEMOTE; which is blocked and tracked first."""
    world.private.resolve(world.cpu, 0)
    world.calls()
    assert world.private.resolve(world.cpu, PAGE, 0) is Verdict.RESOLVED
    assert world.calls() == [BLOCK_LEAF, TRACK, DEMOTE]
    assert len(world.leaves) == 512
    assert {entry.state for entry in world.leaves.values()} == {"PENDING"}
    assert world.private.resolve(world.cpu, PAGE, 0) is Verdict.PRESENT


def test_remove_is_block_track_remove_with_one_epoch(world: World) -> None:
    world.private.augment_range(world.cpu, 0, 4 * MIB + 3 * PAGE)
    world.calls()
    assert world.private.remove_range(world.cpu, 0, 4 * MIB + 3 * PAGE) == 4 * MIB + 3 * PAGE
    assert world.calls() == [BLOCK_LEAF] * 5 + [TRACK] + [REMOVE] * 5
    assert not world.leaves


def test_remove_splits_what_it_cuts(world: World) -> None:
    world.private.augment_range(world.cpu, 0, 6 * MIB)
    world.calls()
    world.private.remove_range(world.cpu, MIB, 5 * MIB)
    calls = world.calls()
    assert calls[:5] == [BLOCK_LEAF, BLOCK_LEAF, TRACK, DEMOTE, DEMOTE]
    assert calls[5:].index(TRACK) == 513
    assert {gpa for gpa in world.leaves if MIB <= gpa < 5 * MIB} == set()
    assert len(world.leaves) == 512


def test_remove_in_portions(world: World) -> None:
    for gpa in range(0, 40 * PAGE, PAGE):
        world.private.augment(world.cpu, gpa, 0)
    done = world.private.remove_range(world.cpu, 0, 16 * MIB, 30)
    assert done == 30 * PAGE
    assert len(world.leaves) == 10
    assert world.private.remove_range(world.cpu, done, 16 * MIB, 30) == 16 * MIB
    assert not world.leaves


def test_pages_come_back_to_their_place(world: World) -> None:
    """A guest that shares and takes back gets the same memory, without a flush of each page."""
    world.private.augment_range(world.cpu, 0, 2 * MIB)
    hpa = world.leaves[0].hpa
    world.private.remove_range(world.cpu, 0, 2 * MIB)
    world.private.drop_table(world.cpu, 0)
    used = world.setup.hypervisor.allocator.used
    world.private.augment_range(world.cpu, 0, 2 * MIB)
    assert world.leaves[0].hpa == hpa
    assert world.setup.hypervisor.allocator.used == used
    assert WBINVD not in world.calls()


def test_drain_flushes_before_it_frees(world: World) -> None:
    world.private.augment_range(world.cpu, 0, 2 * MIB)
    world.private.augment(world.cpu, 4 * MIB, 0)
    world.private.remove_range(world.cpu, 0, 16 * MIB)
    used = world.setup.hypervisor.allocator.used
    assert world.module.dirty
    assert world.private.drain(world.cpu) == BLOCK + PAGE
    assert not [page for page in world.module.dirty if world.module.dirty[page] == world.td.hkid]
    assert world.setup.hypervisor.allocator.used == used - BLOCK - PAGE
    assert world.private.drain(world.cpu) == 0


def test_promote(world: World) -> None:
    world.private.augment(world.cpu, 0, 1)
    world.private.demote(world.cpu, [0])
    world.accept(0, 2 * MIB)
    world.calls()
    assert world.private.promote(world.cpu, 0)
    assert world.calls() == [BLOCK_LEAF, TRACK, PROMOTE, WBINVD]
    assert {gpa: (entry.level, entry.state) for gpa, entry in world.leaves.items()} == {0: (1, "MAPPED")}
    assert world.private.large.keys() == {0}
    assert not world.private.promote(world.cpu, 0)


def test_promote_is_undone_when_the_pages_differ(world: World) -> None:
    world.private.augment(world.cpu, 0, 1)
    world.private.demote(world.cpu, [0])
    world.accept(0, MIB)
    world.calls()
    assert not world.private.promote(world.cpu, 0)
    assert world.calls() == [BLOCK_LEAF, TRACK, PROMOTE, UNBLOCK]
    # Nothing is blocked: the rest can be accepted and merged.
    world.accept(0, 2 * MIB)
    assert world.private.promote(world.cpu, 0)


def test_promote_needs_512_pages_in_a_row(world: World) -> None:
    for gpa in range(0, 2 * MIB - PAGE, PAGE):
        world.private.augment(world.cpu, gpa, 0)
    world.accept(0, 2 * MIB)
    world.calls()
    assert not world.private.promote(world.cpu, 0)
    assert not world.calls()


def test_drop_table(world: World) -> None:
    world.private.augment(world.cpu, 0, 0)
    assert not world.private.drop_table(world.cpu, 0)
    world.private.remove_range(world.cpu, 0, PAGE)
    world.calls()
    assert world.private.drop_table(world.cpu, 0)
    assert world.calls() == [BLOCK_LEAF, TRACK, SEPT_REMOVE, WBINVD]
    assert not world.private.drop_table(world.cpu, 0)
    world.private.resolve(world.cpu, 0)
    assert world.leaves[0].level == 1


@pytest.mark.parametrize("leaf", [TRACK, REMOVE, DEMOTE, PROMOTE, SEPT_REMOVE])
def test_vcpus_of_the_old_epoch_are_kicked(world: World, leaf: int) -> None:
    """While a vCPU is still in the guest the module says so: it is made to leave, and the call repeated."""
    world.private.augment(world.cpu, 0, 1)
    if leaf in (PROMOTE, SEPT_REMOVE):
        world.private.demote(world.cpu, [0])
        world.accept(0, 2 * MIB)
    kicks = []
    world.td.vcpus[0].kick = lambda: kicks.append(len(world.module.log))  # type: ignore[method-assign]
    status = EPOCH_BUSY if leaf == TRACK else st.with_operand(NOT_TRACKED, 1)
    seen = world.module.seen
    if leaf == SEPT_REMOVE:
        world.private.remove_range(world.cpu, 0, 2 * MIB)
    for nth in range(1, 4):
        world.module.fail[leaf, seen.get(leaf, 0) + nth] = status
    world.calls()
    kicks.clear()
    if leaf in (TRACK, REMOVE):
        world.private.remove_range(world.cpu, 0, 2 * MIB)
    elif leaf == DEMOTE:
        world.private.demote(world.cpu, [0])
    elif leaf == PROMOTE:
        assert world.private.promote(world.cpu, 0)
    else:
        assert world.private.drop_table(world.cpu, 0)
    assert world.calls().count(leaf) == 4
    assert len(kicks) == 4


def test_a_page_that_comes_back_wrong(world: World) -> None:
    world.private.augment(world.cpu, 0, 0)
    known = world.private.small[0]
    world.private.small[0] = known + PAGE
    with pytest.raises(VmmError, match="the module returned page"):
        world.private.remove_range(world.cpu, 0, PAGE)


@pytest.mark.parametrize("leaf", [AUG, SEPT_ADD, BLOCK_LEAF, TRACK, DEMOTE, REMOVE])
def test_refusals_lose_no_page(leaf: int) -> None:
    """Whatever is refused, teardown finds every page."""
    world = World()
    world.private.augment_range(world.cpu, 0, 2 * MIB)
    world.module.fail[leaf, world.module.seen.get(leaf, 0) + 1] = st.with_operand(st.TDX_OPERAND_INVALID, 1)
    private, cpu = world.private, world.cpu
    giving = leaf in (AUG, SEPT_ADD)
    with pytest.raises(SeamcallError, match="OPERAND_INVALID"):
        private.resolve(cpu, 32 * MIB) if giving else private.remove_range(cpu, PAGE, 2 * PAGE)
    world.td.teardown()
    assert world.setup.hypervisor.allocator.used == 0
    assert not world.module.pamt
    assert not world.module.blocks


class Random(RuleBasedStateMachine):
    """Random changes; the hypervisor's record and the module's tree must agree after each."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(config=TdConfig())
        self.wanted: set[int] = set()

    @rule(page=some.integers(0, 16 * 256 - 1), level=some.sampled_from([None, 0, 1]))
    def touch(self, page: int, level: int | None) -> None:
        self.world.private.resolve(self.world.cpu, page * PAGE, level)

    @rule(start=some.integers(0, 16 * 256 - 1), pages=some.sampled_from([1, 7, 511, 512, 1024, 1300]))
    def remove(self, start: int, pages: int) -> None:
        end = min((start + pages) * PAGE, 16 * MIB)
        assert self.world.private.remove_range(self.world.cpu, start * PAGE, end) == end
        assert not any(start * PAGE <= gpa < end for gpa in self.world.leaves)

    @rule(start=some.integers(0, 16 * 256 - 1), pages=some.sampled_from([1, 512, 1024]))
    def give(self, start: int, pages: int) -> None:
        end = min((start + pages) * PAGE, 16 * MIB)
        self.world.private.augment_range(self.world.cpu, start * PAGE, end)
        covered = {
            gpa + at
            for gpa, entry in self.world.leaves.items()
            for at in range(0, PAGE << 9 * entry.level, PAGE)
        }
        assert set(range(start * PAGE, end, PAGE)) <= covered

    @rule(block=some.integers(0, 7), accept=some.booleans())
    def merge(self, block: int, accept: bool) -> None:
        if accept:
            self.world.accept(block * BLOCK, (block + 1) * BLOCK)
        self.world.private.promote(self.world.cpu, block * BLOCK)

    @rule(block=some.integers(0, 7))
    def split(self, block: int) -> None:
        if block * BLOCK in self.world.private.large:
            self.world.private.demote(self.world.cpu, [block * BLOCK])

    @rule(block=some.integers(0, 7))
    def prune(self, block: int) -> None:
        self.world.private.drop_table(self.world.cpu, block * BLOCK)

    @rule()
    def drain(self) -> None:
        self.world.private.drain(self.world.cpu)

    @invariant()
    def records_agree(self) -> None:
        private, leaves = self.world.private, self.world.leaves
        assert {gpa: hpa for gpa, hpa in private.small.items() if gpa < 1 << 31} == {
            gpa: entry.hpa for gpa, entry in leaves.items() if entry.level == 0
        }
        assert private.large == {gpa: entry.hpa for gpa, entry in leaves.items() if entry.level == 1}
        assert not any(entry.state.startswith("BLOCKED") for entry in leaves.values())

    def teardown(self) -> None:
        self.world.td.teardown()
        assert self.world.setup.hypervisor.allocator.used == 0
        assert not self.world.module.pamt
        assert not self.world.module.dirty


TestRandom = Random.TestCase
TestRandom.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
