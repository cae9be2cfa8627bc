"""MSRs that reach the hypervisor by TDVMCALL: those that the module neither runs natively nor emulates.

Values are KVM's for a TD; an MSR that KVM refuses is refused, and the guest takes a #GP.  Where
the honest answer is "nothing", it is given, because a guest that believes in MTRRs or machine-check banks
goes through all of them, at two TD exits each: a TD's memory is always write-back, and a machine check
ends a TD before its hypervisor could report one.

Sources: Intel SDM volume 4; Linux arch/x86/kvm/{x86,mtrr,lapic}.c for what is answered and how,
vmx/tdx.c (``tdx_has_emulated_msr``) for which MSRs a TD can ask for.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import msrs
from swtdx.arch.msrs import (
    IA32_APIC_BASE,
    IA32_BIOS_SIGN_ID,
    IA32_FEATURE_CONTROL,
    IA32_MTRRCAP,
    IA32_TSC_DEADLINE,
)
from swtdx.arch.x86 import LOCAL_APIC_BASE
from swtdx.devices.saved import In, Out
from swtdx.vmm.apic import X2APIC_BASE
from swtdx.vmm.saved import get_map, put_map
from swtdx.vmm.vcpu import Vcpu

#: xAPIC address, x2APIC mode, enabled; bit 8 on the bootstrap processor.
_APIC_BASE_VALUE: Final = LOCAL_APIC_BASE | 0xC00
_BSP: Final = 0x100
#: No variable ranges, no fixed ones, no write-combining; enabled, with write-back as the default.
_MTRRCAP_VALUE: Final = 0
_MTRR_ENABLED_WB: Final = 0x806

#: Reading gives this; writing anything is ignored, as in KVM, unless the register is read-only.
_FIXED: Final = {
    msrs.MSR_PLATFORM_INFO: 0x8000_0000,  # CPUID faulting
    msrs.MSR_MISC_FEATURES_ENABLES: 0,
    msrs.MSR_POWER_CTL: 0,
    IA32_BIOS_SIGN_ID: 0x1 << 32,
    IA32_MTRRCAP: _MTRRCAP_VALUE,
    msrs.IA32_MCG_CAP: 0,
}
#: Of them, what refuses to be written.
_READ_ONLY: Final = (IA32_MTRRCAP, msrs.IA32_MCG_CAP)
#: Kept as written, with the reset value; nothing comes of them.
_STORED: Final = {
    msrs.IA32_MISC_ENABLE: 1,  # fast strings
    msrs.IA32_MTRR_DEF_TYPE: _MTRR_ENABLED_WB,
    msrs.IA32_PAT: 0x0007_0406_0007_0406,  # where the guest's own is meant to stay
    msrs.IA32_MCG_STATUS: 0,
}


class Msrs:
    """The MSRs of one vCPU that the hypervisor keeps."""

    __slots__ = ("_apic", "_stored", "_vcpu")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._apic = vcpu.apic
        self._stored = dict(_STORED)

    def save_state(self, out: Out) -> None:
        """Write down what the guest wrote."""
        put_map(out, self._stored)

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote."""
        self._stored.update(get_map(section))

    def read(self, index: int) -> int | None:
        """RDMSR; None is a #GP."""
        if index == IA32_TSC_DEADLINE:
            return self._apic.read_deadline()
        if X2APIC_BASE <= index < X2APIC_BASE + 0x100:
            return self._apic.read(index)
        value = self._stored.get(index)
        if value is not None:
            return value
        value = _FIXED.get(index)
        if value is not None:
            return value
        if index == IA32_APIC_BASE:
            return _APIC_BASE_VALUE | (0 if self._vcpu.index else _BSP)
        if index == IA32_FEATURE_CONTROL:
            return 1  # locked, nothing enabled
        return None

    def write(self, index: int, value: int) -> bool:
        """WRMSR; False is a #GP."""
        if index == IA32_TSC_DEADLINE:
            self._apic.write_deadline(value)
            return True
        if X2APIC_BASE <= index < X2APIC_BASE + 0x100:
            return self._apic.write(index, value)
        if index in self._stored:
            self._stored[index] = value
            return True
        if index == IA32_APIC_BASE:
            return value == self.read(index)
        return index in _FIXED and index not in _READ_ONLY
