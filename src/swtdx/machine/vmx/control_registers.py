"""Accesses of a guest to CR0, CR3, CR4 and CR8, as VMX carries them out or lets them exit.

Source: Intel SDM volume 3, sections 2.5, 4.1.2 and 26.1.3 (guest/host masks and read shadows).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import CLTS, LMSW, MOV_FROM_CR, MOV_TO_CR
from swtdx.arch.x86 import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_CET,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    EFER_LMA,
    EFER_LME,
)
from swtdx.machine.cpu.features import cr4_bits
from swtdx.machine.engine.protocol import Event, GuestContext
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.vmx import decode
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.apicv import VirtualApic
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.microcode import Microcode
from swtdx.machine.vmx.vmcs import Vmcs

_CR0_DEFINED: Final = 0xE005003F


class ControlRegisters:
    """Control register accesses on one logical processor."""

    def __init__(self, unit: Microcode) -> None:
        self._unit = unit

    def access(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        """Carry out the control-register instruction at RIP, or make it exit.

        Raises:
            GeneralProtection: the processor does not allow the new value.
        """
        unit = self._unit
        context = vmcs.context
        code = unit.fetch(vmcs)
        if not code:
            # The guest's own tables have changed under the instruction: it will fault by itself.
            return None
        decoded = decode.control_register_access(code, unit.code_bits(vmcs))
        if decoded is None:
            return unit.exit.set(reason.INVALID_GUEST_STATE)
        kind, number, gpr, length = decoded
        if context.cpl:
            raise GeneralProtection("a control register was accessed with CPL above 0")
        if kind == "from":
            context.gpr[gpr] = self._read(vmcs, number)
        elif kind == "smsw":
            if gpr < 0:
                # A store to memory is left to the software above: nothing modern executes it.
                return unit.exit.set(reason.CR_ACCESS, MOV_FROM_CR << 4, length)
            context.gpr[gpr] = context.cr0
        elif kind == "to":
            value = context.gpr[gpr] if context.long_mode else context.gpr[gpr] & 0xFFFFFFFF
            if self._write(vmcs, number, value):
                return unit.exit.set(reason.CR_ACCESS, number | MOV_TO_CR << 4 | gpr << 8, length)
        elif kind == "clts":
            if self._write(vmcs, 0, context.cr0 & ~CR0_TS):
                return unit.exit.set(reason.CR_ACCESS, CLTS << 4, length)
        else:
            source = context.gpr[gpr] & 0xFFFF if gpr >= 0 else self._memory_word(vmcs)
            # LMSW changes PE, MP, EM and TS, and cannot clear PE.
            value = context.cr0 & ~0xE | source & 0xF
            if self._write(vmcs, 0, value):
                return unit.exit.set(
                    reason.CR_ACCESS, LMSW << 4 | (0 if gpr >= 0 else 1 << 6) | source << 16, length
                )
        context.rip += length
        return None

    @staticmethod
    def loadable(vmcs: Vmcs) -> bool:
        """Whether VM entry can load the guest's control registers and EFER (SDM volume 3, 27.3.1.1)."""
        cr0, cr4, efer = vmcs.read(f.GUEST_CR0), vmcs.read(f.GUEST_CR4), vmcs.read(f.GUEST_EFER)
        paging, long_mode = cr0 & CR0_PG, efer & EFER_LMA
        if paging and (not cr0 & CR0_PE or bool(efer & EFER_LME) != bool(long_mode)):
            return False
        if long_mode and not (paging and cr4 & CR4_PAE):
            return False
        return not (cr4 & CR4_PCIDE and not long_mode) and not (cr4 & CR4_CET and not cr0 & CR0_WP)

    def _memory_word(self, vmcs: Vmcs) -> int:
        unit = self._unit
        linear = decode.memory_operand(unit.fetch(vmcs), vmcs.context.rip, unit.code_bits(vmcs), vmcs.context)
        return unit.read_linear(vmcs, linear or 0, 2)

    @staticmethod
    def _read(vmcs: Vmcs, number: int) -> int:
        context = vmcs.context
        match number:
            case 0:
                return int(context.cr0)
            case 2:
                return int(context.cr2)
            case 3:
                return int(context.cr3)
            case 4:
                return int(context.cr4)
            case 8:
                return 0 if vmcs.apic_page is None else vmcs.apic_page[0x80] >> 4
        raise GeneralProtection(f"CR{number} does not exist")

    def _write(self, vmcs: Vmcs, number: int, value: int) -> bool:
        """Write a control register; True when the host owns a bit that would change."""
        context = vmcs.context
        match number:
            case 0:
                return self._write_cr0(vmcs, value)
            case 3:
                if context.efer & EFER_LMA and value >> 52 & 0x7FF:
                    raise GeneralProtection("CR3 with reserved bits")
                context.cr3 = value & ~(1 << 63)
                return False
            case 4:
                return self._write_cr4(vmcs, value)
            case 8:
                if value >> 4:
                    raise GeneralProtection("CR8 with reserved bits")
                if vmcs.apic_page is not None:
                    VirtualApic.set_tpr(vmcs.apic_page, vmcs.read(f.GUEST_INTERRUPT_STATUS), value << 4)
                return False
        raise GeneralProtection(f"CR{number} does not exist")

    def _write_cr0(self, vmcs: Vmcs, value: int) -> bool:
        if value >> 32:
            raise GeneralProtection("CR0 with reserved bits")
        shadow, mask = vmcs.controls[f.CR0_READ_SHADOW], vmcs.controls[f.CR0_GUEST_HOST_MASK]
        if (value ^ shadow) & mask:
            return True
        load_cr0(vmcs.context, value)
        return False

    def _write_cr4(self, vmcs: Vmcs, value: int) -> bool:
        if value & ~cr4_bits():
            raise GeneralProtection(f"CR4 with bits that this processor does not have: {value:#x}")
        shadow, mask = vmcs.controls[f.CR4_READ_SHADOW], vmcs.controls[f.CR4_GUEST_HOST_MASK]
        if (value ^ shadow) & mask:
            return True
        load_cr4(vmcs.context, value)
        return False


def load_cr0(context: GuestContext, value: int) -> None:
    """Load CR0 with the processor's checks and its effect on EFER.LMA.

    Raises:
        GeneralProtection: the combination is not allowed.
    """
    value = value & _CR0_DEFINED | CR0_ET
    if (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        raise GeneralProtection("CR0 with an impossible combination")
    if context.cr4 & CR4_CET and not value & CR0_WP:
        raise GeneralProtection("CR0.WP cannot be cleared while CR4.CET is set")
    turned_on = value & CR0_PG and not context.cr0 & CR0_PG
    turned_off = context.cr0 & CR0_PG and not value & CR0_PG
    efer = context.efer
    if turned_on and efer & EFER_LME:
        if not context.cr4 & CR4_PAE or context.long_mode:
            raise GeneralProtection("long mode needs CR4.PAE")
        efer |= EFER_LMA
    elif turned_off:
        if context.long_mode or context.cr4 & CR4_PCIDE:
            raise GeneralProtection("paging cannot be turned off here")
        efer &= ~EFER_LMA
    # CR3 must not be lost between the two views of it.
    context.switch_paging(value, efer)


def load_cr4(context: GuestContext, value: int) -> None:
    """Load CR4 with the processor's checks.

    Raises:
        GeneralProtection: the combination is not allowed.
    """
    if context.efer & EFER_LMA and (not value & CR4_PAE or (value ^ context.cr4) & CR4_LA57):
        raise GeneralProtection("CR4.PAE and CR4.LA57 cannot change in long mode")
    if value & CR4_PCIDE and not context.efer & EFER_LMA:
        raise GeneralProtection("CR4.PCIDE needs long mode")
    if value & CR4_CET and not context.cr0 & CR0_WP:
        raise GeneralProtection("CR4.CET needs CR0.WP")
    context.cr4 = value
