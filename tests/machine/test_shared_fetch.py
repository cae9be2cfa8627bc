"""Code is not fetched from shared memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import TO_LONG_MODE, Guest, build_machine, long_mode_tables

pytestmark = pytest.mark.qemu
SHARED = 1 << 47
#: Linear address that the test maps to shared memory.
WINDOW = 0x600000


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def test_fetch_from_a_shared_gpa_is_a_page_fault(machine: Machine) -> None:
    guest = Guest(
        machine, TO_LONG_MODE + "lidt [i]; mov eax, [0x600ffc]; mov ebx, 0x600ffc; jmp rbx;"
        ".balign 8; i: .word 0xfff; .quad 0x3000"
    )  # fmt: skip
    long_mode_tables(guest)
    guest.write(0x102000 + (WINDOW >> 21) * 8, struct.pack("<Q", SHARED | WINDOW | 0xE7))
    guest.write(0x3000 + 14 * 16, struct.pack("<HHBBHII", 0x4000, 8, 0, 0x8E, 0, 0, 0))
    guest.write(0x4000, b"\xf4")
    # The hypervisor's EPT, at another page and without a KeyID, maps the page at WINDOW with all rights.
    tables = (0x40000, 0x41000, 0x42000, 0x43000)
    for table, below in pairwise(tables):
        index = {0x40000: SHARED >> 39 & 511, 0x42000: WINDOW >> 21 & 511}.get(table, 0)
        machine.memory.write(table + index * 8, struct.pack("<Q", below | 7))
    machine.memory.write(0x43000, struct.pack("<Q", 0x50000 | 0x37))
    machine.memory.write(0x50FFC, b"\xf4" * 4)
    guest.vmcs.write(f.SHARED_EPTP, 0x40000)
    out = guest.run()
    context = guest.vmcs.context
    assert (out.reason, context.rip) == (reason.HLT, 0x4000), "the handler of #PF"
    assert context.gpr[0] == 0xF4F4F4F4, "data was readable"
    assert context.cr2 == 0x600FFC
    stack = context.gpr[4]
    assert struct.unpack("<Q", guest.read(stack, 8))[0] == 0x11, "present, instruction fetch"
