"""CPUID and MSRs of code in the root world: the processor's, but for what the engine's own board provides.

The local APIC is QEMU's, and so are its clock and its modes.  What that changes is said in docs/fidelity.md.
"""

from __future__ import annotations

import math
from typing import Final

from swtdx.arch import msrs
from swtdx.arch.x86 import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, LOCAL_APIC_BASE, XSAVE_LEGACY
from swtdx.machine.cpu.features import host_word
from swtdx.machine.engine.protocol import FIELD_MSRS, OTHER_MSRS, GuestContext
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.processor import LogicalProcessor

#: MONITOR, x2APIC and the TSC deadline timer: QEMU 7.2 does not have the latter two, and executes the first
#: as a pause.
_NOT_ON_THIS_BOARD: Final = 1 << 3 | 1 << 21 | 1 << 24
#: What QEMU's local APIC timer counts, in Hz.
_APIC_HZ: Final = 1_000_000_000
#: IA32_ARCH_CAPABILITIES: IA32_XAPIC_DISABLE_STATUS exists.
_XAPIC_DISABLE: Final = 1 << 21
#: IA32_VMX_EPT_VPID_CAP: EPT of five levels; the engine's guest-physical addresses have 48 bits.
_EPT_5: Final = 1 << 7
_EFER_BITS: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
#: IA32_APIC_BASE: the local APIC is on, in its xAPIC mode; this is the bootstrap processor.
_APIC_ON: Final = LOCAL_APIC_BASE | 1 << 11
_BOOTSTRAP: Final = 1 << 8

Regs = tuple[int, int, int, int]


class Identity:
    """CPUID, RDMSR and WRMSR of one processor's root world."""

    def __init__(self, lp: LogicalProcessor, context: GuestContext) -> None:
        self._lp = lp
        self._context = context
        for index in (*FIELD_MSRS, *OTHER_MSRS, msrs.IA32_CSTAR):
            context.allow_msr(index, read=True, write=True)
        context.allow_msr(msrs.IA32_TIME_STAMP_COUNTER, read=True, write=False)
        self._let_debugctl(0)

    def _let_debugctl(self, value: int) -> None:
        """KVM reads it at every VM entry; QEMU's own is always 0."""
        self._context.allow_msr(msrs.IA32_DEBUGCTL, read=not value, write=False)

    def cpuid(self, leaf: int, subleaf: int) -> Regs:
        """EAX, EBX, ECX, EDX."""
        eax, ebx, ecx, edx = self._lp.cpuid(leaf, subleaf)
        if leaf == 1:
            ecx &= ~_NOT_ON_THIS_BOARD
        elif leaf == 0xD and subleaf == 0:
            ebx = self._xsave_size()
        elif leaf == 5:
            return 0, 0, 0, 0
        elif leaf == 0x15:
            # Linux takes the crystal for the clock of the local APIC's timer.
            hz = int(self._lp.machine.tsc_hz)
            common = math.gcd(hz, _APIC_HZ)
            return _APIC_HZ // common, hz // common, _APIC_HZ, 0
        return eax, ebx, ecx | host_word(leaf, subleaf, "ecx"), edx

    def _xsave_size(self) -> int:
        """Bytes of an XSAVE area with the components that XCR0 enables now."""
        areas = [self._lp.cpuid(0xD, number) for number in range(2, 63) if self._context.xcr0 >> number & 1]
        return max([XSAVE_LEGACY, *(offset + size for size, offset, _, _ in areas)])

    def rdmsr(self, index: int) -> int:
        """RDMSR.

        Raises:
            GeneralProtection: there is no such MSR, or it cannot be read.
        """
        if index == msrs.IA32_EFER:
            return self._context.efer
        if index == msrs.IA32_APIC_BASE:
            return _APIC_ON | (_BOOTSTRAP if self._lp.index == 0 else 0)
        value = self._lp.rdmsr(index)
        if index == msrs.IA32_ARCH_CAPABILITIES:
            return value & ~_XAPIC_DISABLE
        if index == msrs.IA32_VMX_EPT_VPID_CAP:
            return value & ~_EPT_5
        return value

    def wrmsr(self, index: int, value: int) -> None:
        """WRMSR.

        Raises:
            GeneralProtection: there is no such MSR, or it does not take the value.
        """
        if index == msrs.IA32_EFER:
            self._write_efer(value)
        elif index == msrs.IA32_APIC_BASE:
            if value != self.rdmsr(index):
                raise GeneralProtection(
                    "IA32_APIC_BASE: the local APIC of this board stays as and where it is"
                )
        elif index == msrs.IA32_TIME_STAMP_COUNTER:
            pass  # It follows the machine's; see docs/fidelity.md.
        else:
            self._lp.wrmsr(index, value)
            if index == msrs.IA32_DEBUGCTL:
                self._let_debugctl(value)

    def _write_efer(self, value: int) -> None:
        context = self._context
        if value & ~_EFER_BITS:
            raise GeneralProtection(f"IA32_EFER = {value:#x}: reserved bits")
        if context.cr0 >> 31 and (value ^ context.efer) & EFER_LME:
            raise GeneralProtection("IA32_EFER.LME cannot change while paging is on")
        context.efer = value & ~EFER_LMA | context.efer & EFER_LMA
