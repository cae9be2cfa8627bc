"""TDX_FEATURES0, and what swtdx's module reports there and in the FIXED0 fields.

Source of the bits: ``tdx_features_enum0_t`` in include/tdx_api_defs.h and ``metadata_sys.c`` of the
TDX module 1.5.01 (which sets all of them, LOCAL_ATTESTATION if the processor has SEAMVERIFYREPORT);
newer bits from Linux, arch/x86/include/asm/tdx.h.

Ours is the base ABI 1.5: leaves of a feature that is not reported are answered as unknown ones.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.td_config import ATTR_MIGRATABLE, ATTRIBUTES_FIXED0

TD_MIGRATION: Final = 1 << 0
TD_PRESERVING: Final = 1 << 1
SERVICE_TD: Final = 1 << 2
TDG_VP_RDWR: Final = 1 << 3
RELAXED_MEM_MNG_CONCURRENCY: Final = 1 << 4
CPUID_VIRT_GUEST_CTRL: Final = 1 << 5
TD_PARTITIONING: Final = 1 << 7
LOCAL_ATTESTATION: Final = 1 << 8
TD_ENTRY_ENHANCEMENTS: Final = 1 << 9
HOST_PRIORITY_LOCKS: Final = 1 << 10
CONFIG_IA32_ARCH_CAPABILITIES: Final = 1 << 11
PENDING_EPT_VIOLATION_V2: Final = 1 << 16
FMS_CONFIG: Final = 1 << 17
NO_RBP_MOD: Final = 1 << 18
L2_TLB_INVD_OPT: Final = 1 << 19
TOPOLOGY_ENUM: Final = 1 << 20  # newer modules
DYNAMIC_PAMT: Final = 1 << 36  # newer modules

#: Name and meaning by bit number.
FEATURES: Final[dict[int, tuple[str, str]]] = {
    0: ("TD_MIGRATION", "live migration of TDs"),
    1: ("TD_PRESERVING", "the module can be replaced while TDs live on"),
    2: ("SERVICE_TD", "service TDs can be bound"),
    3: ("TDG_VP_RDWR", "TDG.VP.RD and TDG.VP.WR exist"),
    4: ("RELAXED_MEM_MNG_CONCURRENCY", "leaves that add or change pages share the Secure EPT tree lock"),
    5: ("CPUID_VIRT_GUEST_CTRL", "the guest chooses #VE per CPUID leaf (CPUID_CONTROL)"),
    7: ("TD_PARTITIONING", "L2 VMs inside a TD"),
    8: ("LOCAL_ATTESTATION", "TDG.MR.VERIFYREPORT exists"),
    9: ("TD_ENTRY_ENHANCEMENTS", "flags in RCX of TDH.VP.ENTER"),
    10: ("HOST_PRIORITY_LOCKS", "the host goes before the guest on locks"),
    11: ("CONFIG_IA32_ARCH_CAPABILITIES", "TD_PARAMS configures IA32_ARCH_CAPABILITIES"),
    16: ("PENDING_EPT_VIOLATION_V2", "the guest may choose what an access to a pending page does"),
    17: ("FMS_CONFIG", "TD_PARAMS configures family, model and stepping"),
    18: ("NO_RBP_MOD", "CONFIG_FLAGS.NO_RBP_MOD keeps RBP out of TDVMCALLs"),
    19: ("L2_TLB_INVD_OPT", "TDG.VP.ENTER can flush less"),
    20: ("TOPOLOGY_ENUM", "virtual topology and x2APIC ids (newer modules)"),
    36: ("DYNAMIC_PAMT", "PAMT pages on demand (newer modules)"),
}

#: What our module always reports.  Not among them: migration, TD preserving, service TDs and
#: partitioning, which it has not, and L2_TLB_INVD_OPT, which speaks of L2 VMs.
BASE_FEATURES: Final = (
    TDG_VP_RDWR
    | RELAXED_MEM_MNG_CONCURRENCY
    | CPUID_VIRT_GUEST_CTRL
    | TD_ENTRY_ENHANCEMENTS
    | HOST_PRIORITY_LOCKS
    | CONFIG_IA32_ARCH_CAPABILITIES
    | PENDING_EPT_VIOLATION_V2
    | FMS_CONFIG
    | NO_RBP_MOD
)
#: ATTRIBUTES_FIXED0 of our module: without migration no TD is migratable.
BASE_ATTRIBUTES_FIXED0: Final = ATTRIBUTES_FIXED0 & ~ATTR_MIGRATABLE


def features0(*, seamverifyreport: bool) -> int:
    """The value of TDX_FEATURES0; ``seamverifyreport``: the processor can verify reports."""
    return BASE_FEATURES | (LOCAL_ATTESTATION if seamverifyreport else 0)


def feature_names(value: int) -> list[str]:
    """Names of the bits that are 1 (``bit 40`` for one without a name)."""
    return [FEATURES[bit][0] if bit in FEATURES else f"bit {bit}" for bit in range(64) if value >> bit & 1]
