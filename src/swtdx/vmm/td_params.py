"""What a TD shall be: :class:`TdConfig`, and TD_PARAMS made of it for a given module and platform.

Sources: structures.md §5 (TD_PARAMS, ATTRIBUTES, XFAM), tdcall.md §5.4 (configurable CPUID).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from swtdx.arch.platform_structs import (
    TD_PARAMS,
    TSC_FREQUENCY_MAX,
    TSC_FREQUENCY_MIN,
    TSC_FREQUENCY_UNIT_HZ,
)
from swtdx.arch.td_config import (
    ATTR_DEBUG,
    ATTR_SEPT_VE_DISABLE,
    CONFIG_GPAW,
    CONFIG_NO_RBP_MOD,
    XFAM_AVX512,
)
from swtdx.arch.units import MASK32
from swtdx.arch.x86 import MEMORY_TYPE_WB
from swtdx.devices.saved import In, Out
from swtdx.vmm.cpuid import topology
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.saved import get, put
from swtdx.vmm.sysinfo import CpuidConfig, SysInfo

_ATTR_NAMES: Final = {0: "DEBUG", 28: "SEPT_VE_DISABLE", 29: "MIGRATABLE", 30: "PKS", 31: "KL", 63: "PERFMON"}


#: x87, SSE, AVX, AVX-512 (three bits), PKRU: what a guest gets by default where the platform has it.
_DEFAULT_XFAM: Final = 0x2E7

#: A leaf and subleaf (None if the leaf has none), and the values of EAX, EBX, ECX, EDX.
CpuidValues = Mapping[tuple[int, int | None], tuple[int, int, int, int]]

#: CPUID(1).EAX where the module does not tell the package's: Sierra Forest, 06_AFH stepping 3.
_SIERRA_FOREST: Final = 0x000A06F3
_TSC_DEADLINE, _AVX, _F16C = 1 << 24, 1 << 28, 1 << 29
_SELF_SNOOP, _HTT = 1 << 27, 1 << 28
#: CPUID(7, 0).ECX bit 13, EDX bit 18.
_TME: Final = 1 << 13
_PCONFIG: Final = 1 << 18


_HASHES: Final = ("mrconfigid", "mrowner", "mrownerconfig")
#: CPUID(4).EAX: ids of processors that share a cache, less one; ids of cores in a package, less one.
_SHARERS: Final = 0xFFF << 14
_CORES: Final = 0x3F << 26


@dataclass(frozen=True, slots=True)
class TdConfig:
    """What a TD shall be.

    Args:
        vcpus: how many vCPUs it has.
        attributes: ATTRIBUTES beside SEPT_VE_DISABLE, which Linux insists on and ``pending_ve`` clears.
        xfam: the extended features, or None for x87, SSE, AVX, AVX-512 and PKRU as far as there are.
        gpaw: 48, or 52 for a Secure EPT of five levels.
        tsc_hz: frequency of the guest's TSC; None is as near to the machine's as units of 25 MHz allow.
        rbp_mod: the guest may pass RBP to the hypervisor (CONFIG_FLAGS.NO_RBP_MOD is clear), as OVMF did
            until 2023; KVM sets that flag always.
        mrconfigid, mrowner, mrownerconfig: 48 bytes each that the TD's reports carry.
        cpuid: replaces our values of configurable CPUID leaves; bits that the module does not let a host
            configure must be 0.

    Raises:
        ConfigError: no TD can be like that.
    """

    vcpus: int = 1
    attributes: int = 0
    pending_ve: bool = False
    xfam: int | None = None
    gpaw: int = 48
    tsc_hz: float | None = None
    rbp_mod: bool = False
    mrconfigid: bytes = bytes(48)
    mrowner: bytes = bytes(48)
    mrownerconfig: bytes = bytes(48)
    cpuid: CpuidValues = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= 0xFFFF:
            raise ConfigError(f"a TD has 1 to 65535 vCPUs, not {self.vcpus}")
        if self.gpaw not in (48, 52):
            raise ConfigError(f"the guest-physical address width (gpaw) is 48 or 52, not {self.gpaw}")
        for name in ("mrconfigid", "mrowner", "mrownerconfig"):
            if len(getattr(self, name)) != 48:
                raise ConfigError(f"{name} is 48 bytes (SHA-384), not {len(getattr(self, name))}")
        units = None if self.tsc_hz is None else self.tsc_hz / TSC_FREQUENCY_UNIT_HZ
        if units is not None and not TSC_FREQUENCY_MIN <= round(units) <= TSC_FREQUENCY_MAX:
            raise ConfigError(f"a TD's TSC runs at 100 MHz to 10 GHz, not at {self.tsc_hz:.0f} Hz")

    def save_state(self, out: Out) -> None:
        """Write all of it down."""
        fields = asdict(self)
        for name in _HASHES:
            fields[name] = fields[name].hex()
        fields["cpuid"] = [[*where, *values] for where, values in self.cpuid.items()]
        put(out, **fields)

    @classmethod
    def restored(cls, section: In) -> TdConfig:
        """The one that :meth:`save_state` wrote down."""
        fields = get(section)
        for name in _HASHES:
            fields[name] = bytes.fromhex(fields[name])
        fields["cpuid"] = {(leaf, sub): (a, b, c, d) for leaf, sub, a, b, c, d in fields["cpuid"]}
        return cls(**fields)

    @property
    def debug(self) -> bool:
        """Whether the host may look into the TD."""
        return bool(self.attributes & ATTR_DEBUG)

    @property
    def shared_bit(self) -> int:
        """The bit of a GPA that selects shared memory."""
        return 1 << (self.gpaw - 1)

    @property
    def ept_levels(self) -> int:
        """Levels of the Secure EPT and of the shared EPT."""
        return 5 if self.gpaw == 52 else 4

    def params(self, info: SysInfo, machine_tsc_hz: float) -> bytes:
        """TD_PARAMS (1024 bytes) for TDH.MNG.INIT on a module that says ``info`` of itself.

        Raises:
            ConfigError: this module or this platform cannot make such a TD.
        """
        if self.vcpus > info.max_vcpus:
            raise ConfigError(f"a TD of this TDX module has at most {info.max_vcpus} vCPUs, not {self.vcpus}")
        params = TD_PARAMS.new()
        flags = 0 if self.rbp_mod else CONFIG_NO_RBP_MOD & info.config_flags_fixed0
        if self.gpaw == 52:
            if not info.config_flags_fixed0 & CONFIG_GPAW:
                raise ConfigError("this TDX module has no guest-physical addresses of 52 bits; use gpaw 48")
            flags |= CONFIG_GPAW
        TD_PARAMS.attributes.set(params, self._attributes(info))
        TD_PARAMS.xfam.set(params, self._xfam(info))
        TD_PARAMS.max_vcpus.set(params, self.vcpus)
        TD_PARAMS.eptp_controls.set(params, MEMORY_TYPE_WB | (self.ept_levels - 1) << 3)
        TD_PARAMS.config_flags.set(params, flags)
        TD_PARAMS.tsc_frequency.set(params, self._tsc_units(machine_tsc_hz))
        TD_PARAMS.mrconfigid.set(params, self.mrconfigid)
        TD_PARAMS.mrowner.set(params, self.mrowner)
        TD_PARAMS.mrownerconfig.set(params, self.mrownerconfig)
        for index, entry in enumerate(info.cpuid_config):
            for register, value in enumerate(self._cpuid_values(entry, info)):
                TD_PARAMS.cpuid_config.set(params, 4 * index + register, value)
        return bytes(params)

    def _attributes(self, info: SysInfo) -> int:
        wanted = self.attributes | (0 if self.pending_ve else ATTR_SEPT_VE_DISABLE)
        refused = wanted & ~info.attributes_fixed0
        if refused:
            names = [_ATTR_NAMES.get(bit, f"bit {bit}") for bit in range(64) if refused >> bit & 1]
            raise ConfigError(f"this TDX module does not support ATTRIBUTES {', '.join(names)}")
        return wanted | info.attributes_fixed1

    def _xfam(self, info: SysInfo) -> int:
        if self.xfam is None:
            xfam = _DEFAULT_XFAM & info.xfam_fixed0
            if xfam & XFAM_AVX512 != XFAM_AVX512:
                xfam &= ~XFAM_AVX512
            return xfam | info.xfam_fixed1
        refused = self.xfam & ~info.xfam_fixed0
        if refused:
            raise ConfigError(f"this platform does not support the XFAM bits {refused:#x}")
        missing = info.xfam_fixed1 & ~self.xfam
        if missing:
            raise ConfigError(f"XFAM must have the bits {missing:#x} (x87 and SSE) set")
        return self.xfam

    def _tsc_units(self, machine_tsc_hz: float) -> int:
        hertz = machine_tsc_hz if self.tsc_hz is None else self.tsc_hz
        return min(max(round(hertz / TSC_FREQUENCY_UNIT_HZ), TSC_FREQUENCY_MIN), TSC_FREQUENCY_MAX)

    def _cpuid_values(self, entry: CpuidConfig, info: SysInfo) -> tuple[int, int, int, int]:
        masks = (entry.eax, entry.ebx, entry.ecx, entry.edx)
        given = self.cpuid.get((entry.leaf, entry.subleaf))
        if given is None:
            eax, ebx, ecx, edx = (
                value & mask for value, mask in zip(self._default_cpuid(entry, info), masks, strict=True)
            )
            return eax, ebx, ecx, edx
        for register, value, mask in zip(("EAX", "EBX", "ECX", "EDX"), given, masks, strict=True):
            if value & ~mask:
                raise ConfigError(
                    f"CPUID({entry.leaf:#x}).{register}: a host cannot configure the bits {value & ~mask:#x}"
                )
        return given

    def _default_cpuid(self, entry: CpuidConfig, info: SysInfo) -> tuple[int, int, int, int]:
        """Everything the processor has, except what makes no sense in a TD."""
        if entry.leaf == 1:
            # MONITOR, SpeedStep, thermal and debug-store bits would only lead to #VE.
            ecx = _TSC_DEADLINE | _AVX | _F16C
            edx = _SELF_SNOOP | (_HTT if self.vcpus > 1 else 0)
            return info.package_signature or _SIERRA_FOREST, min(self.vcpus, 255) << 16, ecx, edx
        if entry.leaf == 7 and entry.subleaf == 0:
            # Memory encryption is the host's: a guest told of it reads MSRs that it does not have.
            return MASK32, MASK32, MASK32 & ~_TME, MASK32 & ~_PCONFIG
        if entry.leaf == 0x1F:
            return topology(entry.subleaf or 0, 0, self.vcpus)
        if entry.leaf == 4:
            return self._cache(entry.subleaf or 0, info)
        return MASK32, MASK32, MASK32, MASK32

    def _cache(self, index: int, info: SysInfo) -> tuple[int, int, int, int]:
        """A cache of the processor, as the guest's package has it: the last level is common to all."""
        if index >= len(info.caches):
            return 0, 0, 0, 0
        eax, ebx, ecx, edx = info.caches[index]
        ids = 1 << (self.vcpus - 1).bit_length()
        sharers = ids - 1 if index == len(info.caches) - 1 else min((eax & _SHARERS) >> 14, ids - 1)
        return eax & ~(_SHARERS | _CORES) | sharers << 14 & _SHARERS, ebx, ecx, edx
