"""Checks that many leaves share, as rows of outcomes, and operand formats, written once.

Source: ``src/common/helpers/helpers.c`` and ``sept_manager.c`` of the TDX module 1.5.01 (what is
checked, in which order), include/tdx_api_defs.h (formats).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaf import ONES, ROOT, SEPT, ZERO, Bits, Input, Kind, Outcome, Output
from swtdx.arch.metadata_field import Context
from swtdx.arch.operands import OperandId as Op

_IDS: Final[dict[str, int]] = {name: value for name, value in vars(Op).items() if name[0].isupper()}


def invalid(operand: str, check: str) -> Outcome:
    """OPERAND_INVALID | operand."""
    return Outcome(s.TDX_OPERAND_INVALID, _IDS[operand], check)


def busy(operand: str, check: str) -> Outcome:
    """OPERAND_BUSY | operand."""
    return Outcome(s.TDX_OPERAND_BUSY, _IDS[operand], check)


def plain(status: int, check: str) -> Outcome:
    """A status without details, or with details that vary."""
    return Outcome(status, None, check)


def at(status: int, operand: str, check: str) -> Outcome:
    """A status with an operand id."""
    return Outcome(status, _IDS[operand], check)


def page(operand: str, kind: str, *, exclusive: bool = True) -> tuple[Outcome, ...]:
    """A private 4-KiB page given by HPA whose PAMT type must be ``kind``."""
    mode = "exclusive" if exclusive else "shared"
    return (
        invalid(operand, "a 4-KiB aligned HPA below MAXPA, HKID bits 0"),
        at(s.TDX_OPERAND_ADDR_RANGE_ERROR, operand, "inside a TDMR whose PAMT block is initialised"),
        busy(operand, f"PAMT lock of the page, {mode}; of its 2-MiB and 1-GiB entries, shared"),
        at(s.TDX_PAGE_METADATA_INCORRECT, operand, f"the PAMT says a 4-KiB page of type {kind}"),
    )


def tdr(operand: str, *, exclusive: bool = False) -> tuple[Outcome, ...]:
    """A TDR page given by HPA."""
    return page(operand, "TDR", exclusive=exclusive)


def new_page(operand: str) -> tuple[Outcome, ...]:
    """A free page given by HPA, to be given a new owner."""
    return page(operand, "NDA")


_BUILD: Final = (
    plain(s.TDX_TD_FATAL, "the TD is not marked fatal"),
    plain(s.TDX_TD_KEYS_NOT_CONFIGURED, "life cycle KEYS_CONFIGURED"),
    plain(s.TDX_TDCS_NOT_ALLOCATED, "at least 6 TDCX pages"),
)
_OP_STATE: Final = plain(s.TDX_OP_STATE_INCORRECT, "an operation state that allows this leaf")

#: State of the TD, its op_state lock held shared or exclusive.
STATE: Final = (*_BUILD, busy("OP_STATE", "op_state lock"), _OP_STATE)
#: State of the TD; the TDR is held exclusively, so op_state needs no lock.
STATE_NO_LOCK: Final = (*_BUILD, _OP_STATE)


def td(operand: str) -> tuple[Outcome, ...]:
    """An explicit TDR, held shared, and the TD's state."""
    return (*tdr(operand), *STATE)


def td_exclusive(operand: str) -> tuple[Outcome, ...]:
    """An explicit TDR, held exclusively, and the TD's state."""
    return (*tdr(operand, exclusive=True), *STATE_NO_LOCK)


def vcpu(operand: str, *, exclusive: bool) -> tuple[Outcome, ...]:
    """A TDVPR page given by HPA, and the TDR that owns it, held shared."""
    return (
        *page(operand, "TDVPR", exclusive=exclusive),
        busy("TDR", "PAMT lock of the TDR that owns the VCPU, shared"),
    )


TDCX_COMPLETE: Final = plain(s.TDX_TDCX_NUM_INCORRECT, "all TDVPS pages were added: 6, and 3 for each L2 VM")

#: GPA and level in RCX, the walk, and the lock and state of the entry it finds.
GPA_INVALID: Final = invalid(
    "RCX", "level and reserved bits allowed; GPA aligned to the level, private, within GPAW"
)
WALK: Final = (
    busy("SEPT_TREE", "Secure EPT tree lock"),
    at(s.TDX_EPT_WALK_FAILED, "RCX", "the walk reaches the level asked for"),
)
ENTRY: Final = (
    busy("RCX", "Secure EPT entry lock"),
    at(s.TDX_EPT_ENTRY_STATE_INCORRECT, "RCX", "an entry state that allows this leaf"),
)
SEPT_ENTRY: Final = (GPA_INVALID, *WALK, *ENTRY)
#: Blocking and tracking, for leaves that take a translation away.
TRACKED: Final = (
    at(s.TDX_GPA_RANGE_NOT_BLOCKED, "RCX", "blocked, if TLBs may hold the translation"),
    at(s.TDX_TLB_TRACKING_NOT_DONE, "RCX", "tracked since it was blocked"),
)
TSC_ADJUST: Final = Outcome(s.TDX_INCONSISTENT_MSR, 0x3B, "IA32_TSC_ADJUST equals its value at TDH.SYS.INIT")
BOOT_NT4: Final = plain(s.TDX_LIMIT_CPUID_MAXVAL_SET, "IA32_MISC_ENABLE[22] is clear")


def metadata_read(*, enumerate_ids: bool) -> tuple[Outcome, ...]:
    """Reading one metadata element."""
    first = plain(s.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT, "field id -1 asks for the first id (no error)")
    return (
        *((first,) if enumerate_ids else ()),
        plain(s.TDX_METADATA_FIELD_ID_INCORRECT, "an existing field; reserved bits and counts 0"),
        plain(s.TDX_METADATA_FIELD_NOT_READABLE, "the caller may read it"),
    )


METADATA_WRITE: Final = (
    plain(s.TDX_METADATA_FIELD_ID_INCORRECT, "an existing field; reserved bits and counts 0"),
    plain(s.TDX_METADATA_FIELD_NOT_WRITABLE, "the caller may write some bit that the mask selects"),
    plain(s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "bits not writable keep their value"),
    plain(s.TDX_METADATA_WR_MASK_NOT_VALID, "a field that is written whole is written whole"),
    plain(s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "the value is allowed"),
    at(s.TDX_OPERAND_BUSY, "METADATA_FIELD", "nobody wrote the field meanwhile"),
)  # fmt: skip

GPA_LEVEL_BITS: Final = (
    Bits("level", 2, 0), Bits("reserved", 11, 3), Bits("gpa", 51, 12), Bits("reserved2", 63, 52),
)  # fmt: skip
TDR_FLAG_BITS: Final = (
    Bits("flag", 0, 0), Bits("reserved", 11, 1), Bits("tdr", 51, 12), Bits("reserved2", 63, 52),
)  # fmt: skip
VCPU_FLAG_BITS: Final = (
    Bits("reserved", 11, 0), Bits("tdvpr", 51, 12), Bits("host_recoverability_hint", 52, 52),
    Bits("resume_l1", 53, 53), Bits("reserved2", 63, 54),
)  # fmt: skip
HKID_BITS: Final = (Bits("hkid", 15, 0), Bits("reserved", 63, 16))
X2APIC_ID_BITS: Final = (Bits("x2apic_id", 31, 0), Bits("reserved", 63, 32))
GPA_LIST_BITS: Final = (
    Bits("format", 2, 0), Bits("first_entry", 11, 3), Bits("hpa", 51, 12), Bits("reserved", 54, 52),
    Bits("last_entry", 63, 55),
)  # fmt: skip
MBMD_BITS: Final = (Bits("hpa", 51, 0), Bits("size", 63, 52))
PAGE_LIST_BITS: Final = (
    Bits("reserved", 11, 0), Bits("hpa", 51, 12), Bits("reserved2", 54, 52), Bits("last_entry", 63, 55),
)  # fmt: skip
STREAM_BITS: Final = (Bits("migs_index", 15, 0), Bits("reserved", 62, 16), Bits("command", 63, 63))
LEAF_SUBLEAF_BITS: Final = (Bits("leaf", 31, 0), Bits("subleaf", 63, 32))
VMCALL_BITS: Final = (Bits("gpr_select", 15, 0), Bits("xmm_select", 31, 16), Bits("reserved", 63, 32))
SEPT_INFO: Final = (
    Output("RCX", "0, or the Secure EPT entry at which a check failed", SEPT),
    Output("RDX", "0, or its level (2:0), public state (15:8) and VM (17:16)", SEPT),
)


def gpa_level(lowest: int, highest: int, note: str = "") -> Input:
    """RCX of the MEM leaves; levels ``lowest`` to ``highest`` are allowed."""
    to = " to the root's" if highest == ROOT else f"..{highest}" if highest > lowest else ""
    return Input(
        "RCX", f"GPA and Secure EPT level ({lowest}{to}{note})", GPA_LEVEL_BITS,
        kind=Kind.GPA_AND_LEVEL, levels=(lowest, highest),
    )  # fmt: skip


def tdr_in(register: str) -> Input:
    """An HPA of a TDR page without HKID."""
    return Input(register, "TDR page (HPA, HKID bits 0)", kind=Kind.TDR)


def field_in(context: Context) -> Input:
    """RDX of the leaves that read or write one metadata element of ``context``."""
    return Input("RDX", "metadata field id", kind=Kind.FIELD, detail=context)


def tdvpr_in(register: str) -> Input:
    """An HPA of a TDVPR page without HKID."""
    return Input(register, "TDVPR page (HPA, HKID bits 0)", kind=Kind.TDVPR)


WRITE_IN: Final = (Input("R8", "new value"), Input("R9", "mask of the bits to write", kind=Kind.MASK))
VALUE_OUT: Final = Output("R8", "value of the element", ZERO)
OLD_OUT: Final = Output("R8", "value before the write", ZERO)


def next_out(since: int = 0) -> Output:
    """RDX of reads that enumerate."""
    return Output("RDX", "id of the next element that the caller may read, -1 after the last", ONES, since)
