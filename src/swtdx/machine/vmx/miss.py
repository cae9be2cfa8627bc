"""What happens when a guest touches a GPA that its translation cache does not know.

The translation is cached if there is one that allows the access; otherwise the access is an EPT violation: a
#VE in the guest where the entry says so, else a VM exit.
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import EPT_GLA_FINAL, EPT_GLA_VALID, EPT_NMI_UNBLOCKING, TYPE_HARDWARE_EXCEPTION
from swtdx.arch.sept_bits import SUPPRESS_VE
from swtdx.arch.units import PAGE
from swtdx.arch.vmx_controls import PROC2_EPT_VIOLATION_VE
from swtdx.arch.x86 import PF_USER, VECTOR_PF, VECTOR_VE
from swtdx.machine.engine.protocol import Access, Event
from swtdx.machine.vmx import decode
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.microcode import Microcode
from swtdx.machine.vmx.translate import UNREACHABLE
from swtdx.machine.vmx.vmcs import Vmcs

#: #PF error codes: the page is present and it was a fetch; from user mode.
_PF_FETCH: Final = 1 | 1 << 4


class Misses:
    """The misses of one logical processor."""

    def __init__(self, unit: Microcode) -> None:
        self._unit = unit

    def miss(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        """Handle a miss: None when the guest can go on, else the VM exit.

        Raises:
            MachineCheck: the target is memory whose integrity is broken.
        """
        gpa, access = event.gpa, event.access
        translator = self._unit.translator
        if access & Access.FETCH and gpa & self._unit.shared_bit(vmcs):
            self._shared_fetch(vmcs, gpa)
            return None
        if gpa >= self._unit.shared_bit(vmcs) << 1:
            # Bits that the tables do not translate: an EPT violation, and never a #VE.
            return self._violation(vmcs, gpa, access, SUPPRESS_VE)
        found = translator.walk(vmcs, gpa)
        if found.entry & 7 and not found.misconfigured:
            wanted = int(access) & 7
            if found.rights & wanted == wanted:
                try:
                    # A walk sets the accessed flags of the guest's tables.
                    translator.fill(vmcs, gpa, found, write=bool(access & (Access.WRITE | Access.WALK)))
                    return None
                except UNREACHABLE:
                    found.misconfigured = True
        if found.misconfigured:
            outcome = self._unit.exit.set(reason.EPT_MISCONFIGURATION)
            outcome.gpa = gpa
            return outcome
        return self._violation(vmcs, gpa, access, found.rights | found.entry & SUPPRESS_VE)

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
        # Valid for every violation, but for the loads of PDPTEs that no TD makes (SDM volume 3, table 28-7).
        qualification |= EPT_GLA_VALID
        if vmcs.unblocks_nmis:
            qualification |= EPT_NMI_UNBLOCKING
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
        observer = unit.lp.observer
        if observer is not None:
            observer.converted(vmcs, gpa, qualification)
        return True

    def _linear_address(self, vmcs: Vmcs) -> int | None:
        """The linear address of the memory operand at RIP; None if it has none or cannot be read."""
        unit = self._unit
        code = unit.fetch(vmcs)
        if not code:
            return None
        return decode.memory_operand(code, vmcs.context.rip, unit.code_bits(vmcs), vmcs.context)
