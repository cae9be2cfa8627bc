"""Physical addresses: pages, lines, and the KeyID in the upper address bits.

A physical address (PA) as software, page tables and devices give it is ``KeyID << hpa_bits | HPA``,
where ``hpa_bits = MAXPA - keyid_bits`` (Intel MKTME specification 336907, "Key identifiers"; the split
between shared and private KeyIDs is IA32_MKTME_KEYID_PARTITIONING, structures.md §10).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.arch.units import PAGE

PAGE_SHIFT: Final = 12
#: Bytes of a cache line, the unit of encryption, MAC and TD-owner bit.
LINE: Final = 64
LINE_SHIFT: Final = 6
#: Lines of a page, and a mask with a bit for each of them.
LINES_PER_PAGE: Final = PAGE // LINE
ALL_LINES: Final = (1 << LINES_PER_PAGE) - 1
#: KeyIDs are 15 bits at most (IA32_TME_CAPABILITY bits 35:32 count them).
MAX_KEYID_BITS: Final = 15


class AddressError(ValueError):
    """An address, a size or a KeyID that this machine cannot have; nothing was done."""


@dataclass(frozen=True, slots=True)
class AddressMap:
    """How a physical address divides into KeyID and HPA.

    ``maxpa`` is CPUID.80000008H:EAX[7:0]; ``keyid_bits`` is IA32_TME_ACTIVATE[35:32];
    ``shared_keyids`` and ``private_keyids`` are the two halves of IA32_MKTME_KEYID_PARTITIONING.
    KeyID 0 (TME) is in neither count. KeyIDs 1..shared are shared, the next ``private_keyids`` are
    private, and any beyond are unassigned: an address with one of those is reserved.

    Raises:
        AddressError: the numbers contradict each other.
    """

    maxpa: int = 52
    keyid_bits: int = 6
    shared_keyids: int = 31
    private_keyids: int = 32

    def __post_init__(self) -> None:
        if not 36 <= self.maxpa <= 52:
            raise AddressError(f"MAXPA is 36 to 52 bits, not {self.maxpa}")
        if not 0 <= self.keyid_bits <= min(MAX_KEYID_BITS, self.maxpa - 32):
            raise AddressError(f"{self.keyid_bits} KeyID bits do not fit above MAXPA {self.maxpa}")
        if self.shared_keyids < 0 or self.private_keyids < 0:
            raise AddressError("the numbers of shared and private KeyIDs cannot be negative")
        if 1 + self.shared_keyids + self.private_keyids > 1 << self.keyid_bits:
            raise AddressError(
                f"{self.shared_keyids} shared and {self.private_keyids} private KeyIDs beside KeyID 0 "
                f"do not fit in {self.keyid_bits} KeyID bits"
            )

    @classmethod
    def without_tme(cls, maxpa: int = 52) -> AddressMap:
        """The map before the BIOS writes IA32_TME_ACTIVATE: no KeyIDs at all."""
        return cls(maxpa, 0, 0, 0)

    @property
    def hpa_bits(self) -> int:
        """Width of the HPA: bits hpa_bits-1 : 0 of a PA."""
        return self.maxpa - self.keyid_bits

    @property
    def keyids(self) -> int:
        """How many KeyIDs exist, KeyID 0 included."""
        return 1 + self.shared_keyids + self.private_keyids

    @property
    def first_private(self) -> int:
        """The lowest private KeyID (it exists only if there are private KeyIDs)."""
        return 1 + self.shared_keyids

    def is_private(self, keyid: int) -> bool:
        """Whether only SEAM may use ``keyid``."""
        return self.first_private <= keyid < self.keyids

    def split(self, pa: int) -> tuple[int, int]:
        """``(keyid, hpa)`` of a physical address. No check that the KeyID exists."""
        return pa >> self.hpa_bits, pa & ((1 << self.hpa_bits) - 1)

    def join(self, hpa: int, keyid: int) -> int:
        """The physical address that reaches ``hpa`` under ``keyid``.

        Raises:
            AddressError: there is no such HPA or KeyID.
        """
        if not 0 <= hpa < 1 << self.hpa_bits:
            raise AddressError(f"HPA {hpa:#x} does not fit in {self.hpa_bits} bits")
        if not 0 <= keyid < self.keyids:
            raise AddressError(f"there is no KeyID {keyid}; this machine has 0..{self.keyids - 1}")
        return keyid << self.hpa_bits | hpa


def line_mask(offset: int, size: int) -> int:
    """The mask of a page's lines that bytes ``offset .. offset+size-1`` of that page touch."""
    first = offset >> LINE_SHIFT
    last = (offset + size - 1) >> LINE_SHIFT
    return ((2 << (last - first)) - 1) << first


def full_line_mask(offset: int, size: int) -> int:
    """The mask of a page's lines that bytes ``offset .. offset+size-1`` cover completely."""
    first = (offset + LINE - 1) >> LINE_SHIFT
    end = (offset + size) >> LINE_SHIFT
    return ((1 << (end - first)) - 1) << first if end > first else 0


def line_runs(mask: int) -> list[tuple[int, int]]:
    """The runs of set bits in ``mask``, lowest first, as ``(first, count)``."""
    runs: list[tuple[int, int]] = []
    base = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        base += skip
        count = (~mask & (mask + 1)).bit_length() - 1
        runs.append((base, count))
        mask >>= count
        base += count
    return runs
