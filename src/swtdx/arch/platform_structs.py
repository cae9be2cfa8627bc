"""Structures by which host, BIOS and module speak about the platform and a new TD.

Sources: include/tdx_api_defs.h of the TDX module 1.5.01; Intel SDM (PCONFIG, posted interrupts).
Offsets and sizes in bytes, integers little-endian.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Array, Blob, Field, Struct
from swtdx.arch.td_config import ATTRIBUTES, CONFIG_FLAGS, EPTP, XFAM

# Limits that module 1.5.01 was built with (but MAX_VCPUS_PER_TD and CPUID_CONFIG_TOPOLOGY).
MAX_HKIDS: Final = 2048
MAX_PKGS: Final = 8
MAX_TDMRS: Final = 64
MAX_RESERVED_PER_TDMR: Final = 16
MAX_CMRS: Final = 32
NUM_CPUID_CONFIG: Final = 12
#: Configurable CPUID leaves that come with TOPOLOGY_ENUM, behind the others: leaf 0x1F, sub-leaves 0..5.
CPUID_CONFIG_TOPOLOGY: Final = 6
MAX_SERVICE_TDS: Final = 1
MAX_VMS: Final = 4
#: With TOPOLOGY_ENUM, whose table of x2APIC ids has so many; 1.5.01 takes whatever TD_PARAMS can say.
MAX_VCPUS_PER_TD: Final = 576
PAMT_ENTRY_BYTES: Final = 16
VENDOR_INTEL: Final = 0x8086


class CMR_INFO(Struct, size=16, source="tdx_api_defs.h"):
    """A convertible memory range; SYS.INFO and SYSINFO tables hold 32 of them, size 0 if unused."""

    base = Field(0, 8, "multiple of 4 KiB")
    size_ = Field(8, 8, "bytes, multiple of 4 KiB")


class TDMR_INFO(Struct, size=320, source="tdx_api_defs.h"):
    """A TD memory region with its PAMTs, for TDH.SYS.CONFIG; the buffer is aligned to 512 bytes."""

    tdmr_base = Field(0, 8, "multiple of 1 GiB, no HKID")
    tdmr_size = Field(8, 8, "bytes, multiple of 1 GiB, not 0")
    pamt_1g_base = Field(16, 8)
    pamt_1g_size = Field(24, 8)
    pamt_2m_base = Field(32, 8)
    pamt_2m_size = Field(40, 8)
    pamt_4k_base = Field(48, 8)
    pamt_4k_size = Field(56, 8)
    rsvd_areas = Array(
        64, 8, 2 * MAX_RESERVED_PER_TDMR, "pairs: offset in the TDMR, size; size 0 ends the list"
    )


TDMR_INFO_ALIGNMENT: Final = 512


class CPUID_CONFIG(Struct, size=24, source="tdx_api_defs.h"):
    """A CPUID leaf that the host may configure, with masks of its configurable bits."""

    leaf = Field(0, 4)
    subleaf = Field(4, 4, "0xFFFFFFFF if the leaf has none")
    eax = Field(8, 4)
    ebx = Field(12, 4)
    ecx = Field(16, 4)
    edx = Field(20, 4)


_MOST_CPUID_CONFIG: Final = NUM_CPUID_CONFIG + CPUID_CONFIG_TOPOLOGY


class TDSYSINFO_STRUCT(Struct, size=1024, source="tdx_api_defs.h"):
    """What TDH.SYS.INFO says about the module; buffer aligned to 1024 bytes."""

    attributes = Field(0, 4, "bit 31: a debug module")
    vendor_id = Field(4, 4)
    build_date = Field(8, 4, "the decimal number yyyymmdd")
    build_num = Field(12, 2)
    minor_version = Field(14, 2)
    major_version = Field(16, 2)
    sys_rd = Field(18, 1, "1: TDH.SYS.RD and RDALL exist")
    reserved_0 = Blob(19, 13, reserved=True)
    max_tdmrs = Field(32, 2)
    max_reserved_per_tdmr = Field(34, 2)
    pamt_entry_size = Field(36, 2)
    reserved_1 = Blob(38, 10, reserved=True)
    tdcs_base_size = Field(48, 2, "bytes")
    reserved_2 = Blob(50, 2, reserved=True)
    tdvps_base_size = Field(52, 2, "bytes")
    tdvps_xfam_dependent_size = Field(54, 1)
    reserved_3 = Blob(55, 9, reserved=True)
    attributes_fixed0 = Field(64, 8, "a bit that is 0 here must be 0 in ATTRIBUTES")
    attributes_fixed1 = Field(72, 8, "a bit that is 1 here must be 1 in ATTRIBUTES")
    xfam_fixed0 = Field(80, 8)
    xfam_fixed1 = Field(88, 8)
    reserved_4 = Blob(96, 32, reserved=True)
    num_cpuid_config = Field(128, 4)
    cpuid_config = Blob(132, CPUID_CONFIG.size * _MOST_CPUID_CONFIG, "CPUID_CONFIG entries")
    reserved_5 = Blob(132 + 24 * _MOST_CPUID_CONFIG, 892 - 24 * _MOST_CPUID_CONFIG, reserved=True)


TDSYSINFO_ALIGNMENT: Final = 1024


class TD_PARAMS(Struct, size=1024, source="tdx_api_defs.h"):
    """What a new TD shall be; input of TDH.MNG.INIT, shared memory aligned to 1024 bytes."""

    attributes = Field(0, 8, holds=ATTRIBUTES)
    xfam = Field(8, 8, holds=XFAM)
    max_vcpus = Field(16, 2)
    num_l2_vms = Field(18, 1, "0..3")
    msr_config_ctls = Field(19, 1, "bit 0: IA32_ARCH_CAPABILITIES_CONFIG is given")
    reserved_0 = Blob(20, 4, reserved=True)
    eptp_controls = Field(24, 8, holds=EPTP)
    config_flags = Field(32, 8, holds=CONFIG_FLAGS)
    tsc_frequency = Field(40, 2, "units of 25 MHz, 4..400")
    reserved_1 = Blob(42, 38, reserved=True)
    mrconfigid = Blob(80, 48)
    mrowner = Blob(128, 48)
    mrownerconfig = Blob(176, 48)
    ia32_arch_capabilities_config = Field(224, 8)
    reserved_2 = Blob(232, 24, reserved=True)
    cpuid_config = Array(256, 4, 4 * _MOST_CPUID_CONFIG, "EAX, EBX, ECX, EDX of each configurable leaf")
    reserved_3 = Blob(256 + 16 * _MOST_CPUID_CONFIG, 768 - 16 * _MOST_CPUID_CONFIG, reserved=True)


TD_PARAMS_ALIGNMENT: Final = 1024
TSC_FREQUENCY_UNIT_HZ: Final = 25_000_000
TSC_FREQUENCY_MIN: Final = 4
TSC_FREQUENCY_MAX: Final = 400
#: The host-priority lock time-out, in microseconds: lowest, highest, and after TDH.MNG.INIT.
HP_LOCK_TIMEOUT_USEC: Final = (10_000, 100_000_000, 1_000_000)


class MKTME_KEY_PROGRAM(Struct, size=256, source="Intel SDM, PCONFIG; x86_defs/mktme.h"):
    """Input of PCONFIG leaf 0, aligned to 256 bytes."""

    keyid = Field(0, 2)
    keyid_ctrl = Field(2, 4, "bits 7:0 command, 23:8 algorithm")
    reserved_0 = Blob(6, 58, reserved=True)
    key_field_1 = Blob(64, 64, "key, or entropy for a random one")
    key_field_2 = Blob(128, 64, "tweak key, or entropy for a random one")
    reserved_1 = Blob(192, 64, reserved=True)


class PID(Struct, size=64, source="Intel SDM volume 3, posted-interrupt processing"):
    """Posted-interrupt descriptor, aligned to 64 bytes, in shared memory."""

    pir = Array(0, 8, 4, "a bit for each vector")
    control = Field(32, 2, "bit 0 ON, outstanding notification; bit 1 SN, suppress notification")
    nv = Field(34, 1, "notification vector")
    reserved_0 = Blob(35, 1, reserved=True)
    ndst = Field(36, 4, "notification destination, an APIC id")
    reserved_1 = Blob(40, 24, reserved=True)


PID_ON: Final = 1 << 0
PID_SN: Final = 1 << 1
