"""The SEAM range from outside: software reads ones and writes nothing, devices abort, TDs map nothing."""

from __future__ import annotations

import pytest

from swtdx.machine.host import Host
from swtdx.machine.machine import Machine
from swtdx.machine.memory import BusAbort, Requestor, ReservedBitFault

from .conftest import MIB

BASE, SIZE = 64 * MIB, 32 * MIB
PLACES = [BASE, BASE + 0x1234, BASE + SIZE - 4096, BASE + SIZE - 8]
OUTSIDE = [Requestor.HOST, Requestor.DEVICE]


@pytest.fixture
def closed(enabled: Machine) -> Machine:
    """With something in the range at every place that the tests look at."""
    for place in PLACES:
        enabled.memory.write(place, b"in SEAM!", Requestor.SEAM)
    return enabled


def contents(machine: Machine) -> bytes:
    return machine.memory.read(BASE, SIZE, Requestor.SEAM)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("who", OUTSIDE)
@pytest.mark.parametrize("keyid", [0, 1, 31])
@pytest.mark.parametrize("flushed", [False, True])
def test_reads_and_writes(closed: Machine, place: int, who: Requestor, keyid: int, flushed: bool) -> None:
    memory = closed.memory
    before = contents(closed)
    if flushed:
        memory.wbinvd()
    pa = memory.addresses.join(place, keyid)
    assert memory.read(pa, 8, who) == b"\xff" * 8
    memory.write(pa, b"attacker", who)
    memory.direct_store(pa & -64, b"attacker" * 8, who)
    memory.direct_zero(pa & -4096, 4096, who)
    memory.clflush(pa, 64, who)
    assert contents(closed) == before


@pytest.mark.parametrize("who", OUTSIDE)
def test_an_access_across_the_edge(closed: Machine, who: Requestor) -> None:
    """Only the part outside is done."""
    memory = closed.memory
    before = contents(closed)
    memory.write(BASE - 8, b"below...above...", who)
    assert contents(closed) == before
    assert memory.read(BASE - 8, 16, who) == b"below..." + b"\xff" * 8
    memory.write(BASE + SIZE - 8, b"inside..outside.", who)
    assert contents(closed) == before
    assert memory.read(BASE + SIZE - 8, 16, who) == b"\xff" * 8 + b"outside."


def test_dma_with_a_private_keyid(closed: Machine) -> None:
    """A device never gets a fault: its access aborts. Software faults before memory is asked."""
    memory = closed.memory
    pa = memory.addresses.join(BASE, 40)
    before = contents(closed)
    assert memory.read(pa, 8, Requestor.DEVICE) == b"\xff" * 8
    memory.write(pa, b"attacker", Requestor.DEVICE)
    with pytest.raises(ReservedBitFault):
        memory.read(pa, 8, Requestor.HOST)
    assert contents(closed) == before


@pytest.mark.parametrize("who", [Requestor.TD, Requestor.HOST, Requestor.DEVICE])
@pytest.mark.parametrize(
    ("place", "size"), [(BASE, 4096), (BASE + SIZE - 4096, 4096), (BASE - 2 * MIB, 4 * MIB)]
)
def test_nothing_of_it_is_mapped_for_a_guest(closed: Machine, who: Requestor, place: int, size: int) -> None:
    """Even if an EPT points there."""
    with pytest.raises(BusAbort):
        closed.memory.acquire(place, size, 0, who)


def test_the_hypervisors_face(closed: Machine) -> None:
    host = Host(closed)
    before = contents(closed)
    assert host.memory.read(BASE, 64) == b"\xff" * 64
    assert host.memory.read_u64(BASE) == (1 << 64) - 1
    host.memory.write(BASE, bytes(64))
    host.memory.write_u64(BASE, 1)
    host.memory.clear(BASE, 4096)
    assert contents(closed) == before
    assert all(base + size <= BASE or base >= BASE + SIZE for base, size in host.memory_map())


def test_before_mcheck_it_is_ordinary_memory(machine: Machine) -> None:
    machine.memory.write(BASE, b"ordinary")
    assert machine.memory.read(BASE, 8) == b"ordinary"
