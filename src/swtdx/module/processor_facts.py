"""What the module knows of the processors it runs on.

Intel's module samples these at TDH.SYS.INIT and keeps them; TDH.SYS.LP.INIT then makes sure that all
processors agree.  Here they are read when they are first needed: a processor's answers never change, so
the values are the same, and a restored snapshot needs no copy of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from swtdx.arch import msrs
from swtdx.arch.cpuid_table import NA, CpuidTable, Quad
from swtdx.arch.x86 import CPUID_1_ECX_OSXSAVE, CPUID_7_ECX_OSPKE
from swtdx.machine.uncore import Uncore

_XCR0_USER: Final = 0x000602E7
_XSS_SUPERVISOR: Final = 0x0001D900
_LA57: Final = 1 << 16


class ProcessorFacts:
    """CPUID and MSRs of the first processor, as every processor has them.

    ``xfam`` are the state components that the module knows, ``leaves`` the CPUID leaves that it virtualises.
    """

    def __init__(self, machine: Uncore, xfam: int, leaves: CpuidTable) -> None:
        self._xfam = xfam
        self._leaves = leaves
        self._lp = machine.agents[0]
        self._cpuid: dict[tuple[int, int], Quad] = {}

    def native_cpuid(self, leaf: int, subleaf: int) -> Quad:
        """CPUID as the processor answers it: EAX, EBX, ECX, EDX."""
        key = (leaf, subleaf)
        found = self._cpuid.get(key)
        if found is None:
            found = self._cpuid[key] = self._lp.cpuid(leaf, 0 if subleaf == NA else subleaf)
        return found

    @cached_property
    def sampled(self) -> tuple[Quad, ...]:
        """CPUID of each row of the table of leaves; without the bits that mirror CR4."""
        found = []
        for row in self._leaves.rows:
            eax, ebx, ecx, edx = self.native_cpuid(row.leaf, row.subleaf)
            if row.leaf == 1:
                ecx &= ~CPUID_1_ECX_OSXSAVE
            elif (row.leaf, row.subleaf) == (7, 0):
                ecx &= ~CPUID_7_ECX_OSPKE
            found.append((eax, ebx, ecx, edx))
        return tuple(found)

    @cached_property
    def xcr0_supported(self) -> int:
        """User state components that the processor and the module know."""
        return self.native_cpuid(0xD, 0)[0] & _XCR0_USER

    @cached_property
    def xss_supported(self) -> int:
        """Supervisor state components that the processor and the module know."""
        return self.native_cpuid(0xD, 1)[2] & _XSS_SUPERVISOR

    @cached_property
    def xfam_fixed0(self) -> int:
        """XFAM bits that a TD may set."""
        return self._xfam & (self.xcr0_supported | self.xss_supported)

    @cached_property
    def five_level_ept(self) -> bool:
        """Whether a TD may have a five-level Secure EPT."""
        return bool(self.ept_vpid_cap >> 7 & 1)

    @cached_property
    def ept_vpid_cap(self) -> int:
        """IA32_VMX_EPT_VPID_CAP."""
        return self._lp.rdmsr(msrs.IA32_VMX_EPT_VPID_CAP)

    def required_controls(self, index: int) -> int:
        """VM-execution, exit or entry controls that must be 1, from the capability MSR at ``index``."""
        return self._lp.rdmsr(index) & 0xFFFFFFFF

    @cached_property
    def secondary_controls(self) -> tuple[int, int]:
        """Secondary processor-based controls that must be 1, and that may be 1 (IA32_VMX_PROCBASED_CTLS2)."""
        setting = self._lp.rdmsr(msrs.IA32_VMX_PROCBASED_CTLS2)
        return setting & 0xFFFFFFFF, setting >> 32

    @cached_property
    def arch_capabilities(self) -> int:
        """IA32_ARCH_CAPABILITIES."""
        return self._lp.rdmsr(msrs.IA32_ARCH_CAPABILITIES)

    @cached_property
    def cr_fixed(self) -> tuple[int, int, int, int]:
        """IA32_VMX_CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1."""
        read = self._lp.rdmsr
        return (
            read(msrs.IA32_VMX_CR0_FIXED0), read(msrs.IA32_VMX_CR0_FIXED1),
            read(msrs.IA32_VMX_CR4_FIXED0), read(msrs.IA32_VMX_CR4_FIXED1),
        )  # fmt: skip

    @cached_property
    def tsc_hz(self) -> int:
        """The native TSC frequency, from CPUID leaf 0x15."""
        denominator, numerator, crystal, _ = self.native_cpuid(0x15, 0)
        return crystal * numerator // denominator
