"""MCHECK: the microcode that decides whether SEAM may exist on this platform.

It runs on every package when the BIOS loads microcode (life-cycle.md §1, step 4), believes nothing that
the BIOS says, and reads all registers itself.  If all is well it writes the first half of
P_SYS_INFO_TABLE, the last page of the SEAM range, and sets SEAMRR's VALID on all processors.

What it checks is what the later stages rely on: the checks that ``tdh_sys_init.c`` of the TDX module and
the NP-SEAMLDR repeat "in depth", and those that life-cycle.md §1 and structures.md §2, §10 and §11 name.
The order of the checks is ours; the real MCHECK is not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from swtdx.arch.msrs import (
    IA32_APIC_BASE,
    IA32_FEATURE_CONTROL,
    IA32_MTRR_DEF_TYPE,
    IA32_MTRR_PHYSBASE0,
    IA32_SEAMRR_PHYS_BASE,
    IA32_SEAMRR_PHYS_MASK,
    IA32_SMRR_PHYSBASE,
    IA32_SMRR_PHYSMASK,
    IA32_TME_ACTIVATE,
    IA32_TME_EXCLUDE_MASK,
    IA32_XAPIC_DISABLE_STATUS,
    SEAMRR_CONFIGURED,
    TME_ACTIVATE_LOCK,
)
from swtdx.arch.platform_structs import MAX_CMRS, MAX_PKGS
from swtdx.arch.ranges import Range
from swtdx.arch.seam_structs import P_SYS_INFO_TABLE
from swtdx.arch.units import PAGE
from swtdx.arch.x86 import CPUID_1_EAX_STEPPING, MEMORY_TYPE_WB
from swtdx.firmware.errors import McheckError
from swtdx.firmware.memory_map import SEAMRR_UNIT, overlap, show
from swtdx.machine.cpu import msr_table as at
from swtdx.machine.cpu.activation import TmeActivate
from swtdx.machine.cpu.msr_rules import FEATURE_LOCK, RANGE_LOCK, RANGE_VALID
from swtdx.machine.memory import Integrity, Requestor

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine

#: The top of the SEAM range that belongs to the P-SEAMLDR.
P_SEAMLDR_RANGE: Final = 2 << 20
#: Fixed-range MTRRs and legacy memory end here.
_LEGACY_END: Final = 1 << 20
_X2APIC: Final = 3 << 10


class Mcheck:
    """One run over all packages; ``cmrs`` is the list that the BIOS hands over."""

    def __init__(self, machine: Machine, cmrs: Sequence[Range]) -> None:
        self.machine = machine
        self.cmrs = list(cmrs)
        self.seamrr: Range = (0, 0)
        self.smrr: Range = (0, 0)

    def run(self) -> None:
        """Verify the platform and enable SEAM.

        Raises:
            McheckError: something is not as it must be; SEAM stays disabled.
        """
        if self.machine.seam.enabled:
            raise McheckError("SEAMRR", "MCHECK has run already; it runs once after a reset")
        self._same_parts()
        self._encryption()
        self._apics()
        self._locks()
        self._smram()
        self._seam_range()
        self._memory_types()
        self._convertible()
        self._enable()

    # ------------------------------------------------------------------ reading registers
    def _everywhere(self, index: int) -> int:
        """A register that must hold the same on all processors."""
        values = {lp.index: lp.msrs.peek(index) for lp in self.machine.processors}
        first = values[0]
        for number, value in values.items():
            if value != first:
                name = at.MSRS[index].name
                raise McheckError(
                    name, f"{value:#x} on processor {number}, {first:#x} on processor 0; program all alike"
                )
        return first

    # ------------------------------------------------------------------ checks
    def _same_parts(self) -> None:
        """All packages hold the same family and model; steppings may differ."""
        packages = self.machine.config.packages
        if packages > MAX_PKGS:
            raise McheckError("packages", f"{packages}, and TDX supports {MAX_PKGS}")
        signatures = {lp.package: lp.cpuid(1)[0] & ~CPUID_1_EAX_STEPPING for lp in self.machine.processors}
        for package, signature in signatures.items():
            if signature != signatures[0]:
                raise McheckError(
                    "CPUID", f"package {package} is {signature:#x}, package 0 is {signatures[0]:#x}"
                )

    def _encryption(self) -> None:
        value = self._everywhere(IA32_TME_ACTIVATE)
        fields = TmeActivate.of(value)
        if not value & TME_ACTIVATE_LOCK:
            raise McheckError("IA32_TME_ACTIVATE", "not locked (bit 0); the BIOS must write it")
        if not fields.enable:
            raise McheckError("IA32_TME_ACTIVATE", "TME is not enabled (bit 1)")
        if not fields.keyid_bits:
            raise McheckError("IA32_TME_ACTIVATE", "MK_TME_KEYID_BITS is 0: there are no KeyIDs")
        if not fields.tdx_bits:
            raise McheckError("IA32_TME_ACTIVATE", "TDX_RESERVED_KEYID_BITS is 0: no KeyIDs for TDX")
        addresses = self.machine.memory.addresses
        split = (addresses.keyid_bits, addresses.shared_keyids, addresses.private_keyids)
        if split != (fields.keyid_bits, fields.shared_keyids, fields.private_keyids):
            raise McheckError("IA32_TME_ACTIVATE", f"the memory controllers split KeyIDs as {split}")

    def _apics(self) -> None:
        if not self._everywhere(IA32_XAPIC_DISABLE_STATUS) & 1:
            raise McheckError(
                "IA32_XAPIC_DISABLE_STATUS", "the legacy xAPIC is not disabled; enable x2APIC in the BIOS"
            )
        for lp in self.machine.processors:
            if lp.rdmsr(IA32_APIC_BASE) & _X2APIC != _X2APIC:
                raise McheckError("IA32_APIC_BASE", f"processor {lp.index} is not in x2APIC mode")

    def _locks(self) -> None:
        if not self._everywhere(IA32_FEATURE_CONTROL) & FEATURE_LOCK:
            raise McheckError("IA32_FEATURE_CONTROL", "not locked (bit 0)")

    def _smram(self) -> None:
        base, mask = self._everywhere(IA32_SMRR_PHYSBASE), self._everywhere(IA32_SMRR_PHYSMASK)
        if not mask & RANGE_VALID:
            raise McheckError("SMRR", "not valid (IA32_SMRR_PHYSMASK bit 11)")
        if not mask & RANGE_LOCK:
            raise McheckError("SMRR", "not locked (IA32_SMRR_PHYSMASK bit 10)")
        size = _size_of_mask("SMRR", mask & 0xFFFFF000, 32)
        self.smrr = (base & 0xFFFFF000, size)
        if self.smrr[0] % size:
            raise McheckError("SMRR", f"base {self.smrr[0]:#x} is not a multiple of the size {size:#x}")

    def _seam_range(self) -> None:
        base, mask = self._everywhere(IA32_SEAMRR_PHYS_BASE), self._everywhere(IA32_SEAMRR_PHYS_MASK)
        if not base & SEAMRR_CONFIGURED:
            raise McheckError("SEAMRR", "not configured (IA32_SEAMRR_PHYS_BASE bit 3)")
        if not mask & RANGE_LOCK:
            raise McheckError("SEAMRR", "not locked (IA32_SEAMRR_PHYS_MASK bit 10)")
        memory = self.machine.memory
        address = (1 << self.machine.processors[0].model.maxpa) - SEAMRR_UNIT
        size = _size_of_mask("SEAMRR", mask & address, self.machine.processors[0].model.maxpa)
        start = base & address
        self.seamrr = (start, size)
        if start % size:
            raise McheckError("SEAMRR", f"base {start:#x} is not a multiple of the size {size:#x}")
        if start < _LEGACY_END:
            raise McheckError("SEAMRR", f"{show(self.seamrr)} lies over the first MiB, with its fixed ranges")
        if start >> memory.addresses.hpa_bits:
            raise McheckError("SEAMRR", f"base {start:#x} has KeyID bits")
        if not memory.bus.is_populated(start, size):
            raise McheckError("SEAMRR", f"{show(self.seamrr)} has no memory behind it")
        if overlap(self.seamrr, self.smrr):
            raise McheckError("SEAMRR", f"{show(self.seamrr)} overlaps SMRR {show(self.smrr)}")

    def _memory_types(self) -> None:
        """The SEAM range must be write-back on every processor."""
        default = self._everywhere(IA32_MTRR_DEF_TYPE)
        if not default & 1 << 11:
            raise McheckError("IA32_MTRR_DEF_TYPE", "MTRRs are not enabled (bit 11)")
        covered = default & 0xFF == MEMORY_TYPE_WB
        for number in range(at.MTRR_COUNT):
            base = self._everywhere(IA32_MTRR_PHYSBASE0 + 2 * number)
            mask = self._everywhere(IA32_MTRR_PHYSBASE0 + 2 * number + 1)
            if mask & 1 << 11:
                size = _size_of_mask(f"IA32_MTRR_PHYSMASK{number}", mask & ~0xFFF, 52)
                where = (base & mask & ~0xFFF, size)
                if not overlap(where, self.seamrr):
                    continue
                if base & 0xFF != MEMORY_TYPE_WB:
                    raise McheckError(
                        "MTRRs", f"MTRR {number} makes SEAMRR memory type {base & 0xFF}, not WB"
                    )
                covered |= where[0] <= self.seamrr[0] and sum(self.seamrr) <= sum(where)
        if not covered:
            raise McheckError(
                "IA32_MTRR_DEF_TYPE",
                f"the SEAM range has memory type {default & 0xFF}, not write-back, and no MTRR covers it",
            )
        exclude = self._everywhere(IA32_TME_EXCLUDE_MASK)
        if exclude & 1 << 11:
            raise McheckError("IA32_TME_EXCLUDE", "memory is excluded from encryption")

    def _convertible(self) -> None:
        """CMRs: at most 32, page-aligned, ascending, backed by memory, apart from what is reserved."""
        if not self.cmrs:
            raise McheckError("CMRs", "the list is empty: no memory could be given to TDs")
        if len(self.cmrs) > MAX_CMRS:
            raise McheckError("CMRs", f"{len(self.cmrs)} ranges, and the table holds {MAX_CMRS}")
        end = 0
        for number, (base, size) in enumerate(self.cmrs):
            name = f"CMR {number}"
            where = show((base, size))
            if size <= 0 or base % PAGE or size % PAGE:
                raise McheckError(name, f"{base:#x}+{size:#x} is empty or not aligned to 4 KiB")
            if base < end:
                raise McheckError(name, f"{where} overlaps the CMR before it, or is out of order")
            end = base + size
            if not self.machine.memory.bus.is_populated(base, size):
                raise McheckError(name, f"{where} is not wholly backed by memory")
            if overlap((base, size), self.seamrr):
                raise McheckError(name, f"{where} overlaps SEAMRR {show(self.seamrr)}")
            if overlap((base, size), self.smrr):
                raise McheckError(name, f"{where} overlaps SMRR {show(self.smrr)}")

    # ------------------------------------------------------------------ result
    def _enable(self) -> None:
        machine = self.machine
        base, size = self.seamrr
        machine.memory.set_seamrr(base, size)
        machine.memory.direct_zero(base, size, Requestor.SEAM)
        machine.memory.write(base + size - PAGE, self._table(), Requestor.SEAM)
        for lp in machine.processors:
            lp.msrs.poke(IA32_SEAMRR_PHYS_MASK, lp.msrs.peek(IA32_SEAMRR_PHYS_MASK) | RANGE_VALID)
        machine.seam.enabled = True

    def _table(self) -> bytes:
        machine, table = self.machine, P_SYS_INFO_TABLE.new()
        fields = P_SYS_INFO_TABLE
        fields.tot_num_lps.set(table, len(machine.processors))
        fields.tot_num_sockets.set(table, machine.config.packages)
        for lp in machine.processors:
            fields.socket_cpuid_table.set(table, lp.package, lp.cpuid(1)[0])
        base, size = self.seamrr
        fields.p_seamldr_range_base.set(table, base + size - P_SEAMLDR_RANGE)
        fields.p_seamldr_range_size.set(table, P_SEAMLDR_RANGE)
        fields.skip_smrr2_check.set(table, 1)
        fields.tdx_ac.set(table, machine.memory.integrity is Integrity.LOGICAL)
        for number, (start, length) in enumerate(self.cmrs):
            fields.cmrs.set(table, 2 * number, start)
            fields.cmrs.set(table, 2 * number + 1, length)
        return bytes(table)


def _size_of_mask(name: str, mask: int, width: int) -> int:
    """Bytes that a range register's mask selects.

    Raises:
        McheckError: the mask is empty or has holes, so that it selects no single range.
    """
    size = (1 << width) - mask
    if not mask or size & size - 1:
        raise McheckError(name, f"mask {mask:#x} does not select one range of a power-of-two size")
    return size


def run(machine: Machine, cmrs: Sequence[Range]) -> None:
    """MCHECK on ``machine``; see :class:`Mcheck`."""
    Mcheck(machine, cmrs).run()
