"""Translations of guest-physical addresses: the EPT is walked, and what it says is cached.

That is done in bulk, where neighbours are already resident.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from swtdx.arch import vmcs as f
from swtdx.arch.sept_bits import LEAF
from swtdx.arch.units import HUGE_PAGE, LARGE_PAGE, PAGE
from swtdx.arch.x86 import FRAME_MASK
from swtdx.machine.engine.protocol import Access
from swtdx.machine.memory import BusAbort, MemoryFault, ReservedBitFault
from swtdx.machine.vmx.core import VmxCore
from swtdx.machine.vmx.ept import Walk, walk
from swtdx.machine.vmx.lent import lend
from swtdx.machine.vmx.vmcs import Vmcs

#: The hypervisor's EPT leads to a private KeyID (reserved bits: a misconfiguration, as on hardware), or to
#: where there is no memory or the SEAM range.  Hardware aborts those on the bus; a translation cache of
#: frames has nothing to show for it, and so this is a misconfiguration, too.
UNREACHABLE: Final = (BusAbort, ReservedBitFault)


class Translator:
    """Fills the translation caches of one logical processor."""

    def __init__(self, core: VmxCore) -> None:
        self._core = core
        self._found = Walk()

    def reach(self, vmcs: Vmcs, gpa: int) -> int | None:
        """The HPA of ``gpa`` for a microcode read, filling the cache; None when it is not readable."""
        hpa = vmcs.space.lookup(gpa)
        if hpa is not None:
            return int(hpa)
        if gpa >= self._core.shared_bit(vmcs) << 1:
            return None
        found = self.walk(vmcs, gpa)
        if found.misconfigured or not found.rights & 1:
            return None
        size = (PAGE, LARGE_PAGE, HUGE_PAGE)[found.level]
        hpa = self._core.split(found.entry & FRAME_MASK)[0] & -size | gpa & size - 1
        try:
            self.fill(vmcs, gpa, found)
        except UNREACHABLE:
            return None
        # Not what the cache says now: another processor may have made it forget everything meanwhile.
        return hpa

    def walk(self, vmcs: Vmcs, gpa: int) -> Walk:
        """What the EPT says about ``gpa``; the object is reused by the next walk."""
        core = self._core
        controls = vmcs.controls
        if gpa & core.shared_bit(vmcs):
            # The hypervisor's tables: addresses carry shared KeyIDs, or fault.  The GPA keeps its shared bit,
            # which takes part in the walk.
            root = controls[f.SHARED_EPTP] & FRAME_MASK
            return walk(
                root | controls[f.EPTP] & 0x3F,
                gpa,
                0,
                core.map_shared_table,
                self._found,
                root=core.map_shared_root(root),
            )
        return walk(
            controls[f.EPTP], gpa, core.keyid_bits(controls[f.HKID]), core.map_private_table, self._found
        )

    def fill(self, vmcs: Vmcs, gpa: int, found: Walk, *, write: bool = True) -> None:
        """Cache the translation ``found`` of ``gpa``, and those of its neighbours.

        ``write`` False: the guest only reads there, for now.

        Raises:
            BusAbort, ReservedBitFault: it leads to where the guest cannot go (:data:`UNREACHABLE`).
            MachineCheck: the target is memory whose integrity is broken.
        """
        core = self._core
        shared = bool(gpa & core.shared_bit(vmcs))
        keyid = 0 if shared else core.keyid_bits(vmcs.controls[f.HKID])
        if found.level == 0:
            self._fill_small(vmcs, gpa, found, keyid, shared)
            return
        # A 1 GiB page is cached 2 MiB at a time.
        size = LARGE_PAGE if found.level == 1 else HUGE_PAGE
        address = found.entry & FRAME_MASK & -size | gpa & size - LARGE_PAGE
        if not shared and lend(self._core, vmcs, gpa, address | keyid, found.rights, write=write):
            return
        self._map(vmcs, gpa & -LARGE_PAGE, address | keyid, LARGE_PAGE, found.rights, shared)
        if found.level == 1 and not shared:
            self._fill_neighbours(vmcs, gpa, found, keyid)

    def _map(self, vmcs: Vmcs, gpa: int, pa: int, size: int, rights: int, shared: bool) -> None:
        core = self._core
        hpa, keyid = core.split(pa)
        if shared and keyid and core.memory.addresses.is_private(keyid):
            # In a shared EPT the bits of private KeyIDs are reserved, for TDs as for everybody else.
            raise ReservedBitFault(hpa, keyid, "a private KeyID in a shared EPT")
        core.memory.acquire(hpa, size, keyid, core.guest)
        if not shared:
            core.machine.frames_mapped(hpa, size)
        vmcs.space.map(gpa, hpa, size, Access(rights & 7), code=not shared)

    def _fill_small(self, vmcs: Vmcs, gpa: int, found: Walk, keyid: int, shared: bool) -> None:
        """Cache the page and up to 511 neighbours of the same table that are present."""
        self._map(vmcs, gpa & -PAGE, found.entry & FRAME_MASK | keyid, PAGE, found.rights, shared)
        assert found.table is not None
        entries = np.frombuffer(found.table, dtype="<u8")
        base = gpa & -LARGE_PAGE
        here = gpa >> 12 & 511
        lookup = vmcs.space.lookup
        # Only what lies near: the cost of a fill is paid per page.
        for index in range(max(0, here - 8), min(512, here + 64)):
            entry = int(entries[index])
            if entry & 7 and lookup(base + index * PAGE) is None:
                # What is wrong with a neighbour is not wrong with this access.
                with suppress(MemoryFault):
                    self._map(
                        vmcs,
                        base + index * PAGE,
                        entry & FRAME_MASK | keyid,
                        PAGE,
                        entry & found.above,
                        shared,
                    )

    def _fill_neighbours(self, vmcs: Vmcs, gpa: int, found: Walk, keyid: int) -> None:
        """Cache the other 2 MiB pages that the same table maps."""
        assert found.table is not None
        entries = np.frombuffer(found.table, dtype="<u8")
        base = gpa & -HUGE_PAGE
        leaf = (entries & np.uint64(0x87)) > np.uint64(LEAF)
        there = np.flatnonzero(leaf & vmcs.space.uncached(base))
        if self._core.memory.image is not None:
            there = np.array(
                [each for each in there.tolist() if not self._absent(int(entries[each]))], dtype=np.int64
            )
        if not there.size:
            return
        # Pages that follow each other in both address spaces go together: after every flush of a TD's
        # translations there may be hundreds.
        step = entries[there[1:]] - entries[there[:-1]]
        cuts = np.flatnonzero((np.diff(there) != 1) | (step != np.uint64(LARGE_PAGE))) + 1
        for run in np.split(there, cuts):
            self._fill_run(vmcs, base, entries, int(run[0]), run.size, found.above, keyid)

    def _absent(self, entry: int) -> bool:
        """Whether some of a neighbour is still in a snapshot's file: it is left there."""
        image = self._core.memory.image
        return image is not None and image.absent(self._core.split(entry & FRAME_MASK)[0], LARGE_PAGE)

    def _fill_run(
        self,
        vmcs: Vmcs,
        base: int,
        entries: npt.NDArray[np.uint64],
        start: int,
        count: int,
        above: int,
        keyid: int,
    ) -> None:
        """Cache the 2 MiB pages of ``count`` ``entries`` from ``start`` on, whose frames are adjacent."""
        core = self._core
        first = int(entries[start])
        hpa, number_of_key = core.split(first & FRAME_MASK | keyid)
        size = count * LARGE_PAGE
        try:
            core.memory.acquire(hpa, size, number_of_key, core.guest)
        except MemoryFault:
            # What is wrong with one of them is not wrong with the others, nor with this access.
            if count > 1:
                for index in range(start, start + count):
                    self._fill_run(vmcs, base, entries, index, 1, above, keyid)
            return
        core.machine.frames_mapped(hpa, size)
        vmcs.space.map_run(base + start * LARGE_PAGE, hpa, count, Access(first & above & 7), code=True)
