"""Turning guest memory from private to shared and back: what MapGPA asks for.

The two halves of the guest's address space are independent: a GPA may be mapped in both.  Only MapGPA
takes a page out of one of them.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.units import PAGE
from swtdx.vmm.memory import BLOCK
from swtdx.vmm.processor import Processor
from swtdx.vmm.td import Td

#: Pages of any size that one MapGPA handles; then the guest is asked to come back (about 50 ms).
CHUNK: Final = 1024


class Conversion:
    """Converts memory of one TD.  Every method clobbers the registers of ``cpu``."""

    def __init__(self, td: Td) -> None:
        self._private = td.private
        self._shared = td.shared

    def to_shared(self, cpu: Processor, start: int, end: int) -> int:
        """Make the RAM in [start, end) shared memory full of zeros; the GPA up to which it was done.

        What is not RAM is a device's, and shared as it is.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        for low, high in self._private.ram_parts(start, end):
            stop = min(high, low + CHUNK * BLOCK)
            done = self._private.remove_range(cpu, low, stop, CHUNK)
            self._shared.map(low, done - low)
            if done < high or high - low > CHUNK * PAGE:
                return done
        return end

    def to_private(self, cpu: Processor, start: int, end: int) -> int:
        """Make [start, end), all of it RAM, private; the GPA up to which it was done.

        It is pending until the guest accepts it.

        Raises:
            SeamcallError: the module refuses; OutOfMemory.
        """
        done = min(end, start + CHUNK * PAGE)
        gone = self._shared.unmap(start, done - start)
        if gone:
            # A new TLB epoch also makes processors forget translations of shared GPAs.
            self._private.track(cpu)
            self._shared.release(gone)
        for base in range((start + BLOCK - 1) & -BLOCK, (done & -BLOCK), BLOCK):
            self._private.drop_table(cpu, base)
        self._private.augment_range(cpu, start, done)
        return done
