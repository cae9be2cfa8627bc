"""What a new vCPU starts with (tdcall.md §6; ``td_vmcs_init.c``, ``tdh_vp_init.c`` of 1.5.01)."""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import CPUID_FLAGS, TDCS, TDCS_ZERO_PAGE, TDR, TDVPS
from swtdx.arch.regs import R8, RBX, RCX, RDX, RSI
from swtdx.arch.units import NULL_PA
from swtdx.arch.vmx_controls import (
    ENTRY_PERF,
    ENTRY_PKRS,
    EXIT_PERF,
    PROC2_PCONFIG,
    PROC2_USER_WAIT_PAUSE,
    PROC3_GPAW,
    PROC_MONITOR_EXITING,
    PROC_MWAIT_EXITING,
    PROC_RDPMC_EXITING,
)
from swtdx.arch.x86 import CR0_PG
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.vmx.vmcs import Vmcs
from swtdx.module.objects.td import TDCS_MSR_BITMAPS, TDVPS_VAPIC, TDVPS_XBUFF, Vp
from swtdx.module.state import ModuleState
from swtdx.module.vcpu import load_state
from swtdx.module.virtual_msrs import l2_cr4_write_mask

_SEGMENT_LIMITS: Final = 0xFFFFFFFF
_CODE: Final = 0xC09B
_DATA: Final = 0xC093

#: Guest state of a new vCPU; what is not here is 0.
_GUEST_STATE: Final = {
    **{getattr(f, f"GUEST_{name}_LIMIT"): _SEGMENT_LIMITS for name in ("CS", "DS", "ES", "FS", "GS", "SS")},
    **{getattr(f, f"GUEST_{name}_ACCESS_RIGHTS"): _DATA for name in ("DS", "ES", "FS", "GS", "SS")},
    f.GUEST_CS_ACCESS_RIGHTS: _CODE,
    f.GUEST_LDTR_LIMIT: 0xFFFF,
    f.GUEST_LDTR_ACCESS_RIGHTS: 0x10082,
    f.GUEST_TR_LIMIT: 0xFFFF,
    f.GUEST_TR_ACCESS_RIGHTS: 0x8B,
    f.GUEST_GDTR_LIMIT: 0xFFFF,
    f.GUEST_DR7: 0x400,
    f.GUEST_RIP: 0xFFFFFFF0,
    f.GUEST_RFLAGS: 0x2,
    f.GUEST_PERF_GLOBAL_CTRL: 0xFF,
    f.GUEST_PAT: 0x0007040600070406,
    f.GUEST_EFER: 0x901,
    f.VMCS_LINK_POINTER: NULL_PA,
    f.GUEST_PDPTE0: NULL_PA,
    f.GUEST_PDPTE1: NULL_PA,
    f.GUEST_PDPTE2: NULL_PA,
    f.GUEST_PDPTE3: NULL_PA,
}

#: Controls that are the same for every TD.
_CONTROLS: Final = {
    f.EXCEPTION_BITMAP: 1 << 18,
    f.POSTED_INTERRUPT_NOTIFICATION_VECTOR: 0xFFFF,
    # Addresses that nothing uses.
    **dict.fromkeys(
        (
            f.APIC_ACCESS_PAGE,
            f.POSTED_INTERRUPT_DESCRIPTOR,
            f.PML_ADDRESS,
            f.IO_BITMAP_A,
            f.IO_BITMAP_B,
            f.EPTP_LIST_ADDRESS,
            f.VMREAD_BITMAP,
            f.VMWRITE_BITMAP,
            f.EXECUTIVE_VMCS_POINTER,
            f.EXIT_MSR_STORE_ADDRESS,
            f.EXIT_MSR_LOAD_ADDRESS,
            f.ENTRY_MSR_LOAD_ADDRESS,
        ),
        NULL_PA,
    ),
    f.ENCLS_EXITING_BITMAP: NULL_PA,
    f.ENCLV_EXITING_BITMAP: NULL_PA,
    f.PCONFIG_EXITING_BITMAP: NULL_PA,
}

# Initial controls: ``td_vmcs_ctl_values_e`` in ``vmcs_defs.h``, with the bits that the capability MSRs
# of every processor require (SDM volume 3, appendix A).
PIN_BASED: Final = 0x29 | 0x16
#: TSC offsetting, HLT exiting, tertiary controls, TPR shadow, I/O exiting, MSR bitmaps, secondary.
_PROC: Final = 0x91220088 | 0x04006172
_SECONDARY: Final = 0x133CB3FA
_TERTIARY: Final = 0x80
_EXIT: Final = 0x1F3C8204 | 0x00036DFB
_ENTRY: Final = 0x003EC004 | 0x000011FB
_FLAG_INDEX: Final = {name: index for index, name in enumerate(CPUID_FLAGS)}
_CR0_RESERVED: Final = 0xFFFFFFFF_1FFAFFC0  # bits 63:32, 28:19, 17, 15:6


def initial_registers(module: ModuleState, vp: Vp, rcx: int, index: int) -> None:
    """GPRs and the registers that rest in TDVPS."""
    main, tdcs = vp.main, vp.td.tdcs
    gpr = TDVPS.gpr
    gpr.set(main, RBX, 52 if TDCS.gpaw.get(tdcs) else 48)
    gpr.set(main, RCX, rcx)
    gpr.set(main, R8, rcx)
    gpr.set(main, RDX, module.native_cpuid(1, 0)[0])
    gpr.set(main, RSI, index)
    TDVPS.xcr0.set(main, 1)
    TDVPS.dr6.set(main, 0xFFFF0FF0)
    TDVPS.ia32_fmask.set(main, 0x20200)
    # XSAVE header and legacy area in their initial configuration: FCW and MXCSR at reset.
    struct.pack_into("<H", vp.pages[TDVPS_XBUFF], 0, 0x37F)
    struct.pack_into("<I", vp.pages[TDVPS_XBUFF], 24, 0x1F80)


def initialise(module: ModuleState, lp: LogicalProcessor, vp: Vp) -> None:
    """Make and fill the TD VMCS; it is active on ``lp`` afterwards."""
    td = vp.td
    tdcs = td.tdcs
    vmcs = lp.vmx.load(vp.vmcs_pa)
    write = vmcs.write
    for field, value in (*_CONTROLS.items(), *_GUEST_STATE.items()):
        write(field, value)
    pages = TDVPS.tdvps_page_pa
    # These carry the TD's HKID.
    write(f.VIRTUAL_APIC_PAGE, pages.get(vp.main, TDVPS_VAPIC))
    write(f.VE_INFORMATION_ADDRESS, pages.get(vp.main, 0))
    write(f.MSR_BITMAP, TDR.tdcx_pa.get(td.tdr, TDCS_MSR_BITMAPS))
    for field in (f.SHARED_EPTP, f.LOW_PASID_DIRECTORY, f.HIGH_PASID_DIRECTORY):
        write(field, TDR.tdcx_pa.get(td.tdr, TDCS_ZERO_PAGE))
    write(f.HKID, td.hkid)
    write(f.EPTP, TDCS.eptp.get(tdcs))
    write(f.TSC_OFFSET, TDCS.tsc_offset.get(tdcs))
    write(f.TSC_MULTIPLIER, TDCS.tsc_multiplier.get(tdcs))
    write(f.VPID, td.hkid << 2)  # the number of the VM, which is 0, in the lowest bits
    write(f.SPEC_CTRL_MASK, TDCS.ia32_spec_ctrl_mask.get(tdcs))
    _execution_controls(vmcs, tdcs)
    _control_register_masks(module, vmcs, tdcs)
    _shadows(module, vp, vmcs)
    write(f.GUEST_CR0, 0x21)
    write(f.GUEST_CR4, 0x2040)
    load_state(lp, vp, vmcs)


def _execution_controls(vmcs: Vmcs, tdcs: memoryview) -> None:
    """Controls that depend on the TD (``td_vmcs_init.c``)."""

    def has(name: str) -> int:
        return int(TDCS.cpuid_flags.get(tdcs, _FLAG_INDEX[name]))

    proc, secondary = _PROC, _SECONDARY
    if not has("monitor_mwait"):
        proc |= PROC_MWAIT_EXITING | PROC_MONITOR_EXITING
    if not TDCS.attributes.get(tdcs) >> 63:
        proc |= PROC_RDPMC_EXITING
    if has("waitpkg"):
        secondary |= PROC2_USER_WAIT_PAUSE
    if has("mktme"):
        secondary |= PROC2_PCONFIG
    vmcs.write(f.PIN_BASED_CONTROLS, PIN_BASED)
    vmcs.write(f.PROC_BASED_CONTROLS, proc)
    vmcs.write(f.SECONDARY_CONTROLS, secondary)
    vmcs.write(f.PROCBASED_CTLS3, _TERTIARY | (PROC3_GPAW if TDCS.gpaw.get(tdcs) else 0))
    exit_controls, entry_controls = _EXIT, _ENTRY & ~(ENTRY_PERF | ENTRY_PKRS)
    attributes = TDCS.attributes.get(tdcs)
    debug = attributes & 1
    if attributes >> 63 or debug:
        exit_controls, entry_controls = exit_controls | EXIT_PERF, entry_controls | ENTRY_PERF
    if attributes >> 30 & 1 or debug:
        entry_controls |= ENTRY_PKRS
    vmcs.write(f.EXIT_CONTROLS, exit_controls)
    vmcs.write(f.ENTRY_CONTROLS, entry_controls)


def _shadows(module: ModuleState, vp: Vp, vmcs: Vmcs) -> None:
    """TDVPS fields that repeat the VMCS, or wait for L2 VMs (``init_tdvps_fields`` in ``helpers.c``)."""
    main, tdcs = vp.main, vp.td.tdcs
    cr0_fixed0, cr0_fixed1, cr4_fixed0, _ = module.cr_fixed
    base = (cr0_fixed0 | ~cr0_fixed1) & ~(CR0_PG | 1) | 1 << 5 | 1 << 29 | 1 << 30 | _CR0_RESERVED
    TDVPS.base_l2_cr0_guest_host_mask.set(main, base & NULL_PA)
    TDVPS.base_l2_cr0_read_shadow.set(main, cr0_fixed0 & ~(CR0_PG | 1) | 1 << 5)
    TDVPS.base_l2_cr4_guest_host_mask.set(main, ~l2_cr4_write_mask(module, tdcs) & NULL_PA)
    TDVPS.base_l2_cr4_read_shadow.set(main, cr4_fixed0 | 1 << 6 | 1 << 13)
    for array, encoding in (
        (TDVPS.shadow_cr0_guest_host_mask, f.CR0_GUEST_HOST_MASK),
        (TDVPS.shadow_cr0_read_shadow, f.CR0_READ_SHADOW),
        (TDVPS.shadow_cr4_guest_host_mask, f.CR4_GUEST_HOST_MASK),
        (TDVPS.shadow_cr4_read_shadow, f.CR4_READ_SHADOW),
        (TDVPS.shadow_procbased_exec_ctls2, f.SECONDARY_CONTROLS),
    ):
        array.set(main, 0, vmcs.read(encoding))
    TDVPS.shadow_pinbased_exec_ctls.set(main, 0, vmcs.read(f.PIN_BASED_CONTROLS))
    TDVPS.shadow_posted_int_notification_vector.set(main, 0, 0xFFFF)
    TDVPS.shadow_pid_hpa.set(main, 0, NULL_PA)
    for array in (
        TDVPS.tsc_deadline, TDVPS.shadow_shared_eptp, TDVPS.l2_enter_guest_state_gpa,
        TDVPS.l2_enter_guest_state_hpa, TDVPS.l2_vapic_gpa, TDVPS.l2_vapic_hpa,
    ):  # fmt: skip
        array.set(main, 0, NULL_PA)


def _control_register_masks(module: ModuleState, vmcs: Vmcs, tdcs: memoryview) -> None:
    """Which bits of CR0 and CR4 the module owns, and what the guest reads in them."""
    cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1 = module.cr_fixed
    mask = (cr0_fixed0 | ~cr0_fixed1) & ~CR0_PG | 1 << 0 | 1 << 5 | 1 << 29 | 1 << 30 | _CR0_RESERVED
    vmcs.write(f.CR0_GUEST_HOST_MASK, mask & NULL_PA)
    vmcs.write(f.CR0_READ_SHADOW, cr0_fixed0 | 1 << 0 | 1 << 5)
    xfam, attributes = TDCS.xfam.get(tdcs), TDCS.attributes.get(tdcs)
    mask = cr4_fixed0 | ~cr4_fixed1 | 1 << 6 | 1 << 13 | 1 << 14 | 1 << 15 | (NULL_PA >> 26 << 26)
    if not xfam >> 9 & 1:
        mask |= 1 << 22
    if xfam >> 11 & 3 != 3:
        mask |= 1 << 23
    if not xfam >> 14 & 1:
        mask |= 1 << 25
    mask |= 1 << 19
    if not attributes >> 30 & 1:
        mask |= 1 << 24
    vmcs.write(f.CR4_GUEST_HOST_MASK, mask & NULL_PA)
    vmcs.write(f.CR4_READ_SHADOW, cr4_fixed0 & ~(1 << 13) | 1 << 6)
