"""Metadata of the module, read by TDH.SYS.RD, TDH.SYS.RDALL, TDG.SYS.RD and TDG.SYS.RDALL.

Source: ``global_sys_fields_lookup.c`` of the TDX module 1.5.01; MAX_VCPUS_PER_TD, which came later, from
Linux (``arch/x86/virt/vmx/tdx/tdx_global_metadata.c``).  Rows: name, identifier, fields,
elements, offset, access (:func:`swtdx.arch.metadata_field.field`).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.metadata_field import MetadataField, field

_ROWS: Final = (
    ("NUM_PKGS", 0x0000000200000000, 1, 1, None, "R"),
    ("PKG_FMS", 0x0000000200000001, 8, 1, None, "R"),
    ("VENDOR_ID", 0x0800000200000000, 1, 1, None, "R gR"),
    ("BUILD_DATE", 0x8800000200000001, 1, 1, None, "R"),
    ("BUILD_NUM", 0x8800000100000002, 1, 1, None, "R"),
    ("MINOR_VERSION", 0x0800000100000003, 1, 1, None, "R gR"),
    ("MAJOR_VERSION", 0x0800000100000004, 1, 1, None, "R gR"),
    ("UPDATE_VERSION", 0x0800000100000005, 1, 1, None, "R"),
    ("INTERNAL_VERSION", 0x0800000100000006, 1, 1, None, "R"),
    ("MODULE_HV", 0x8900000100000000, 1, 1, None, "R"),
    ("MIN_UPDATE_HV", 0x8900000100000001, 1, 1, None, "R"),
    ("NO_DOWNGRADE", 0x8900000000000002, 1, 1, None, "R"),
    ("NUM_HANDOFF_PAGES", 0x8900000100000003, 1, 1, None, "R"),
    ("HANDOFF_DATA_VALID", 0x8900000000000004, 1, 1, None, "R"),
    ("HANDOFF_DATA_HV", 0x8900000100000005, 1, 1, None, "R"),
    ("HANDOFF_DATA_SIZE", 0x8900000200000006, 1, 1, None, "R"),
    ("SYS_ATTRIBUTES", 0x0A00000200000000, 1, 1, None, "R gR"),
    ("NUM_TDX_FEATURES", 0x0A00000000000001, 1, 1, None, "R gR"),
    ("TDX_FEATURES0", 0x0A00000300000008, 1, 1, None, "R gR !R"),
    ("NUM_CMRS", 0x9000000100000000, 1, 1, None, "R"),
    ("CMR_BASE", 0x9000000300000080, 32, 1, None, "R"),
    ("CMR_SIZE", 0x9000000300000100, 32, 1, None, "R"),
    ("MAX_TDMRS", 0x9100000100000008, 1, 1, None, "R"),
    ("MAX_RESERVED_PER_TDMR", 0x9100000100000009, 1, 1, None, "R"),
    ("PAMT_4K_ENTRY_SIZE", 0x9100000100000010, 1, 1, None, "R"),
    ("PAMT_2M_ENTRY_SIZE", 0x9100000100000011, 1, 1, None, "R"),
    ("PAMT_1G_ENTRY_SIZE", 0x9100000100000012, 1, 1, None, "R"),
    ("TDR_BASE_SIZE", 0x9800000100000000, 1, 1, None, "R"),
    ("TDCS_BASE_SIZE", 0x9800000100000100, 1, 1, None, "R"),
    ("TDCS_SIZE_PER_L2_VM", 0x9800000100000101, 1, 1, None, "R"),
    ("TDVPS_BASE_SIZE", 0x9800000100000200, 1, 1, None, "R"),
    ("TDVPS_SIZE_PER_L2_VM", 0x9800000100000201, 1, 1, None, "R"),
    ("ATTRIBUTES_FIXED0", 0x1900000300000000, 1, 1, None, "R"),
    ("ATTRIBUTES_FIXED1", 0x1900000300000001, 1, 1, None, "R"),
    ("XFAM_FIXED0", 0x1900000300000002, 1, 1, None, "R"),
    ("XFAM_FIXED1", 0x1900000300000003, 1, 1, None, "R"),
    ("NUM_CPUID_CONFIG", 0x9900000100000004, 1, 1, None, "R"),
    ("CONFIG_FLAGS_FIXED0", 0x9900000300000006, 1, 1, None, "R"),
    ("CONFIG_FLAGS_FIXED1", 0x9900000300000007, 1, 1, None, "R"),
    ("MAX_VCPUS_PER_TD", 0x9900000100000008, 1, 1, None, "R"),
    ("CPUID_CONFIG_LEAVES", 0x9900000300000400, 32, 1, None, "R"),
    ("CPUID_CONFIG_VALUES", 0x9900000300000500, 32, 2, None, "R"),
    ("IA32_ARCH_CAPABILITIES_CONFIG_MASK", 0x9900000300000600, 1, 1, None, "R"),
    ("NUM_ALLOWED_FMS", 0x9900000100000800, 1, 1, None, "R !R"),
    ("NUM_DISALLOWED_FMS", 0x9900000100000801, 1, 1, None, "R !R"),
    ("ALLOWED_FMS", 0x9900000300000810, 64, 1, None, "R !R"),
    ("DISALLOWED_FMS", 0x9900000300000850, 64, 1, None, "R !R"),
    ("MIG_ATTRIBUTES", 0xA000000300000000, 1, 1, None, "R gR"),
    ("MIN_EXPORT_VERSION", 0x2000000100000001, 1, 1, None, "R gR"),
    ("MAX_EXPORT_VERSION", 0x2000000100000002, 1, 1, None, "R gR"),
    ("MIN_IMPORT_VERSION", 0x2000000100000003, 1, 1, None, "R gR"),
    ("MAX_IMPORT_VERSION", 0x2000000100000004, 1, 1, None, "R gR"),
    ("MAX_MIGS", 0xA000000100000010, 1, 1, None, "R"),
    ("NUM_IMMUTABLE_STATE_PAGES", 0xA000000000000020, 1, 1, None, "R"),
    ("NUM_TD_STATE_PAGES", 0xA000000000000021, 1, 1, None, "R"),
    ("NUM_VP_STATE_PAGES", 0xA000000000000022, 1, 1, None, "R"),
    ("MAX_SERV_TDS", 0xA100000100000000, 1, 1, None, "R"),
    ("SERVTD_ATTR_FIXED0", 0xA100000300000001, 1, 1, None, "R"),
    ("SERVTD_ATTR_FIXED1", 0xA100000300000002, 1, 1, None, "R"),
    ("GUEST_L2_GPA_ATTR_MASK", 0xA200000100000000, 1, 1, None, "R gR"),
    ("VM_CTLS_FIXED0", 0xA200000300000001, 1, 1, None, "R"),
    ("VM_CTLS_FIXED1", 0xA200000300000002, 1, 1, None, "R"),
    ("VPCU_L2_CTLS_FIXED0", 0xA200000300000003, 1, 1, None, "R"),
    ("VCPU_L2_CTLS_FIXED1", 0xA200000300000004, 1, 1, None, "R"),
    ("VPCU_L2_DEBUG_CTLS_FIXED0", 0xA200000300000005, 1, 1, None, "R"),
    ("VCPU_L2_DEBUG_CTLS_FIXED1", 0xA200000300000006, 1, 1, None, "R"),
)  # fmt: skip

#: In ascending order of class and field code, the order of enumeration.
SYS_FIELDS: Final[tuple[MetadataField, ...]] = tuple(field(*row) for row in _ROWS)
#: Those of the module 1.5.01.
BASE_SYS_FIELDS: Final = tuple(row for row in SYS_FIELDS if row.name != "MAX_VCPUS_PER_TD")
