"""Values of the module's own fields (``metadata_sys.c`` of 1.5.01)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch.cpuid_policy import ARCH_CAPABILITIES_CONFIG_MASK, KNOWN_SIGNATURES
from swtdx.arch.metadata import MetadataField
from swtdx.arch.platform_structs import (
    MAX_CMRS,
    MAX_RESERVED_PER_TDMR,
    MAX_TDMRS,
    PAMT_ENTRY_BYTES,
    VENDOR_INTEL,
)
from swtdx.arch.seam_structs import HANDOFF_DATA_HEADER, SYS_INFO_TABLE
from swtdx.arch.td_config import ATTRIBUTES_FIXED1, CONFIG_FLAGS_FIXED1, XFAM_FIXED1
from swtdx.arch.units import NULL_PA
from swtdx.arch.x86 import CPUID_1_EAX_STEPPING
from swtdx.machine.memory import SEAM
from swtdx.module import version
from swtdx.module.host.sys import TDCS_BYTES, TDVPS_BYTES
from swtdx.module.state import ModuleState

#: Fields with a value that depends on nothing.  Limits of features that TDX_FEATURES0 does not list are
#: 0: no migration streams, no service TDs, no L2 VMs.
_CONSTANT: Final[dict[str, int]] = {
    "VENDOR_ID": VENDOR_INTEL,
    "BUILD_DATE": version.BUILD_DATE,
    "BUILD_NUM": version.BUILD_NUM,
    "MINOR_VERSION": version.MINOR_VERSION,
    "MAJOR_VERSION": version.MAJOR_VERSION,
    "UPDATE_VERSION": version.UPDATE_VERSION,
    "INTERNAL_VERSION": version.INTERNAL_VERSION,
    "MODULE_HV": version.MODULE_HV,
    "MIN_UPDATE_HV": version.MIN_UPDATE_HV,
    "NO_DOWNGRADE": version.NO_DOWNGRADE,
    "SYS_ATTRIBUTES": 0,
    "NUM_TDX_FEATURES": 1,
    "NUM_CMRS": MAX_CMRS,
    "MAX_TDMRS": MAX_TDMRS,
    "MAX_RESERVED_PER_TDMR": MAX_RESERVED_PER_TDMR,
    "PAMT_4K_ENTRY_SIZE": PAMT_ENTRY_BYTES,
    "PAMT_2M_ENTRY_SIZE": PAMT_ENTRY_BYTES,
    "PAMT_1G_ENTRY_SIZE": PAMT_ENTRY_BYTES,
    "TDR_BASE_SIZE": 4096,
    "TDCS_BASE_SIZE": TDCS_BYTES,
    "TDCS_SIZE_PER_L2_VM": 4096,
    "TDVPS_BASE_SIZE": TDVPS_BYTES,
    "TDVPS_SIZE_PER_L2_VM": 3 * 4096,
    "ATTRIBUTES_FIXED1": ATTRIBUTES_FIXED1,
    "XFAM_FIXED1": XFAM_FIXED1,
    "CONFIG_FLAGS_FIXED1": CONFIG_FLAGS_FIXED1,
    "IA32_ARCH_CAPABILITIES_CONFIG_MASK": ARCH_CAPABILITIES_CONFIG_MASK,
    **dict.fromkeys(
        (
            "NUM_DISALLOWED_FMS", "DISALLOWED_FMS", "MIG_ATTRIBUTES",
            "MIN_EXPORT_VERSION", "MAX_EXPORT_VERSION", "MIN_IMPORT_VERSION", "MAX_IMPORT_VERSION",
            "MAX_MIGS", "NUM_IMMUTABLE_STATE_PAGES", "NUM_TD_STATE_PAGES", "NUM_VP_STATE_PAGES",
            "MAX_SERV_TDS", "SERVTD_ATTR_FIXED0", "SERVTD_ATTR_FIXED1", "GUEST_L2_GPA_ATTR_MASK",
            "VM_CTLS_FIXED0", "VM_CTLS_FIXED1", "VPCU_L2_CTLS_FIXED0", "VCPU_L2_CTLS_FIXED1",
            "VPCU_L2_DEBUG_CTLS_FIXED0", "VCPU_L2_DEBUG_CTLS_FIXED1",
        ),
        0,
    ),
}  # fmt: skip


def _config_leaf(module: ModuleState, index: int) -> int:
    configs = module.cpuid.configs
    if index >= len(configs):
        return NULL_PA
    return configs[index].leaf | configs[index].subleaf << 32


def _config_values(module: ModuleState, index: int) -> int:
    """Element 2n is EAX and EBX, 2n + 1 ECX and EDX."""
    number, half = divmod(index, 2)
    if number >= len(module.cpuid.configs):
        return 0
    values = module.cpuid.configs[number].direct
    return values[2 * half] | values[2 * half + 1] << 32


def _handoff(name: str) -> Callable[[ModuleState, int], int]:
    field = getattr(HANDOFF_DATA_HEADER, name)

    def read(module: ModuleState, _index: int) -> int:
        header = module.memory.read(module.sysinfo.data_region, HANDOFF_DATA_HEADER.size, SEAM)
        return int(field.get(header))

    return read


def _allowed_signatures(module: ModuleState) -> list[int]:
    """CPUID(1).EAX of the parts that a TD that migrates may be told: this one, and known ones before it."""
    here = module.sysinfo.package_signature(0)
    family = here & ~CPUID_1_EAX_STEPPING
    known = [part & ~CPUID_1_EAX_STEPPING for part in KNOWN_SIGNATURES]
    older = KNOWN_SIGNATURES[known.index(family) + 1 :] if family in known else ()
    return [here, *older]


def _allowed_signature(module: ModuleState, index: int) -> int:
    allowed = _allowed_signatures(module)
    return allowed[index] if index < len(allowed) else 0


#: Fields that are looked up: by the index of the element.
_COMPUTED: Final[dict[str, Callable[[ModuleState, int], int]]] = {
    "NUM_PKGS": lambda module, _: module.sysinfo.packages,
    "PKG_FMS": lambda module, index: module.sysinfo.package_signature(index),
    "NUM_HANDOFF_PAGES": lambda module, _: int(SYS_INFO_TABLE.num_handoff_pages.get(module.sysinfo.table)),
    "HANDOFF_DATA_VALID": _handoff("valid"),
    "HANDOFF_DATA_HV": _handoff("hv"),
    "HANDOFF_DATA_SIZE": _handoff("size_"),
    "TDX_FEATURES0": lambda module, _: module.features0,
    "CMR_BASE": lambda module, index: module.sysinfo.cmr(index)[0],
    "CMR_SIZE": lambda module, index: module.sysinfo.cmr(index)[1],
    "ATTRIBUTES_FIXED0": lambda module, _: module.attributes_fixed0,
    "CONFIG_FLAGS_FIXED0": lambda module, _: module.features.config_flags_fixed0,
    "XFAM_FIXED0": lambda module, _: module.xfam_fixed0,
    "NUM_ALLOWED_FMS": lambda module, _: len(_allowed_signatures(module)),
    "ALLOWED_FMS": _allowed_signature,
    "NUM_CPUID_CONFIG": lambda module, _: len(module.cpuid.configs),
    "MAX_VCPUS_PER_TD": lambda module, _: module.features.max_vcpus,
    "CPUID_CONFIG_LEAVES": _config_leaf,
    "CPUID_CONFIG_VALUES": _config_values,
}


def value(module: ModuleState, field: MetadataField, index: int) -> int:
    """Element ``index`` of a module field."""
    constant = _CONSTANT.get(field.name)
    if constant is not None:
        return constant
    return _COMPUTED[field.name](module, index)
