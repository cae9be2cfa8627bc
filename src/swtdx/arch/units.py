"""Sizes in bytes and all-ones masks, said once.

Source: Intel SDM volume 3, chapter 4 (pages), and volume 1, section 4.1 (widths of integers).
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

#: The pages that paging and EPT map.
PAGE: Final = 4 * KIB
LARGE_PAGE: Final = 2 * MIB
HUGE_PAGE: Final = GIB
CACHE_LINE: Final = 64

#: What TDH.MR.EXTEND measures at a time.
EXTEND_CHUNK: Final = 256

MASK32: Final = (1 << 32) - 1
MASK64: Final = (1 << 64) - 1
#: What a field for a physical address holds when it names nothing.
NULL_PA: Final = MASK64
#: Set in the register of a page that was given and not needed (TDH.MEM.SEPT.ADD).
PAGE_NOT_USED: Final = 1 << 63
