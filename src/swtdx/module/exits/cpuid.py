"""CPUID in a TD: values computed at TDH.MNG.INIT, some bits now.

Source: ``td_cpuid.c`` of the TDX module 1.5.01, and of later versions for the topology leaves.
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import cpuid_policy as policy
from swtdx.arch.control_structs import TDCS, TDVPS
from swtdx.arch.cpuid_table import OLD_TOPOLOGY_LEAF, TOPOLOGY_LEAF
from swtdx.arch.regs import RAX, RBX, RCX, RDX
from swtdx.arch.x86 import CPUID_1_ECX_OSXSAVE, CPUID_7_ECX_OSPKE, CR4_OSXSAVE, CR4_PKE, XSAVE_LEGACY
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.exits.inject import inject_ve
from swtdx.module.vcpu import Vcpu

_QUAD: Final = struct.Struct("<4I")
_VALUES: Final = TDCS.cpuid_values.offset
_SYSCALL: Final = 1 << 11
#: #VE without TD_CTLS.ENUM_TOPOLOGY, and always in modules that do not know that bit.
_TOPOLOGY: Final = (OLD_TOPOLOGY_LEAF, TOPOLOGY_LEAF)


def cpuid_exit(vcpu: Vcpu, out: VmExit) -> None:
    """The virtual value, or #VE for a leaf that the hypervisor has to answer."""
    gpr, main = vcpu.gpr, vcpu.main
    leaf, subleaf = policy.effective_leaf(gpr[RAX] & 0xFFFFFFFF), gpr[RCX] & 0xFFFFFFFF
    row = vcpu.module.cpuid.lookup(leaf, subleaf)
    if row is None or row.faulting or _asked_for_ve(vcpu, row.index):
        inject_ve(vcpu, out.reason, 0)
        return
    eax, ebx, ecx, edx = _QUAD.unpack_from(vcpu.tdcs, _VALUES + 16 * row.index)
    if leaf == 1:
        apic_id = TDVPS.vcpu_index.get(main)
        if vcpu.td.topology:
            apic_id = vcpu.td.x2apic_id(apic_id)
        ebx = ebx & 0xFFFFFF | (apic_id & 0xFF) << 24
        ecx = ecx | CPUID_1_ECX_OSXSAVE if vcpu.context.cr4 & CR4_OSXSAVE else ecx & ~CPUID_1_ECX_OSXSAVE
    elif leaf == 7 and subleaf == 0:
        ecx = ecx | CPUID_7_ECX_OSPKE if vcpu.context.cr4 & CR4_PKE else ecx & ~CPUID_7_ECX_OSPKE
    elif leaf == 0xD and subleaf <= 1:
        ebx = _enabled_size(vcpu)
    elif leaf in _TOPOLOGY:
        if not vcpu.td.topology:
            inject_ve(vcpu, out.reason, 0)
            return
        edx = vcpu.td.x2apic_id(TDVPS.vcpu_index.get(main))
    elif leaf == 0x80000001:
        edx = edx | _SYSCALL if vcpu.context.long_mode else edx & ~_SYSCALL
    gpr[RAX], gpr[RBX], gpr[RCX], gpr[RDX] = eax, ebx, ecx, edx
    vcpu.advance()


def _asked_for_ve(vcpu: Vcpu, index: int) -> bool:
    """Whether the guest asked for #VE on CPUID at its privilege level."""
    main = vcpu.main
    control = TDVPS.cpuid_control.get(main, index)
    if vcpu.context.cpl:
        return bool(TDVPS.cpuid_user_ve.get(main) or control & 2)
    return bool(TDVPS.cpuid_supervisor_ve.get(main) or control & 1)


def _enabled_size(vcpu: Vcpu) -> int:
    """Size of the XSAVE area for what XCR0 enables now (SDM volume 1, 13.2)."""
    size = XSAVE_LEGACY
    enabled = vcpu.context.xcr0
    for component in range(2, 19):
        if enabled >> component & 1:
            length, offset, _, _ = vcpu.module.native_cpuid(0xD, component)
            size = max(size, offset + length)
    return size
