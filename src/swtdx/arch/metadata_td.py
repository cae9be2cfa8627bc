# ruff: noqa: E501  (a table)
"""Metadata of a TD (TDR and TDCS), read and written by TDH.MNG.RD/WR and TDG.VM.RD/WR.

Source: ``tdr_tdcs_fields_lookup.c`` of the TDX module 1.5.01, and of later public versions for what comes
with TDX_FEATURES0.TOPOLOGY_ENUM (:data:`TOPOLOGY_FIELDS`).  Rows: name, identifier, the member of
TDR (classes 0..2) or TDCS (:mod:`swtdx.arch.metadata_place`), access
(:func:`swtdx.arch.metadata_field.field`).  VIRTUAL_TSC and NUM_CPUID_VALUES have the offset of
TSC_FREQUENCY but are computed; CPUID_VALUES is addressed by leaf
(:func:`swtdx.arch.cpuid_policy.field_code`).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.control_structs import (
    TDCS,
    TDCS_L2_SEPT_ROOT_PAGE,
    TDCS_MIGSC_LINKS_PAGE,
    TDCS_MSR_BITMAPS_PAGE,
    TDCS_RTMRS,
    TDCS_SEPT_ROOT_PAGE,
    TDCS_X2APIC_PAGE,
    TDR,
    X2APIC_PAGE,
)
from swtdx.arch.layout import Member
from swtdx.arch.metadata_field import MetadataField
from swtdx.arch.metadata_place import Place, at, each, grouped, on_page, page, stored

_ROWS: Final[tuple[tuple[str, int, Member | Place, str], ...]] = (
    ("FATAL", 0x8010000000000001, TDR.fatal, "R dR"),
    ("NUM_TDCX", 0x8010000200000002, TDR.num_tdcx, "R dR"),
    ("CHLDCNT", 0x8010000300000004, TDR.chldcnt, "R dR"),
    ("LIFECYCLE_STATE", 0x8010000200000005, TDR.lifecycle_state, "R dR"),
    ("TDCX_PA", 0x8010000300000010, TDR.tdcx_pa, "R dR"),
    ("TD_UUID", 0x8010000300000020, TDR.td_uuid, "R dR gR mR !W"),
    ("HKID", 0x8110000100000001, TDR.hkid, "R dR"),
    ("PKG_CONFIG_BITMAP", 0x8110000300000002, TDR.pkg_config_bitmap, "R dR"),
    ("HANDOFF_VERSION", 0x8210000100000000, TDR.handoff_version, "R dR"),
    ("SEAMDB_INDEX", 0x8210000300000001, TDR.seamdb_index, "R dR"),
    ("SEAMDB_NONCE", 0x8210000300000002, TDR.seamdb_nonce, ""),
    ("NUM_VCPUS", 0x9010000200000001, TDCS.num_vcpus, "R dR gR !W"),
    ("NUM_ASSOC_VCPUS", 0x9010000200000002, TDCS.num_assoc_vcpus, "R dR"),
    ("OP_STATE", 0x9010000200000004, TDCS.op_state, "R dR"),
    ("NUM_L2_VMS", 0x9010000100000005, TDCS.num_l2_vms, "R dR gR mR !W"),
    ("ATTRIBUTES", 0x1110000300000000, TDCS.attributes, "R dR gR mR !W"),
    ("XFAM", 0x1110000300000001, TDCS.xfam, "R dR gR mR !W"),
    ("MAX_VCPUS", 0x1110000200000002, TDCS.max_vcpus, "R dR gR"),
    ("GPAW", 0x1110000000000003, TDCS.gpaw, "R dR gR mR"),
    ("EPTP", 0x1110000300000004, TDCS.eptp, "R dR mR(0xFFF0000000000FFF) !W"),
    ("TSC_OFFSET", 0x111000030000000A, TDCS.tsc_offset, "R dR"),
    ("TSC_MULTIPLIER", 0x111000030000000B, TDCS.tsc_multiplier, "R dR"),
    ("TSC_FREQUENCY", 0x111000010000000C, TDCS.tsc_frequency, "R dR gR"),
    ("VIRTUAL_TSC", 0x111000030000000D, at(TDCS.tsc_frequency), "!R !W"),
    ("NUM_CPUID_VALUES", 0x911000010000000E, at(TDCS.tsc_frequency), "R dR !R !W"),
    ("XBUFF_SIZE", 0x911000020000000F, TDCS.xbuff_size, "R dR"),
    ("NOTIFY_ENABLES", 0x9110000300000010, TDCS.notify_enables, "dR dW(0x1) gR(0x1) gW(0x1)"),
    ("HP_LOCK_TIMEOUT", 0x9110000300000011, TDCS.hp_lock_timeout, "R W dR dW !R !W"),
    ("VM_CTLS", 0x9110000300000012, TDCS.vm_ctls, "R W(0x1) dR dW(0x1)"),
    ("CONFIG_FLAGS", 0x1110000300000016, TDCS.config_flags, "R dR gR mR !W"),
    ("TD_CTLS", 0x1110000300000017, TDCS.td_ctls, "dR gR gW(0x3) !W"),
    ("TOPOLOGY_ENUM_CONFIGURED", 0x9110000000000019, TDCS.topology_enum_configured, "R dR gR mR"),
    ("CPUID_VALID", 0x9110000000000080, TDCS.cpuid_valid, "dR"),
    ("XBUFF_OFFSETS", 0x9110000200000800, TDCS.xbuff_offsets, "R dR"),
    ("TD_EPOCH", 0x9210000300000000, TDCS.td_epoch, "R dR"),
    ("REFCOUNT", 0x9210000100000001, TDCS.refcount, "R dR"),
    ("MRTD", 0x1310000300000000, TDCS.mrtd, "R dR gR"),
    ("MRCONFIGID", 0x1310000300000010, TDCS.mrconfigid, "R dR gR"),
    ("MROWNER", 0x1310000300000018, TDCS.mrowner, "R dR gR"),
    ("MROWNERCONFIG", 0x1310000300000020, TDCS.mrownerconfig, "R dR gR"),
    ("RTMR", 0x1310000300000040, each(TDCS_RTMRS), "dR gR"),
    ("CPUID_VALUES", 0x9410000300000000, grouped(TDCS.cpuid_values, fields=80), "R dR mR !R !W"),
    ("VIRTUAL_IA32_ARCH_CAPABILITIES", 0x961000030000010A, TDCS.virt_ia32_arch_capabilities, "dR !W"),
    ("VIRTUAL_IA32_VMX_BASIC", 0x9610000300000480, TDCS.virt_ia32_vmx_basic, "dR"),
    ("VIRTUAL_IA32_VMX_MISC", 0x9610000300000485, TDCS.virt_ia32_vmx_misc, "dR"),
    ("VIRTUAL_IA32_VMX_CR0_FIXED0", 0x9610000300000486, TDCS.virt_ia32_vmx_cr0_fixed0, "dR"),
    ("VIRTUAL_IA32_VMX_CR0_FIXED1", 0x9610000300000487, TDCS.virt_ia32_vmx_cr0_fixed1, "dR"),
    ("VIRTUAL_IA32_VMX_CR4_FIXED0", 0x9610000300000488, TDCS.virt_ia32_vmx_cr4_fixed0, "dR"),
    ("VIRTUAL_IA32_VMX_CR4_FIXED1", 0x9610000300000489, TDCS.virt_ia32_vmx_cr4_fixed1, "dR"),
    ("VIRTUAL_IA32_VMX_PROCBASED_CTLS2", 0x961000030000048B, TDCS.virt_ia32_vmx_procbased_ctls2, "dR"),
    ("VIRTUAL_IA32_VMX_EPT_VPID_CAP", 0x961000030000048C, TDCS.virt_ia32_vmx_ept_vpid_cap, "dR"),
    ("VIRTUAL_IA32_VMX_TRUE_PINBASED_CTLS", 0x961000030000048D, TDCS.virt_ia32_vmx_true_pinbased_ctls, "dR"),
    ("VIRTUAL_IA32_VMX_TRUE_PROCBASED_CTLS", 0x961000030000048E, TDCS.virt_ia32_vmx_true_procbased_ctls, "dR"),
    ("VIRTUAL_IA32_VMX_TRUE_EXIT_CTLS", 0x961000030000048F, TDCS.virt_ia32_vmx_true_exit_ctls, "dR"),
    ("VIRTUAL_IA32_VMX_TRUE_ENTRY_CTLS", 0x9610000300000490, TDCS.virt_ia32_vmx_true_entry_ctls, "dR"),
    ("VIRTUAL_IA32_VMX_VMFUNC", 0x9610000300000491, TDCS.virt_ia32_vmx_vmfunc, "dR"),
    ("VIRTUAL_IA32_VMX_PROCBASED_CTLS3", 0x9610000300000492, TDCS.virt_ia32_vmx_procbased_ctls3, "dR"),
    ("VIRTUAL_IA32_VMX_EXIT_CTLS2", 0x9610000300000493, TDCS.virt_ia32_vmx_exit_ctls2, "dR"),
    ("MIG_DEC_KEY_SET", 0x9810000000000001, TDCS.mig_dec_key_set, "R dR"),
    ("EXPORT_COUNT", 0x9810000200000002, TDCS.export_count, "R dR mR"),
    ("IMPORT_COUNT", 0x9810000200000003, TDCS.import_count, "R dR mR"),
    ("MIG_EPOCH", 0x9810000200000004, TDCS.mig_epoch, "R dR"),
    ("BW_EPOCH", 0x9810000300000005, TDCS.bw_epoch, "R dR"),
    ("TOTAL_MB_COUNT", 0x9810000300000006, TDCS.total_mb_count, "R dR"),
    ("MIG_DEC_KEY", 0x9810000300000010, TDCS.mig_dec_key, "dR mR mW !W"),
    ("MIG_DEC_WORKING_KEY", 0x9810000300000014, TDCS.mig_dec_working_key, "dR mR"),
    ("MIG_ENC_KEY", 0x9810000300000018, TDCS.mig_enc_key, "dR mR !R"),
    ("MIG_ENC_WORKING_KEY", 0x981000030000001C, TDCS.mig_enc_working_key, "dR mR"),
    ("MIG_VERSION", 0x9810000100000020, TDCS.mig_version, "R dR mR mW !W"),
    ("MIG_WORKING_VERSION", 0x9810000100000021, TDCS.mig_working_version, "R dR mR"),
    ("DIRTY_COUNT", 0x9810000300000030, TDCS.dirty_count, "R dR"),
    ("MIG_COUNT", 0x9810000300000031, TDCS.mig_count, "R dR"),
    ("NUM_MIGS", 0x9810000100000032, TDCS.num_migs, "R dR"),
    ("NUM_MIGRATED_VCPUS", 0x9810000200000034, TDCS.num_migrated_vcpus, "R dR"),
    ("PRE_IMPORT_UUID", 0x9810000300000040, TDCS.preimport_uuid, "R dR gR mR"),
    ("SERVTD_HASH", 0x9910000300000000, TDCS.servtd_hash, "R dR gR mR"),
    ("SERVTD_NUM", 0x9910000100000006, TDCS.servtd_num, "R dR gR mR"),
    ("SERVTD_BINDINGS_TABLE", 0x9910000300000080, TDCS.servtd_bindings_table, "R dR gR !W"),
    ("MIGSC_LINKS", 0x9A10000300000000, page(TDCS_MIGSC_LINKS_PAGE), "R dR"),
    ("X2APIC_IDS", 0x9C10000200000000, on_page(TDCS_X2APIC_PAGE, X2APIC_PAGE.x2apic_ids), "R dR mR"),
    ("MSR_BITMAPS", 0x2010000300000000, page(TDCS_MSR_BITMAPS_PAGE), "dR"),
    ("SEPT_ROOT", 0x2110000300000000, page(TDCS_SEPT_ROOT_PAGE), "dR"),
    ("L2_SEPT_ROOT_1", 0x2510000300000000, page(TDCS_L2_SEPT_ROOT_PAGE), "dR"),
    ("L2_SEPT_ROOT_2", 0x2910000300000000, page(TDCS_L2_SEPT_ROOT_PAGE + 1), "dR"),
    ("L2_SEPT_ROOT_3", 0x2D10000300000000, page(TDCS_L2_SEPT_ROOT_PAGE + 2), "dR"),
)  # fmt: skip

#: In ascending order of class and field code, the order of enumeration.
TD_FIELDS: Final[tuple[MetadataField, ...]] = tuple(stored(*row) for row in _ROWS)
#: Fields that there are only with TOPOLOGY_ENUM, and bits of others that can be written only with it.
TOPOLOGY_FIELDS: Final = ("TOPOLOGY_ENUM_CONFIGURED", "X2APIC_IDS")
_BASE_ACCESS: Final = {"TD_CTLS": "dR gR gW(0x1) !W"}
#: Those of the module 1.5.01.
BASE_TD_FIELDS: Final[tuple[MetadataField, ...]] = tuple(
    stored(name, number, where, _BASE_ACCESS.get(name, access))
    for name, number, where, access in _ROWS
    if name not in TOPOLOGY_FIELDS
)

#: Rows at the end that exist only with L2 VMs: one each.
L2_ROWS: Final = 3
