"""Which accesses reach memory at all: populated ranges, KeyIDs, the SEAM range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import AddressError, AddressMap
from swtdx.machine.memory.faults import Requestor, ReservedBitFault


class Bus:
    """The checks between a requestor and memory.

    ``populated`` lists ``(base, size)`` of the DRAM ranges in bytes, page-aligned, ascending and apart.

    Raises:
        AddressError: ranges that overlap, are unaligned, or do not fit the address map.
    """

    def __init__(self, populated: Sequence[tuple[int, int]], addresses: AddressMap) -> None:
        if not populated:
            raise AddressError("a machine needs at least one range of memory")
        last = 0
        for base, size in populated:
            if size <= 0 or base % PAGE or size % PAGE:
                raise AddressError(f"memory range {base:#x}+{size:#x} is empty or not aligned to 4 KiB")
            if base < last:
                raise AddressError(
                    f"memory range {base:#x}+{size:#x} overlaps the one before or is out of order"
                )
            last = base + size
            if last > 1 << addresses.hpa_bits:
                raise AddressError(
                    f"memory range {base:#x}+{size:#x} ends beyond HPA bit {addresses.hpa_bits - 1}, "
                    f"the highest beside {addresses.keyid_bits} KeyID bits"
                )
        self.populated = tuple((base, size) for base, size in populated)
        self.addresses = addresses
        self.end = last
        #: The SEAM range as ``base, end`` in bytes; empty until it is set.
        self.seam_base = self.seam_end = 0

    def reserve_seam(self, base: int, size: int) -> None:
        """Set the SEAM range, once.

        Raises:
            AddressError: it is set already, is unaligned, or has no memory behind it.
        """
        if self.seam_end:
            raise AddressError("SEAMRR is locked; it cannot be changed until reset")
        if size <= 0 or base % PAGE or size % PAGE:
            raise AddressError(f"SEAMRR {base:#x}+{size:#x} is empty or not aligned to pages")
        if not self.is_populated(base, size):
            raise AddressError(f"SEAMRR {base:#x}+{size:#x} is not backed by memory")
        self.seam_base, self.seam_end = base, base + size

    def is_populated(self, hpa: int, size: int) -> bool:
        """Whether there is memory behind all of ``size`` bytes at ``hpa``."""
        # Ranges that touch count as one: the walk goes from each to the next.
        for base, length in self.populated:
            if base <= hpa < base + length:
                if hpa + size <= base + length:
                    return True
                hpa, size = base + length, hpa + size - base - length
        return False

    def admits(self, hpa: int, size: int, keyid: int, requestor: Requestor) -> bool:
        """Whether an access reaches memory; False means bus abort.

        Raises:
            ReservedBitFault: it does not even leave the core.
        """
        addresses = self.addresses
        if keyid >= addresses.keyids:
            if requestor is Requestor.DEVICE:
                return False
            raise ReservedBitFault(hpa, keyid, "no such KeyID, or beyond MAXPA")
        if keyid >= addresses.first_private:
            if requestor is Requestor.DEVICE:
                return False
            if requestor is Requestor.HOST:
                raise ReservedBitFault(hpa, keyid, "a private KeyID outside SEAM mode")
        if requestor is not Requestor.SEAM and hpa < self.seam_end and hpa + size > self.seam_base:
            return False
        return self.is_populated(hpa, size)

    def pieces(
        self, hpa: int, size: int, keyid: int, requestor: Requestor
    ) -> Iterator[tuple[int, int, bool]]:
        """The access page by page: ``(hpa, size, admitted)``."""
        end = hpa + size
        while hpa < end:
            step = min(end - hpa, PAGE - hpa % PAGE)
            yield hpa, step, self.admits(hpa, step, keyid, requestor)
            hpa += step
