"""Guests with paging off on QEMU run on page tables of the engine's: they can neither see nor change them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.engine.qemu import npt
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.assembler import assemble
from tests.machine.guests import (
    CODE,
    EPT,
    GUEST,
    TO_LONG_MODE,
    BareGuest,
    Guest,
    build_machine,
    long_mode_tables,
)

pytestmark = pytest.mark.qemu

ROOT = npt.IDENTITY_GPA
HIDDEN = npt._HIDDEN_GPA
LARGE = 2 << 20
RBX = 3


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def map_high(guest: BareGuest, gpa: int, target: int, *, large: bool = False) -> None:
    """Map one page (or 2 MiB) at a GPA far above the guest's memory to its memory at ``target``."""
    tables = [EPT + 0xA000 + 0x1000 * n for n in range(3)]
    at = EPT
    for level, table in zip((3, 2, 1), tables, strict=True):
        slot = (gpa >> 12 + 9 * level & 511) * 8
        if level == 1 and large:
            struct.pack_into("<Q", guest.page(at), slot, GUEST + target | 0xF7)
            break
        known = struct.unpack_from("<Q", guest.page(at), slot)[0] & ~0xFFF
        struct.pack_into("<Q", guest.page(at), slot, (known or table) | 7)
        at = known or table
    else:
        struct.pack_into("<Q", guest.page(at), (gpa >> 12 & 511) * 8, GUEST + target | 0xF7)
    for space in guest.lp.spaces.values():
        space.flush()


@pytest.mark.parametrize("place", [ROOT, ROOT + 0xFFC, ROOT - 4, ROOT + 0x1000, 0xFFFFFFF0])
@pytest.mark.parametrize("store", [False, True])
def test_where_nothing_is_mapped_nothing_is(machine: Machine, place: int, store: bool) -> None:
    access = f"mov dword ptr [{place}], 0xe7" if store else f"mov ebx, [{place}]"
    out = (guest := Guest(machine, access + "; hlt")).run()
    assert (out.reason, out.gpa, out.qualification & 7) == (reason.EPT_VIOLATION, place, 2 if store else 1)
    assert out.gla == place
    assert guest.vmcs.context.gpr[RBX] == 0


def test_what_one_guest_writes_there_does_not_steer_another(machine: Machine) -> None:
    Guest(machine, f"mov dword ptr [{ROOT}], 0x4000e7; hlt").run()
    other = Guest(machine, "mov eax, 0x600D; hlt")
    other.write(0x400000 + CODE, assemble("mov eax, 0xBAD; hlt", 32, CODE))
    assert other.run().reason == reason.HLT
    assert other.vmcs.context.gpr[0] == 0x600D


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("offset", [0, 0x1000, -0x1000])
def test_memory_can_be_there_all_the_same(machine: Machine, large: bool, offset: int) -> None:
    guest = Guest(machine, f"mov ebx, [{ROOT + offset}]; mov dword ptr [{ROOT + offset}], 0x77; cpuid; hlt")
    target = 0x200000 if large else 0x5000
    inside = target + ((ROOT + offset) % LARGE if large else 0)
    guest.write(inside, struct.pack("<I", 0x1234))
    map_high(guest, ROOT + offset & (-LARGE if large else -4096), target, large=large)
    assert guest.run().reason == reason.CPUID
    assert guest.vmcs.context.gpr[RBX] == 0x1234
    assert guest.read(inside, 4) == struct.pack("<I", 0x77)
    guest.skip()
    assert guest.run().reason == reason.HLT, "the guest still runs"


def test_with_paging_on_nothing_of_them_is_left(machine: Machine) -> None:
    """The hidden tables' addresses are memory of the guest's own like any other."""
    guest = Guest(
        machine, TO_LONG_MODE + "mov rdi, 0x40000000; mov rbx, [rdi + 0x10]; mov rbx, [rdi + 0x10]; hlt"
    )
    long_mode_tables(guest)
    guest.write(0x101008, struct.pack("<Q", 0x103007))
    guest.write(0x103000, struct.pack("<Q", HIDDEN | 0xE7))
    out = guest.run()
    assert (out.reason, out.gpa) == (reason.EPT_VIOLATION, HIDDEN + 0x10)
    guest.write(0x5010, struct.pack("<Q", 0x5678))
    map_high(guest, HIDDEN, 0x5000)
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.gpr[RBX] == 0x5678


def test_paging_goes_on_and_off(machine: Machine) -> None:
    guest = Guest(
        machine,
        """mov esi, 20
        mov dword ptr [0x200000], 0x87; mov dword ptr [0x200004], 0x400087
        mov eax, cr4; or eax, 0x10; mov cr4, eax
        mov eax, 0x200000; mov cr3, eax
        1: mov eax, cr0; or eax, 0x80000000; mov cr0, eax
        inc dword ptr [0x400000]
        mov eax, cr0; and eax, 0x7fffffff; mov cr0, eax
        inc dword ptr [0x400004]
        dec esi; jnz 1b; mov ebx, cr3; hlt""",
    )
    # Without EFER.LME: 32-bit paging.
    guest.vmcs.write(f.GUEST_EFER, 0x801)
    assert guest.run().reason == reason.HLT
    assert guest.read(0x400000, 8) == struct.pack("<II", 20, 20)
    assert guest.vmcs.context.gpr[RBX] == 0x200000


@pytest.mark.parametrize("bits", [1 << 20, 1 << 21, 1 << 22, 7 << 20])
def test_what_protects_pages_does_nothing_without_paging(machine: Machine, bits: int) -> None:
    """CR4.SMEP, SMAP and PKE."""
    guest = Guest(
        machine,
        f"mov eax, cr4; or eax, {bits}; mov cr4, eax; mov ebx, [0x3000]; mov ecx, cr4; mov ebx, 7; hlt",
    )
    guest.vmcs.write(f.EXCEPTION_BITMAP, 0xFFFFFFFF)
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.gpr[RBX] == 7
    assert guest.vmcs.context.gpr[1] & 7 << 20 == bits


def test_a_task_switch_leaves_the_guest(machine: Machine) -> None:
    """QEMU carries it out first, and loads CR3 out of the TSS; then it must not go on with that."""
    tss = struct.pack("<26I", 0, *[0] * 6, 0x200000, CODE + 0x800, 2, *[0] * 4, 0x8000, *[0] * 3,
                      16, 8, 16, 16, 0, 0, 0, 0)  # fmt: skip
    guest = Guest(machine, "lgdt [g]; mov ax, 0x18; ltr ax; .byte 0xea; .long 0; .word 0x20;"
                  ".balign 8; g: .word 0x27; .long 0x3000")  # fmt: skip
    table = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x0000890050000067, 0x0000890060000067)
    guest.write(0x3000, struct.pack("<5Q", *table))
    guest.write(0x6000, tss)
    guest.write(CODE + 0x800, assemble("mov ebx, 9; hlt", 32, CODE + 0x800))
    assert guest.run().reason == reason.TASK_SWITCH
