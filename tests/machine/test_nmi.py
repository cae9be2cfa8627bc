"""NMIs on QEMU: the window, blocking until IRET, what an IRET that does not end leaves, and the host's own.

Source: Intel SDM volume 3, 6.7.1 (blocking until IRET), 25.3 (IRET with virtual NMIs), 26.2 (NMI window),
27.6.1 (injection blocks), 28.2.1 and 28.2.3 (bit 12: NMI unblocking due to IRET).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.arch import vmcs as f
from swtdx.arch.exits import EPT_NMI_UNBLOCKING, INTERRUPTION_NMI_UNBLOCKING
from swtdx.arch.vmx_controls import BLOCKING_BY_NMI, PROC_NMI_WINDOW_EXITING
from swtdx.arch.x86 import RFLAGS_RF, RFLAGS_TF, VECTOR_GP, VECTOR_PF
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.assembler import assemble
from tests.machine.guests import GUEST, TO_LONG_MODE, Guest, build_machine, long_mode_tables

pytestmark = pytest.mark.qemu

IDT, NMI_HANDLER, GP_HANDLER, PF_HANDLER = 0x3000, 0x4000, 0x5000, 0x6000
NMI_WINDOW = 8
#: Interruption information: NMI, and #GP with an error code.
NMI, GP = 1 << 31 | 2 << 8 | 2, 1 << 31 | 1 << 11 | 3 << 8 | 13
#: The stack in use, on a page of its own.
STACK = 0x20000


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


class Nmis(Guest):
    """64-bit code with handlers for NMI, #GP and #PF; runs to the first CPUID, its ready mark."""

    def __init__(self, machine: Machine, source: str, nmi: str = "iretq", other: str = "hlt") -> None:
        setup = f"lidt [idt]; mov esp, {STACK + 0x800}; cpuid;"
        super().__init__(
            machine, f"{TO_LONG_MODE}{setup}{source}; hlt; .balign 8; idt: .word 0xfff; .quad {IDT}"
        )
        long_mode_tables(self)
        for vector, where, code in ((2, NMI_HANDLER, nmi), (13, GP_HANDLER, other), (14, PF_HANDLER, other)):
            self.write(IDT + 16 * vector, struct.pack("<HHBBHII", where, 8, 0, 0x8E, 0, 0, 0))
            self.write(where, assemble(code, 64, where))
        self.window(False)
        assert self.run().reason == reason.CPUID
        self.skip()

    def window(self, on: bool) -> None:
        """NMI-window exiting."""
        self.vmcs.write(f.PROC_BASED_CONTROLS, PROC_NMI_WINDOW_EXITING if on else 0)

    def inject(self, info: int, error: int = 0) -> None:
        self.vmcs.write(f.ENTRY_INTERRUPTION_INFO, info)
        self.vmcs.write(f.ENTRY_EXCEPTION_ERROR_CODE, error)

    def blocked(self) -> bool:
        return bool(self.vmcs.read(f.GUEST_INTERRUPTIBILITY) & BLOCKING_BY_NMI)

    @property
    def rip(self) -> int:
        return int(self.vmcs.context.rip)

    @property
    def rsp(self) -> int:
        return int(self.vmcs.context.gpr[4])

    def quad(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 8), "little")


def test_an_open_window_is_an_exit_before_anything_else(machine: Machine) -> None:
    guest = Nmis(machine, "inc r8")
    at = guest.rip
    guest.window(True)
    # It has priority over the NMIs and interrupts of the host.
    guest.lp.nmi()
    guest.lp.interrupt(0x41)
    assert guest.run().reason == NMI_WINDOW
    assert (guest.rip, guest.vmcs.context.gpr[8]) == (at, 0)
    guest.window(False)
    out = guest.run()
    assert (out.reason, out.intr_info) == (reason.EXCEPTION_OR_NMI, NMI)
    assert guest.run().reason == reason.EXTERNAL_INTERRUPT
    guest.lp.acknowledge(0x41)
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.gpr[8] == 1


def test_iret_opens_the_window_and_no_instruction_sooner_or_later(machine: Machine) -> None:
    guest = Nmis(machine, "inc r8", nmi="cpuid; inc r9; iretq")
    at, stack, flags = guest.rip, guest.rsp, guest.vmcs.context.rflags
    guest.inject(NMI)
    guest.window(True)
    assert guest.run().reason == reason.CPUID
    assert guest.blocked()
    guest.skip()
    out = guest.run()
    assert (out.reason, out.idt_info) == (NMI_WINDOW, 0)
    # Later QEMUs push RF with an event that VMRUN injects, and IRET pops it.
    assert (guest.rip, guest.rsp, guest.vmcs.context.rflags & ~RFLAGS_RF) == (at, stack, flags)
    assert (guest.vmcs.context.gpr[8], guest.vmcs.context.gpr[9]) == (0, 1)
    assert not guest.blocked()
    assert not guest.quad(stack - 0x18) & RFLAGS_TF, "what NMI delivery pushed"
    # Another one, right there, and once more.
    for count in (2, 3):
        guest.inject(NMI)
        assert guest.run().reason == reason.CPUID
        guest.skip()
        assert guest.run().reason == NMI_WINDOW
        assert (guest.rip, guest.vmcs.context.gpr[9]) == (at, count)
    guest.window(False)
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.gpr[8] == 1


def test_blocking_lasts_as_long_as_no_iret_comes(machine: Machine) -> None:
    guest = Nmis(machine, "nop", nmi="1: inc r9; jmp 1b")
    guest.inject(NMI)
    guest.window(True)
    guest.lp.arm_timer(machine.tsc() + int(machine.tsc_hz / 50), 0xEC)
    assert guest.run().reason == reason.EXTERNAL_INTERRUPT
    guest.lp.acknowledge(0xEC)
    assert guest.blocked()
    assert guest.vmcs.context.gpr[9] > 100


def test_the_iret_of_a_nested_exception_unblocks_too(machine: Machine) -> None:
    """As on hardware, which does not count (Linux: ``nmi_executing``)."""
    guest = Nmis(
        machine, "nop", nmi="movabs rax, 0x8000000000000000; push [rax]; inc r9; iretq",
        other="add rsp, 8; add qword ptr [rsp], 2; iretq",
    )  # fmt: skip
    guest.inject(NMI)
    guest.window(True)
    assert guest.run().reason == NMI_WINDOW
    assert NMI_HANDLER < guest.rip < NMI_HANDLER + 20
    assert guest.vmcs.context.gpr[9] == 0


@pytest.mark.parametrize("bitmap", [0, 1 << VECTOR_GP])
def test_an_iret_that_faults_has_unblocked(machine: Machine, bitmap: int) -> None:
    """The fault is delivered first; what it pushes shows nothing of how we find the IRET's end."""
    guest = Nmis(machine, "nop", nmi="mov qword ptr [rsp + 8], 0x40; iretq")
    guest.vmcs.write(f.EXCEPTION_BITMAP, 1 << 18 | bitmap)
    guest.inject(NMI)
    guest.window(True)
    out = guest.run()
    assert not guest.blocked()
    if bitmap:
        # With a fault that exits, bit 12 says what the IRET has done.
        assert out.reason == reason.EXCEPTION_OR_NMI
        assert out.intr_info == GP | INTERRUPTION_NMI_UNBLOCKING
        assert not guest.vmcs.context.rflags & RFLAGS_TF
        return
    assert (out.reason, guest.rip) == (NMI_WINDOW, GP_HANDLER)
    error, rip, _cs, flags = (guest.quad(guest.rsp + 8 * k) for k in range(4))
    assert error == 0x40, "the selector"
    assert NMI_HANDLER < rip < NMI_HANDLER + 20
    assert not flags & RFLAGS_TF


def test_the_page_fault_of_an_iret_has_its_address(machine: Machine) -> None:
    guest = Nmis(machine, "nop", nmi="mov rsp, 0x900000; iretq", other="nop; hlt")
    # #PF itself needs a stack: IST 1.
    tss = 0x7000
    guest.write(tss + 0x24, struct.pack("<Q", 0x8F00))
    guest.write(IDT + 16 * VECTOR_PF, struct.pack("<HHBBHII", PF_HANDLER, 8, 1, 0x8E, 0, 0, 0))
    guest.vmcs.write(f.GUEST_TR_BASE, tss)
    guest.inject(NMI)
    guest.window(True)
    assert guest.run().reason == NMI_WINDOW
    assert (guest.rip, guest.vmcs.context.cr2) == (PF_HANDLER, 0x900000)
    guest.window(False)
    assert guest.run().reason == reason.HLT


def test_an_iret_whose_stack_is_away_says_that_it_had_unblocked(machine: Machine) -> None:
    guest = Nmis(machine, "mov rax, [0x21000]; inc r8", nmi=f"mov rsp, {STACK + 0x1000}; cpuid; iretq")
    at = guest.rip
    guest.write(STACK + 0x1000, struct.pack("<5Q", at, 8, 2, STACK + 0x800, 0x10))
    guest.inject(NMI)
    guest.window(True)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    guest.entry(STACK + 0x1000, 1 << 63)
    for _again in range(2):
        out = guest.run()
        assert (out.reason, out.gpa) == (reason.EPT_VIOLATION, STACK + 0x1000)
        assert out.qualification & EPT_NMI_UNBLOCKING
        assert not guest.blocked()
        assert not guest.vmcs.context.rflags & RFLAGS_TF
        # Software that lets the guest try again blocks NMIs again.
        guest.vmcs.write(f.GUEST_INTERRUPTIBILITY, BLOCKING_BY_NMI)
    guest.entry(STACK + 0x1000, GUEST + STACK + 0x1000 | 0xF7)
    assert guest.run().reason == NMI_WINDOW
    assert guest.rip == at
    # No other access says so, not even at the same place.
    guest.window(False)
    guest.entry(STACK + 0x1000, 1 << 63)
    out = guest.run()
    assert out.reason == reason.EPT_VIOLATION
    assert not out.qualification & EPT_NMI_UNBLOCKING


def test_an_nmi_whose_delivery_fails_is_vectoring(machine: Machine) -> None:
    guest = Nmis(machine, "inc r8", nmi="inc r9; iretq")
    at = guest.rip
    guest.entry(STACK, 1 << 63)
    guest.inject(NMI)
    out = guest.run()
    assert (out.reason, out.idt_info) == (reason.EPT_VIOLATION, NMI)
    assert not out.qualification & EPT_NMI_UNBLOCKING
    assert guest.blocked()
    assert guest.rip == at
    guest.entry(STACK, GUEST + STACK | 0xF7)
    guest.vmcs.write(f.GUEST_INTERRUPTIBILITY, 0)
    guest.inject(NMI)
    guest.window(True)
    assert guest.run().reason == NMI_WINDOW
    assert (guest.rip, guest.vmcs.context.gpr[9]) == (at, 1)


def test_an_injected_exception_is_delivered_and_then_the_window_opens(machine: Machine) -> None:
    guest = Nmis(machine, "nop", other="inc r9; hlt")
    for _again in range(20):
        guest.inject(GP, 0x18)
        guest.window(True)
        out = guest.run()
        assert (out.reason, out.idt_info) == (NMI_WINDOW, 0)
        assert (guest.rip, guest.vmcs.context.gpr[9]) == (GP_HANDLER, 0)
        assert guest.quad(guest.rsp) == 0x18


def test_the_shadow_of_mov_ss_delays_the_window(machine: Machine) -> None:
    guest = Nmis(machine, "mov eax, 0x10; mov ss, eax; mov rbx, [0x21000]; inc r8; 1: jmp 1b")
    guest.entry(0x21000, 1 << 63)
    assert guest.run().reason == reason.EPT_VIOLATION
    assert guest.vmcs.read(f.GUEST_INTERRUPTIBILITY) & 3
    at = guest.rip
    guest.entry(0x21000, GUEST + 0x21000 | 0xF7)
    guest.window(True)
    assert guest.run().reason == NMI_WINDOW
    assert guest.rip > at


def test_the_hosts_nmi_is_an_exit_and_blocks_the_next(machine: Machine) -> None:
    guest = Nmis(machine, "1: inc r8; jmp 1b")
    lp = guest.lp
    heard: list[bool] = []
    lp.nmi_handler = lambda: heard.append(lp.nmi_blocked)
    try:
        lp.nmi()
        lp.nmi()
        out = guest.run()
        assert (out.reason, out.qualification, out.intr_info) == (reason.EXCEPTION_OR_NMI, 0, NMI)
        assert (lp.nmi_pending, lp.nmi_blocked) == (False, True), "two NMIs that nobody took are one"
        assert not guest.blocked(), "that is the guest's own"
        # Blocked outside, an NMI waits; in the guest it does not.
        lp.nmi()
        assert not lp.deliver_nmi()
        assert guest.run().intr_info == NMI
        lp.nmi()
        assert heard == []
        lp.iret()
        assert heard == [True]
        assert (lp.nmi_pending, lp.nmi_blocked) == (False, False)
    finally:
        lp.nmi_handler = None


def test_blocking_survives_vmclear(machine: Machine) -> None:
    guest = Nmis(machine, "inc r8", nmi="cpuid; inc r9; iretq")
    at = guest.rip
    guest.inject(NMI)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    pa, gpr = guest.vmcs.pa, list(guest.vmcs.context.gpr)
    guest.vmx.clear(pa)
    guest.vmcs = guest.vmx.load(pa)
    for number, value in enumerate(gpr):
        guest.vmcs.context.gpr[number] = value
    assert guest.blocked()
    guest.window(True)
    assert guest.run().reason == NMI_WINDOW
    assert (guest.rip, guest.vmcs.context.gpr[9]) == (at, 1)
