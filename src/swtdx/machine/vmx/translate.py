"""What happens when a guest touches a GPA that its translation cache does not know.

The EPT is walked; a translation is cached, in bulk where neighbours are already resident; otherwise
the access is an EPT violation: a #VE in the guest where the entry says so, else a VM exit.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np

from swtdx.arch import vmcs as f
from swtdx.arch.exits import EPT_GLA_FINAL, EPT_GLA_VALID, TYPE_HARDWARE_EXCEPTION
from swtdx.arch.units import HUGE_PAGE, LARGE_PAGE, PAGE
from swtdx.arch.vmx_controls import PROC2_EPT_VIOLATION_VE
from swtdx.arch.x86 import FRAME_MASK, PF_USER, VECTOR_PF, VECTOR_VE
from swtdx.machine.engine.protocol import Access
from swtdx.machine.memory import BusAbort, MemoryFault, ReservedBitFault
from swtdx.machine.vmx import decode
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.ept import SUPPRESS_VE, Walk, walk
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.vmcs import Vmcs

if TYPE_CHECKING:
    from swtdx.machine.vmx.unit import VmxUnit

#: The hypervisor's EPT leads to a private KeyID (reserved bits: a misconfiguration, as on hardware), or to
#: where there is no memory or the SEAM range.  Hardware aborts those on the bus; a translation cache of
#: frames has nothing to show for it, and so this is a misconfiguration, too.
_UNREACHABLE: Final = (BusAbort, ReservedBitFault)
_LEAF: Final = 0x80
#: #PF error codes: the page is present and it was a fetch; from user mode.
_PF_FETCH: Final = 1 | 1 << 4


class Translator:
    """Fills the translation caches of one logical processor."""

    def __init__(self, unit: VmxUnit) -> None:
        self._unit = unit
        self._found = Walk()

    def miss(self, vmcs: Vmcs, gpa: int, access: Access) -> VmExit | None:
        """Handle a miss: None when the guest can go on, else the VM exit.

        Raises:
            MachineCheck: the target is memory whose integrity is broken.
        """
        if access & Access.FETCH and gpa & self._unit.shared_bit(vmcs):
            self._shared_fetch(vmcs, gpa)
            return None
        if gpa >= self._unit.shared_bit(vmcs) << 1:
            # Bits that the tables do not translate: an EPT violation, and never a #VE.
            return self._violation(vmcs, gpa, access, SUPPRESS_VE)
        found = self._walk(vmcs, gpa)
        if found.present and not found.misconfigured:
            wanted = int(access) & 7
            if found.entry & wanted == wanted:
                try:
                    self._fill(vmcs, gpa, found)
                    return None
                except _UNREACHABLE:
                    found.misconfigured = True
        if found.misconfigured:
            outcome = self._unit.exit.set(reason.EPT_MISCONFIGURATION)
            outcome.gpa = gpa
            return outcome
        return self._violation(vmcs, gpa, access, found.entry)

    def reach(self, vmcs: Vmcs, gpa: int) -> int | None:
        """The HPA of ``gpa`` for a microcode read, filling the cache; None when it is not readable."""
        hpa = vmcs.space.lookup(gpa)
        if hpa is not None:
            return int(hpa)
        if gpa >= self._unit.shared_bit(vmcs) << 1:
            return None
        found = self._walk(vmcs, gpa)
        if found.misconfigured or not found.entry & 1:
            return None
        size = (PAGE, LARGE_PAGE, HUGE_PAGE)[found.level]
        hpa = self._unit.split(found.entry & FRAME_MASK)[0] & -size | gpa & size - 1
        try:
            self._fill(vmcs, gpa, found)
        except _UNREACHABLE:
            return None
        # Not what the cache says now: another processor may have made it forget everything meanwhile.
        return hpa

    def _walk(self, vmcs: Vmcs, gpa: int) -> Walk:
        unit = self._unit
        controls = vmcs.controls
        if gpa & unit.shared_bit(vmcs):
            # The hypervisor's tables: addresses carry shared KeyIDs, or fault.
            return walk(
                controls[f.SHARED_EPTP] & FRAME_MASK | controls[f.EPTP] & 0x3F,
                gpa & ~unit.shared_bit(vmcs),
                0,
                unit.map_shared_table,
                self._found,
            )
        return walk(
            controls[f.EPTP], gpa, unit.keyid_bits(controls[f.HKID]), unit.map_private_table, self._found
        )

    def _fill(self, vmcs: Vmcs, gpa: int, found: Walk) -> None:
        unit = self._unit
        shared = bool(gpa & unit.shared_bit(vmcs))
        keyid = 0 if shared else unit.keyid_bits(vmcs.controls[f.HKID])
        if found.level == 0:
            self._fill_small(vmcs, gpa, found, keyid, shared)
            return
        # A 1 GiB page is cached 2 MiB at a time.
        size = LARGE_PAGE if found.level == 1 else HUGE_PAGE
        address = found.entry & FRAME_MASK & -size | gpa & size - LARGE_PAGE
        self._map(vmcs, gpa & -LARGE_PAGE, address | keyid, LARGE_PAGE, found.entry, shared)
        if found.level == 1 and not shared:
            self._fill_neighbours(vmcs, gpa, found, keyid)

    def _map(self, vmcs: Vmcs, gpa: int, pa: int, size: int, entry: int, shared: bool) -> None:
        unit = self._unit
        hpa, keyid = unit.split(pa)
        if shared and keyid and unit.memory.addresses.is_private(keyid):
            # In a shared EPT the bits of private KeyIDs are reserved, for TDs as for everybody else.
            raise ReservedBitFault(hpa, keyid, "a private KeyID in a shared EPT")
        unit.memory.acquire(hpa, size, keyid, unit.guest)
        if not shared:
            unit.machine.frames_mapped(hpa, size)
        vmcs.space.map(gpa, hpa, size, Access(entry & 7), code=not shared)

    def _fill_small(self, vmcs: Vmcs, gpa: int, found: Walk, keyid: int, shared: bool) -> None:
        """Cache the page and up to 511 neighbours of the same table that are present."""
        self._map(vmcs, gpa & -PAGE, found.entry & FRAME_MASK | keyid, PAGE, found.entry, shared)
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
                    self._map(vmcs, base + index * PAGE, entry & FRAME_MASK | keyid, PAGE, entry, shared)

    def _fill_neighbours(self, vmcs: Vmcs, gpa: int, found: Walk, keyid: int) -> None:
        """Cache the other 2 MiB pages that the same table maps."""
        assert found.table is not None
        entries = np.frombuffer(found.table, dtype="<u8")
        base = gpa & -HUGE_PAGE
        lookup = vmcs.space.lookup
        for index in np.flatnonzero((entries & np.uint64(0x87)) > np.uint64(_LEAF)).tolist():
            where = base + index * LARGE_PAGE
            if lookup(where) is None:
                entry = int(entries[index])
                with suppress(MemoryFault):
                    self._map(vmcs, where, entry & FRAME_MASK | keyid, LARGE_PAGE, entry, False)

    # ------------------------------------------------------------------ violations
    def _shared_fetch(self, vmcs: Vmcs, gpa: int) -> None:
        """Code in shared memory is not executed: #PF, as for an execute-disabled page."""
        context = vmcs.context
        context.cr2 = self._fetched_address(vmcs, gpa)
        context.inject(VECTOR_PF, TYPE_HARDWARE_EXCEPTION, _PF_FETCH | (PF_USER if context.cpl == 3 else 0))

    def _fetched_address(self, vmcs: Vmcs, gpa: int) -> int:
        """The linear address of a fetch from ``gpa``."""
        linear = self._unit.linear_rip(vmcs)
        # If the offsets differ, the instruction begins on the page before.
        return linear if not (linear ^ gpa) & PAGE - 1 else (linear | PAGE - 1) + 1

    def _violation(self, vmcs: Vmcs, gpa: int, access: Access, entry: int) -> VmExit | None:
        qualification = int(access) & 7 | (entry & 7) << 3
        if not access & Access.WALK:
            qualification |= EPT_GLA_FINAL
        # The engine does not report it, and software in SEAM is not to look into guest code for it.
        fetch = access & Access.FETCH
        gla = self._fetched_address(vmcs, gpa) if fetch else self._linear_address(vmcs)
        if gla is not None:
            qualification |= EPT_GLA_VALID
        outcome = self._unit.exit.set(reason.EPT_VIOLATION, qualification)
        outcome.gpa = gpa
        outcome.gla = gla
        if (
            not entry & SUPPRESS_VE
            and vmcs.controls[f.SECONDARY_CONTROLS] & PROC2_EPT_VIOLATION_VE
            and vmcs.context.undelivered() is None
            and self._convert(vmcs, gpa, qualification)
        ):
            return None
        return outcome

    def _convert(self, vmcs: Vmcs, gpa: int, qualification: int) -> bool:
        """Turn an EPT violation into a #VE in the guest; False when its area is in use.

        Source: Intel SDM volume 3, section 26.5.7.
        """
        unit = self._unit
        area_pa = vmcs.controls[f.VE_INFORMATION_ADDRESS]
        page = unit.map_private_table(area_pa & -PAGE | unit.keyid_bits(vmcs.controls[f.HKID]))
        offset = area_pa & PAGE - 1
        if struct.unpack_from("<I", page, offset + 4)[0]:
            return False
        struct.pack_into(
            "<IIQQQH",
            page,
            offset,
            reason.EPT_VIOLATION,
            0xFFFFFFFF,
            qualification,
            unit.exit.gla or 0,
            gpa,
            0,
        )
        vmcs.context.inject(VECTOR_VE, TYPE_HARDWARE_EXCEPTION, None)
        return True

    def _linear_address(self, vmcs: Vmcs) -> int | None:
        """The linear address of the memory operand at RIP; None if it has none or cannot be read."""
        unit = self._unit
        code = unit.fetch(vmcs)
        if not code:
            return None
        return decode.memory_operand(code, vmcs.context.rip, unit.code_bits(vmcs), vmcs.context)
