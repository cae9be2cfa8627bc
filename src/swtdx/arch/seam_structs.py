"""Structures of the loaders: what MCHECK, NP-SEAMLDR, P-SEAMLDR and the module's image exchange.

Sources: intel/seam-loader 1.0 (``pseamldr_api_defs.h``, ``seam_sigstruct.h``,
``pseamldr_data_types.h``); the handoff fields of SEAM_SIGSTRUCT and SYS_INFO_TABLE from
``loader_data.h`` of the TDX module 1.5.01 and structures.md §12.  Offsets and sizes in bytes.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Array, Blob, Field, Struct

SEAMLDR_SCENARIO_LOAD: Final = 0
SEAMLDR_SCENARIO_UPDATE: Final = 1
SEAMLDR_MAX_MODULE_PAGES: Final = 496


class SEAMLDR_PARAMS(Struct, size=4096, source="pseamldr_api_defs.h"):
    """Input of SEAMLDR.INSTALL, one aligned page."""

    version = Field(0, 4, "0")
    scenario = Field(4, 4, "0 load, 1 update")
    sigstruct_pa = Field(8, 8, "multiple of 4 KiB")
    reserved = Blob(16, 104, reserved=True)
    num_module_pages = Field(120, 8, "1..496")
    mod_pages_pa = Array(128, 8, SEAMLDR_MAX_MODULE_PAGES, "multiples of 4 KiB")


class SEAM_SIGSTRUCT(Struct, size=2048, source="seam_sigstruct.h; structures.md §12"):
    """What was signed about a module: RSA-3072 over bytes 0..127 and 900..2047."""

    header_type = Field(0, 4, "6")
    header_length = Field(4, 4, "0xE1, in dwords")
    header_version = Field(8, 4, "0x10000")
    module_type = Field(12, 4, "bit 31: signed for debugging")
    module_vendor = Field(16, 4, "0x8086")
    date = Field(20, 4, "BCD yyyymmdd")
    size_ = Field(24, 4, "0x200, in dwords")
    key_size = Field(28, 4, "0x60, in dwords")
    modulus_size = Field(32, 4, "0x60, in dwords")
    exponent_size = Field(36, 4, "1, in dwords")
    reserved_0 = Blob(40, 88, reserved=True)
    modulus = Blob(128, 384, "little-endian")
    exponent = Field(512, 4, "65537")
    signature = Blob(516, 384, "little-endian")
    seamhash = Blob(900, 48, "SHA-384 of the module's pages in load order")
    seamsvn = Field(948, 2)
    attributes = Field(950, 8)
    rip_offset = Field(958, 4)
    num_stack_pages = Field(962, 1)
    num_tls_pages = Field(963, 1)
    num_keyhole_pages = Field(964, 2)
    num_global_data_pages = Field(966, 2)
    max_tdmrs = Field(968, 2)
    max_rsvd_per_tdmr = Field(970, 2)
    pamt_entry_size_4k = Field(972, 2)
    pamt_entry_size_2m = Field(974, 2)
    pamt_entry_size_1g = Field(976, 2)
    reserved_1 = Blob(978, 6, reserved=True)
    module_hv = Field(984, 2, "handoff version")
    min_update_hv = Field(986, 2)
    no_downgrade = Field(988, 1)
    reserved_2 = Blob(989, 1, reserved=True)
    num_handoff_pages = Field(990, 2)
    reserved_3 = Blob(992, 32, reserved=True)
    cpuid_table_size = Field(1024, 4, "at most 255")
    cpuid_table = Array(1028, 4, 255, "CPUID(1).EAX of the processors that may run it")


#: Values that the constant fields of a SIGSTRUCT's header must have, by field name.
SIGSTRUCT_CONSTANTS: Final = (
    ("header_type", 6),
    ("header_length", 0xE1),
    ("header_version", 0x10000),
    ("module_vendor", 0x8086),
    ("size_", 0x200),
    ("key_size", 0x60),
    ("modulus_size", 0x60),
    ("exponent_size", 1),
    ("exponent", 0x10001),
)
#: Byte ranges that the signature covers, in the order in which they are hashed.
SIGSTRUCT_SIGNED: Final = ((0, 128), (900, 2048))
MODULE_TYPE_DEBUG: Final = 1 << 31


class SEAMEXTEND(Struct, size=136, source="pseamldr_api_defs.h"):
    """The processor's register that identifies the loaded module."""

    valid = Field(0, 8)
    tee_tcb_svn = Blob(8, 16, "SVN u16, SE SVN of the last patch u8, zeros")
    mrseam = Blob(24, 48)
    mrsigner = Blob(72, 48)
    attributes = Field(120, 8)
    seam_ready = Field(128, 1)
    system_under_debug = Field(129, 1)
    p_seamldr_ready = Field(130, 1)
    reserved = Blob(131, 5, reserved=True)


class SEAMLDR_INFO(Struct, size=256, source="pseamldr_api_defs.h"):
    """Output of SEAMLDR.INFO, aligned to 256 bytes."""

    version = Field(0, 4)
    attributes = Field(4, 4, "bit 31: a debug loader")
    vendor_id = Field(8, 4)
    build_date = Field(12, 4, "BCD yyyymmdd")
    build_num = Field(16, 2)
    minor = Field(18, 2)
    major = Field(20, 2)
    reserved_0 = Blob(22, 2, reserved=True)
    acm_x2apic = Field(24, 4)
    reserved_1 = Blob(28, 4, reserved=True)
    seamextend = Blob(32, 136, "SEAMEXTEND")
    reserved_2 = Blob(168, 88, reserved=True)


class SYS_INFO(Struct, size=4096, source="pseamldr_data_types.h, loader_data.h"):
    """What the tables of the P-SEAMLDR and of the module have in common: the module's low half is a copy."""

    version = Field(0, 8, "0")
    tot_num_lps = Field(8, 4)
    tot_num_sockets = Field(12, 4)
    socket_cpuid_table = Array(16, 4, 8, "CPUID(1).EAX of each socket")
    reserved_low = Blob(66, 62, reserved=True)
    cmrs = Array(128, 8, 64, "32 pairs: base, size")
    reserved_half = Blob(640, 1408, reserved=True)
    code_rgn_base = Field(2056, 8)
    code_rgn_size = Field(2064, 8)
    data_rgn_base = Field(2072, 8)
    data_rgn_size = Field(2080, 8)
    stack_rgn_base = Field(2088, 8)
    stack_rgn_size = Field(2096, 8)
    keyhole_rgn_base = Field(2104, 8)
    keyhole_rgn_size = Field(2112, 8)
    keyhole_edit_rgn_base = Field(2120, 8)
    keyhole_edit_rgn_size = Field(2128, 8)


class P_SYS_INFO_TABLE(SYS_INFO, size=4096, source="pseamldr_data_types.h"):
    """Last page of the P-SEAMLDR's range: low half by MCHECK, high half by NP-SEAMLDR."""

    p_seamldr_range_base = Field(48, 8)
    p_seamldr_range_size = Field(56, 8)
    skip_smrr2_check = Field(64, 1)
    tdx_ac = Field(65, 1, "1: memory is protected by access control only")
    np_seamldr_mutex = Field(2048, 8)
    module_region_base = Field(2136, 8)
    acm_x2apicid = Field(2144, 4)
    acm_x2apicid_valid = Field(2148, 4)
    reserved_0 = Blob(2152, 1944, reserved=True)


class SYS_INFO_TABLE(SYS_INFO, size=4096, source="loader_data.h of the TDX module 1.5.01"):
    """First page of the module's range: low half copied from P_SYS_INFO_TABLE, high half by P-SEAMLDR."""

    reserved_0 = Blob(48, 16, reserved=True)
    smrr2_not_supported = Field(64, 1)
    tdx_without_integrity = Field(65, 1)
    seam_status = Field(2048, 8)
    num_stack_pages = Field(2136, 8, "less one")
    num_tls_pages = Field(2144, 8, "less one")
    module_hv = Field(2152, 2)
    min_update_hv = Field(2154, 2)
    no_downgrade = Field(2156, 1)
    reserved_1 = Blob(2157, 1, reserved=True)
    num_handoff_pages = Field(2158, 2, "less one")
    reserved_2 = Blob(2160, 1936, reserved=True)


class HANDOFF_DATA_HEADER(Struct, size=8, source="pseamldr_api_defs.h"):
    """What a module that shuts down leaves to its successor."""

    valid = Field(0, 1)
    reserved = Blob(1, 1, reserved=True)
    hv = Field(2, 2)
    size_ = Field(4, 4)
