"""RDMSR and WRMSR that exit (``td_msr_access.c`` of 1.5.01; the policy is ``arch.msr_policy``)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import msr_policy, msrs
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import CPUID_FLAGS, TDCS, TDVPS
from swtdx.arch.msr_policy import Action
from swtdx.arch.msrs import (
    DEBUGCTL_BTS,
    DEBUGCTL_TR,
    DEBUGCTL_UNCORE_PMI,
    IA32_ARCH_CAPABILITIES,
    IA32_DEBUGCTL,
    IA32_EFER,
    IA32_MISC_ENABLE,
    IA32_PERF_CAPABILITIES,
    IA32_X2APIC_APICID,
    IA32_XAPIC_DISABLE_STATUS,
    IA32_XSS,
)
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.x86 import EFER_LMA, EFER_SCE
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.exits.inject import inject_gp, inject_ve
from swtdx.module.vcpu import Vcpu

_PERFMON_AVAILABLE: Final = 1 << 7
_PEBS_UNAVAILABLE: Final = 1 << 12
#: IA32_DEBUGCTL: bits that are not reserved (SDM volume 4).
_DEBUGCTL_DEFINED: Final = 0xFFC3

#: Virtual VMX capability MSRs, kept in the TDCS since TDH.MNG.INIT.
_VMX: Final = {
    msrs.IA32_VMX_BASIC: TDCS.virt_ia32_vmx_basic,
    msrs.IA32_VMX_MISC: TDCS.virt_ia32_vmx_misc,
    msrs.IA32_VMX_CR0_FIXED0: TDCS.virt_ia32_vmx_cr0_fixed0,
    msrs.IA32_VMX_CR0_FIXED1: TDCS.virt_ia32_vmx_cr0_fixed1,
    msrs.IA32_VMX_CR4_FIXED0: TDCS.virt_ia32_vmx_cr4_fixed0,
    msrs.IA32_VMX_CR4_FIXED1: TDCS.virt_ia32_vmx_cr4_fixed1,
    msrs.IA32_VMX_PROCBASED_CTLS2: TDCS.virt_ia32_vmx_procbased_ctls2,
    msrs.IA32_VMX_EPT_VPID_CAP: TDCS.virt_ia32_vmx_ept_vpid_cap,
    msrs.IA32_VMX_TRUE_PINBASED_CTLS: TDCS.virt_ia32_vmx_true_pinbased_ctls,
    msrs.IA32_VMX_TRUE_PROCBASED_CTLS: TDCS.virt_ia32_vmx_true_procbased_ctls,
    msrs.IA32_VMX_TRUE_EXIT_CTLS: TDCS.virt_ia32_vmx_true_exit_ctls,
    msrs.IA32_VMX_TRUE_ENTRY_CTLS: TDCS.virt_ia32_vmx_true_entry_ctls,
    msrs.IA32_VMX_VMFUNC: TDCS.virt_ia32_vmx_vmfunc,
    msrs.IA32_VMX_PROCBASED_CTLS3: TDCS.virt_ia32_vmx_procbased_ctls3,
}


def features(tdcs: memoryview) -> int:
    """The TD's feature mask for the MSR policy, from its TDCS."""
    flags = {name: bool(TDCS.cpuid_flags.get(tdcs, index)) for index, name in enumerate(CPUID_FLAGS)}
    return msr_policy.td_features(
        TDCS.attributes.get(tdcs),
        TDCS.xfam.get(tdcs),
        waitpkg=flags["waitpkg"],
        xfd=flags["xfd"],
        tsx=flags["tsx"],
        dca=flags["dca"],
        tme=flags["tme"],
        mktme=flags["mktme"],
        tsc_deadline=flags["tsc_deadline"],
    )


def _return(vcpu: Vcpu, value: int) -> None:
    vcpu.gpr[RAX] = value & 0xFFFFFFFF
    vcpu.gpr[RDX] = value >> 32 & 0xFFFFFFFF
    vcpu.advance()


def rdmsr_exit(vcpu: Vcpu, out: VmExit) -> None:
    """RDMSR: emulated, #VE or #GP(0)."""
    index = vcpu.gpr[RCX] & 0xFFFFFFFF
    if index == IA32_X2APIC_APICID and vcpu.td.topology:
        _return(vcpu, vcpu.td.x2apic_id(TDVPS.vcpu_index.get(vcpu.main)))
        return
    if msr_policy.covered(index):
        value = _special_value(vcpu, index)
        if value is not None:
            _return(vcpu, value)
            return
    _refuse(vcpu, out, index, write=False)


def _special_value(vcpu: Vcpu, index: int) -> int | None:
    tdcs = vcpu.tdcs
    if index == IA32_ARCH_CAPABILITIES:
        return int(TDCS.virt_ia32_arch_capabilities.get(tdcs))
    if index == IA32_XAPIC_DISABLE_STATUS:
        return 1
    if index == IA32_MISC_ENABLE:
        return vcpu.lp.rdmsr(IA32_MISC_ENABLE) & ~_PERFMON_AVAILABLE | _PEBS_UNAVAILABLE
    if index == IA32_DEBUGCTL:
        return vcpu.vmcs.read(f.GUEST_DEBUGCTL) & ~DEBUGCTL_UNCORE_PMI
    if index == IA32_PERF_CAPABILITIES:
        return 0
    field = _VMX.get(index)
    return None if field is None else int(field.get(tdcs))


def wrmsr_exit(vcpu: Vcpu, out: VmExit) -> None:
    """WRMSR: emulated, #VE or #GP(0)."""
    index = vcpu.gpr[RCX] & 0xFFFFFFFF
    value = vcpu.gpr[RAX] & 0xFFFFFFFF | (vcpu.gpr[RDX] & 0xFFFFFFFF) << 32
    if index == IA32_EFER:
        _write_efer(vcpu, out, value)
    elif index == IA32_XSS:
        _write_xss(vcpu, value)
    elif index == IA32_DEBUGCTL:
        _write_debugctl(vcpu, out, value)
    else:
        _refuse(vcpu, out, index, write=True)


def _write_efer(vcpu: Vcpu, out: VmExit, value: int) -> None:
    """Only SCE may change; LMA is read-only."""
    old = vcpu.vmcs.read(f.GUEST_EFER)
    if (value ^ old) & ~(EFER_SCE | EFER_LMA):
        inject_ve(vcpu, out.reason, 0)
        return
    vcpu.vmcs.write(f.GUEST_EFER, value & ~EFER_LMA | old & EFER_LMA)
    vcpu.advance()


def _write_xss(vcpu: Vcpu, value: int) -> None:
    if value & ~(vcpu.module.xss_supported & TDVPS.xfam.get(vcpu.main)):
        inject_gp(vcpu)
        return
    TDVPS.ia32_xss.set(vcpu.main, value)
    vcpu.context.extra_msrs[IA32_XSS] = value
    vcpu.advance()


def _write_debugctl(vcpu: Vcpu, out: VmExit, value: int) -> None:
    if value & ~_DEBUGCTL_DEFINED:
        inject_gp(vcpu)
        return
    if value & DEBUGCTL_TR and not value & DEBUGCTL_BTS:
        inject_ve(vcpu, out.reason, 0)
        return
    old = vcpu.vmcs.read(f.GUEST_DEBUGCTL)
    vcpu.vmcs.write(f.GUEST_DEBUGCTL, value & ~DEBUGCTL_UNCORE_PMI | old & DEBUGCTL_UNCORE_PMI)
    vcpu.advance()


def _refuse(vcpu: Vcpu, out: VmExit, index: int, *, write: bool) -> None:
    td = vcpu.td
    if td.msr_features is None:
        td.msr_features = features(vcpu.tdcs)
    if msr_policy.decide(index, td.msr_features, write=write) is Action.GP:
        inject_gp(vcpu)
    else:
        inject_ve(vcpu, out.reason, 0)
