"""Control structures of a TD: PAMT entry, TDR, TDCS, TDVPS, as bytes in donated pages.

Sources: ``td_control_structures.h``, ``tdx_tdvps.h`` and ``pamt_manager.h`` of the TDX module
1.5.01 (offsets checked with a compiler).  TDCS and TDVPS are made of single pages: :data:`TDCS` and
:data:`TDVPS` are the layouts of page 0, where all their scalar fields live; the other pages are
whole tables, named by the ``*_PAGE`` indices.  A field's metadata offset is
``page index * 4096 + offset in the page``.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Array, Blob, Field, Struct, packed
from swtdx.arch.platform_structs import MAX_VCPUS_PER_TD
from swtdx.arch.states import LastTdExit, Lifecycle, OpState, PageType, VcpuState
from swtdx.arch.td_config import ATTRIBUTES, CONFIG_FLAGS, EPTP, TD_CTLS, XFAM
from swtdx.arch.units import PAGE


class PAMT_ENTRY(Struct, size=16, source="pamt_manager.h"):
    """What the module knows of one page."""

    lock = Field(0, 2, "sharex lock with host priority")
    page_type = Field(2, 1, holds=PageType)
    owner = Blob(3, 5, "HPA of the TDR >> 12")
    bepoch = Field(8, 8, "TD_EPOCH when blocked; with bit 63: bits 62:32 export count, 31:0 migration epoch")


#: Shifts inside the first 8 bytes of a PAMT entry taken as one integer.
PAMT_TYPE_SHIFT: Final = 16
PAMT_OWNER_SHIFT: Final = 24
BEPOCH_MIGRATION: Final = 1 << 63

TDCS_MIN_PAGES: Final = 6
TDCS_MAX_PAGES: Final = 9
TDCS_X2APIC_PAGE: Final = 1
TDCS_MSR_BITMAPS_PAGE: Final = 2
TDCS_SEPT_ROOT_PAGE: Final = 3
TDCS_ZERO_PAGE: Final = 4
TDCS_MIGSC_LINKS_PAGE: Final = 5
TDCS_L2_SEPT_ROOT_PAGE: Final = 6  # of L2 VM 1; VM n has page 5 + n

TDVPS_MIN_PAGES: Final = 6
TDVPS_MAX_PAGES: Final = 15
TDVPS_PAGES_PER_L2_VM: Final = 3
TDVPS_VMCS_PAGE: Final = 1
TDVPS_VAPIC_PAGE: Final = 2
TDVPS_XBUFF_PAGE: Final = 3
TDVPS_XBUFF_PAGES: Final = 3
TDVPS_L2_VMCS_PAGE: Final = 6  # of L2 VM 1; then its MSR bitmaps and shadow MSR bitmaps
TD_VMCS_BYTES: Final = 2048


class TDR(Struct, size=PAGE, source="td_control_structures.h"):
    """Root of a TD, encrypted with the global private HKID."""

    fatal = Field(0x000, 1)
    num_tdcx = Field(0x004, 4)
    chldcnt = Field(0x008, 8, "4-KiB pages that the TD owns, the TDR not counted")
    lifecycle_state = Field(0x010, 4, holds=Lifecycle)
    tdcx_pa = Array(0x018, 8, TDCS_MAX_PAGES, "HPA with HKID")
    td_uuid = Blob(0x060, 32)
    hkid = Field(0x100, 2)
    pkg_config_bitmap = Field(0x108, 8)
    handoff_version = Field(0x140, 2)
    seamdb_index = Field(0x148, 8)
    seamdb_nonce = Blob(0x150, 32)


class TDCS(Struct, size=PAGE, source="td_control_structures.h"):
    """Page 0 of a TD's control structure."""

    num_vcpus = Field(0x000, 4)
    num_assoc_vcpus = Field(0x004, 4)
    op_state = Field(0x008, 4, holds=OpState)
    op_state_lock = Field(0x00C, 2, "sharex lock with host priority")
    num_l2_vms = Field(0x010, 2)
    attributes = Field(0x080, 8, holds=ATTRIBUTES)
    xfam = Field(0x088, 8, holds=XFAM)
    max_vcpus = Field(0x090, 4)
    gpaw = Field(0x094, 1, "1: 52-bit guest physical addresses")
    eptp = Field(0x098, 8, holds=EPTP)
    secure_ept_lock = Field(0x0A0, 2, "sharex lock")
    tsc_offset = Field(0x0A8, 8)
    tsc_multiplier = Field(0x0B0, 8, "fixed point, 48 fraction bits")
    tsc_frequency = Field(0x0B8, 2, "units of 25 MHz")
    cpuid_flags = Array(0x0BA, 1, 32, "virtual CPUID bits, see CPUID_FLAGS")
    xbuff_size = Field(0x0DC, 4, "bytes")
    notify_enables = Field(0x0E0, 8)
    hp_lock_timeout = Field(0x0E8, 8)
    vm_ctls = Array(0x0F0, 8, 4)
    ia32_spec_ctrl_mask = Field(0x110, 8)
    config_flags = Field(0x118, 8, holds=CONFIG_FLAGS)
    td_ctls = Field(0x120, 8, holds=TD_CTLS)
    topology_enum_configured = Field(0x12C, 1, "every VCPU so far has an x2APIC id (newer modules)")
    cpuid_valid = Array(0x134, 1, 80)
    xbuff_offsets = Array(0x190, 4, 19)
    td_epoch = Field(0x200, 8)
    refcount = Array(0x208, 2, 2, "VCPUs that run in an even, an odd epoch")
    epoch_lock = Field(0x210, 2, "sharex lock")
    mrtd = Blob(0x240, 48)
    mrconfigid = Blob(0x270, 48)
    mrowner = Blob(0x2A0, 48)
    mrownerconfig = Blob(0x2D0, 48)
    rtmr0 = Blob(0x300, 48)
    rtmr1 = Blob(0x330, 48)
    rtmr2 = Blob(0x360, 48)
    rtmr3 = Blob(0x390, 48)
    last_teeinfo_hash = Blob(0x3C0, 48)
    rtmr_lock = Field(0x3F0, 2, "sharex lock with host priority")
    last_teeinfo_hash_valid = Field(0x3F2, 1)
    mrtd_context = Blob(0x420, 352, "state of the unfinished MRTD; its format is the module's own")
    mig_dec_key_set = Field(0x580, 1)
    export_count = Field(0x584, 4)
    import_count = Field(0x588, 4)
    mig_epoch = Field(0x58C, 4)
    bw_epoch = Field(0x590, 8)
    total_mb_count = Field(0x598, 8)
    mig_dec_key = Blob(0x5A0, 32)
    mig_dec_working_key = Blob(0x5C0, 32)
    mig_enc_key = Blob(0x5E0, 32)
    mig_enc_working_key = Blob(0x600, 32)
    mig_version = Field(0x620, 2)
    mig_working_version = Field(0x622, 2)
    dirty_count = Field(0x628, 8)
    mig_count = Field(0x630, 8)
    num_migs = Field(0x638, 2)
    num_migrated_vcpus = Field(0x63C, 4)
    preimport_uuid = Blob(0x640, 32)
    mig_lock = Field(0x660, 2, "sharex lock")
    virt_ia32_vmx_basic = Field(0x700, 8)
    virt_ia32_vmx_misc = Field(0x708, 8)
    virt_ia32_vmx_cr0_fixed0 = Field(0x710, 8)
    virt_ia32_vmx_cr0_fixed1 = Field(0x718, 8)
    virt_ia32_vmx_cr4_fixed0 = Field(0x720, 8)
    virt_ia32_vmx_cr4_fixed1 = Field(0x728, 8)
    virt_ia32_vmx_procbased_ctls2 = Field(0x730, 8)
    virt_ia32_vmx_ept_vpid_cap = Field(0x738, 8)
    virt_ia32_vmx_true_pinbased_ctls = Field(0x740, 8)
    virt_ia32_vmx_true_procbased_ctls = Field(0x748, 8)
    virt_ia32_vmx_true_exit_ctls = Field(0x750, 8)
    virt_ia32_vmx_true_entry_ctls = Field(0x758, 8)
    virt_ia32_vmx_vmfunc = Field(0x760, 8)
    virt_ia32_vmx_procbased_ctls3 = Field(0x768, 8)
    virt_ia32_vmx_exit_ctls2 = Field(0x770, 8)
    virt_ia32_arch_capabilities = Field(0x778, 8)
    cpuid_values = Array(0x800, 4, 4 * 80, "EAX, EBX, ECX, EDX of each virtual leaf")
    servtd_hash = Blob(0xD00, 48)
    servtd_num = Field(0xD30, 2)
    servtd_bindings_lock = Field(0xD32, 2, "sharex lock with host priority")
    servtd_bindings_table = Blob(0xD90, 128, "one SERVTD_BINDING")


class X2APIC_PAGE(Struct, size=PAGE, source="td_control_structures.h of later public versions"):
    """Page 1 of a TDCS, of modules with TOPOLOGY_ENUM."""

    x2apic_ids = Array(0x100, 4, MAX_VCPUS_PER_TD, "by VCPU_INDEX")


#: The four RTMRs of :data:`TDCS` by index.
TDCS_RTMRS: Final[tuple[Blob, ...]] = (TDCS.rtmr0, TDCS.rtmr1, TDCS.rtmr2, TDCS.rtmr3)
#: What each byte of TDCS.cpuid_flags remembers about the TD's virtual CPUID.
CPUID_FLAGS: Final = (
    "monitor_mwait", "dca", "tsc_deadline", "tsx", "waitpkg", "tme", "mktme", "xfd", "ddpd", "la57",
)  # fmt: skip


class VE_INFO(Struct, size=128, source="tdx_tdvps.h; Intel SDM, virtualization-exception information area"):
    """What TDG.VP.VEINFO.GET reads; at the start of TDVPS page 0."""

    exit_reason = Field(0x00, 4)
    valid = Field(0x04, 4, "0xFFFFFFFF while the guest has not read it")
    exit_qualification = Field(0x08, 8)
    gla = Field(0x10, 8)
    gpa = Field(0x18, 8)
    eptp_index = Field(0x20, 2)
    instruction_length = Field(0x24, 4)
    instruction_info = Field(0x28, 4)


VE_INFO_VALID: Final = 0xFFFF_FFFF
#: All of it at once, in the order of the structure.
VE_INFO_WHOLE: Final = packed(
    VE_INFO.exit_reason,
    VE_INFO.valid,
    VE_INFO.exit_qualification,
    VE_INFO.gla,
    VE_INFO.gpa,
    VE_INFO.eptp_index,
    VE_INFO.instruction_length,
    VE_INFO.instruction_info,
)


class TDVPS(Struct, size=PAGE, source="tdx_tdvps.h"):
    """Page 0 of a VCPU's control structure (the TDVPR page)."""

    ve_info = Blob(0x000, 128, "VE_INFO")
    vcpu_state = Field(0x100, 1, holds=VcpuState)
    last_td_exit = Field(0x101, 1, holds=LastTdExit)
    vcpu_index = Field(0x102, 4)
    num_tdvps_pages = Field(0x107, 1)
    tdvps_page_pa = Array(0x108, 8, TDVPS_MAX_PAGES, "HPA with HKID")
    assoc_lpid = Field(0x1C8, 4, "0xFFFFFFFF: no processor")
    vcpu_epoch = Field(0x1D0, 8)
    cpuid_supervisor_ve = Field(0x1D8, 1)
    cpuid_user_ve = Field(0x1D9, 1)
    export_count = Field(0x1DC, 4)
    last_exit_tsc = Field(0x1E0, 8)
    pend_nmi = Field(0x1E8, 1)
    nmi_unblocking_due_to_iret = Field(0x1E9, 1)
    xfam = Field(0x1F0, 8, holds=XFAM)
    last_epf_gpa_list_idx = Field(0x1F8, 1)
    possibly_epf_stepping = Field(0x1F9, 1)
    hp_lock_busy_start = Field(0x200, 8)
    hp_lock_busy = Field(0x208, 1)
    last_seamdb_index = Field(0x20E, 8)
    curr_vm = Field(0x216, 2)
    l2_exit_host_routing = Field(0x218, 1)
    vm_launched = Array(0x21A, 1, 4)
    lp_dependent_hpa_updated = Array(0x21E, 1, 4)
    module_dependent_fields_updated = Array(0x222, 1, 4)
    l2_ctls = Array(0x228, 8, 4)
    l2_debug_ctls = Array(0x248, 8, 4)
    tsc_deadline = Array(0x268, 8, 4)
    shadow_tsc_deadline = Array(0x288, 8, 4)
    base_l2_cr0_guest_host_mask = Field(0x2A8, 8)
    base_l2_cr0_read_shadow = Field(0x2B0, 8)
    base_l2_cr4_guest_host_mask = Field(0x2B8, 8)
    base_l2_cr4_read_shadow = Field(0x2C0, 8)
    shadow_cr0_guest_host_mask = Array(0x2C8, 8, 4)
    shadow_cr0_read_shadow = Array(0x2E8, 8, 4)
    shadow_cr4_guest_host_mask = Array(0x308, 8, 4)
    shadow_cr4_read_shadow = Array(0x328, 8, 4)
    shadow_instruction_timeout_control = Array(0x348, 4, 4)
    shadow_pid_hpa = Array(0x358, 8, 4)
    shadow_pinbased_exec_ctls = Array(0x378, 4, 4)
    shadow_ple_gap = Array(0x388, 4, 4)
    shadow_ple_window = Array(0x398, 4, 4)
    shadow_posted_int_notification_vector = Array(0x3A8, 2, 4)
    shadow_procbased_exec_ctls2 = Array(0x3B0, 4, 4)
    shadow_shared_eptp = Array(0x3C0, 8, 4)
    l2_enter_guest_state_gpa = Array(0x3E0, 8, 4)
    l2_enter_guest_state_hpa = Array(0x400, 8, 4)
    ve_info_gpa = Array(0x420, 8, 4)
    ve_info_hpa = Array(0x440, 8, 4)
    l2_vapic_gpa = Array(0x460, 8, 4)
    l2_vapic_hpa = Array(0x480, 8, 4)
    last_epf_gpa_list = Array(0x700, 8, 32)
    cpuid_control = Array(0x900, 1, 128, "bit 0: #VE in supervisor mode, bit 1: in user mode")
    gpr = Array(0x980, 8, 16, "x86 encoding order; RSP's place is not used")
    dr0 = Field(0xA00, 8)
    dr1 = Field(0xA08, 8)
    dr2 = Field(0xA10, 8)
    dr3 = Field(0xA18, 8)
    dr6 = Field(0xA20, 8)
    xcr0 = Field(0xA28, 8)
    cr2 = Field(0xA30, 8)
    iwk_enckey = Blob(0xA40, 32)
    iwk_intkey = Blob(0xA60, 16)
    iwk_flags = Field(0xA70, 4)
    vcpu_state_details = Field(0xA78, 8, "computed when read")
    ia32_spec_ctrl = Field(0xA80, 8)
    ia32_umwait_control = Field(0xA88, 8)
    ia32_tsx_ctrl = Field(0xA90, 8)
    ia32_perfevtsel = Array(0xA98, 8, 8)
    msr_offcore_rsp = Array(0xAD8, 8, 2)
    ia32_xfd = Field(0xAE8, 8)
    ia32_xfd_err = Field(0xAF0, 8)
    ia32_fixed_ctr = Array(0xAF8, 8, 7)
    ia32_perf_metrics = Field(0xB30, 8)
    ia32_fixed_ctr_ctrl = Field(0xB38, 8)
    ia32_perf_global_status = Field(0xB40, 8)
    ia32_pebs_enable = Field(0xB48, 8)
    msr_pebs_data_cfg = Field(0xB50, 8)
    msr_pebs_ld_lat = Field(0xB58, 8)
    msr_pebs_frontend = Field(0xB60, 8)
    ia32_a_pmc = Array(0xB68, 8, 8)
    ia32_ds_area = Field(0xBA8, 8)
    ia32_fixed_ctr_reload_cfg = Array(0xBB0, 8, 4)
    ia32_fixed_ctr_ext = Array(0xBD0, 8, 4)
    ia32_a_pmc_reload_cfg = Array(0xBF0, 8, 8)
    ia32_a_pmc_ext = Array(0xC30, 8, 8)
    ia32_xss = Field(0xC70, 8)
    ia32_lbr_depth = Field(0xC78, 8)
    ia32_uarch_misc_ctl = Field(0xC80, 8)
    ia32_star = Field(0xC88, 8)
    ia32_lstar = Field(0xC90, 8)
    ia32_fmask = Field(0xC98, 8)
    ia32_kernel_gs_base = Field(0xCA0, 8)
    ia32_tsc_aux = Field(0xCA8, 8)
