"""How a TD is started: all of it before its first instruction, as data for a hypervisor to put in place.

The hypervisor adds the private pages in the order given (TDH.MEM.PAGE.ADD, and 16 × TDH.MR.EXTEND after each
one that is measured, as KVM and QEMU do it), puts the shared blobs at their addresses in shared memory, gives
private memory for ``ram`` on demand or at once, and starts the vCPUs.  All that a host can say to a vCPU is
one value in RCX and R8.

:class:`~swtdx.guests.direct_boot.DirectBoot` is such a plan; firmware is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swtdx.arch.units import PAGE
from swtdx.guests.memory_map import Range


@dataclass(frozen=True, slots=True)
class PrivatePage:
    """4 KiB to be added as private memory at ``gpa``; ``measured``: extend its contents into MRTD."""

    gpa: int
    data: bytes
    measured: bool


@dataclass(frozen=True, slots=True)
class SharedBlob:
    """Bytes for shared memory.  ``gpa`` has the shared bit set and is page-aligned."""

    gpa: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPlan:
    """A TD before its first instruction."""

    #: Private pages in the order in which they are added; every other page of RAM is left for AUG.
    pages: tuple[PrivatePage, ...]
    shared: tuple[SharedBlob, ...] = ()
    #: RAM that the guest will accept, a page at a time or 2 MiB at a time.
    ram: tuple[Range, ...] = ()
    #: Operand RDX of TDH.VP.INIT, the guest's RCX and R8: for firmware the address of the TD HOB.
    vp_init_rdx: int = 0


def pages_of(gpa: int, data: bytes, *, measured: bool) -> Iterator[PrivatePage]:
    """``data`` as pages from ``gpa`` on; the last one is filled up with zeros."""
    for at in range(0, len(data), PAGE):
        yield PrivatePage(gpa + at, data[at : at + PAGE].ljust(PAGE, b"\0"), measured)
