"""What the TDX module says of itself and of the platform: TDSYSINFO_STRUCT, CMRs, metadata fields."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from swtdx.arch import status as st
from swtdx.arch.features import TOPOLOGY_ENUM
from swtdx.arch.metadata import NULL_ID
from swtdx.arch.platform_structs import CMR_INFO, CPUID_CONFIG, MAX_CMRS, TDSYSINFO_STRUCT
from swtdx.arch.units import PAGE
from swtdx.machine.host import HostMemory
from swtdx.vmm import fields
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.processor import Processor

#: Where the CMR array goes in the page that TDH.SYS.INFO fills: behind the 1024 bytes of the struct.
_CMRS_AT = 1024
#: vCPUs of a TD where the module names no limit of its own: TD_PARAMS has 16 bits for them.
MOST_VCPUS = 0xFFFF


@dataclass(frozen=True, slots=True)
class CpuidConfig:
    """A CPUID leaf that the host may configure, with masks of the bits that it may set.

    ``subleaf`` is None for a leaf without subleaves.
    """

    leaf: int
    subleaf: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class SysInfo:
    """The module's answers.  Page counts are of 4 KiB pages and include the root page of a vCPU."""

    version: str
    build_date: int
    vendor_id: int
    features0: int
    max_tdmrs: int
    max_reserved_per_tdmr: int
    pamt_entry_size: int
    tdcs_pages: int
    tdvps_pages: int
    attributes_fixed0: int
    attributes_fixed1: int
    xfam_fixed0: int
    xfam_fixed1: int
    config_flags_fixed0: int
    package_signature: int
    cpuid_config: tuple[CpuidConfig, ...]
    cmrs: tuple[tuple[int, int], ...] = field(default=())
    max_vcpus: int = MOST_VCPUS
    #: The processor's own CPUID leaf 4, by subleaf, and ECX of 0x80000006 (its L2 cache once more).
    caches: tuple[tuple[int, int, int, int], ...] = field(default=())
    l2: int = 0

    @classmethod
    def restored(cls, fields: dict[str, Any]) -> SysInfo:
        """Of its fields by name, as they come out of a snapshot."""
        plain = dict(fields)
        plain["cpuid_config"] = tuple(CpuidConfig(**entry) for entry in fields["cpuid_config"])
        plain["cmrs"] = tuple((base, size) for base, size in fields["cmrs"])
        plain["caches"] = tuple((a, b, c, d) for a, b, c, d in fields["caches"])
        return cls(**plain)

    @property
    def topology(self) -> bool:
        """Whether vCPUs have x2APIC ids, and guests see a topology by them."""
        return bool(self.features0 & TOPOLOGY_ENUM)


def read_sysinfo(cpu: Processor, memory: HostMemory, page: int) -> SysInfo:
    """TDH.SYS.INFO through the scratch page at HPA ``page``, and TDH.SYS.RD for what it does not say.

    Raises:
        SeamcallError: the module refuses.
    """
    status, _, _ = sc.tdh_sys_info(cpu, page, page + _CMRS_AT)
    cpu.need(status, "reading the module's description")
    info = memory.read(page, TDSYSINFO_STRUCT.size)
    cmrs = memory.read(page + _CMRS_AT, MAX_CMRS * CMR_INFO.size)
    layout = TDSYSINFO_STRUCT
    minor, major = layout.minor_version.get(info), layout.major_version.get(info)
    return SysInfo(
        version=f"{major}.{minor}.{read_field(cpu, fields.UPDATE_VERSION, 0):02}",
        build_date=layout.build_date.get(info),
        vendor_id=layout.vendor_id.get(info),
        features0=read_field(cpu, fields.TDX_FEATURES0, 0),
        max_tdmrs=layout.max_tdmrs.get(info),
        max_reserved_per_tdmr=layout.max_reserved_per_tdmr.get(info),
        pamt_entry_size=layout.pamt_entry_size.get(info),
        tdcs_pages=layout.tdcs_base_size.get(info) // PAGE,
        tdvps_pages=layout.tdvps_base_size.get(info) // PAGE,
        attributes_fixed0=layout.attributes_fixed0.get(info),
        attributes_fixed1=layout.attributes_fixed1.get(info),
        xfam_fixed0=layout.xfam_fixed0.get(info),
        xfam_fixed1=layout.xfam_fixed1.get(info),
        config_flags_fixed0=read_field(cpu, fields.CONFIG_FLAGS_FIXED0, 0),
        package_signature=read_field(cpu, fields.PKG_FMS, 0),
        cpuid_config=_cpuid_config(info),
        cmrs=tuple((base, size) for base, size in struct.iter_unpack("<QQ", cmrs) if size),
        max_vcpus=read_field(cpu, fields.MAX_VCPUS_PER_TD, MOST_VCPUS),
        caches=_caches(cpu),
        l2=cpu.host.cpuid(0x80000006)[2],
    )


def _caches(cpu: Processor) -> tuple[tuple[int, int, int, int], ...]:
    """What CPUID says of each cache, up to the subleaf whose type is "no more"."""
    caches: list[tuple[int, int, int, int]] = []
    while (cache := cpu.host.cpuid(4, len(caches)))[0] & 0x1F:
        caches.append(cache)
    return tuple(caches)


def _cpuid_config(info: bytes) -> tuple[CpuidConfig, ...]:
    count = TDSYSINFO_STRUCT.num_cpuid_config.get(info)
    start = TDSYSINFO_STRUCT.cpuid_config.offset
    entries = struct.iter_unpack("<6I", info[start : start + count * CPUID_CONFIG.size])
    return tuple(
        CpuidConfig(leaf, None if subleaf == 0xFFFFFFFF else subleaf, *masks)
        for leaf, subleaf, *masks in entries
    )


def read_field(cpu: Processor, field_id: int, missing: int | None = None) -> int:
    """A field by TDH.SYS.RD; ``missing``, if given, where this module does not have it.

    Raises:
        SeamcallError: the module refuses, and no ``missing`` was given.
    """
    status, _, value = sc.tdh_sys_rd(cpu, field_id)
    if missing is not None and st.code_of(status) in (
        st.TDX_METADATA_FIELD_ID_INCORRECT,
        st.TDX_METADATA_FIELD_NOT_READABLE,
    ):
        return missing
    cpu.need(status, f"reading field {field_id:#x}")
    return value


def read_all_fields(cpu: Processor, memory: HostMemory, page: int) -> dict[int, int]:
    """Every module field by TDH.SYS.RDALL, by its id, through the scratch page at HPA ``page``.

    Raises:
        SeamcallError: the module refuses.
    """
    values: dict[int, int] = {}
    following = NULL_ID
    while True:
        status, following = sc.tdh_sys_rdall(cpu, page, following)
        cpu.need(status, "reading all fields")
        values.update(parse_metadata_list(memory.read(page, PAGE)))
        if following == NULL_ID:
            return values


def parse_metadata_list(data: bytes) -> dict[int, int]:
    """The values of a metadata list, by field id of each element (structures.md §13.1).

    A list starts with its size in bytes (16 bits) and its number of sequences (16 bits); a sequence with
    the id of its first field, which also says how many elements and fields follow, 8 bytes each.
    """
    size, sequences = struct.unpack_from("<HH", data)
    values: dict[int, int] = {}
    at = 8
    for _ in range(sequences):
        (header,) = struct.unpack_from("<Q", data, at)
        at += 8
        count = ((header >> 34 & 0xF) + 1) * ((header >> 38 & 0x1FF) + 1)
        first = header & ~(0xF << 34 | 0x1FF << 38)
        if at + 8 * count > min(size, len(data)):
            raise ValueError(f"a metadata list of {size} bytes ends inside sequence {header:#x}")
        for index, (value,) in enumerate(struct.iter_unpack("<Q", data[at : at + 8 * count])):
            values[first + index] = value
        at += 8 * count
    return values
