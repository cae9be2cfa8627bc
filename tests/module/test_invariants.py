"""The checker of invariants sees each kind of contradiction, planted into the module's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swtdx.arch import sept_bits
from swtdx.arch.control_structs import TDCS, TDR, TDVPS
from swtdx.arch.regs import RAX
from swtdx.arch.states import PageType
from swtdx.machine.engine.scripted import Write
from swtdx.proof.conformance.stages import FIRST, HUGE, PENDING, bring_up, make_td
from swtdx.proof.conformance.world import TDMR, Td, World
from swtdx.proof.invariants import InvariantError, MemorySnapshot, check
from swtdx.proof.probe import Place


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[World, Td, Td]]:
    """A machine with two TDs that run."""
    world = bring_up(World(), "running")
    yield world, world.td, make_td(world, "running")
    world.close()


Bench = tuple[World, Td, Td]
Plant = Callable[[World, Td, Td], tuple[memoryview, int, bytes]]


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def pamt(world: World, hpa: int, at: int, value: bytes) -> tuple[memoryview, int, bytes]:
    """Bytes ``at`` of the PAMT entry of a small page."""
    view, offset = world.probe.pamt_entry(hpa)
    return view, offset + at, value


def entry_of(world: World, td: Td, gpa: int, level: int = 0) -> Place:
    return world.probe.sept_entry(td.tdr, gpa, level)


def points_to(world: World, td: Td, gpa: int, hpa: int) -> tuple[memoryview, int, bytes]:
    entry = entry_of(world, td, gpa)
    return entry.view, entry.offset, number(entry.read(8) & ~sept_bits.HPA | hpa)


def with_bits(world: World, td: Td, gpa: int, clear: int, put: int) -> tuple[memoryview, int, bytes]:
    entry = entry_of(world, td, gpa)
    return entry.view, entry.offset, number(entry.read(8) & ~clear | put)


def tdcs(world: World, td: Td, offset: int, value: bytes) -> tuple[memoryview, int, bytes]:
    return world.probe.tdcs(td.tdr), offset, value


def tdr(world: World, td: Td, offset: int, value: bytes) -> tuple[memoryview, int, bytes]:
    return world.probe.tdr(td.tdr), offset, value


def kot(world: World, hkid: int, state: int) -> tuple[memoryview, int, bytes]:
    view, at = world.probe.key_place(hkid)
    return view, at, bytes([state])


PLANTS: dict[str, tuple[str, Plant]] = {
    "a free page with an epoch": ("the free page .* was blocked in epoch", lambda w, a, b: pamt(
        w, TDMR + (64 << 20), 8, number(5, 8))),
    "a type that does not exist": ("a type that does not exist", lambda w, a, b: pamt(
        w, a.pages[FIRST], 2, b"\x07")),
    "a page of another TD": ("are not the same|not those", lambda w, a, b: pamt(
        w, a.pages[FIRST], 3, number(b.tdr >> 12, 5))),
    "an owner that is no TDR": ("which is no TDR", lambda w, a, b: pamt(
        w, a.pages[FIRST], 3, number(a.tdcx[0] >> 12, 5))),
    "a TDR with an owner": ("has an owner", lambda w, a, b: pamt(w, a.tdr, 3, number(b.tdr >> 12, 5))),
    "a page that came from nowhere": ("CHLDCNT is", lambda w, a, b: pamt(
        w, TDMR + (64 << 20), 2, bytes([PageType.REG]) + number(a.tdr >> 12, 5))),
    "a small page inside a large one": ("overlap", lambda w, a, b: pamt(
        w, a.pages[HUGE] + 0x3000, 2, bytes([PageType.REG]) + number(a.tdr >> 12, 5))),
    "a PAMT lock that is held": ("is held exclusively", lambda w, a, b: pamt(w, a.tdr, 0, b"\x01")),
    "a PAMT lock that is shared": ("is held shared", lambda w, a, b: pamt(w, a.tdr, 0, b"\x04")),
    "the same page twice": ("mapped twice", lambda w, a, b: points_to(w, a, PENDING, a.pages[FIRST])),
    "a page of another TD, mapped": ("is mapped by TD", lambda w, a, b: points_to(
        w, a, PENDING, b.pages[FIRST])),
    "a control page, mapped": ("of which the PAMT says TDCX", lambda w, a, b: points_to(
        w, a, PENDING, a.tdcx[0])),
    "rights of a page that is not accepted": ("with the rights", lambda w, a, b: with_bits(
        w, a, PENDING, 0, 7)),
    "an entry in no state": ("is in no state", lambda w, a, b: with_bits(w, a, PENDING, 0, sept_bits.TDEX)),
    "an entry that is locked": ("is locked", lambda w, a, b: with_bits(w, a, PENDING, 0, sept_bits.TDEL)),
    "an HKID of a free TD": ("is in state 0", lambda w, a, b: kot(w, a.hkid, 0)),
    "an HKID without a TD": ("is in state 1", lambda w, a, b: kot(w, w.first_hkid + w.hkids - 1, 1)),
    "two TDs with one HKID": ("belongs to 2 TDs", lambda w, a, b: tdr(
        w, b, TDR.hkid.offset, number(a.hkid, 2))),
    "the wrong number of pages": ("CHLDCNT is", lambda w, a, b: tdr(w, a, TDR.chldcnt.offset, number(3))),
    "a life cycle that does not exist": ("life cycle 9", lambda w, a, b: tdr(
        w, a, TDR.lifecycle_state.offset, number(9, 4))),
    "an operation state that does not exist": ("operation state 99", lambda w, a, b: tdcs(
        w, a, TDCS.op_state.offset, number(99, 4))),
    "a TDCX page listed twice": ("listed twice", lambda w, a, b: tdr(
        w, a, TDR.tdcx_pa.offset + 40, number(a.tdcx[4] | a.hkid << w.hpa_bits))),
    "vCPUs that are not there": ("the indices of its 3 vCPUs", lambda w, a, b: tdcs(
        w, a, TDCS.num_vcpus.offset, number(3, 4))),
    "vCPUs that nobody holds": ("it counts 2", lambda w, a, b: tdcs(
        w, a, TDCS.num_assoc_vcpus.offset, number(2, 4))),
    "a vCPU that runs": ("it counts vCPUs that run", lambda w, a, b: tdcs(
        w, a, TDCS.refcount.offset, number(1, 2))),
    "a vCPU ahead of its TD": ("is in epoch 9 of", lambda w, a, b: (
        w.probe.tdvps(a.tdvpr, a.tdr), TDVPS.vcpu_epoch.offset, number(9))),
    "a vCPU on no processor of this machine": ("held by processor 7", lambda w, a, b: (
        w.probe.tdvps(a.tdvpr, a.tdr), TDVPS.assoc_lpid.offset, number(7, 4))),
    "a lock of the whole module": ("the lock of KOT is held", lambda w, a, b: (
        *w.probe.kot_lock, b"\x01")),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTS)
def test_a_contradiction_is_seen(bench: Bench, what: str) -> None:
    check(bench[0].machine)
    message, plant = PLANTS[what]
    view, at, value = plant(*bench)
    before = bytes(view[at : at + len(value)])
    assert before != value
    view[at : at + len(value)] = value
    try:
        with pytest.raises(InvariantError, match=message):
            check(bench[0].machine)
    finally:
        view[at : at + len(value)] = before
    check(bench[0].machine)


def test_what_is_poisoned_is_named(bench: Bench) -> None:
    world = bring_up(World(), "running")
    world.memory.write(world.td.tdcx[0], b"attack")
    with pytest.raises(InvariantError, match=f"page {world.td.tdcx[0]:#x} cannot be read"):
        check(world.machine)
    assert check(world.machine, poison_allowed=True).poisoned
    world.close()


# ------------------------------------------------------------------ snapshots
def test_a_refused_call_changes_nothing_and_another_one_something(bench: Bench) -> None:
    world, td, _ = bench
    snapshot = MemorySnapshot(world.machine)
    assert world.call("TDH.MEM.PAGE.REMOVE", rcx=FIRST, rdx=td.tdr)[RAX]
    assert snapshot.changes() == []
    assert world.call("TDH.MEM.TRACK", rcx=td.tdr)[RAX] == 0
    changed = snapshot.changes()
    assert [change.hpa for change in changed] == [td.tdcx[0] + TDCS.td_epoch.offset]
    assert changed[0].after == changed[0].before + 1


def test_what_the_guest_writes_is_a_change(bench: Bench) -> None:
    world, td, _ = bench
    world.td = td
    snapshot = MemorySnapshot(world.machine)

    def guest(_cpu: Any) -> Any:
        yield Write(FIRST + 0x128, 0x1122334455667788)

    world.run_guest(guest)
    at = td.pages[FIRST] + 0x128
    assert {change.hpa: change.after for change in snapshot.changes()}[at] == 0x1122334455667788


def test_writing_caches_back_changes_nothing_that_software_can_tell(bench: Bench) -> None:
    world = bench[0]
    snapshot = MemorySnapshot(world.machine)
    world.machine.memory.wbinvd()
    check(world.machine)
    assert snapshot.changes() == []


def test_one_byte_anywhere(bench: Bench) -> None:
    world = bench[0]
    at = world.buffer(bytes(4096)) + 0xABC
    world.memory.write(at, b"\1")
    snapshot = MemorySnapshot(world.machine)
    world.memory.write(at, b"\2")
    assert [(change.hpa, change.before, change.after) for change in snapshot.changes()] == [
        (at & -8, 1 << 32, 2 << 32)
    ]
