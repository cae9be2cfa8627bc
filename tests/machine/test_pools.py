"""What the guests of a machine share in the QEMU engine can run short; no guest notices.

The pools are made small, so that a few guests do.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.unit import MOST_SPACES
from tests.machine.guests import HKID, TO_LONG_MODE, Guest, build_machine, long_mode_tables

pytestmark = pytest.mark.qemu

SHARED = 1 << 47
#: Where a hypervisor's EPT of a page a level lies, and the page that it shows everywhere.
TABLES = (0x40000, 0x41000, 0x42000, 0x43000)
TARGET = 0x50000


@pytest.fixture
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def engine_of(machine: Machine) -> Any:
    _ = machine.tsc_hz  # it has come up
    return machine.engine


def test_more_vcpus_than_there_is_room_for(machine: Machine) -> None:
    engine = engine_of(machine)
    del engine._contexts[4:]
    guest = Guest(machine, TO_LONG_MODE + "movq xmm5, rsi; mov dr1, rdi; 1: inc rsi; cpuid; jmp 1b")
    long_mode_tables(guest)
    guest.vmx.clear(guest.vmcs.pa)
    regions = [0x100000 + 0x1000 * number | HKID << 46 for number in range(20)]
    for number, pa in enumerate(regions):
        machine.memory.direct_zero(pa, 4096, SEAM)
        guest.vmcs = guest.vmx.load(pa)
        guest._initial_state()
        guest.vmcs.context.gpr[6], guest.vmcs.context.gpr[7] = 100 * number, 7 * number
    for turn in range(3):
        for step in range(len(regions)):
            # In another order each time.
            number = (step * 7 + turn) % len(regions)
            pa = regions[number]
            guest.vmcs = guest.vmx.load(pa)
            assert guest.run().reason == reason.CPUID
            context = guest.vmcs.context
            assert context.gpr[6] == 100 * number + turn + 1
            assert struct.unpack_from("<Q", context.read_xstate(), 160 + 5 * 16)[0] == 100 * number
            assert context.read_dr(1) == 7 * number
            guest.skip()
    assert len(engine._resident) <= 4
    for pa in regions:
        guest.vmx.clear(pa)
    assert (len(engine._resident), len(engine._contexts)) == (0, 4), "every place is free again"


def wanderer(machine: Machine) -> Guest:
    """A guest that walks through shared memory in steps of 2 MiB, each of which takes a nested table."""
    guest = Guest(
        machine,
        TO_LONG_MODE + "mov rdi, 0x8000000000; mov ecx, 2000; 1: mov al, [rdi]; add rdi, 0x200000; inc rbx;"
        "dec ecx; jnz 1b; hlt",
    )
    long_mode_tables(guest)
    guest.write(0x100008, struct.pack("<Q", 0x104007))
    guest.write(0x104000, struct.pack("<512Q", *(SHARED | n << 30 | 0xE7 for n in range(512))))
    for table, below in itertools.pairwise(TABLES):
        machine.memory.write(table, struct.pack("<512Q", *[below | 7] * 512))
    machine.memory.write(TABLES[-1], struct.pack("<Q", TARGET | 0x33))
    guest.vmcs.write(f.SHARED_EPTP, TABLES[0])
    return guest


def test_a_guest_that_takes_all_nested_tables(machine: Machine) -> None:
    pool = engine_of(machine)._pool
    del pool.free[100:]
    guest = wanderer(machine)
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.gpr[3] == 2000
    for space in guest.lp.spaces.values():
        space.close()
    assert len(pool.free) == 100, "no page is lost"


def test_address_spaces_without_end(machine: Machine) -> None:
    """The hypervisor gives a TD one shared EPT after the other."""
    guest = Guest(machine, "1: inc dword ptr [0x7000]; cpuid; jmp 1b")
    for number in range(3 * MOST_SPACES):
        guest.vmcs.write(f.SHARED_EPTP, number << 12)
        assert guest.run().reason == reason.CPUID
        guest.skip()
        assert len(guest.lp.spaces) <= MOST_SPACES
    assert guest.read(0x7000, 4) == struct.pack("<I", 3 * MOST_SPACES)
