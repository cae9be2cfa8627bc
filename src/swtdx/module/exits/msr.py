"""RDMSR and WRMSR that exit (``td_msr_access.c`` of 1.5.01; the policy is ``arch.msr_policy``)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import msr_policy
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import CPUID_FLAGS, TDCS, TDVPS
from swtdx.arch.msr_policy import Action
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.exits.inject import inject_gp, inject_ve
from swtdx.module.vcpu import Vcpu

_XAPIC_DISABLE_STATUS: Final = 0xBD
_ARCH_CAPABILITIES: Final = 0x10A
_MISC_ENABLE: Final = 0x1A0
_DEBUGCTL: Final = 0x1D9
_PERF_CAPABILITIES: Final = 0x345
_XSS: Final = 0xDA0
_EFER: Final = 0xC0000080
_LMA: Final = 1 << 10
_SCE: Final = 1 << 0
_PERFMON_AVAILABLE: Final = 1 << 7
_PEBS_UNAVAILABLE: Final = 1 << 12
_TR: Final = 1 << 6
_BTS: Final = 1 << 7
_UNCORE_PMI: Final = 1 << 13
#: IA32_DEBUGCTL: bits that are not reserved (SDM volume 4).
_DEBUGCTL_DEFINED: Final = 0xDFC3

#: Virtual VMX capability MSRs, kept in the TDCS since TDH.MNG.INIT.
_VMX: Final = {
    0x480: TDCS.virt_ia32_vmx_basic,
    0x485: TDCS.virt_ia32_vmx_misc,
    0x486: TDCS.virt_ia32_vmx_cr0_fixed0,
    0x487: TDCS.virt_ia32_vmx_cr0_fixed1,
    0x488: TDCS.virt_ia32_vmx_cr4_fixed0,
    0x489: TDCS.virt_ia32_vmx_cr4_fixed1,
    0x48B: TDCS.virt_ia32_vmx_procbased_ctls2,
    0x48C: TDCS.virt_ia32_vmx_ept_vpid_cap,
    0x48D: TDCS.virt_ia32_vmx_true_pinbased_ctls,
    0x48E: TDCS.virt_ia32_vmx_true_procbased_ctls,
    0x48F: TDCS.virt_ia32_vmx_true_exit_ctls,
    0x490: TDCS.virt_ia32_vmx_true_entry_ctls,
    0x491: TDCS.virt_ia32_vmx_vmfunc,
    0x492: TDCS.virt_ia32_vmx_procbased_ctls3,
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
    vcpu.gpr[0] = value & 0xFFFFFFFF
    vcpu.gpr[2] = value >> 32 & 0xFFFFFFFF
    vcpu.advance()


def rdmsr_exit(vcpu: Vcpu, out: VmExit) -> None:
    """RDMSR: emulated, #VE or #GP(0)."""
    index = vcpu.gpr[1] & 0xFFFFFFFF
    if msr_policy.covered(index):
        value = _special_value(vcpu, index)
        if value is not None:
            _return(vcpu, value)
            return
    _refuse(vcpu, out, index, write=False)


def _special_value(vcpu: Vcpu, index: int) -> int | None:
    tdcs = vcpu.tdcs
    if index == _ARCH_CAPABILITIES:
        return int(TDCS.virt_ia32_arch_capabilities.get(tdcs))
    if index == _XAPIC_DISABLE_STATUS:
        return 1
    if index == _MISC_ENABLE:
        return vcpu.lp.rdmsr(_MISC_ENABLE) & ~_PERFMON_AVAILABLE | _PEBS_UNAVAILABLE
    if index == _DEBUGCTL:
        return vcpu.vmcs.read(f.GUEST_DEBUGCTL) & ~_UNCORE_PMI
    if index == _PERF_CAPABILITIES:
        return 0
    field = _VMX.get(index)
    return None if field is None else int(field.get(tdcs))


def wrmsr_exit(vcpu: Vcpu, out: VmExit) -> None:
    """WRMSR: emulated, #VE or #GP(0)."""
    index = vcpu.gpr[1] & 0xFFFFFFFF
    value = vcpu.gpr[0] & 0xFFFFFFFF | (vcpu.gpr[2] & 0xFFFFFFFF) << 32
    if index == _EFER:
        _write_efer(vcpu, out, value)
    elif index == _XSS:
        _write_xss(vcpu, value)
    elif index == _DEBUGCTL:
        _write_debugctl(vcpu, out, value)
    else:
        _refuse(vcpu, out, index, write=True)


def _write_efer(vcpu: Vcpu, out: VmExit, value: int) -> None:
    """Only SCE may change; LMA is read-only."""
    old = vcpu.vmcs.read(f.GUEST_EFER)
    if (value ^ old) & ~(_SCE | _LMA):
        inject_ve(vcpu, out.reason, 0)
        return
    vcpu.vmcs.write(f.GUEST_EFER, value & ~_LMA | old & _LMA)
    vcpu.advance()


def _write_xss(vcpu: Vcpu, value: int) -> None:
    if value & ~(vcpu.module.xss_supported & TDVPS.xfam.get(vcpu.main)):
        inject_gp(vcpu)
        return
    TDVPS.ia32_xss.set(vcpu.main, value)
    vcpu.context.extra_msrs[_XSS] = value
    vcpu.advance()


def _write_debugctl(vcpu: Vcpu, out: VmExit, value: int) -> None:
    if value & ~_DEBUGCTL_DEFINED:
        inject_gp(vcpu)
        return
    if value & _TR and not value & _BTS:
        inject_ve(vcpu, out.reason, 0)
        return
    old = vcpu.vmcs.read(f.GUEST_DEBUGCTL)
    vcpu.vmcs.write(f.GUEST_DEBUGCTL, value & ~_UNCORE_PMI | old & _UNCORE_PMI)
    vcpu.advance()


def _refuse(vcpu: Vcpu, out: VmExit, index: int, *, write: bool) -> None:
    td = vcpu.td
    if td.msr_features is None:
        td.msr_features = features(vcpu.tdcs)
    if msr_policy.decide(index, td.msr_features, write=write) is Action.GP:
        inject_gp(vcpu)
    else:
        inject_ve(vcpu, out.reason, 0)
