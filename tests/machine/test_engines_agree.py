"""The same instruction on QEMU (assembled by binutils) and in a script: the same exit.

QEMU decodes and intercepts the machine code by itself, so it judges what the scripted engine says of
exit reasons, qualifications, lengths, encodings and registers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.engine.scripted import (
    Clts,
    Cpuid,
    Hlt,
    In,
    Invd,
    Monitor,
    MovFromCr,
    MovToCr,
    Mwait,
    Operation,
    Out,
    Rdmsr,
    Rdpmc,
    Read,
    Tdcall,
    TripleFault,
    Undefined,
    Vmcall,
    Wbinvd,
    Write,
    Wrmsr,
    Xsetbv,
    sequence,
)
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import (
    MSR_BITMAP,
    TO_LONG_MODE,
    VE_INFO,
    BareGuest,
    Guest,
    build_machine,
    long_mode_tables,
)

pytestmark = pytest.mark.qemu

Machines = tuple[Machine, Machine]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with build_machine("qemu") as qemu, build_machine("scripted") as scripted:
        yield qemu, scripted


def both(machines: Machines, source: str, operations: list[Operation], bits: int) -> tuple[Guest, BareGuest]:
    """The guest in machine code and the scripted one, before their first entry."""
    qemu = Guest(machines[0], (TO_LONG_MODE if bits == 64 else "") + source)
    long_mode_tables(qemu)
    scripted = BareGuest(machines[1])

    machines[1].engine.add_program(lambda _cpu: sequence(operations), bits=bits)  # type: ignore[attr-defined]
    return qemu, scripted


def look(guest: BareGuest) -> dict[str, object]:
    """Enter, and everything about the exit that software can see."""
    out = guest.run()
    code = guest.vmx.fetch(guest.vmcs)[: out.length]
    gpr = guest.vmcs.context.gpr
    return {
        "reason": out.reason,
        "qualification": out.qualification,
        "length": out.length,
        "gpa": out.gpa,
        "interruption": out.intr_info,
        "code": code.hex(),
        "rax": gpr[0],
        "rcx": gpr[1],
        "rdx": gpr[2],
    }


EXITS: list[tuple[str, Operation, set[int]]] = [
    ("mov eax, 7; mov ecx, 1; cpuid", Cpuid(7, 1), {32, 64}),
    ("mov ecx, 0x1b; rdmsr", Rdmsr(0x1B), {32, 64}),
    ("mov ecx, 0x1b; mov eax, 0x11223344; mov edx, 5; wrmsr", Wrmsr(0x1B, 0x5_1122_3344), {32, 64}),
    ("in al, 0x71", In(0x71, immediate=True), {32, 64}),
    ("in ax, 0x60", In(0x60, 2, immediate=True), {32, 64}),
    ("in eax, 0x60", In(0x60, 4, immediate=True), {32, 64}),
    ("mov edx, 0xcf8; in al, dx", In(0xCF8), {32, 64}),
    ("mov edx, 0xcfc; in ax, dx", In(0xCFC, 2), {32, 64}),
    ("mov edx, 0xcfc; in eax, dx", In(0xCFC, 4), {32, 64}),
    ("xor eax, eax; mov al, 0x5a; out 0x80, al", Out(0x80, 0x5A, immediate=True), {32, 64}),
    ("xor eax, eax; mov ax, 0x1234; out 0x80, ax", Out(0x80, 0x1234, 2, immediate=True), {32, 64}),
    ("mov edx, 0x3f8; xor eax, eax; mov al, 0x41; out dx, al", Out(0x3F8, 0x41), {32, 64}),
    ("mov edx, 0xffff; xor eax, eax; mov ax, 0x1234; out dx, ax", Out(0xFFFF, 0x1234, 2), {32, 64}),
    ("mov edx, 0xcf8; mov eax, 0x80000000; out dx, eax", Out(0xCF8, 0x80000000, 4), {32, 64}),
    ("hlt", Hlt(), {32, 64}),
    ("invd", Invd(), {32, 64}),
    ("wbinvd", Wbinvd(), {32, 64}),
    ("xor ecx, ecx; monitor", Monitor(), {32, 64}),
    ("xor ecx, ecx; mwait", Mwait(), {32, 64}),
    ("mov ecx, 2; rdpmc", Rdpmc(2), {32, 64}),
    ("mov eax, 1; mov ecx, 2; .byte 0x66,0x0f,0x01,0xcc", Tdcall(rax=1, rcx=2), {32, 64}),
    ("mov eax, 1; vmcall", Vmcall(rax=1), {32, 64}),
    (".byte 0x66,0x0f,0x01,0xcf", Undefined(b"\x66\x0f\x01\xcf"), {64}),
    ("getsec", Undefined(b"\x0f\x37"), {32, 64}),
    (".byte 0x0f,0x01,0xc5", Undefined(b"\x0f\x01\xc5"), {32, 64}),
    ("mov eax, 0x80010011; mov cr0, eax", MovToCr(0, 0x80010011), {32}),
    ("mov eax, 0x80010013; mov cr0, rax", MovToCr(0, 0x80010013), {64}),
    ("mov eax, 0x26a0; mov cr4, rax", MovToCr(4, 0x26A0), {64}),
    ("ud2", TripleFault(), {32, 64}),
    ("ud2", Undefined(), {32, 64}),
    # CR4.OSXSAVE is clear: #UD, and nobody there to take it.
    ("xor ecx, ecx; xor edx, edx; mov eax, 3; xsetbv", Xsetbv(3), {32, 64}),
    # A private page is missing.
    ("mov al, ds:[0x5010]", Read(0x5010, 1), {32}),
    ("mov ax, ds:[0x5010]", Read(0x5010, 2), {32}),
    ("mov eax, ds:[0x5010]", Read(0x5010, 4), {32}),
    ("movabs rax, ds:[0x5010]", Read(0x5010), {64}),
    ("movabs eax, ds:[0x5010]", Read(0x5010, 4), {64}),
    ("movabs al, ds:[0x5013]", Read(0x5013, 1), {64}),
    ("mov eax, 0x12345678; mov ds:[0x5fff], eax", Write(0x5FFF, 0x12345678, 4), {32}),
    ("movabs rax, 0x123456789abcdef0; movabs ds:[0x5018], rax", Write(0x5018, 0x123456789ABCDEF0), {64}),
    # The second page of an access is missing.
    ("mov eax, ds:[0x4ffe]", Read(0x4FFE, 4), {32}),
]
CASES = [
    pytest.param(source, operation, bits, id=f"{source.split(';')[-1].strip()} {operation!r} {bits}")
    for source, operation, modes in EXITS
    for bits in sorted(modes)
]


@pytest.mark.parametrize(("source", "operation", "bits"), CASES)
def test_an_instruction_exits_alike(machines: Machines, source: str, operation: Operation, bits: int) -> None:
    qemu, scripted = both(machines, "xor eax, eax; xor ecx, ecx; xor edx, edx;" + source, [operation], bits)
    for guest in (qemu, scripted):
        guest.entry(0x5000, 1 << 63)
    expected, found = look(qemu), look(scripted)
    if expected["reason"] == reason.TRIPLE_FAULT:
        # The vCPU is lost: its registers are nobody's.
        expected, found = ({"reason": seen["reason"]} for seen in (expected, found))
    assert found == expected


@pytest.mark.parametrize(
    ("entry", "operation", "source"),
    [
        (1, Write(0x5000, 0, 4), "mov ds:[0x5000], eax"),
        (5, Write(0x5000, 0, 4), "mov ds:[0x5000], eax"),
        (2, Read(0x5000, 4), "mov eax, ds:[0x5000]"),
        (0, Read(0x5000, 4), "mov eax, ds:[0x5000]"),
    ],
)
def test_rights_of_an_ept_entry(machines: Machines, entry: int, operation: Operation, source: str) -> None:
    """EPT violations of pages that are there but not for this access, and a misconfigured entry."""
    qemu, scripted = both(machines, "xor eax, eax;" + source, [operation], 32)
    for guest in (qemu, scripted):
        guest.entry(0x5000, 0x1005000 | 0xF0 | entry if entry else 1 << 63)
    expected, found = look(qemu), look(scripted)
    assert found == expected
    assert expected["reason"] in (reason.EPT_VIOLATION, reason.EPT_MISCONFIGURATION)


def test_ve_information_is_the_same(machines: Machines) -> None:
    """The area that an EPT violation which becomes a #VE leaves, guest-linear address included."""
    qemu, scripted = both(machines, "lidt [i]; movabs rax, ds:[0x200018]; .balign 8;"
                          "i: .word 0xfff; .quad 0x3000", [Read(0x200018)], 64)  # fmt: skip
    qemu.write(0x3000 + 20 * 16, struct.pack("<HHBBHII", 0x4000, 8, 0, 0x8E, 0, 0, 0))
    qemu.write(0x4000, b"\xf4")
    for guest in (qemu, scripted):
        guest.vmcs.write(f.SECONDARY_CONTROLS, 1 << 18)
        guest.entry(0x200000, 0)
    assert look(qemu)["reason"] == reason.HLT, "the handler's HLT"
    assert look(scripted)["reason"] == reason.TRIPLE_FAULT, "nobody caught #VE"
    areas = [bytes(guest.page(VE_INFO)[:64]) for guest in (qemu, scripted)]
    assert areas[0] == areas[1]
    assert any(areas[0])


NATIVE: list[tuple[str, list[Operation]]] = [
    ("mov ecx, 0x277; rdmsr", [Rdmsr(0x277)]),
    (
        "mov ecx, 0xc0000102; mov eax, 0x5000; xor edx, edx; wrmsr; xor eax, eax; rdmsr",
        [Wrmsr(0xC0000102, 0x5000), Rdmsr(0xC0000102)],
    ),
    ("mov rax, cr4", [MovFromCr(4)]),
    ("mov eax, 0x9000; mov cr2, rax; xor eax, eax; mov rax, cr2", [MovToCr(2, 0x9000), MovFromCr(2)]),
    (
        "mov eax, 0x8001003b; mov cr0, rax; clts; mov rax, cr0",
        [MovToCr(0, 0x8001003B), Clts(), MovFromCr(0)],
    ),
    (
        "movabs rax, 0x123456789abcdef0; movabs ds:[0x5ffd], rax; xor eax, eax; movabs rax, ds:[0x5ffd]",
        [Write(0x5FFD, 0x123456789ABCDEF0), Read(0x5FFD)],
    ),
    (
        "mov eax, 0x55667788; movabs ds:[0x5000], eax; mov al, 0x99; movabs ds:[0x5010], al; mov ax, 0xaabb;\
         movabs ds:[0x5021], ax; movabs al, ds:[0x5003]",
        [
            Write(0x5000, 0x55667788, 4),
            Write(0x5010, 0x99, 1),
            Write(0x5021, 0xAABB, 2),
            Read(0x5003, 1),
        ],
    ),
    (
        "movabs rax, 0x1122334455667788; movabs ds:[0x5000], rax; movabs eax, ds:[0x5002]",
        [Write(0x5000, 0x1122334455667788), Read(0x5002, 4)],
    ),
]


def state(guest: BareGuest) -> dict[str, object]:
    """What native instructions have changed."""
    context = guest.vmcs.context
    return {
        "rax": context.gpr[0],
        "cr0": guest.vmcs.read(f.GUEST_CR0),
        "cr2": context.cr2,
        "cr4": guest.vmcs.read(f.GUEST_CR4),
        "xcr0": context.xcr0,
        "kernel GS base": context.read_msr(0xC0000102),
        "memory": guest.read(0x5000, 0x1008),
    }


@pytest.mark.parametrize(("source", "operations"), NATIVE, ids=[source for source, _ in NATIVE])
def test_what_does_not_exit(machines: Machines, source: str, operations: list[Operation]) -> None:
    """Native instructions: registers, control registers, MSRs and memory after them."""
    qemu, scripted = both(machines, source + "; hlt", [*operations, Hlt()], 64)
    for guest in (qemu, scripted):
        bitmap = guest.page(MSR_BITMAP)
        for msr, at in ((0x277, 0x277 // 8), (0xC0000102, 1024 + 0x102 // 8)):
            for half in (0, 2048):
                bitmap[half + at] &= ~(1 << msr % 8) & 0xFF
        guest.vmcs.write(f.MSR_BITMAP, MSR_BITMAP)
        guest.vmcs.write(f.GUEST_PAT, 0x0007040600070406)
        assert guest.run().reason == reason.HLT
    assert state(scripted) == state(qemu)
