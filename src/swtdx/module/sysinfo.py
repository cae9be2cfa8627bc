"""SYS_INFO_TABLE: what MCHECK and the P-SEAMLDR tell the module, in the first page of its range."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from swtdx.arch.platform_structs import MAX_CMRS
from swtdx.arch.seam_structs import SYS_INFO_TABLE
from swtdx.arch.units import PAGE
from swtdx.machine.memory import SEAM, PhysicalMemory

_SHADOW_STACK: Final = PAGE


class SysInfo:
    """The table at HPA ``base``, read once: it does not change while the module is loaded."""

    def __init__(self, memory: PhysicalMemory, base: int) -> None:
        #: First byte of the module's range (HPA).
        self.base = base
        self.table = memory.read(base, SYS_INFO_TABLE.size, SEAM)

    @cached_property
    def cmrs(self) -> tuple[tuple[int, int], ...]:
        """The convertible memory ranges that exist, as (base, bytes)."""
        pairs = [self.cmr(index) for index in range(MAX_CMRS)]
        return tuple(pair for pair in pairs if pair[1])

    def cmr(self, index: int) -> tuple[int, int]:
        """Slot ``index`` (0..31) of the CMR table; (0, 0) if it is not used."""
        cmrs = SYS_INFO_TABLE.cmrs
        return cmrs.get(self.table, 2 * index), cmrs.get(self.table, 2 * index + 1)

    @property
    def without_integrity(self) -> bool:
        """Whether private memory is protected by the TD-owner bit only."""
        return bool(SYS_INFO_TABLE.tdx_without_integrity.get(self.table))

    @property
    def has_smrr2(self) -> bool:
        """Whether MCHECK looked at a second SMRR."""
        return not SYS_INFO_TABLE.smrr2_not_supported.get(self.table)

    @property
    def processors(self) -> int:
        """Logical processors of the platform."""
        return int(SYS_INFO_TABLE.tot_num_lps.get(self.table))

    @property
    def packages(self) -> int:
        """Processor packages of the platform."""
        return int(SYS_INFO_TABLE.tot_num_sockets.get(self.table))

    def package_signature(self, index: int) -> int:
        """CPUID(1).EAX of package ``index`` (0..7)."""
        return int(SYS_INFO_TABLE.socket_cpuid_table.get(self.table, index))

    @property
    def data_region(self) -> int:
        """HPA of the module's data region.

        The table holds linear addresses; the physical layout behind them is the P-SEAMLDR's: this page,
        a VMCS for each addressable processor, then the data (intel/seam-loader, ``seamldr_install.c``).
        """
        fields = SYS_INFO_TABLE
        stack = (fields.num_stack_pages.get(self.table) + 1) * PAGE + _SHADOW_STACK
        return self.base + PAGE + self._addressable(stack) * PAGE

    @property
    def global_data(self) -> int:
        """HPA of the part of the data region that all processors share: behind the TLS of each."""
        fields = SYS_INFO_TABLE
        stack = (fields.num_stack_pages.get(self.table) + 1) * PAGE + _SHADOW_STACK
        tls = (fields.num_tls_pages.get(self.table) + 1) * PAGE
        return int(self.data_region + self._addressable(stack) * tls)

    def _addressable(self, stack: int) -> int:
        """x2APIC ids that could exist: each has a stack."""
        return int(SYS_INFO_TABLE.stack_rgn_size.get(self.table)) // stack
