"""Views for devices that are bus masters (``PhysicalMemory.transfer``): memory, under the same rules."""

from __future__ import annotations

import pytest

from swtdx.machine.memory import TD, BusAbort, MachineCheck, PhysicalMemory, ReservedBitFault

from .conftest import SHARED_1, TD_A
from .test_access import PAGE_A, SECRET, give_page


def fill(views: list[memoryview]) -> int:
    """Store a byte more in each view."""
    for number, view in enumerate(views, 1):
        view[:] = bytes([number]) * len(view)
    return len(views)


def test_what_is_stored_in_a_view_is_in_memory(memory: PhysicalMemory) -> None:
    memory.write(0x5000, b"before")
    shared = memory.addresses.join(0x9000, SHARED_1)
    assert memory.transfer([(0x5FFE, 4), (0x1_0000, 3 * 4096), (shared + 8, 8)], fill) == 3
    for _ in range(2):
        assert memory.read(0x5FFC, 8) == b"\0\0\1\1\1\1\0\0"
        assert memory.read(0x1_0000, 3 * 4096) == b"\2" * 3 * 4096
        assert memory.read(shared + 8, 8) == b"\3" * 8
        assert memory.read(0x5000, 6) == b"before"
        memory.wbinvd()


def test_a_td_s_page_reads_as_zeros_and_stays_the_td_s_unless_it_is_stored_to(memory: PhysicalMemory) -> None:
    give_page(memory, PAGE_A, TD_A)
    seen = memory.transfer([(PAGE_A, 4096)], lambda views: b"".join(views))
    assert seen == bytes(4096)
    memory.wbinvd()
    assert memory.read(memory.addresses.join(PAGE_A, TD_A), 64, TD) == SECRET
    memory.transfer([(PAGE_A, 64)], fill)
    memory.wbinvd()
    assert memory.read(PAGE_A, 64) == b"\1" * 64
    with pytest.raises(MachineCheck):
        memory.read(memory.addresses.join(PAGE_A, TD_A), 64, TD)


def test_what_is_no_memory_of_the_host_s_is_refused_before_anything_moves(memory: PhysicalMemory) -> None:
    private = memory.addresses.join(PAGE_A, TD_A)
    for wrong, error in ((private, ReservedBitFault), (memory.size, BusAbort)):
        with pytest.raises(error):
            memory.transfer([(0x5000, 16), (wrong, 16)], fill)
    assert memory.read(0x5000, 16) == bytes(16)
