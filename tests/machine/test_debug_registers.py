"""Breakpoints of a guest on QEMU: they work, they are its own, and they reach neither the next guest nor the
engine's stub."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.arch import vmcs as f
from swtdx.arch.x86 import RFLAGS_TF
from swtdx.machine.engine.qemu import layout
from swtdx.machine.engine.qemu.process import stub_image
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.assembler import assemble
from tests.machine.guests import (
    CODE,
    HKID,
    TO_LONG_MODE,
    VMCS,
    Guest,
    build_machine,
    long_mode_tables,
)

pytestmark = pytest.mark.qemu

IDT, HANDLER, TARGET, DATA = 0x3000, 0x4000, 0x6000, 0x7000
DB, UD, GP = 1, 6, 13
#: DR7: breakpoint 0 enabled (global), bit 10; of what type and length.
EXECUTE, WRITE_4, ACCESS_8 = 0x402, 0x000D0402, 0x000B0402


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def guest_of(machine: Machine, source: str, lp: int = 0) -> Guest:
    """A guest in 64-bit mode; an exception leaves its vector in RDI and RIP in RSI, and HLTs."""
    guest = Guest(machine, TO_LONG_MODE + "lidt [idt];" + source + "; hlt; .balign 8; idt: .word 0xfff;"
                  f".quad {IDT}", lp=lp)  # fmt: skip
    long_mode_tables(guest)
    for vector in range(32):
        where = HANDLER + 32 * vector
        guest.write(IDT + 16 * vector, struct.pack("<HHBBHII", where, 8, 0, 0x8E, 0, 0, 0))
        pop = "pop rax;" if vector in (8, 10, 11, 12, 13, 14, 17) else ""
        guest.write(where, assemble(f"{pop} pop rsi; mov edi, {vector}; mov r8, dr6; hlt", 64))
    guest.write(TARGET, assemble(f"mov dword ptr [{DATA}], 5; mov ebx, 7; hlt", 64))
    return guest


def breakpoint_at(address: int, dr7: int) -> str:
    return f"mov rax, {address}; mov dr0, rax; mov eax, {dr7}; mov dr7, rax;"


def registers(guest: Guest, *numbers: int) -> list[int]:
    return [guest.vmcs.context.gpr[number] for number in numbers]


RBX, RSI, RDI, R8 = 3, 6, 7, 8


@pytest.mark.parametrize(
    "native", ["mov cr4, rax", "mov dr6, rdx", "nop", "rdtsc"], ids=lambda source: source.split()[0]
)
def test_single_stepping_traps_behind_any_instruction(machine: Machine, native: str) -> None:
    """QEMU executes NOP; the others stop it (RDTSC by another frequency), and the microcode executes them."""
    start = "mov rax, cr4; mov rdx, dr6; pushfq; or qword ptr [rsp], 0x100; popfq;"
    guest = guest_of(machine, f"{start} jmp go; go: {native}; after: mov rbx, offset after")
    guest.vmcs.write(f.TSC_MULTIPLIER, 3 << 47)
    steps = []
    assert guest.run().reason == reason.HLT
    steps.append(registers(guest, RSI, RDI))
    assert guest.vmcs.context.gpr[R8] & 0x600F == 1 << 14, "DR6.BS"
    # The first trap is behind the JMP: go on from there, and see where the second is.
    at = guest.vmcs.context.gpr[RSI]
    context = guest.vmcs.context
    context.rip, context.rflags = at, context.rflags | RFLAGS_TF
    context.write_dr(6, 0)
    assert guest.run().reason == reason.HLT
    length = len(assemble(native, 64))
    assert registers(guest, RSI, RDI) == [at + length, DB]
    assert guest.vmcs.context.read_dr(6) & 0x600F == 1 << 14


def test_a_breakpoint_on_an_instruction_hits(machine: Machine) -> None:
    guest = guest_of(machine, breakpoint_at(TARGET, EXECUTE) + f"mov eax, {TARGET}; jmp rax")
    assert guest.run().reason == reason.HLT
    assert registers(guest, RSI, RDI) == [TARGET, DB], "before the instruction"
    assert guest.vmcs.context.gpr[R8] & 0x600F == 1


@pytest.mark.parametrize(("dr7", "address"), [(WRITE_4, DATA), (ACCESS_8, DATA), (ACCESS_8, DATA + 4)])
def test_a_breakpoint_on_data_hits(machine: Machine, dr7: int, address: int) -> None:
    # The processor ignores the low bits of an address that is not aligned to the length.
    guest = guest_of(
        machine, breakpoint_at(address, dr7) + f"mov eax, {TARGET}; jmp rax", lp=1 if address != DATA else 0
    )
    assert guest.run().reason == reason.HLT
    assert registers(guest, RDI) == [DB]
    assert guest.vmcs.context.gpr[RSI] == TARGET + 8 + 3, "behind the instruction"
    assert guest.read(DATA, 1) == b"\5"
    assert guest.vmcs.context.read_dr(0) == address, "what it has written reads back"
    guest.vmx.clear(VMCS | HKID << 46)


def test_it_survives_exits_and_goes_where_the_vcpu_goes(machine: Machine) -> None:
    guest = guest_of(machine, breakpoint_at(TARGET, EXECUTE) + f"cpuid; mov eax, {TARGET}; jmp rax")
    assert guest.run().reason == reason.CPUID
    guest.skip()
    context = guest.vmcs.context
    kept = [context.read_dr(number) for number in (0, 1, 2, 3, 6)]
    assert kept == [TARGET, 0, 0, 0, 0xFFFF0FF0]
    assert guest.vmcs.read(f.GUEST_DR7) == EXECUTE
    guest.vmx.clear(VMCS | HKID << 46)
    other = machine.processors[1].vmx
    guest.vmcs = other.load(VMCS | HKID << 46)
    for number, value in zip((0, 1, 2, 3, 6), kept, strict=True):
        guest.vmcs.context.write_dr(number, value)
    guest.vmcs.context.gpr[4] = 0x8000
    assert other.enter().reason == reason.HLT
    assert registers(guest, RSI, RDI) == [TARGET, DB]
    other.clear(VMCS | HKID << 46)


def test_general_detect_does_not_stop_the_engine(machine: Machine) -> None:
    source = breakpoint_at(TARGET, EXECUTE | 1 << 13) + f"cpuid; mov eax, {TARGET}; jmp rax"
    guest = guest_of(machine, source)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    assert guest.run().reason == reason.HLT
    assert registers(guest, RSI, RDI) == [TARGET, DB]


@pytest.mark.parametrize(
    ("address", "dr7"), [(TARGET, EXECUTE), (DATA, WRITE_4), (DATA, ACCESS_8), (0x3F8, 0x000E0402)]
)
def test_another_guest_knows_nothing_of_it(machine: Machine, address: int, dr7: int) -> None:
    first = guest_of(machine, "mov rcx, cr4; or ecx, 8; mov cr4, rcx;" + breakpoint_at(address, dr7))
    assert first.run().reason == reason.HLT
    second = guest_of(machine, f"mov r9, dr0; mov r10, dr7; mov eax, {TARGET}; jmp rax")
    for start in (CODE, TARGET):
        second.vmcs.context.rip = start
        assert second.run().reason == reason.HLT
        assert registers(second, RBX, RDI, 9, 10) == [7, 0, 0, 0x400]


def test_types_that_change_between_guests(machine: Machine) -> None:
    """QEMU took the watchpoint of one guest for the breakpoint of the next, and died of it."""
    for _ in range(20):
        assert guest_of(machine, breakpoint_at(DATA + 64, WRITE_4)).run().reason == reason.HLT
        back_and_forth = (
            "mov ecx, 5; 1: mov eax, 0xf0402; mov dr7, rax; mov eax, 0x400; mov dr7, rax; dec ecx;"
        )
        assert guest_of(machine, back_and_forth + "jnz 1b").run().reason == reason.HLT


@pytest.mark.parametrize("dr7", [EXECUTE, WRITE_4, ACCESS_8])
def test_where_the_stub_works_no_breakpoint_hits(machine: Machine, dr7: int) -> None:
    """Every instruction and every stack slot that the stub uses between setting breakpoints and VMRUN."""
    vmrun = 0xF0000 + stub_image().index(b"\x0f\x01\xd8")
    top = layout.STACK + 1024
    step = 1 if dr7 == EXECUTE else 4
    places = range(vmrun - 40, vmrun + 40) if dr7 == EXECUTE else range(top - 80, top, 4)
    loop = f"mov rbx, {places.start}; 1: mov dr0, rbx; cpuid; add rbx, {step}; cmp rbx, {places.stop}; jb 1b"
    guest = guest_of(machine, breakpoint_at(places.start, dr7) + loop)
    for _ in range(len(places)):
        assert guest.run().reason == reason.CPUID
        guest.skip()
    assert guest.run().reason == reason.HLT
    assert registers(guest, RDI) == [0]


def test_an_access_that_hits_and_leaves_the_guest_at_once(machine: Machine) -> None:
    """PUSH from a watched place to a page that is not there: QEMU has a #DB left over when it leaves."""
    source = breakpoint_at(DATA, ACCESS_8) + f"mov esp, 0x9000; mov ecx, {DATA}; push qword ptr [rcx]; nop"
    guest = guest_of(machine, source)
    guest.entry(0x8000, 1 << 63)
    assert guest.run().reason == reason.EPT_VIOLATION
    guest.entry(0x8000, 16 << 20 | 0x8000 | 0xF7)
    assert guest.run().reason == reason.HLT
    assert registers(guest, RDI) == [DB], "it is executed again, and hits again"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mov eax, 0x12345678; mov dr1, rax; mov r9, dr1", 0x12345678),
        ("mov rax, -1; mov dr2, rax; mov r9, dr2", (1 << 64) - 1),
        ("xor eax, eax; mov dr6, rax; mov r9, dr6", 0xFFFF0FF0),
        ("mov eax, 0xffffffff; mov dr6, rax; mov r9, dr6", 0xFFFFEFFF),
        ("mov eax, 0xffffdd00; mov dr7, rax; mov r9, dr7", 0xFFFF0500),
        ("xor eax, eax; mov dr5, rax; mov r9, dr7", 0x400),
        ("mov eax, 5; mov dr4, rax; mov r9, dr6", 0xFFFF0FF5),
    ],
)
def test_what_is_written_reads_back(machine: Machine, source: str, expected: int) -> None:
    guest = guest_of(machine, source)
    assert guest.run().reason == reason.HLT
    assert registers(guest, RDI, 9) == [0, expected]


@pytest.mark.parametrize(
    ("source", "vector"),
    [
        ("mov rcx, cr4; or ecx, 8; mov cr4, rcx; mov rax, dr4", UD),
        ("mov rcx, cr4; or ecx, 8; mov cr4, rcx; mov dr5, rax", UD),
        ("mov rax, 0x100000000; mov dr7, rax", GP),
        ("mov rax, 0x100000000; mov dr6, rax", GP),
        ("mov eax, 0x2400; mov dr7, rax; mov rax, dr0", DB),
        (".byte 0xf1", DB),
    ],
)
def test_what_faults(machine: Machine, source: str, vector: int) -> None:
    guest = guest_of(machine, source + "; after: ")
    assert guest.run().reason == reason.HLT
    assert registers(guest, RDI) == [vector]
    if "0x2400" in source:
        assert guest.vmcs.context.gpr[R8] & 0x600F == 1 << 13, "DR6.BD"
        assert guest.vmcs.context.read_dr(7) == 0x400, "DR7.GD is clear for the handler"
    if vector == DB and "0xf1" in source:
        assert guest.read(guest.vmcs.context.gpr[RSI] - 1, 1) == b"\xf1", "a trap: RIP is behind it"


def test_the_host_can_have_them_exit(machine: Machine) -> None:
    guest = guest_of(machine, "mov dr3, r9; mov rbx, dr6; .byte 0xf1")
    guest.vmcs.write(f.PROC_BASED_CONTROLS, 1 << 23)
    seen = []
    for _ in range(2):
        out = guest.run()
        seen.append((out.reason, out.qualification, out.length))
        if out.reason == reason.DR_ACCESS:
            guest.skip()
    assert seen == [(reason.DR_ACCESS, 3 | 9 << 8, 4), (reason.DR_ACCESS, 6 | 1 << 4 | 3 << 8, 3)]
    guest.vmcs.write(f.EXCEPTION_BITMAP, 1 << DB)
    out = guest.run()
    assert (out.reason, out.intr_info, out.length) == (reason.EXCEPTION_OR_NMI, 0x80000501, 1)
