"""Small guests on a VMX unit, without a TDX module: their memory, their VMCS, their start-up code."""

from __future__ import annotations

import struct

from swtdx.arch import vmcs as f
from swtdx.machine.machine import Machine, MachineConfig
from swtdx.machine.memory import SEAM, AddressMap, PhysicalMemory
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.vmcs import Vmcs
from tests.assembler import assemble

MIB = 1 << 20
CODE = 0x1000
HKID = 40
# Host-physical layout of the test: control pages, then the guest's memory.
VMCS, MSR_BITMAP, VAPIC, VE_INFO, EPT = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000
GUEST = 16 * MIB


def build_machine(engine: str) -> Machine:
    """A machine of two processors and 64 MiB."""
    memory = PhysicalMemory([(0, 64 * MIB)], seed=bytes(16), addresses=AddressMap())
    return Machine(MachineConfig(processors_per_package=2, seed=bytes(16), engine=engine), memory)


class BareGuest:
    """A vCPU on a VMCS of ours and 8 MiB of memory.

    Its private GPAs 0.. are mapped by 4 KiB pages, except what a test unmaps.  Guests of one ``origin``,
    which shifts all their host-physical addresses, take each other's place; others live side by side.
    """

    def __init__(self, machine: Machine, lp: int = 0, origin: int = 0) -> None:
        self.origin = origin
        self.machine = machine
        self.memory = machine.memory
        self.lp = machine.processors[lp]
        self.vmx = self.lp.vmx
        # First: VMCLEAR writes the VMCS of an earlier guest into its region.
        self.vmx.clear(VMCS + origin | HKID << 46)
        for hpa, size in ((VMCS, EPT + 0x10000 - VMCS), (GUEST, 8 * MIB)):
            self.memory.direct_zero(hpa + origin | HKID << 46, size, SEAM)
        for space in self.lp.spaces.values():
            space.flush()
        self.page(MSR_BITMAP)[:] = b"\xff" * 4096
        self._build_ept()
        self.vmcs: Vmcs = self.vmx.load(VMCS + origin | HKID << 46)
        self._initial_state()

    def page(self, hpa: int) -> memoryview:
        return self.memory.map_page(hpa + self.origin, HKID)

    def write(self, gpa: int, data: bytes) -> None:
        hpa = GUEST + self.origin + gpa
        self.memory.write(hpa | HKID << 46, data, SEAM)
        self.machine.code_written(hpa, len(data))

    def read(self, gpa: int, count: int) -> bytes:
        return self.memory.read(GUEST + self.origin + gpa | HKID << 46, count, SEAM)

    def entry(self, gpa: int, value: int) -> None:
        """Set the EPT entry of a 4 KiB page (of the first 8 MiB)."""
        struct.pack_into("<Q", self.page(EPT + 0x3000 + (gpa >> 21) * 0x1000), (gpa >> 12 & 511) * 8, value)
        for space in self.lp.spaces.values():
            space.flush()

    def _build_ept(self) -> None:
        origin = self.origin
        struct.pack_into("<Q", self.page(EPT), 0, EPT + origin + 0x1000 | 7)
        struct.pack_into("<Q", self.page(EPT + 0x1000), 0, EPT + origin + 0x2000 | 7)
        for table in range(4):
            at = EPT + 0x3000 + table * 0x1000
            struct.pack_into("<Q", self.page(EPT + 0x2000), table * 8, at + origin | 7)
            entries = [GUEST + origin + table * 2 * MIB + page * 4096 | 0xF7 for page in range(512)]
            struct.pack_into("<512Q", self.page(at), 0, *entries)

    def _initial_state(self) -> None:
        write = self.vmcs.write
        origin = self.origin
        write(f.EPTP, EPT + origin | 3 << 3 | 6)
        write(f.HKID, HKID)
        write(f.MSR_BITMAP, MSR_BITMAP + origin)
        write(f.VIRTUAL_APIC_PAGE, VAPIC + origin)
        write(f.VE_INFORMATION_ADDRESS, VE_INFO + origin)
        write(f.TSC_MULTIPLIER, 1 << 48)
        write(f.EXCEPTION_BITMAP, 1 << 18)
        write(f.CR0_GUEST_HOST_MASK, 0xFFFFFFFF_7FFAFFE1 & ~0xFFFFFFFF_00050000 | 1 << 5 | 1)
        write(f.CR0_READ_SHADOW, 0x21)
        write(f.CR4_GUEST_HOST_MASK, 0x2040)
        write(f.CR4_READ_SHADOW, 0x40)
        write(f.GUEST_CR0, 0x21)
        write(f.GUEST_CR4, 0x2040)
        write(f.GUEST_EFER, 0x901)
        write(f.GUEST_RFLAGS, 2)
        write(f.GUEST_RIP, CODE)
        for segment in ("CS", "DS", "ES", "SS", "FS", "GS"):
            write(getattr(f, f"GUEST_{segment}_LIMIT"), 0xFFFFFFFF)
            write(getattr(f, f"GUEST_{segment}_ACCESS_RIGHTS"), 0xC09B if segment == "CS" else 0xC093)
        write(f.GUEST_TR_LIMIT, 0xFFFF)
        write(f.GUEST_TR_ACCESS_RIGHTS, 0x8B)
        write(f.GUEST_LDTR_ACCESS_RIGHTS, 0x10082)
        self.vmcs.context.gpr[4] = 0x8000

    def run(self) -> reason.VmExit:
        return self.vmx.enter()

    def skip(self) -> None:
        self.vmcs.context.rip += self.vmx.exit.length


class Guest(BareGuest):
    """A guest in machine code, assembled from ``source``."""

    def __init__(self, machine: Machine, source: str, bits: int = 32, lp: int = 0, origin: int = 0) -> None:
        super().__init__(machine, lp, origin)
        self.write(CODE, assemble(source, bits, CODE))


TO_LONG_MODE = """
        mov eax, cr4
        or eax, 0x620
        mov cr4, eax
        mov eax, 0x100000
        mov cr3, eax
        lgdt [gdt_ptr]
        mov eax, cr0
        or eax, 0x80010002
        mov cr0, eax
        .byte 0xea
        .long long_mode
        .word 8
        .code64
long_mode:
        mov eax, 0x10
        mov ss, eax
        mov ds, eax
        jmp body
        .balign 8
gdt:    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_ptr: .word 23
        .long gdt
body:
"""


def long_mode_tables(guest: Guest) -> None:
    """Identity page tables of 2 MiB pages for the first 8 MiB, at GPA 1 MiB."""
    guest.write(0x100000, struct.pack("<Q", 0x101007))
    guest.write(0x101000, struct.pack("<Q", 0x102007))
    guest.write(0x102000, struct.pack("<4Q", *(n * 2 * MIB | 0xE7 for n in range(4))))
