"""An INT3 that QEMU has translated, and that is not in memory any more, does not happen to the guest.

QEMU before 8.1 lets other processors write to code while it translates it (port.py).  Linux patches code
under running processors by way of INT3; on a busy host QEMU kept such an INT3 once in some hundred boots.
Here a write that QEMU does not see leaves one behind each time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.machine.engine.qemu.engine import QemuEngine
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.assembler import assemble
from tests.machine.guests import GUEST, TO_LONG_MODE, Guest, build_machine, long_mode_tables

pytestmark = pytest.mark.qemu

IDT, BREAKPOINT, SYSTEM_CALL, PATCHED = 0x3000, 0x4000, 0x5000, 0x6000
#: RBX counts #BP, RSI counts INT 80h; RDI is where the latest of them returned to.
SOURCE = f"""{TO_LONG_MODE}
        lidt [idt]
        mov esp, 0x8800
        xor ebx, ebx
        xor esi, esi
again:  mov eax, {PATCHED}
        call rax
        hlt
        jmp again
        .balign 8
idt:    .word 0xfff
        .quad {IDT}
"""
NOP = 0x90


@pytest.fixture
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def side_by_side(machine: Machine, *, locks_code: bool) -> None:
    """Let two guests run, on a QEMU that is said to have been mended or not."""
    engine = machine.engine
    assert isinstance(engine, QemuEngine)
    machine.tsc()
    port = engine._ports[0]
    port.locks_code, port.guests = locks_code, 2
    port.look()


def started(machine: Machine, patched: str) -> Guest:
    """A guest that has run the code ``patched`` once."""
    guest = Guest(machine, SOURCE)
    long_mode_tables(guest)
    for vector, handler, counter in ((3, BREAKPOINT, "ebx"), (0x80, SYSTEM_CALL, "esi")):
        guest.write(IDT + 16 * vector, struct.pack("<HHBBHII", handler, 8, 0, 0x8E, 0, 0, 0))
        guest.write(handler, assemble(f"inc {counter}; mov rdi, [rsp]; iretq", 64, handler))
    guest.write(PATCHED, assemble(f"{patched}; ret", 64, PATCHED))
    assert guest.run().reason == reason.HLT
    return guest


def counts(guest: Guest) -> tuple[int, int]:
    """Breakpoints and system calls until now."""
    return guest.vmcs.context.gpr[3], guest.vmcs.context.gpr[6]


def again(guest: Guest) -> tuple[int, int]:
    guest.skip()
    assert guest.run().reason == reason.HLT
    return counts(guest)


def behind_its_back(guest: Guest, code: bytes) -> None:
    guest.memory.frames[GUEST + PATCHED : GUEST + PATCHED + len(code)] = code


@pytest.mark.parametrize(
    ("code", "first"),
    [("nop; int3; nop", (1, 0)), ("nop; int 0x80", (0, 1)), ("int3; int 0x80; int3", (2, 1))],
)
def test_what_is_there_no_longer_does_not_happen(machine: Machine, code: str, first: tuple[int, int]) -> None:
    side_by_side(machine, locks_code=False)
    guest = started(machine, code)
    assert counts(guest) == first
    behind_its_back(guest, bytes([NOP]) * len(assemble(code, 64, PATCHED)))
    assert again(guest) == first
    assert again(guest) == first


def test_without_it_the_guest_would_see_it(machine: Machine) -> None:
    side_by_side(machine, locks_code=True)
    guest = started(machine, "nop; int3; nop")
    behind_its_back(guest, bytes([NOP]) * 3)
    assert again(guest) == (2, 0)


@pytest.mark.parametrize("locks_code", [True, False])
def test_what_is_there_happens_each_time(machine: Machine, locks_code: bool) -> None:
    side_by_side(machine, locks_code=locks_code)
    guest = started(machine, "int3; int3; int 0x80; .byte 0xcd, 3")
    assert counts(guest) == (3, 1)
    assert guest.vmcs.context.gpr[7] == PATCHED + 6
    assert again(guest) == (6, 2)


def test_a_guest_alone_is_never_stopped(machine: Machine) -> None:
    guest = started(machine, "int3; int 0x80; int3")
    before = guest.lp.runs
    assert again(guest) == (4, 2)
    assert guest.lp.runs == before + 1
