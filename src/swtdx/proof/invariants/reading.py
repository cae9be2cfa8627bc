"""Read the TDX Module's structures out of simulated memory, with the rights of SEAM.

PAMT, TDR, TDCS, TDVPS and Secure EPT are read by the layouts in :mod:`swtdx.arch`, not by the module's
code, so that each checks the other.  Three tables have no architectural layout (TDMRs, key ownership,
processors): those are found by :class:`~swtdx.proof.probe.ModuleProbe`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from swtdx.arch import sept, sept_bits
from swtdx.arch.control_structs import (
    PAMT_ENTRY,
    TDCS,
    TDCS_MAX_PAGES,
    TDCS_MIN_PAGES,
    TDCS_SEPT_ROOT_PAGE,
    TDR,
    TDVPS,
    TDVPS_MAX_PAGES,
)
from swtdx.arch.sept import SeptState
from swtdx.arch.states import PAGE_BYTES, PageType, SysState
from swtdx.arch.units import GIB, PAGE
from swtdx.machine.memory import MachineCheck, Requestor
from swtdx.proof.invariants.picture import KeyView, Mapping, Page, Picture, TdView, Translation, VcpuView
from swtdx.proof.probe import ModuleProbe

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine

_ENTRY: Final = PAMT_ENTRY.size
_ROWS: Final = PAGE // _ENTRY
_USED: Final = 3  # FILLED | WRITTEN in swtdx.machine.memory.pages: the page may hold more than zeros


class Reader:
    """Reads one machine; see :func:`read`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._memory = machine.memory
        self._shift = machine.memory.addresses.hpa_bits
        self._probe = ModuleProbe(machine)
        self.picture = Picture(False)

    def page(self, hpa: int, keyid: int) -> bytes | None:
        """A page's contents under a KeyID; None, and a note in the picture, if it is poisoned."""
        try:
            return self._memory.read(hpa | keyid << self._shift, PAGE, Requestor.SEAM)
        except MachineCheck as broken:
            self.picture.poisoned.append((hpa, str(broken)))
            return None

    def read(self) -> Picture:
        """The picture."""
        picture = self.picture
        probe = self._probe
        if not probe.loaded:
            return picture
        state = probe.sys_state
        picture.ready = state == SysState.READY
        picture.processors = len(self._machine.processors)
        picture.packages = self._machine.config.packages
        picture.guests_running = sum(lp.in_guest for lp in self._machine.processors)
        if state < SysState.SYSCONFIG_DONE:
            return picture
        picture.global_hkid = probe.global_hkid
        picture.system_locks = {"SYS": probe.sys_lock.read(2), "KOT": probe.kot_lock.read(2)}
        picture.keys = {hkid: KeyView(*key) for hkid, key in probe.keys().items()}
        addresses = self._memory.addresses
        picture.first_private = addresses.first_private
        if not picture.ready:
            return picture
        self._pamts()
        for page in picture.of_kind(PageType.TDR):
            self._td(page)
        for lp in self._machine.processors:
            picture.last_vcpu.append(probe.last_tdvpr(lp.index))
            picture.translations.append(_translations(lp, self._memory.pages.tags))
        return picture

    # ------------------------------------------------------------------ PAMT
    def _pamts(self) -> None:
        covered = []
        for base, size, initialised, pamts in self._probe.regions():
            end = min(base + size, initialised & -GIB)
            if end <= base:
                continue
            covered.append((base, end))
            for level, pamt in enumerate(pamts):
                self._pamt(base, level, pamt, (end - base) // PAGE_BYTES[level])
        self.picture.covered = tuple(covered)

    def _pamt(self, base: int, level: int, table: int, count: int) -> None:
        """The entries of one size.  Only frames that may hold something are looked at."""
        first = table // PAGE
        end = -(-(table + count * _ENTRY) // PAGE)
        used = np.flatnonzero(self._memory.pages.flags[first:end] & _USED)
        for number in used.tolist():
            content = self.page((first + number) * PAGE, self.picture.global_hkid)
            if content is None:
                continue
            rows = min(count - number * _ROWS, _ROWS)
            at = base + number * _ROWS * PAGE_BYTES[level]
            found = _parse_pamt(content, at, level, rows)
            picture = self.picture
            picture.locked += found.locked
            picture.leftovers += found.leftovers
            picture.reserved += found.reserved
            for hpa in picture.pages.keys() & found.pages.keys() if level else ():
                picture.doubles.append((picture.pages[hpa], found.pages[hpa]))
            picture.pages |= found.pages

    # ------------------------------------------------------------------ TDs
    def _td(self, page: Page) -> None:
        raw = self.page(page.hpa, self.picture.global_hkid)
        if raw is None:
            return
        mask = (1 << self._shift) - 1
        count = min(TDR.num_tdcx.get(raw), TDCS_MAX_PAGES)
        td = self.picture.tds[page.hpa] = TdView(
            page.hpa,
            TDR.hkid.get(raw),
            TDR.lifecycle_state.get(raw),
            bool(TDR.fatal.get(raw)),
            TDR.chldcnt.get(raw),
            TDR.pkg_config_bitmap.get(raw),
            tuple(TDR.tdcx_pa.get(raw, index) & mask for index in range(count)),
        )
        if not td.keyed:
            return
        if count >= TDCS_MIN_PAGES:
            tdcs = self.page(td.tdcx[0], td.hkid)
            if tdcs is not None:
                self._tdcs(td, tdcs)
        for page in self.picture.of_kind(PageType.TDVPR):
            if page.owner == td.tdr:
                self._vcpu(td, page.hpa)

    def _tdcs(self, td: TdView, tdcs: bytes) -> None:
        td.op_state = TDCS.op_state.get(tdcs)
        td.attributes = TDCS.attributes.get(tdcs)
        td.epoch = TDCS.td_epoch.get(tdcs)
        td.running = (TDCS.refcount.get(tdcs, 0), TDCS.refcount.get(tdcs, 1))
        td.num_vcpus = TDCS.num_vcpus.get(tdcs)
        td.num_held = TDCS.num_assoc_vcpus.get(tdcs)
        td.max_vcpus = TDCS.max_vcpus.get(tdcs)
        td.mrtd = TDCS.mrtd.get(tdcs)
        td.eptp = TDCS.eptp.get(tdcs)
        for name in ("op_state_lock", "secure_ept_lock", "epoch_lock", "rtmr_lock", "servtd_bindings_lock"):
            td.locks[name] = getattr(TDCS, name).get(tdcs)
        if td.initialised:
            self._table(td, td.tdcx[TDCS_SEPT_ROOT_PAGE], td.eptp >> 3 & 7, 0)

    def _table(self, td: TdView, hpa: int, level: int, base: int) -> None:
        content = self.page(hpa, td.hkid)
        if content is None or level > 4:
            return
        mappings, tables = _parse_table(content, level, base)
        td.mappings += mappings
        for target, gpa in tables:
            if target not in td.tables:
                td.tables.append(target)
                self._table(td, target, level - 1, gpa)

    def _vcpu(self, td: TdView, hpa: int) -> None:
        raw = self.page(hpa, td.hkid)
        if raw is None:
            return
        mask = (1 << self._shift) - 1
        count = min(TDVPS.num_tdvps_pages.get(raw), TDVPS_MAX_PAGES)
        td.vcpus.append(
            VcpuView(
                hpa,
                TDVPS.vcpu_state.get(raw),
                TDVPS.vcpu_index.get(raw),
                TDVPS.assoc_lpid.get(raw),
                TDVPS.vcpu_epoch.get(raw),
                tuple(TDVPS.tdvps_page_pa.get(raw, index) & mask for index in range(count)),
            )
        )


class _Entries(NamedTuple):
    """What a page of a PAMT holds."""

    pages: dict[int, Page]
    reserved: list[Page]
    leftovers: list[Page]
    locked: list[Page]


# Most pages are as they were when they were read last; contents are remembered by value.
@lru_cache(maxsize=1 << 14)
def _parse_pamt(content: bytes, base: int, level: int, rows: int) -> _Entries:
    """``rows`` entries of the size ``level``, for memory from ``base``."""
    found = _Entries({}, [], [], [])
    words = np.frombuffer(content, "<u8").reshape(-1, 2)[:rows]
    for row in np.flatnonzero(words.any(axis=1)).tolist():
        low, high = int(words[row, 0]), int(words[row, 1])
        hpa = base + row * PAGE_BYTES[level]
        page = Page(hpa, level, low >> 16 & 0xFF, low >> 24 << 12, high, low & 0xFFFF)
        if page.lock:
            found.locked.append(page)
        if page.kind == PageType.NDA:
            if page.bepoch:  # the owner stays (TDH.PHYMEM.PAGE.RDMD shows who had it last)
                found.leftovers.append(page)
        elif page.kind == PageType.RSVD:
            found.reserved.append(page)
        else:
            found.pages[hpa] = page
    return found


@lru_cache(maxsize=1 << 12)
def _parse_table(content: bytes, level: int, base: int) -> tuple[list[Mapping], list[tuple[int, int]]]:
    """The entries of a Secure EPT page that are not free; (HPA, GPA) of the pages below."""
    mappings: list[Mapping] = []
    tables: list[tuple[int, int]] = []
    entries = np.frombuffer(content, "<u8")
    for index in np.flatnonzero(entries != np.uint64(sept.FREE_ENTRY)).tolist():
        whole = int(entries[index])
        raw = whole & ~(sept_bits.TDHP | sept_bits.TDEL)
        if raw == sept.FREE_ENTRY:
            continue
        state: SeptState | None
        try:
            state = sept.state_of(raw)
        except sept.SeptEntryError:
            state = None
        leaf = state is None or state.is_leaf
        target = raw & sept_bits.HPA & (-sept_bits.LEVEL_BYTES[level] if leaf else -1)
        gpa = base + index * sept_bits.LEVEL_BYTES[level]
        mappings.append(Mapping(gpa, level, whole, target, state))
        if not leaf and level:
            tables.append((target, gpa))
    return mappings, tables


def _translations(lp: Any, tags: Any) -> dict[tuple[int, int], list[Translation]]:
    """What the scripted engine's translation caches of a processor hold; nothing with other engines."""
    found: dict[tuple[int, int], list[Translation]] = {}
    for key, space in lp.spaces.items():
        held = found.setdefault((key[0], key[1]), [])
        entries = getattr(space, "entries", None)
        for gpa, hpa, size in entries() if entries is not None else ():
            frames = tags[hpa // PAGE : (hpa + size) // PAGE]
            held.append(Translation(gpa, hpa, size, int(frames.min()), int(frames.max())))
    return found


def read(machine: Machine) -> Picture:
    """What the module's structures say now.

    The module's pages that had left the cache come back to it; nothing else changes.
    """
    return Reader(machine).read()
