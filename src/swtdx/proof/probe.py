"""Where the TDX Module keeps things: the only file of the proofs that knows the module's inside.

A proof works on what a hypervisor, a guest and memory show.  For two purposes that is not enough: to hold a
lock or to set a state that no sequence of calls leads to, and to compare the module's tables with each
other.  Both go through :class:`ModuleProbe`, which gives out places in memory, never objects of the module.

TDR, TDCS, TDVPS, PAMT and Secure EPT are found by the layouts of :mod:`swtdx.arch`, not by the module's
code, so that each checks the other.  The tables in the SEAM range have no architectural layout and are read
by the module's own declaration of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple
from unittest import mock

from swtdx.arch import sept_bits
from swtdx.arch.control_structs import TDCS, TDCS_SEPT_ROOT_PAGE, TDR
from swtdx.arch.cpuid_table import Quad
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import GUEST, HOST, Leaf
from swtdx.arch.states import PAGE_BYTES, PageType
from swtdx.arch.units import PAGE
from swtdx.module.globals import KOT_ENTRY, LP_DATA, SYS, TDMR
from swtdx.module.guest import dispatch as _guest_dispatch
from swtdx.module.host import dispatch as _host_dispatch
from swtdx.module.register import guest_leaf, host_leaf

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine
    from swtdx.module.entry import TdxModule
    from swtdx.module.state import ModuleState

_PAMT_ENTRY: Final = 16
#: Their import fills the tables of handlers.
_DISPATCH: Final = (_host_dispatch, _guest_dispatch)


class Place(NamedTuple):
    """Something of the module's in memory: the page as the module sees it, and the byte where it starts.

    The view is good until a page leaves the cache.
    """

    view: memoryview
    offset: int

    def read(self, size: int) -> int:
        """``size`` bytes, little-endian."""
        return int.from_bytes(self.view[self.offset : self.offset + size], "little")


class Region(NamedTuple):
    """A TDMR: ``base`` and ``size`` in bytes, the first address without an initialised PAMT, and the
    addresses of its PAMTs for 4-KiB, 2-MiB and 1-GiB pages.
    """

    base: int
    size: int
    initialised: int
    pamts: tuple[int, int, int]


class Key(NamedTuple):
    """An entry of the key ownership table: its state (a KotState, if memory is sound), and bit by bit the
    packages that have yet to write back.
    """

    state: int
    wbinvd: int


def implemented(leaf: Leaf) -> bool:
    """Whether the module serves the leaf.

    TDG.VP.VMCALL has no handler: it is a TD exit, and the dispatcher's own business.
    """
    if not BASE_MODULE.serves(leaf):
        return False
    handlers = {HOST: host_leaf.names, GUEST: guest_leaf.names}.get(leaf.side)
    return handlers is None or leaf.name in handlers or leaf.name == "TDG.VP.VMCALL"


class ModuleProbe:
    """Looks into the module that is loaded on ``machine``."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._memory = machine.memory

    @property
    def loaded(self) -> bool:
        """Whether there is a module."""
        return self._machine.seam.module is not None

    @property
    def _module(self) -> ModuleState:
        module: TdxModule | None = self._machine.seam.module
        if module is None:
            raise LookupError("no TDX module is loaded on this machine")
        return module.state

    # ------------------------------------------------------------------ tables of the whole module
    @property
    def _sys(self) -> memoryview:
        return self._module.data.sys

    @property
    def sys_state(self) -> int:
        """How far the module has been brought up: a SysState, if memory is sound."""
        return int(SYS.sys_state.get(self._sys))

    @property
    def global_hkid(self) -> int:
        """The HKID of TDRs and PAMTs."""
        return int(SYS.global_hkid.get(self._sys))

    @property
    def seam_range(self) -> int:
        """The first address of the SEAM range."""
        return int(SYS.seamrr_base.get(self._sys))

    @property
    def sys_lock(self) -> Place:
        """The module's global lock, 16 bits."""
        return Place(self._sys, SYS.sys_lock.offset)

    @property
    def kot_lock(self) -> Place:
        """The lock of the key ownership table, 16 bits."""
        return Place(self._sys, SYS.kot_lock.offset)

    @property
    def cache_wb_mutex(self) -> Place:
        """The lock of TDH.PHYMEM.CACHE.WB on package 0, a byte."""
        return Place(self._sys, SYS.wb_mutex.offset)

    def key(self, hkid: int) -> Key:
        """What the key ownership table says of ``hkid``."""
        view, at = self._module.data.kot(hkid)
        return Key(KOT_ENTRY.state.get(view, at), KOT_ENTRY.wbinvd.get(view, at))

    def key_place(self, hkid: int) -> Place:
        """The entry of ``hkid`` in the key ownership table; its first byte is the state."""
        return Place(*self._module.data.kot(hkid))

    def keys(self) -> dict[int, Key]:
        """The whole key ownership table, by HKID."""
        first = SYS.first_private_hkid.get(self._sys)
        return {hkid: self.key(hkid) for hkid in range(first, first + SYS.num_private_hkids.get(self._sys))}

    def regions(self) -> list[Region]:
        """The configured TDMRs, ascending."""
        found = []
        for index in range(SYS.num_tdmrs.get(self._sys)):
            view, at = self._module.data.tdmr(index)
            pamts = (TDMR.pamt_4k.get(view, at), TDMR.pamt_2m.get(view, at), TDMR.pamt_1g.get(view, at))
            base, size = TDMR.base.get(view, at), TDMR.size_.get(view, at)
            found.append(Region(base, size, TDMR.initialised.get(view, at), pamts))
        return found

    def region_mutex(self, index: int) -> Place:
        """The lock of TDH.SYS.TDMR.INIT on the TDMR ``index``, a byte."""
        view, at = self._module.data.tdmr(index)
        return Place(view, at + TDMR.mutex.offset)

    def last_tdvpr(self, lp: int) -> int:
        """HPA of the TDVPR that was entered last on the processor ``lp``."""
        return int(LP_DATA.last_tdvpr.get(*self._module.data.lp(lp)))

    # ------------------------------------------------------------------ TDs
    def _map(self, hpa: int, hkid: int) -> memoryview:
        return self._memory.map_page(hpa, hkid)

    def tdr(self, tdr: int) -> memoryview:
        """The TDR page at HPA ``tdr``."""
        return self._map(tdr, self.global_hkid)

    def tdcs(self, tdr: int, page: int = 0) -> memoryview:
        """A TDCS page of the TD whose TDR is at HPA ``tdr``; all fields are in the first.

        Raises:
            LookupError: the TD has no such page yet.
        """
        root = self.tdr(tdr)
        if page >= TDR.num_tdcx.get(root):
            raise LookupError(f"the TD at {tdr:#x} has no TDCS page {page} yet")
        # TDCX_PA is kept with the HKID in it.
        mask = (1 << self._memory.addresses.hpa_bits) - 1
        return self._map(TDR.tdcx_pa.get(root, page) & mask, TDR.hkid.get(root))

    def tdvps(self, tdvpr: int, tdr: int) -> memoryview:
        """The first TDVPS page, the TDVPR at HPA ``tdvpr`` itself, of a vCPU of the TD at ``tdr``."""
        return self._map(tdvpr, TDR.hkid.get(self.tdr(tdr)))

    def pamt_entry(self, hpa: int, size: int = 0) -> Place:
        """The PAMT entry of ``hpa`` as a page of 4 KiB (``size`` 0), 2 MiB (1) or 1 GiB (2).

        Raises:
            LookupError: no TDMR covers it.
        """
        for region in self.regions():
            if region.base <= hpa < region.base + region.size:
                at = region.pamts[size] + (hpa - region.base) // PAGE_BYTES[size] * _PAMT_ENTRY
                return Place(self._map(at & -PAGE, self.global_hkid), at & PAGE - 1)
        raise LookupError(f"no TDMR covers {hpa:#x}")

    def page_type(self, hpa: int) -> PageType:
        """What the PAMT says of a 4-KiB page."""
        return PageType(self.pamt_entry(hpa).read(4) >> 16 & 0xFF)

    def sept_entry(self, tdr: int, gpa: int, level: int) -> Place:
        """The Secure EPT entry of ``gpa`` at ``level``, 64 bits.

        Raises:
            LookupError: the walk ends above it.
        """
        at = TDCS.eptp.get(self.tdcs(tdr)) >> 3 & 7
        hkid = TDR.hkid.get(self.tdr(tdr))
        view = self.tdcs(tdr, TDCS_SEPT_ROOT_PAGE)
        while True:
            place = Place(view, (gpa >> 12 + 9 * at & 511) * 8)
            if at == level:
                return place
            raw = place.read(8)
            if raw & sept_bits.LEAF or not raw & sept_bits.RWX:
                raise LookupError(f"the Secure EPT entry of GPA {gpa:#x} at level {level} is not there")
            view = self._map(raw & sept_bits.HPA, hkid)
            at -= 1

    # ------------------------------------------------------------------ what the module is told
    @contextlib.contextmanager
    def cpuid_says(self, change: Callable[[int, int, Quad], Quad]) -> Iterator[None]:
        """The module's CPUID gives ``change(leaf, subleaf, native)`` for a while."""
        facts = self._module.facts
        native = facts.native_cpuid
        # What was read before is remembered.
        facts.__dict__.pop("sampled", None)
        with mock.patch.object(facts, "native_cpuid", lambda a, c: change(a, c, native(a, c))):
            yield

    @contextlib.contextmanager
    def cmrs_reversed(self) -> Iterator[None]:
        """The loader's table lists the convertible memory ranges in the wrong order for a while."""
        info = self._module.sysinfo
        with mock.patch.dict(info.__dict__, {"cmrs": info.cmrs[::-1]}):
            yield
