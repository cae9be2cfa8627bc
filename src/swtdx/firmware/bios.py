"""The BIOS: programs the platform's registers so that TDX can be used, and locks them.

Steps and their order: life-cycle.md §1.  The BIOS only does what it is told; whether the result is a
platform on which SEAM may exist is for MCHECK (:mod:`swtdx.firmware.mcheck`) to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swtdx.arch.msrs import (
    IA32_APIC_BASE,
    IA32_FEATURE_CONTROL,
    IA32_MISC_PACKAGE_CTLS,
    IA32_MTRR_DEF_TYPE,
    IA32_MTRR_PHYSBASE0,
    IA32_SEAMRR_PHYS_BASE,
    IA32_SEAMRR_PHYS_MASK,
    IA32_SMRR_PHYSBASE,
    IA32_SMRR_PHYSMASK,
    IA32_TME_ACTIVATE,
    IA32_XAPIC_DISABLE_STATUS,
    SEAMRR_CONFIGURED,
)
from swtdx.arch.ranges import Range
from swtdx.arch.units import MIB
from swtdx.arch.x86 import MEMORY_TYPE_UC, MEMORY_TYPE_WB
from swtdx.firmware.errors import BiosError
from swtdx.firmware.memory_map import HIGH_DRAM, SEAMRR_UNIT, MemoryPlan, plan
from swtdx.machine.cpu import msr_table as at
from swtdx.machine.cpu.activation import TmeActivate
from swtdx.machine.cpu.msr_rules import FEATURE_LOCK, FEATURE_VMX, RANGE_LOCK, RANGE_VALID
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.memory import Algorithm, Integrity

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine
    from swtdx.machine.processor import LogicalProcessor

_MTRR_ENABLE: Final = 1 << 11
_MTRR_FIXED_ENABLE: Final = 1 << 10
_X2APIC_ON: Final = 1 << 10
_VARIABLE_VALID: Final = 1 << 11
#: Fixed-range MTRRs below 640 KiB and from 768 KiB are write-back; the VGA window is uncached.
_VGA_FIXED: Final = 0x259
_ALL_WB: Final = int.from_bytes(bytes([MEMORY_TYPE_WB] * 8), "little")


@dataclass(frozen=True, slots=True)
class BiosConfig:
    """The set-up menu.  Sizes and addresses in bytes.

    ``keyid_bits`` and ``tdx_keyid_bits`` go to IA32_TME_ACTIVATE: with b and t of them there are
    2^(b-t) KeyIDs for MKTME, KeyID 0 included, and 2^b - 2^(b-t) for TDX.
    """

    seamrr_size: int = SEAMRR_UNIT
    seamrr_base: int | None = None
    smrr_size: int = 8 * MIB
    smrr_base: int | None = None
    cmrs: Sequence[Range] | None = None
    keyid_bits: int = 6
    tdx_keyid_bits: int = 1
    integrity: Integrity = Integrity.CRYPTOGRAPHIC
    x2apic: bool = True

    @property
    def tme_activate(self) -> int:
        """The value for IA32_TME_ACTIVATE.

        Raises:
            BiosError: a number of bits does not fit its field.
        """
        for name, bits in (("KeyID", self.keyid_bits), ("TDX KeyID", self.tdx_keyid_bits)):
            if not 0 <= bits <= 15:
                raise BiosError(f"IA32_TME_ACTIVATE: {bits} {name} bits; its field holds 0 to 15")
        algorithms = Algorithm.AES_XTS_128
        if self.integrity is Integrity.CRYPTOGRAPHIC:
            algorithms |= Algorithm.AES_XTS_128_INTEGRITY
        return TmeActivate(True, self.keyid_bits, self.tdx_keyid_bits, int(algorithms)).encode()


class Bios:
    """Brings one machine from reset to the point where MCHECK runs."""

    def __init__(self, machine: Machine, config: BiosConfig | None = None) -> None:
        self.machine = machine
        self.config = config or BiosConfig()

    def run(self) -> MemoryPlan:
        """Program every package and processor; returns where things lie.

        Raises:
            BiosError: the machine's registers refuse the configuration, or cannot express it.
        """
        config = self.config
        layout = plan(
            self.machine.memory.populated,
            config.seamrr_size,
            config.smrr_size,
            config.seamrr_base,
            config.smrr_base,
            config.cmrs,
        )
        steps: tuple[Callable[[LogicalProcessor, MemoryPlan], None], ...] = (
            self._memory_types,
            self._features,
            self._smrr,
            self._seamrr,
            self._apic,
        )
        try:
            for lp in self._one_per_package():
                self._package(lp)
            for lp in self.machine.processors:
                for step in steps:
                    step(lp, layout)
        except GeneralProtection as fault:
            raise BiosError(f"a register does not take the configuration: {fault}") from None
        self.machine.usable = list(layout.usable)
        return layout

    def _one_per_package(self) -> list[LogicalProcessor]:
        return list({lp.package: lp for lp in reversed(self.machine.processors)}.values())[::-1]

    # ------------------------------------------------------------------ packages
    def _package(self, lp: LogicalProcessor) -> None:
        """Memory encryption first: activating it clears memory."""
        lp.wrmsr(IA32_TME_ACTIVATE, self.config.tme_activate)
        lp.wrmsr(IA32_MISC_PACKAGE_CTLS, 1)
        if self.config.x2apic:
            # The switch that disables the legacy xAPIC is not public; the status register is.
            lp.msrs.poke(IA32_XAPIC_DISABLE_STATUS, 1)

    # ------------------------------------------------------------------ processors
    @staticmethod
    def _memory_types(lp: LogicalProcessor, layout: MemoryPlan) -> None:
        """All memory is write-back, but the hole between low DRAM and 4 GiB is uncached."""
        for register in at.MTRR_FIXED:
            lp.wrmsr(register, MEMORY_TYPE_UC if register == _VGA_FIXED else _ALL_WB)
        hole = layout.dram[0][0] + layout.dram[0][1]
        number = 0
        while hole < HIGH_DRAM:
            size = hole & -hole
            while hole + size > HIGH_DRAM:
                size >>= 1
            if number == at.MTRR_COUNT:
                raise BiosError(f"the device hole from {hole:#x} needs more than {at.MTRR_COUNT} MTRRs")
            base = IA32_MTRR_PHYSBASE0 + 2 * number
            lp.wrmsr(base, hole | MEMORY_TYPE_UC)
            lp.wrmsr(base + 1, _mask(lp, size) | _VARIABLE_VALID)
            hole += size
            number += 1
        lp.wrmsr(IA32_MTRR_DEF_TYPE, _MTRR_ENABLE | _MTRR_FIXED_ENABLE | MEMORY_TYPE_WB)

    @staticmethod
    def _features(lp: LogicalProcessor, _layout: MemoryPlan) -> None:
        lp.wrmsr(IA32_FEATURE_CONTROL, FEATURE_LOCK | FEATURE_VMX)

    @staticmethod
    def _smrr(lp: LogicalProcessor, layout: MemoryPlan) -> None:
        base, size = layout.smrr
        lp.wrmsr(IA32_SMRR_PHYSBASE, base | MEMORY_TYPE_WB)
        lp.wrmsr(IA32_SMRR_PHYSMASK, -size & 0xFFFFF000 | RANGE_VALID | RANGE_LOCK)

    @staticmethod
    def _seamrr(lp: LogicalProcessor, layout: MemoryPlan) -> None:
        base, size = layout.seamrr
        lp.wrmsr(IA32_SEAMRR_PHYS_BASE, base | SEAMRR_CONFIGURED)
        lp.wrmsr(IA32_SEAMRR_PHYS_MASK, _mask(lp, size) | RANGE_LOCK)

    def _apic(self, lp: LogicalProcessor, _layout: MemoryPlan) -> None:
        if self.config.x2apic:
            lp.wrmsr(IA32_APIC_BASE, lp.rdmsr(IA32_APIC_BASE) | _X2APIC_ON)


def _mask(lp: LogicalProcessor, size: int) -> int:
    """The address mask that a range register needs for ``size`` bytes (a power of two)."""
    return -size & (1 << lp.model.maxpa) - 1
