"""Translations of large pages that are still in a snapshot's file (:mod:`swtdx.machine.memory.image`).

A guest is shown the file as long as it only reads.  Where it writes, a few pages around come into the
machine's frames; so a machine that goes on from a snapshot takes as much memory as it changes.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.machine.engine.protocol import Access
from swtdx.machine.vmx.core import VmxCore
from swtdx.machine.vmx.vmcs import Vmcs

#: What comes in together where a guest writes, in bytes: to stop the guest costs more than to copy this.
CLUSTER: Final = 16 * PAGE


def lend(core: VmxCore, vmcs: Vmcs, gpa: int, region: int, rights: int, *, write: bool) -> bool:
    """Make ``gpa`` reachable, which is in a private page of at least 2 MiB.

    ``region`` is the physical address of the 2 MiB around it, with KeyID.  False: nothing of it is in a file
    (any more), and it can be mapped as any other page.

    Raises:
        MemoryFault: as :meth:`swtdx.machine.memory.PhysicalMemory.acquire`.
    """
    image = core.memory.image
    if image is None:
        return False
    hpa, keyid = core.split(region)
    if not image.absent(hpa, LARGE_PAGE):
        return False
    if image.blank(hpa, LARGE_PAGE):
        image.recall(hpa // PAGE, (hpa + LARGE_PAGE) // PAGE)
        return False
    space = vmcs.space
    access = Access(rights & 7)
    if not space.lends(hpa):
        space.lend(gpa & -LARGE_PAGE, hpa, image.lend(hpa, LARGE_PAGE, keyid), access, code=True)
    offset = gpa & LARGE_PAGE - PAGE
    if not write and image.shows(hpa + offset):
        return True
    start = offset & -CLUSTER
    core.memory.acquire(hpa + start, CLUSTER, keyid, core.guest)
    core.machine.frames_mapped(hpa + start, CLUSTER)
    base = gpa & -LARGE_PAGE
    for at in range(start, start + CLUSTER, PAGE):
        space.map(base + at, hpa + at, PAGE, access, code=True)
    return True
