"""A TD's and a vCPU's control structures, as views of the pages that hold them."""

from __future__ import annotations

from typing import Final

from swtdx.arch.control_structs import TDCS, TDCS_X2APIC_PAGE, TDR, TDVPS, X2APIC_PAGE
from swtdx.arch.td_config import TD_CTLS_ENUM_TOPOLOGY
from swtdx.module.keyhole import Keyhole

TDCS_MSR_BITMAPS: Final = 2
TDCS_SEPT_ROOT: Final = 3
TDVPS_VMCS: Final = 1
TDVPS_VAPIC: Final = 2
TDVPS_XBUFF: Final = 3


class Td:
    """The TDR page, and the TDCS pages once the TD has keys.

    ``tdcs`` is TDCS page 0, where all fields live.  The object caches addresses only: state is
    always in the pages.
    """

    __slots__ = ("hkid", "msr_features", "pages", "tdcs", "tdr", "tdr_hpa")

    def __init__(self, tdr_hpa: int, tdr: memoryview) -> None:
        self.tdr_hpa = tdr_hpa
        self.tdr = tdr
        self.hkid = TDR.hkid.get(tdr)
        self.pages: list[memoryview] = []
        self.tdcs: memoryview = tdr[:0]
        #: What the MSR policy depends on, once computed: it is fixed at TDH.MNG.INIT.
        self.msr_features: int | None = None

    def map_tdcs(self, keyhole: Keyhole) -> None:
        """Map the TDCS pages added so far."""
        count = TDR.num_tdcx.get(self.tdr)
        # TDCX_PA is kept with the HKID in it, as Intel's module keeps it.
        mask = (1 << keyhole.shift) - 1
        self.pages = [
            keyhole.map(TDR.tdcx_pa.get(self.tdr, index) & mask, self.hkid) for index in range(count)
        ]
        if self.pages:
            self.tdcs = self.pages[0]

    def add_children(self, count: int) -> None:
        """CHLDCNT += ``count`` 4-KiB pages."""
        TDR.chldcnt.set(self.tdr, TDR.chldcnt.get(self.tdr) + count)

    @property
    def topology(self) -> bool:
        """Whether the guest has asked for its topology (TD_CTLS.ENUM_TOPOLOGY)."""
        return bool(TDCS.td_ctls.get(self.tdcs) & TD_CTLS_ENUM_TOPOLOGY)

    def x2apic_id(self, index: int) -> int:
        """The x2APIC id of vCPU ``index``, of a TD whose host gave each one."""
        return X2APIC_PAGE.x2apic_ids.get(self.pages[TDCS_X2APIC_PAGE], index)

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG."""
        return bool(TDCS.attributes.get(self.tdcs) & 1)

    @property
    def shared_bit(self) -> int:
        """The GPA bit that selects shared memory."""
        return 1 << 51 if TDCS.gpaw.get(self.tdcs) else 1 << 47


class Vp:
    """The TDVPS pages of a vCPU; ``main`` is page 0 (TDVPR)."""

    __slots__ = ("hpa", "main", "pages", "td")

    def __init__(self, hpa: int, td: Td, main: memoryview) -> None:
        self.hpa = hpa
        self.td = td
        self.main = main
        self.pages: list[memoryview] = [main]

    def map_pages(self, keyhole: Keyhole) -> None:
        """Map the TDCX pages added so far."""
        count = TDVPS.num_tdvps_pages.get(self.main)
        # TDVPS_PAGE_PA is kept with the HKID in it, too.
        mask = (1 << keyhole.shift) - 1
        self.pages = [self.main] + [
            keyhole.map(TDVPS.tdvps_page_pa.get(self.main, index) & mask, self.td.hkid)
            for index in range(1, count)
        ]

    @property
    def vmcs_pa(self) -> int:
        """Physical address of the TD VMCS page, with the TD's HKID."""
        return int(TDVPS.tdvps_page_pa.get(self.main, TDVPS_VMCS))
