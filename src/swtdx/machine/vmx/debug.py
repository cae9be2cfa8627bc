"""Debug exceptions and debug registers of a guest, as a processor carries them out.

An engine watches for breakpoints; every access to the registers comes here.  Source: Intel SDM volume 3,
chapter 18 and section 26.1.3 (MOV-DR exiting); INT1: volume 2.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import INTERRUPTION_VALID, TYPE_HARDWARE_EXCEPTION
from swtdx.arch.vmx_controls import PROC_MOV_DR_EXITING
from swtdx.arch.x86 import CR4_DE, VECTOR_DB, VECTOR_UD
from swtdx.machine.engine.protocol import Event
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.vmx import decode
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.microcode import Microcode
from swtdx.machine.vmx.vmcs import Vmcs

#: Interruption type: privileged software exception.
_PRIVILEGED_SOFTWARE: Final = 5
#: DR6.BD and DR7.GD.
_BD: Final = 1 << 13
_GD: Final = 1 << 13
#: The bits of DR6 that a #DB's exit qualification has.
_PENDING: Final = 0x600F


class DebugRegisters:
    """MOV DR and INT1 on one logical processor."""

    def __init__(self, unit: Microcode) -> None:
        self._unit = unit

    def access(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        """Carry out the MOV DR at RIP, or make it exit.

        Raises:
            GeneralProtection: the processor does not allow the new value, or CPL is not 0.
        """
        unit = self._unit
        context = vmcs.context
        code = unit.fetch(vmcs)
        if not code:
            # The guest's own tables have changed under the instruction: it will fault by itself.
            return None
        bits = unit.code_bits(vmcs)
        decoded = decode.debug_register_access(code, bits)
        if decoded is None:
            return unit.exit.set(reason.INVALID_GUEST_STATE)
        write, number, gpr, length = decoded
        if context.cpl:
            raise GeneralProtection("a debug register was accessed with CPL above 0")
        if vmcs.controls[f.PROC_BASED_CONTROLS] & PROC_MOV_DR_EXITING:
            qualification = number | (0 if write else 1 << 4) | gpr << 8
            return unit.exit.set(reason.DR_ACCESS, qualification, length)
        if number > 7 or (number in (4, 5) and context.cr4 & CR4_DE):
            context.inject(VECTOR_UD, TYPE_HARDWARE_EXCEPTION, None)
            return None
        if context.read_dr(7) & _GD:
            return self._general_detect(vmcs)
        number = number + 2 if number in (4, 5) else number
        if write:
            value = context.gpr[gpr] if bits == 64 else context.gpr[gpr] & 0xFFFFFFFF
            if number > 3 and value >> 32:
                raise GeneralProtection(f"DR{number} with reserved bits")
            context.write_dr(number, value)
        else:
            context.gpr[gpr] = context.read_dr(number) & ((1 << 64) - 1 if bits == 64 else 0xFFFFFFFF)
        context.rip += length
        return None

    def _general_detect(self, vmcs: Vmcs) -> VmExit | None:
        """DR7.GD is set: #DB before the access, which clears GD so that its handler gets through."""
        context = vmcs.context
        if vmcs.controls[f.EXCEPTION_BITMAP] >> VECTOR_DB & 1:
            outcome = self._unit.exit.set(reason.EXCEPTION_OR_NMI, _BD)
            outcome.intr_info = VECTOR_DB | TYPE_HARDWARE_EXCEPTION << 8 | INTERRUPTION_VALID
            return outcome
        context.write_dr(6, context.read_dr(6) | _BD)
        self.deliver(vmcs)
        return None

    @staticmethod
    def deliver(vmcs: Vmcs) -> None:
        """Deliver a #DB whose DR6 is set already."""
        context = vmcs.context
        context.write_dr(7, context.read_dr(7) & ~_GD)
        context.inject(VECTOR_DB, TYPE_HARDWARE_EXCEPTION, None)

    def int1(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        """INT1 (ICEBP): a #DB that changes nothing in DR6."""
        unit = self._unit
        length = unit.length(vmcs, b"\xf1")
        if vmcs.controls[f.EXCEPTION_BITMAP] >> VECTOR_DB & 1:
            outcome = unit.exit.set(reason.EXCEPTION_OR_NMI, 0, length)
            outcome.intr_info = VECTOR_DB | _PRIVILEGED_SOFTWARE << 8 | INTERRUPTION_VALID
            return outcome
        vmcs.context.rip += length
        self.deliver(vmcs)
        return None

    @staticmethod
    def pending(vmcs: Vmcs) -> int:
        """The exit qualification of a #DB that the engine has raised."""
        return int(vmcs.context.read_dr(6)) & _PENDING
