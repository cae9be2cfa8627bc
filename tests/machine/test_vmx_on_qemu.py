"""The VMX microcode on QEMU: small guests in machine code, and what hardware would do with them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.engine.qemu.process import find_qemu
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.assembler import assemble
from tests.machine.guests import (
    CODE,
    EPT,
    GUEST,
    HKID,
    MSR_BITMAP,
    TO_LONG_MODE,
    VE_INFO,
    VMCS,
    Guest,
    build_machine,
    long_mode_tables,
)

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def test_exits_of_a_guest_with_paging_off(machine: Machine) -> None:
    guest = Guest(
        machine, "push 0x1234; pop ebx; mov eax, 7; cpuid; in al, 0x71; mov dx, 0x3f8; out dx, al; hlt"
    )
    out = guest.run()
    assert (out.reason, out.length) == (reason.CPUID, 2)
    assert guest.vmcs.context.gpr[0] == 7
    assert guest.vmcs.context.gpr[3] == 0x1234
    assert guest.read(0x7FFC, 4) == struct.pack("<I", 0x1234)
    guest.skip()
    out = guest.run()
    # SDM table 28-5: size 1, IN, immediate operand, port 0x71.
    assert (out.reason, out.qualification, out.length) == (reason.IO, 0x0071_0048, 2)
    guest.skip()
    out = guest.run()
    assert (out.reason, out.qualification, out.length) == (reason.IO, 0x03F8_0000, 1)
    guest.skip()
    assert guest.run().reason == reason.HLT


def test_long_mode_is_entered_and_control_registers_read_back(machine: Machine) -> None:
    guest = Guest(machine, TO_LONG_MODE + "mov rax, cr0; mov rbx, cr3; mov rcx, cr4; hlt")
    long_mode_tables(guest)
    out = guest.run()
    assert out.reason == reason.HLT
    context = guest.vmcs.context
    assert context.long_mode
    assert context.efer == 0xD01, "EFER.LMA came on with CR0.PG"
    assert list(context.gpr[0:2]) == [0x80010033, 0x660]
    assert context.gpr[3] == 0x100000
    assert guest.vmcs.read(f.GUEST_CR4) == 0x2660, "the host's CR4.VMXE stays"


def test_cr0_write_that_the_host_owns_exits(machine: Machine) -> None:
    guest = Guest(machine, "mov eax, cr0; and eax, 0xffffffdf; mov cr0, eax")
    out = guest.run()
    # CR access qualification: CR0, MOV to, from EAX.
    assert (out.reason, out.qualification, out.length) == (reason.CR_ACCESS, 0, 3)


def test_unmapped_page_is_an_ept_violation_with_the_access(machine: Machine) -> None:
    guest = Guest(machine, "mov eax, [0x5010]; mov [0x6020], eax; jmp 0x7000")
    for gpa in (0x5000, 0x6000, 0x7000):
        guest.entry(gpa, 1 << 63)
    for gpa, access in ((0x5010, 1), (0x6020, 2), (0x7000, 4)):
        out = guest.run()
        assert out.reason == reason.EPT_VIOLATION
        assert out.gpa == gpa
        assert out.qualification & 0x3F == access
        guest.entry(gpa & ~0xFFF, GUEST + (gpa & ~0xFFF) | 0xF7)


def test_translations_stay_cached_until_they_are_flushed(machine: Machine) -> None:
    guest = Guest(machine, "again: mov eax, [0x5000]; cpuid; jmp again")
    assert guest.run().reason == reason.CPUID
    guest.skip()
    # The table changes behind the processor's back: the stale translation goes on working.
    struct.pack_into("<Q", guest.page(EPT + 0x3000), 5 * 8, 1 << 63)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    guest.vmx.flush(guest.vmcs.address_key)
    assert guest.run().reason == reason.EPT_VIOLATION


def test_native_msrs_are_carried_out_and_others_exit(machine: Machine) -> None:
    guest = Guest(
        machine,
        """mov ecx, 0x277; rdmsr; mov ebx, eax; mov esi, edx
           mov ecx, 0xc0000102; mov eax, 0x5000; xor edx, edx; wrmsr; xor eax, eax; rdmsr; mov edi, eax
           mov ecx, 0x1b; rdmsr""",
    )
    bitmap = guest.page(MSR_BITMAP)
    for msr in (0x277, 0xC0000102):
        base = 1024 if msr >= 0xC0000000 else 0
        index = msr & 0x1FFF
        for half in (0, 2048):
            bitmap[base + half + index // 8] &= ~(1 << index % 8) & 0xFF
    guest.vmcs.write(f.MSR_BITMAP, MSR_BITMAP)
    guest.vmcs.write(f.GUEST_PAT, 0x0007040600070406)
    out = guest.run()
    gpr = guest.vmcs.context.gpr
    assert (gpr[3], gpr[6]) == (0x00070406, 0x00070406)
    assert gpr[7] == 0x5000
    assert (out.reason, out.length, gpr[1]) == (reason.RDMSR, 2, 0x1B)


@pytest.mark.parametrize(
    ("code", "expected", "length"),
    [
        (".byte 0x66,0x0f,0x01,0xcc", reason.TDCALL, 4),
        ("vmcall", reason.VMCALL, 3),
        (TO_LONG_MODE + ".byte 0x66,0x0f,0x01,0xcf", reason.SEAMCALL, 4),
        ("getsec", reason.GETSEC, 2),
        ("invd", reason.INVD, 2),
        ("wbinvd", reason.WBINVD, 2),
        ("mov ecx, 0; monitor", reason.MONITOR, 3),
        (".byte 0x0f,0x01,0xc5", reason.PCONFIG, 3),
        ("vmxon [eax]", 27, 4),
    ],
)
def test_instructions_that_must_leave_the_guest_do(
    machine: Machine, code: str, expected: int, length: int
) -> None:
    if code.startswith("vmxon") and find_qemu()[1] > (7, 2):
        pytest.skip("later QEMUs decode VMXON as another instruction (docs/engine.md)")
    guest = Guest(machine, code)
    long_mode_tables(guest)
    out = guest.run()
    assert (out.reason, out.length) == (expected, length)


def test_foreign_and_unknown_instructions_are_ud_in_the_guest(machine: Machine) -> None:
    # An IDT whose vector 6 goes to HLT: #UD must be delivered there, not exit.
    guest = Guest(machine, "lgdt [g]; lidt [i]; vmmcall; .balign 8; gdt: .quad 0,0x00cf9b000000ffff;"
                  "g: .word 15; .long gdt; i: .word 0xff; .long 0x3000")  # fmt: skip
    guest.write(0x3000 + 6 * 8, struct.pack("<HHHH", 0x4000, 8, 0x8E00, 0))
    guest.write(0x4000, b"\xf4")
    out = guest.run()
    assert out.reason == reason.HLT
    assert guest.vmcs.context.rip == 0x4000


def test_triple_fault(machine: Machine) -> None:
    assert Guest(machine, "ud2").run().reason == reason.TRIPLE_FAULT


def test_external_interrupt_exits_and_reveals_nothing(machine: Machine) -> None:
    guest = Guest(machine, "1: inc eax; jmp 1b")
    for _ in range(100):
        guest.lp.arm_timer(machine.tsc() + int(machine.tsc_hz / 200), 0xEC)
        out = guest.run()
        pending = set(guest.lp.pending)
        guest.lp.acknowledge(0xEC)
        assert (out.reason, out.qualification, out.intr_info) == (reason.EXTERNAL_INTERRUPT, 0, 0)
        assert pending == {0xEC}
        # On a busy host the 5 ms may be over before the guest's first instruction.
        if guest.vmcs.context.gpr[0] > 1000:
            return
    pytest.fail("the guest never ran")


def test_posted_interrupt_is_delivered_without_an_exit(machine: Machine) -> None:
    guest = Guest(
        machine, TO_LONG_MODE + "lidt [i]; sti; 1: inc r8; jmp 1b; .balign 8; i: .word 0xfff; .quad 0x3000"
    )
    long_mode_tables(guest)
    guest.write(0x3000 + 0x51 * 16, struct.pack("<HHBBHII", 0x4000, 8, 0, 0x8E, 0, 0, 0))
    # The handler: EOI by x2APIC, then HLT to show that it ran.
    guest.write(0x4000, assemble("mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; hlt", 64))
    bitmap = guest.page(MSR_BITMAP)
    bitmap[2048 + 0x80B // 8] &= ~(1 << 0x80B % 8) & 0xFF
    guest.vmcs.write(f.MSR_BITMAP, MSR_BITMAP)
    descriptor = 0x30000
    machine.memory.write(descriptor, (1 << 0x51 | 1 << 256).to_bytes(64, "little"))
    guest.vmcs.write(f.PIN_BASED_CONTROLS, 1 << 7)
    guest.vmcs.write(f.POSTED_INTERRUPT_DESCRIPTOR, descriptor)
    guest.vmcs.write(f.POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xF2)
    guest.lp.interrupt(0xF2)
    out = guest.run()
    assert out.reason == reason.HLT
    assert guest.vmcs.context.rip & ~0xFFF == 0x4000
    assert guest.vmcs.read(f.GUEST_INTERRUPT_STATUS) == 0, "nothing requested, nothing in service"
    assert int.from_bytes(machine.memory.read(descriptor, 64), "little") == 0


def test_ept_violation_becomes_ve_where_the_entry_says_so(machine: Machine) -> None:
    guest = Guest(machine, TO_LONG_MODE + "lidt [i]; mov rbx, 0x200000; mov eax, [rbx+0x18]; .balign 8;"
                  "i: .word 0xfff; .quad 0x3000")  # fmt: skip
    long_mode_tables(guest)
    guest.write(0x3000 + 20 * 16, struct.pack("<HHBBHII", 0x4000, 8, 0, 0x8E, 0, 0, 0))
    guest.write(0x4000, b"\xf4")
    guest.vmcs.write(f.SECONDARY_CONTROLS, 1 << 18)
    guest.entry(0x200000, 0)
    out = guest.run()
    assert out.reason == reason.HLT
    why, busy, qualification, gla, gpa, index = struct.unpack_from("<IIQQQH", guest.page(VE_INFO))
    assert (why, busy, gla, gpa, index) == (48, 0xFFFFFFFF, 0x200018, 0x200018, 0)
    assert qualification & 0x187 == 0x181
    # While the area is in use the next violation is an exit.
    guest.vmcs.context.rip = CODE
    guest.vmcs.write(f.GUEST_CR0, 0x21)
    guest.vmcs.write(f.GUEST_EFER, 0x901)
    guest.vmcs.write(f.GUEST_CS_ACCESS_RIGHTS, 0xC09B)
    assert guest.run().reason == reason.EPT_VIOLATION


def test_extended_state_is_kept_per_vcpu(machine: Machine) -> None:
    source = TO_LONG_MODE + "mov rax, {value}; movq xmm3, rax; cpuid; movq rbx, xmm3; hlt"
    first = Guest(machine, source.format(value="0x1111222233334444"))
    long_mode_tables(first)
    assert first.run().reason == reason.CPUID
    first.skip()
    image = first.vmcs.context.read_xstate()
    assert struct.unpack_from("<Q", image, 160 + 3 * 16)[0] == 0x1111222233334444
    # Another vCPU on the same processor writes the same register.
    other = machine.engine.context(0)
    machine.engine.release(other)
    changed = bytearray(image)
    struct.pack_into("<Q", changed, 160 + 3 * 16, 0x5555)
    first.vmcs.context.write_xstate(bytes(changed))
    assert first.run().reason == reason.HLT
    assert first.vmcs.context.gpr[3] == 0x5555


def test_a_vcpu_moves_to_another_processor(machine: Machine) -> None:
    guest = Guest(
        machine, TO_LONG_MODE + "mov rax, 0x77; movq xmm1, rax; mov r15, 5; cpuid; movq rbx, xmm1; hlt"
    )
    long_mode_tables(guest)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    guest.vmx.clear(VMCS | HKID << 46)
    # The extended state travels by software (the TDX Module's XBUFF), not in the VMCS.
    other = machine.processors[1].vmx
    moved = other.load(VMCS | HKID << 46)
    moved.context.gpr[15] = 5
    assert moved.context.rip == guest.vmcs.context.rip
    out = other.enter()
    assert out.reason == reason.HLT
    assert moved.context.gpr[15] == 5
    other.clear(VMCS | HKID << 46)


def test_rdtsc_at_another_frequency(machine: Machine) -> None:
    guest = Guest(machine, "rdtsc; mov ebx, eax; mov esi, edx; hlt")
    guest.vmcs.write(f.TSC_MULTIPLIER, 1 << 47)
    guest.vmcs.write(f.TSC_OFFSET, 1000)
    before = (machine.tsc() >> 1) + 1000
    assert guest.run().reason == reason.HLT
    after = (machine.tsc() >> 1) + 1000
    seen = guest.vmcs.context.gpr[3] | guest.vmcs.context.gpr[6] << 32
    assert before <= seen <= after
