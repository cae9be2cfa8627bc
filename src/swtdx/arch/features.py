"""What a module offers, as a value: TDX_FEATURES0, FIXED0 fields and leaf tables follow from it.

Source of the bits: ``tdx_features_enum0_t`` in include/tdx_api_defs.h and ``metadata_sys.c`` of the
TDX module 1.5.01 (which sets all of them, LOCAL_ATTESTATION if the processor has SEAMVERIFYREPORT);
newer bits from Linux, arch/x86/include/asm/tdx.h.  What TOPOLOGY_ENUM brings: :data:`TOPOLOGY_ENUM`.

Leaves of a feature that is not reported are answered as unknown ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.arch import leaf
from swtdx.arch.cpuid_table import BASE_CPUID, TOPOLOGY_CPUID, CpuidTable
from swtdx.arch.leaf import Leaf
from swtdx.arch.metadata import BASE_FIELDS, TOPOLOGY_FIELDS, Fields
from swtdx.arch.platform_structs import MAX_VCPUS_PER_TD
from swtdx.arch.td_config import (
    ATTR_DEBUG,
    ATTR_MIGRATABLE,
    ATTR_PKS,
    ATTR_SEPT_VE_DISABLE,
    CONFIG_FLEXIBLE_PENDING_VE,
    CONFIG_GPAW,
    CONFIG_NO_RBP_MOD,
    XFAM_FIXED0,
)

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
#: Newer than 1.5.01, and what today's Linux/KVM insists on.  With it come: MAX_VCPUS_PER_TD; CPUID leaf 0x1F
#: that the host configures and leaf 0xB made of it, for guests that set TD_CTLS.ENUM_TOPOLOGY; x2APIC ids,
#: which version 1 of TDH.VP.INIT takes, in TDCS.X2APIC_IDS and in MSR 0x802.
TOPOLOGY_ENUM: Final = 1 << 20
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
    20: ("TOPOLOGY_ENUM", "virtual topology and x2APIC ids (newer than 1.5.01)"),
    36: ("DYNAMIC_PAMT", "PAMT pages on demand (newer modules)"),
}

#: TDX_FEATURES0 bits of the base module.  Not among them: migration, TD preserving, service TDs and
#: partitioning, which it has not, and L2_TLB_INVD_OPT, which speaks of L2 VMs.
_BASE_BITS: Final = (
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
#: The bit of TDX_FEATURES0 that says that the leaves of a feature (``Leaf.support``) are there.
_BIT_OF: Final = {
    leaf.MIGRATION: TD_MIGRATION,
    leaf.TD_PRESERVING: TD_PRESERVING,
    leaf.SERVICE_TD: SERVICE_TD,
    leaf.PARTITIONING: TD_PARTITIONING,
}


@dataclass(frozen=True, eq=False)
class ModuleFeatures:
    """What a module offers.  Its leaf tables, TDX_FEATURES0 and FIXED0 masks follow from it.

    ``offers`` are features with leaves of their own (values of ``Leaf.support``); ``bits`` the bits of
    TDX_FEATURES0 that are there besides; ``attributes`` the ATTRIBUTES bits that a TD may set, without
    MIGRATABLE, which follows from ``offers``; ``xfam`` the state components that the module knows.

    Raises:
        ValueError: ``offers`` names something that no module offers.
    """

    name: str
    offers: frozenset[str] = frozenset({leaf.BASE})
    bits: int = _BASE_BITS
    attributes: int = ATTR_DEBUG | ATTR_SEPT_VE_DISABLE | ATTR_PKS
    xfam: int = XFAM_FIXED0

    def __post_init__(self) -> None:
        if unknown := self.offers - {leaf.BASE, leaf.SYS_DISABLE, *_BIT_OF}:
            raise ValueError(f"{self.name}: no module offers {', '.join(sorted(unknown))}")

    def serves(self, declared: Leaf) -> bool:
        """Whether such a module has the leaf; it answers others with OPERAND_INVALID | RAX."""
        return declared.support in self.offers

    def form(self, declared: Leaf) -> Leaf:
        """The leaf as such a module has it: without versions that need what it does not offer."""
        return declared if self.bits & declared.version_needs == declared.version_needs else declared.first

    @property
    def topology(self) -> bool:
        """Whether TDs have x2APIC ids and a topology of their own."""
        return bool(self.bits & TOPOLOGY_ENUM)

    @property
    def cpuid(self) -> CpuidTable:
        """The CPUID leaves that it virtualises."""
        return TOPOLOGY_CPUID if self.topology else BASE_CPUID

    @property
    def fields(self) -> Fields:
        """Its metadata fields."""
        return TOPOLOGY_FIELDS if self.topology else BASE_FIELDS

    @property
    def max_vcpus(self) -> int:
        """The most vCPUs that TD_PARAMS may ask for."""
        return MAX_VCPUS_PER_TD if self.topology else 0xFFFF

    def features0(self, *, seamverifyreport: bool) -> int:
        """The value of TDX_FEATURES0; ``seamverifyreport``: the processor can verify reports."""
        value = self.bits | (LOCAL_ATTESTATION if seamverifyreport else 0)
        for feature, bit in _BIT_OF.items():
            value |= bit if feature in self.offers else 0
        return value

    @property
    def attributes_fixed0(self) -> int:
        """ATTRIBUTES bits that a TD may set."""
        return self.attributes | (ATTR_MIGRATABLE if leaf.MIGRATION in self.offers else 0)

    @property
    def config_flags_fixed0(self) -> int:
        """CONFIG_FLAGS bits that a TD may set."""
        value = CONFIG_GPAW
        if self.bits & PENDING_EPT_VIOLATION_V2:
            value |= CONFIG_FLEXIBLE_PENDING_VE
        return value | (CONFIG_NO_RBP_MOD if self.bits & NO_RBP_MOD else 0)


#: What Intel's 1.5.01 has of what swtdx's module offers.  (It also lets a TD set PERFMON.)
MODULE_1_5_01: Final = ModuleFeatures("1.5.01")
#: swtdx's own module: the base ABI 1.5, and what today's Linux needs besides.
BASE_MODULE: Final = ModuleFeatures(
    "base", offers=frozenset({leaf.BASE, leaf.SYS_DISABLE}), bits=_BASE_BITS | TOPOLOGY_ENUM
)
#: The modules that an image may ask for, by name.
MODULES: Final = {module.name: module for module in (BASE_MODULE, MODULE_1_5_01)}
