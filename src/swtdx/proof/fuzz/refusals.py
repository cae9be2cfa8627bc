"""What a SEAMCALL that was refused may leave behind: next to nothing.

* A leaf that could not get a lock sets the lock's host-priority bit, and the next one clears it.
* TDH.VP.ENTER, RD and WR keep the vCPU associated with the processor although a later check fails, as
  Intel's module does (``associate_vcpu`` is not undone).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swtdx.arch import sept_bits as bits
from swtdx.arch.control_structs import PAMT_ENTRY, TDCS, TDCS_SEPT_ROOT_PAGE, TDVPS
from swtdx.arch.units import MASK32
from swtdx.proof.invariants import Change, Picture
from swtdx.proof.invariants.rules import PRIORITY

_ASSOCIATES: Final = frozenset({"TDH.VP.ENTER", "TDH.VP.RD", "TDH.VP.WR"})
_NUM_HELD: Final = TDCS.num_assoc_vcpus.offset
_HOLDER: Final = TDVPS.assoc_lpid.offset
_PRIORITY_LOCKS: Final = (
    TDCS.op_state_lock.offset, TDCS.rtmr_lock.offset, TDCS.servtd_bindings_lock.offset,
)  # fmt: skip


def unlawful(
    leaf: str, before: Picture, changes: Iterable[Change], pamts: tuple[tuple[int, int], ...]
) -> list[Change]:
    """The changes that a refused call must not make.

    Args:
        before: the picture before the call.
        pamts: (base, end) of the memory that holds PAMTs.
    """
    tables = {hpa for td in before.tds.values() for hpa in td.tables}
    tables |= {
        td.tdcx[TDCS_SEPT_ROOT_PAGE] for td in before.tds.values() if len(td.tdcx) > TDCS_SEPT_ROOT_PAGE
    }
    controls = {td.tdcx[0] for td in before.tds.values() if td.tdcx}
    vcpus = {vcpu.tdvpr for td in before.tds.values() for vcpu in td.vcpus}
    found = []
    for change in changes:
        page, offset = change.hpa & -4096, change.hpa & 4095
        flipped = change.before ^ change.after
        if any(base <= change.hpa < end for base, end in pamts):
            lawful = flipped == PRIORITY and not change.hpa % PAMT_ENTRY.size
        elif page in tables:
            lawful = flipped == bits.TDHP
        elif page in controls:
            lawful = any(flipped == PRIORITY << 8 * (lock - offset) for lock in _PRIORITY_LOCKS
                         if offset <= lock < offset + 8)  # fmt: skip
            if leaf in _ASSOCIATES and offset == _NUM_HELD & ~7:
                lawful = lawful or not flipped & MASK32
        elif page in vcpus and leaf in _ASSOCIATES:
            lawful = offset == _HOLDER & ~7
        else:
            lawful = False
        if not lawful:
            found.append(change)
    return found
