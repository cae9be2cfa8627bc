"""What must hold of a TDX Module's memory, whatever a hypervisor and its guests do.

:func:`check` reads PAMT, TDRs, TDCSs, TDVPSs, Secure EPTs and the key ownership table as bytes of
simulated memory and compares them with each other::

    from swtdx.proof.invariants import check
    check(platform.machine)            # raises InvariantError, which lists everything that is wrong

:class:`MemorySnapshot` tells which bytes of all memory a call has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.proof.invariants.picture import Mapping, Page, Picture, TdView, VcpuView
from swtdx.proof.invariants.reading import read
from swtdx.proof.invariants.rules import violations
from swtdx.proof.invariants.snapshot import Change, MemorySnapshot

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine

__all__ = [
    "Change", "InvariantError", "Mapping", "MemorySnapshot", "Page", "Picture", "TdView", "VcpuView",
    "check", "read", "violations",
]  # fmt: skip


class InvariantError(AssertionError):
    """The module's structures contradict each other; ``found`` are the sentences that say how."""

    def __init__(self, found: list[str]) -> None:
        super().__init__("; ".join(found))
        self.found = found


def check(machine: Machine, *, poison_allowed: bool = False) -> Picture:
    """Check every invariant; what the structures say.

    Args:
        poison_allowed: memory has been attacked, so that pages of the module may be unreadable.

    Raises:
        InvariantError: something is wrong.
    """
    picture = read(machine)
    found = violations(picture)
    if not poison_allowed:
        found += [f"page {hpa:#x} cannot be read: {why}" for hpa, why in picture.poisoned]
    if found:
        raise InvariantError(found)
    return picture
