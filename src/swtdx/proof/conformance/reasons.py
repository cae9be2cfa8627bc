"""Why some declared statuses are provoked by no case: said openly, and shown by ``swtdx abi``."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaves import BY_NAME

_RANDOM: Final = "the machine's random number generator never runs dry"
_INTERRUPTS: Final = "our module does not break a long call off for a pending interrupt"
_L2: Final = "a TD of ours has no L2 VMs, whose pages these are"
_MIGRATION: Final = "only a TD that migrates has present leaves that the leaf does not take"
_TDCS: Final = "a VCPU exists only in a TD whose TDCS is complete"
_ALONE: Final = "one processor at a time executes module code, so nobody writes meanwhile"
_MICROCODE: Final = "the modelled platform cannot be made like this"

#: Reasons by status code, for every leaf.
_CODES: Final[dict[int, str]] = {
    s.TDX_RND_NO_ENTROPY: _RANDOM,
    s.TDX_INTERRUPTED_RESUMABLE: _INTERRUPTS,
    s.TDX_INTERRUPTED_RESTARTABLE: _INTERRUPTS,
    s.TDX_L2_SEPT_WALK_FAILED: _L2,
    s.TDX_L2_SEPT_ENTRY_NOT_FREE: _L2,
    s.TDX_L2_SEPT_PAGE_NOT_PROVIDED: _L2,
}
#: Reasons by leaf and status, details included.
_STATUSES: Final[dict[tuple[str, int], str]] = {
    ("TDH.MNG.INIT", s.TDX_INCORRECT_MSR_VALUE | 0x10A): "the modelled processors have no TSX",
    ("TDH.SYS.LP.INIT", s.TDX_INVALID_PKG_ID): "a machine of more than 8 packages is refused by MCHECK",
    ("TDH.SYS.LP.INIT", s.TDX_INCOMPATIBLE_SEAM_CAPABILITIES): _MICROCODE,
    ("TDH.SYS.INIT", s.TDX_SYS_INCOMPATIBLE_SIGSTRUCT): "TD-preserving updates are not supported",
    ("TDH.SYS.RD", s.TDX_METADATA_FIELD_NOT_READABLE): "the host may read every field of the module",
    ("TDH.SYS.RDALL", s.TDX_METADATA_LIST_OVERFLOW): "the whole list fits in a page",
    ("TDG.SYS.RDALL", s.TDX_METADATA_LIST_OVERFLOW): "the whole list fits in a page",
    ("TDH.VP.ENTER", s.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE): "no model of a disabled local APIC",
    ("TDG.VP.WR", s.TDX_METADATA_WR_MASK_NOT_VALID): "no VCPU field must be written whole",
    ("TDH.VP.WR", s.TDX_METADATA_WR_MASK_NOT_VALID): "no VCPU field must be written whole",
    (
        "TDG.VM.WR",
        s.TDX_METADATA_WR_MASK_NOT_VALID,
    ): "no field that the guest may write must be written whole",
    ("TDG.VP.WR", s.TDX_METADATA_FIELD_VALUE_NOT_VALID): "the guest may write no field that has bad values",
    ("TDG.MEM.PAGE.ATTR.WR", s.TDX_PAGE_ATTR_INVALID): _L2,
    ("TDH.MR.EXTEND", s.TDX_EPT_ENTRY_NOT_PRESENT): _MIGRATION,
    ("TDH.MEM.RD", s.TDX_EPT_ENTRY_STATE_INCORRECT | 1): _MIGRATION,
    ("TDH.MEM.WR", s.TDX_EPT_ENTRY_STATE_INCORRECT | 1): _MIGRATION,
    ("TDG.VP.INVVPID", s.TDX_SUCCESS): _L2,
    ("TDG.VP.INVVPID", s.TDX_OPERAND_INVALID | 2): _L2,
    ("TDG.VP.INVVPID", s.TDX_GLA_NOT_CANONICAL): _L2,
}
_SERVTD: Final = "no service TD is bound, so that the call ends before it, or with CROSS_TD_TRAP"
_METADATA_BUSY: Final = s.TDX_OPERAND_BUSY | 176


def reason(leaf: str, value: int) -> str | None:
    """Why nothing provokes a declared status of ``leaf``; None if nothing is known."""
    found = _STATUSES.get((leaf, value)) or _CODES.get(value & s.CODE_MASK)
    if found is not None:
        return found
    if value == _METADATA_BUSY:
        return _ALONE
    if value == s.TDX_TDCS_NOT_ALLOCATED and leaf.startswith("TDH.VP."):
        return _TDCS
    if leaf.startswith("TDG.SERVTD."):
        return _SERVTD
    l2_page = value & s.DETAILS_MASK in (9, 10, 11) and leaf in ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE")
    return _L2 if l2_page else None


def check() -> None:
    """Every reason is about a status that its leaf declares.

    Raises:
        ValueError: one is not.
    """
    for leaf, value in _STATUSES:
        if value and value & s.CODE_MASK not in {outcome.status for outcome in BY_NAME[leaf].outcomes}:
            raise ValueError(f"{leaf} does not declare {value:#x}")
