"""MSRs of a guest that exist in the processor but not in the engine: kept and checked here.

They are native for the guest (its MSR bitmap lets them through), so the microcode carries them out
as hardware would.  Source: Intel SDM volume 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import msrs
from swtdx.arch import vmcs as f
from swtdx.arch.msrs import (
    IA32_EFER,
    IA32_FLUSH_CMD,
    IA32_PAT,
    IA32_PRED_CMD,
    IA32_SPEC_CTRL,
    IA32_TIME_STAMP_COUNTER,
    IA32_X2APIC_EOI,
    IA32_X2APIC_SELF_IPI,
    IA32_X2APIC_TPR,
    X2APIC_FIRST,
    X2APIC_LAST,
)
from swtdx.arch.units import MASK64
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.vmx.apicv import VirtualApic
from swtdx.machine.vmx.vmcs import Vmcs

#: IA32_SPEC_CTRL: IBRS, STIBP, SSBD, and what CPUID(7, 2).EDX offers: IPRED_DIS_U/S, RRSBA_DIS_U/S, PSFD,
#: BHI_DIS_S.
SPEC_CTRL_BITS: Final = 0x4FF

#: Native MSRs without a meaning to the model: writable bits, value at reset.
_PLAIN: Final[dict[int, tuple[int, int]]] = {
    IA32_SPEC_CTRL: (SPEC_CTRL_BITS, 0),
    msrs.IA32_MISC_PACKAGE_CTLS: (0x1, 0),
    msrs.IA32_UMWAIT_CONTROL: (0xFFFFFFFD, 0),
    msrs.IA32_TSX_CTRL: (0x3, 0),
    msrs.IA32_DS_AREA: (MASK64, 0),
    msrs.IA32_UARCH_MISC_CTL: (0x1, 0),
    msrs.IA32_DEBUG_INTERFACE: (0x1, 0),
}
#: Native, read-only, with a fixed value.
_READ_ONLY: Final[dict[int, int]] = {msrs.IA32_XAPIC_DISABLE_STATUS: 1}
#: Commands: write-only, the bits that may be set.
_COMMANDS: Final[dict[int, int]] = {IA32_PRED_CMD: 0x1, IA32_FLUSH_CMD: 0x1}
#: They hold linear addresses.
_ADDRESSES: Final = frozenset({
    msrs.IA32_SYSENTER_ESP, msrs.IA32_SYSENTER_EIP, msrs.IA32_LSTAR, msrs.IA32_FS_BASE, msrs.IA32_GS_BASE,
    msrs.IA32_KERNEL_GS_BASE,
})  # fmt: skip
_PAT_TYPES: Final = frozenset({0, 1, 4, 5, 6, 7})


def canonical(address: int, bits: int = 48) -> bool:
    """Whether a linear address is canonical for a ``bits``-bit linear address width."""
    top = address >> bits - 1
    return top in (0, (1 << 65 - bits) - 1)


class GuestMsrs:
    """Carries out native RDMSR and WRMSR of a guest."""

    def __init__(self, guest_tsc: Callable[[Vmcs], int]) -> None:
        self._guest_tsc = guest_tsc

    def read(self, vmcs: Vmcs, index: int) -> int:
        """RDMSR.

        Raises:
            GeneralProtection: the MSR does not exist or cannot be read.
        """
        kept = vmcs.context.read_msr(index)
        if kept is not None:
            return int(kept)
        if index == IA32_EFER:
            return int(vmcs.context.efer)
        if index == IA32_TIME_STAMP_COUNTER:
            return self._guest_tsc(vmcs)
        if index == IA32_PAT:
            return vmcs.read(f.GUEST_PAT)
        if index in _READ_ONLY:
            return _READ_ONLY[index]
        if index in _PLAIN:
            return int(vmcs.context.extra_msrs.get(index, _PLAIN[index][1]))
        if X2APIC_FIRST <= index <= X2APIC_LAST and vmcs.apic_page is not None:
            # With APIC-register virtualization the page answers for write-only and reserved registers, too
            # (SDM volume 3, 30.5).
            return VirtualApic.read(vmcs.apic_page, index)
        raise GeneralProtection(f"RDMSR of {index:#x}, which this processor does not have")

    def write(self, vmcs: Vmcs, index: int, value: int) -> None:
        """WRMSR.

        Raises:
            GeneralProtection: the MSR does not exist, is read-only, or does not take the value.
        """
        if index in _ADDRESSES and not canonical(value):
            raise GeneralProtection(f"WRMSR of {index:#x} with a non-canonical address")
        if vmcs.context.write_msr(index, value):
            return
        if index == IA32_PAT:
            if any(value >> shift & 0xFF not in _PAT_TYPES for shift in range(0, 64, 8)):
                raise GeneralProtection("WRMSR of IA32_PAT with a reserved memory type")
            vmcs.write(f.GUEST_PAT, value)
        elif index in _PLAIN:
            if value & ~_PLAIN[index][0]:
                raise GeneralProtection(f"WRMSR of {index:#x} with reserved bits")
            vmcs.context.extra_msrs[index] = value
        elif index in _COMMANDS:
            if value & ~_COMMANDS[index]:
                raise GeneralProtection(f"WRMSR of {index:#x} with reserved bits")
        elif X2APIC_FIRST <= index <= X2APIC_LAST and vmcs.apic_page is not None:
            self._write_apic(vmcs, index, value, vmcs.apic_page)
        else:
            raise GeneralProtection(f"WRMSR of {index:#x}, which this processor does not have")

    @staticmethod
    def _write_apic(vmcs: Vmcs, index: int, value: int, page: memoryview) -> None:
        status = vmcs.read(f.GUEST_INTERRUPT_STATUS)
        if index == IA32_X2APIC_EOI:
            if value:
                raise GeneralProtection("WRMSR of x2APIC EOI with a value other than 0")
            vmcs.write(f.GUEST_INTERRUPT_STATUS, VirtualApic.end_of_interrupt(page, status))
        elif index == IA32_X2APIC_TPR:
            if value >> 8:
                raise GeneralProtection("WRMSR of x2APIC TPR with reserved bits")
            VirtualApic.set_tpr(page, status, value)
        elif index == IA32_X2APIC_SELF_IPI:
            if value >> 8 or value < 16:
                raise GeneralProtection("WRMSR of x2APIC SELF_IPI with a reserved vector")
            vmcs.write(f.GUEST_INTERRUPT_STATUS, VirtualApic.request(page, status, value))
        else:
            raise GeneralProtection(f"WRMSR of read-only x2APIC register {index:#x}")
