"""What reading or writing an MSR does beyond moving bits.

A read rule returns the value; a write rule returns what to store (None: nothing) or raises #GP.  Rules
get the :class:`~swtdx.machine.cpu.msr_file.MsrFile` of the processor that executes the instruction, the
row, and the value.  Sources: Intel SDM volume 4 and the chapters named at each rule; structures.md
§10-11 for TME and SEAMRR.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.msrs import (
    IA32_APIC_BASE,
    IA32_SEAMRR_PHYS_MASK,
    IA32_SMRR_PHYSBASE,
    IA32_SMRR_PHYSMASK,
    IA32_TME_ACTIVATE,
    IA32_TSC_ADJUST,
    IA32_WBINVDP,
    IA32_XAPIC_DISABLE_STATUS,
)
from swtdx.arch.units import MASK64
from swtdx.machine.cpu.activation import activate_tme
from swtdx.machine.cpu.msr_file import MsrFile, ReadRule, WriteRule
from swtdx.machine.cpu.msr_table import Msr
from swtdx.machine.faults import GeneralProtection

#: Cache sub-blocks that WBINVDP walks through; each write may flush more than its share.
WBINVD_BLOCKS: Final = 4
#: FEATURE_CONTROL: locked, VMX outside SMX.
FEATURE_LOCK: Final = 1
FEATURE_VMX: Final = 1 << 2
RANGE_LOCK: Final = 1 << 10
RANGE_VALID: Final = 1 << 11
_TYPES: Final = frozenset({0, 1, 4, 5, 6})
_PAT_TYPES: Final = frozenset({0, 1, 4, 5, 6, 7})
_X2APIC: Final = 1 << 10
_XAPIC: Final = 1 << 11


def refuse(row: Msr, value: int, why: str) -> GeneralProtection:
    """#GP of a WRMSR, with the reason in words."""
    return GeneralProtection(f"WRMSR {row.name} ({row.address:#x}) = {value:#x}: {why}")


# ---------------------------------------------------------------------- time
def _read_tsc(file: MsrFile, _row: Msr) -> int:
    return file.machine_tsc() + file.peek(IA32_TSC_ADJUST) & MASK64


def _write_tsc(file: MsrFile, _row: Msr, value: int) -> None:
    """Writing the TSC moves TSC_ADJUST by as much (SDM volume 3, 18.17.3)."""
    file.poke(IA32_TSC_ADJUST, value - file.machine_tsc() & MASK64)


def _read_deadline(file: MsrFile, _row: Msr) -> int:
    deadline = file.lp.timer_deadline
    return 0 if deadline is None else deadline + file.peek(IA32_TSC_ADJUST) & MASK64


def _write_deadline(file: MsrFile, _row: Msr, value: int) -> None:
    """Arms the APIC timer in TSC-deadline mode; ignored in the other modes (SDM volume 3, 11.5.4.1)."""
    timer = file.peek(0x832)
    if timer >> 17 & 3 != 2:
        return
    vector = None if timer & 1 << 16 else timer & 0xFF
    deadline = value - file.peek(IA32_TSC_ADJUST) & MASK64
    file.lp.arm_timer(deadline if value and vector is not None else None, vector or 0)


# ---------------------------------------------------------------------- identity and control
def _write_apic_base(file: MsrFile, row: Msr, value: int) -> int:
    """Allowed changes of APIC mode (SDM volume 3, figure 11-27), and none once xAPIC is disabled."""
    old = file.read(row.address)
    mode, new = old & (_XAPIC | _X2APIC), value & (_XAPIC | _X2APIC)
    if new == _X2APIC:
        raise refuse(row, value, "x2APIC mode needs the APIC enabled (bit 11)")
    if mode == _XAPIC | _X2APIC and new == _XAPIC:
        raise refuse(row, value, "x2APIC mode cannot go back to xAPIC mode")
    if mode == 0 and new == _XAPIC | _X2APIC:
        raise refuse(row, value, "x2APIC mode is entered from xAPIC mode")
    if mode == _XAPIC | _X2APIC and file.read(IA32_XAPIC_DISABLE_STATUS) & 1 and new != mode:
        raise refuse(row, value, "the legacy xAPIC is disabled (IA32_XAPIC_DISABLE_STATUS)")
    return value


def _read_apic_base(file: MsrFile, row: Msr) -> int:
    """Reset leaves the APIC enabled; bit 8 marks the bootstrap processor."""
    return file.stored(row, 0xFEE00000 | _XAPIC | (1 << 8 if file.lp.index == 0 else 0))


def _write_feature_control(file: MsrFile, row: Msr, value: int) -> int:
    if file.peek(row.address) & FEATURE_LOCK:
        raise refuse(row, value, "locked until reset (bit 0)")
    return value


def _write_canonical(file: MsrFile, row: Msr, value: int) -> int:
    if value >> 47 not in (0, (1 << 17) - 1):
        raise refuse(row, value, "not a canonical address")
    return value


def _write_command(_file: MsrFile, _row: Msr, _value: int) -> None:
    """Accepted; there is nothing that it could flush or load."""


def _read_microcode(file: MsrFile, _row: Msr) -> int:
    return file.model.microcode << 32


def _write_microcode(_file: MsrFile, row: Msr, value: int) -> None:
    if value:
        raise refuse(row, value, "only 0 may be written, before CPUID reloads it")


def _read_platform_info(file: MsrFile, _row: Msr) -> int:
    return file.model.base_mhz // 100 << 8


def _write_bios_done(file: MsrFile, row: Msr, value: int) -> int:
    if file.peek(row.address) & ~value:
        raise refuse(row, value, "BIOS_DONE can only be set")
    return value


def _write_pat(_file: MsrFile, row: Msr, value: int) -> int:
    if any(value >> shift & 0xFF not in _PAT_TYPES for shift in range(0, 64, 8)):
        raise refuse(row, value, "a reserved memory type")
    return value


def _read_pending(file: MsrFile, _row: Msr) -> int:
    return 1 if file.lp.pending else 0


def _read_blocks(_file: MsrFile, _row: Msr) -> int:
    return WBINVD_BLOCKS


def _write_blocks(file: MsrFile, row: Msr, value: int) -> None:
    """Write back the cache's sub-block ``value`` (and, as any cache may, more than that)."""
    if value >= WBINVD_BLOCKS:
        raise refuse(row, value, f"the cache has sub-blocks 0..{WBINVD_BLOCKS - 1}")
    memory = file.lp.machine.memory
    if row.address == IA32_WBINVDP:
        memory.wbinvd()
    else:
        memory.wbnoinvd()


# ---------------------------------------------------------------------- MTRRs and SMRR
def _write_mtrr_base(_file: MsrFile, row: Msr, value: int) -> int:
    if value & 0xFF not in _TYPES:
        raise refuse(row, value, f"memory type {value & 0xFF} is reserved")
    return value


def _write_mtrr_fixed(_file: MsrFile, row: Msr, value: int) -> int:
    if any(value >> shift & 0xFF not in _TYPES for shift in range(0, 64, 8)):
        raise refuse(row, value, "a reserved memory type")
    return value


def _write_smrr(file: MsrFile, row: Msr, value: int) -> int:
    """SMRR_BASE and SMRR_MASK lock together with bit 10 of the mask."""
    if file.peek(IA32_SMRR_PHYSMASK) & RANGE_LOCK:
        raise refuse(row, value, "SMRR is locked until reset (IA32_SMRR_PHYSMASK bit 10)")
    if row.address == IA32_SMRR_PHYSBASE and value & 0xFF not in _TYPES:
        raise refuse(row, value, f"memory type {value & 0xFF} is reserved")
    return value


# ---------------------------------------------------------------------- TME
def _read_tme_capability(file: MsrFile, _row: Msr) -> int:
    """AES-XTS-128 with and without integrity, bypass; key id bits and keys of the part."""
    return 0x3 | 1 << 31 | file.model.max_keyid_bits << 32 | file.model.max_keys << 36


def _write_tme_locked(file: MsrFile, row: Msr, value: int) -> int:
    if file.peek(IA32_TME_ACTIVATE) & 1:
        raise refuse(row, value, "IA32_TME_ACTIVATE is locked")
    return value


def _write_tme_activate(file: MsrFile, row: Msr, value: int) -> int:
    if file.peek(row.address) & 1:
        raise refuse(row, value, "locked until reset (bit 0)")
    return activate_tme(file, row, value | 1)


# ---------------------------------------------------------------------- SEAM
def _write_seamrr_base(file: MsrFile, row: Msr, value: int) -> int:
    if file.peek(IA32_SEAMRR_PHYS_MASK) & RANGE_LOCK:
        raise refuse(row, value, "SEAMRR is locked until reset (IA32_SEAMRR_PHYS_MASK bit 10)")
    return value


def _write_seamrr_mask(file: MsrFile, row: Msr, value: int) -> int:
    """VALID belongs to MCHECK, and to an authenticated code module that relocks the range."""
    old = file.peek(row.address)
    if file.in_acm:
        if (value ^ old) & ~RANGE_VALID:
            raise refuse(row, value, "an ACM may change VALID only")
        return value
    if old & RANGE_LOCK:
        raise refuse(row, value, "SEAMRR is locked until reset (bit 10)")
    if value & RANGE_VALID:
        raise refuse(row, value, "VALID (bit 11) is set by MCHECK, not by software")
    return value


def _write_seamextend(file: MsrFile, row: Msr, value: int) -> None:
    """Copy SEAMEXTEND out to (bit 0 set) or in from memory at the address in the other bits."""
    if not (file.in_seam or file.in_acm):
        raise refuse(row, value, "only software in SEAM mode and the SEAM loader ACM have this MSR")
    file.lp.machine.seam.transfer_seamextend(file.lp.machine.memory, value & ~0xFF, out=bool(value & 1))


# ---------------------------------------------------------------------- x2APIC
def _need_x2apic(file: MsrFile, row: Msr) -> None:
    if not file.read(IA32_APIC_BASE) & _X2APIC:
        raise GeneralProtection(f"{row.name} ({row.address:#x}) exists only in x2APIC mode")


def _read_x2apic(file: MsrFile, row: Msr) -> int:
    _need_x2apic(file, row)
    apic_id = file.lp.x2apic_id
    if row.address == 0x80D:  # logical id: cluster and bit, derived from the x2APIC id
        return apic_id >> 4 << 16 | 1 << (apic_id & 15)
    if 0x820 <= row.address <= 0x827:
        base = 32 * (row.address - 0x820)
        return sum(1 << vector - base for vector in file.lp.pending if base <= vector < base + 32)
    return file.stored(row, row.reset)


def _write_x2apic(file: MsrFile, row: Msr, value: int) -> int:
    _need_x2apic(file, row)
    return value


def _read_x2apic_id(file: MsrFile, row: Msr) -> int:
    _need_x2apic(file, row)
    return file.lp.x2apic_id


def _write_eoi(file: MsrFile, row: Msr, value: int) -> None:
    _need_x2apic(file, row)
    if value:
        raise refuse(row, value, "EOI takes only 0")


def _write_icr(file: MsrFile, row: Msr, value: int) -> int:
    """Send an IPI: fixed delivery, physical destination or a shorthand."""
    _need_x2apic(file, row)
    here = file.lp.index
    vector, mode, shorthand = value & 0xFF, value >> 8 & 7, value >> 18 & 3
    if mode == 0:
        if vector < 16:
            raise refuse(row, value, f"vector {vector} is reserved")
        for agent in file.lp.machine.agents:
            chosen = (
                agent.x2apic_id == value >> 32, agent.index == here, True, agent.index != here,
            )[shorthand]  # fmt: skip
            if chosen or (shorthand == 0 and value >> 32 == 0xFFFFFFFF):
                agent.interrupt(vector)
    return value


def _write_self_ipi(file: MsrFile, row: Msr, value: int) -> None:
    _need_x2apic(file, row)
    if value < 16:
        raise refuse(row, value, f"vector {value} is reserved")
    file.lp.interrupt(value)


READ_RULES: Final[dict[str, ReadRule]] = {
    "tsc": _read_tsc,
    "tsc_deadline": _read_deadline,
    "apic_base": _read_apic_base,
    "microcode": _read_microcode,
    "platform_info": _read_platform_info,
    "intr_pending": _read_pending,
    "wbinvdp": _read_blocks,
    "tme_capability": _read_tme_capability,
    "x2apic": _read_x2apic,
    "x2apic_id": _read_x2apic_id,
}
WRITE_RULES: Final[dict[str, WriteRule]] = {
    "tsc": _write_tsc,
    "tsc_deadline": _write_deadline,
    "apic_base": _write_apic_base,
    "feature_control": _write_feature_control,
    "canonical": _write_canonical,
    "command": _write_command,
    "microcode": _write_microcode,
    "bios_done": _write_bios_done,
    "pat": _write_pat,
    "wbinvdp": _write_blocks,
    "mtrr_base": _write_mtrr_base,
    "mtrr_default": _write_mtrr_base,
    "mtrr_fixed": _write_mtrr_fixed,
    "smrr": _write_smrr,
    "tme_activate": _write_tme_activate,
    "tme_locked": _write_tme_locked,
    "seamrr_base": _write_seamrr_base,
    "seamrr_mask": _write_seamrr_mask,
    "seamextend": _write_seamextend,
    "x2apic": _write_x2apic,
    "x2apic_eoi": _write_eoi,
    "x2apic_icr": _write_icr,
    "x2apic_self": _write_self_ipi,
}
