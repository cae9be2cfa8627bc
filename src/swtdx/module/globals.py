"""The module's own data: bytes in the SEAM range, one table after the other.

Intel's module keeps the same tables as C structures (``tdx_global_data.h``); their layout is not
architectural, so this one is ours.  Everything that outlives a SEAMCALL is here or in pages that the
hypervisor donated.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Array, Field, Struct
from swtdx.arch.platform_structs import MAX_HKIDS, MAX_TDMRS
from swtdx.arch.states import KotState, SysState
from swtdx.arch.units import PAGE
from swtdx.machine.memory import SEAM, PhysicalMemory

MAX_LPS: Final = 256
MAX_PACKAGES: Final = 8


class SYS(Struct, size=PAGE):
    """State of the whole module."""

    sys_state = Field(0, 4, holds=SysState)
    num_lps = Field(4, 4)
    lps_initialised = Field(8, 4)
    num_packages = Field(12, 4)
    num_tdmrs = Field(16, 4)
    global_hkid = Field(24, 2)
    sys_lock = Field(26, 2, "sharex")
    kot_lock = Field(28, 2, "sharex")
    first_private_hkid = Field(32, 4)
    num_private_hkids = Field(36, 4)
    configured_packages = Field(40, 8, "bit n: package n has the global key")
    tsc_adjust = Field(48, 8, "IA32_TSC_ADJUST when initialised")
    tsc_hz = Field(56, 8, "native TSC frequency")
    seamrr_base = Field(64, 8)
    seamrr_size = Field(72, 8)
    wb_mutex = Array(80, 1, MAX_PACKAGES, "PHYMEM.CACHE.WB runs on the package")
    wb_resume = Array(88, 4, MAX_PACKAGES, "next sub-block to write back, 0: not started")
    wb_mask = Array(128, 8, MAX_PACKAGES * 32, "HKIDs that the write-back in progress serves")


class LP_DATA(Struct, size=64):
    """State of one logical processor."""

    initialised = Field(0, 1)
    last_tdvpr = Field(8, 8, "HPA of the TDVPR that ran here last")


class TDMR(Struct, size=512):
    """A TD memory region as configured."""

    base = Field(0, 8)
    size_ = Field(8, 8)
    pamt_1g = Field(16, 8)
    pamt_2m = Field(24, 8)
    pamt_4k = Field(32, 8)
    initialised = Field(40, 8, "first address whose PAMT is not initialised yet")
    mutex = Field(48, 1)
    num_reserved = Field(49, 1)
    reserved = Array(64, 8, 32, "pairs: offset, size")


class KOT_ENTRY(Struct, size=8):
    """Key ownership of one HKID."""

    state = Field(0, 1, holds=KotState)
    wbinvd = Field(4, 4, "packages whose cache still has to be written back")


_LP_AT: Final = PAGE
_TDMR_AT: Final = _LP_AT + MAX_LPS * LP_DATA.size
_KOT_AT: Final = _TDMR_AT + MAX_TDMRS * TDMR.size
#: Bytes of SEAM range that the module's data takes.
DATA_SIZE: Final = _KOT_AT + MAX_HKIDS * KOT_ENTRY.size


class Tdmr:
    """A configured TD memory region, as plain numbers for the hot path."""

    __slots__ = ("base", "end", "index", "initialised", "pamt_1g", "pamt_2m", "pamt_4k")

    def __init__(self, index: int, view: memoryview, at: int) -> None:
        self.index = index
        self.base = TDMR.base.get(view, at)
        self.end = self.base + TDMR.size_.get(view, at)
        self.pamt_1g = TDMR.pamt_1g.get(view, at)
        self.pamt_2m = TDMR.pamt_2m.get(view, at)
        self.pamt_4k = TDMR.pamt_4k.get(view, at)
        self.initialised = TDMR.initialised.get(view, at)


class ModuleData:
    """The tables at ``base`` in the SEAM range."""

    def __init__(self, memory: PhysicalMemory, base: int) -> None:
        self._memory = memory
        self.base = base
        self._views: dict[int, memoryview] = {}
        self._epoch = -1
        self._tdmrs: list[Tdmr] | None = None
        self._global_hkid: int | None = None
        #: Counts the changes of what :meth:`tdmrs` and :attr:`global_hkid` remember.
        self.changes = 0

    def clear(self) -> None:
        """Zero all of it, as the loader does before the module runs first."""
        self._memory.direct_zero(self.base, DATA_SIZE, SEAM)

    def _page(self, offset: int) -> memoryview:
        if self._memory.epoch != self._epoch:
            self._views.clear()
            self._epoch = self._memory.epoch
        view = self._views.get(offset)
        if view is None:
            view = self._views[offset] = self._memory.map_page(self.base + offset, 0)
        return view

    @property
    def sys(self) -> memoryview:
        """The :data:`SYS` page."""
        return self._page(0)

    def lp(self, index: int) -> tuple[memoryview, int]:
        """(page, byte offset) of a processor's :data:`LP_DATA`."""
        at = _LP_AT + index * LP_DATA.size
        return self._page(at & -PAGE), at & PAGE - 1

    def tdmr(self, index: int) -> tuple[memoryview, int]:
        """(page, byte offset) of :data:`TDMR` ``index``."""
        at = _TDMR_AT + index * TDMR.size
        return self._page(at & -PAGE), at & PAGE - 1

    def kot(self, hkid: int) -> tuple[memoryview, int]:
        """(page, byte offset) of the :data:`KOT_ENTRY` of ``hkid``."""
        at = _KOT_AT + hkid * KOT_ENTRY.size
        return self._page(at & -PAGE), at & PAGE - 1

    # ------------------------------------------------------------------ TDMRs
    def tdmrs(self) -> list[Tdmr]:
        """The configured TDMRs, ascending.  Read from memory once; :meth:`tdmrs_changed` forgets."""
        if self._tdmrs is None:
            count = SYS.num_tdmrs.get(self.sys)
            self._tdmrs = [Tdmr(index, *self.tdmr(index)) for index in range(count)]
        return self._tdmrs

    @property
    def global_hkid(self) -> int:
        """The module's own HKID.  Read from memory once; :meth:`tdmrs_changed` forgets."""
        if self._global_hkid is None:
            self._global_hkid = int(SYS.global_hkid.get(self.sys))
        return self._global_hkid

    def tdmrs_changed(self) -> None:
        """The TDMR table or the global HKID in memory was written."""
        self._tdmrs = None
        self._global_hkid = None
        self.changes += 1
