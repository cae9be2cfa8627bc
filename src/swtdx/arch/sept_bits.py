"""Bits of a Secure EPT entry (L1), and the operand that names a GPA and a level.

Source: ``x86_defs.h`` (``ia32e_sept_t``) of the TDX module 1.5.01.
"""

from __future__ import annotations

from typing import Final

READ: Final = 1 << 0
WRITE: Final = 1 << 1
EXECUTE: Final = 1 << 2
RWX: Final = READ | WRITE | EXECUTE
MEMORY_TYPE: Final = 7 << 3
MT_WB: Final = 6 << 3
IPAT: Final = 1 << 6
LEAF: Final = 1 << 7
ACCESSED: Final = 1 << 8
DIRTY: Final = 1 << 9
EXECUTE_USER: Final = 1 << 10  # not used in L1 entries
TDEL: Final = 1 << 11  # entry lock
HPA: Final = 0x000F_FFFF_FFFF_F000
ACCEPT_COUNTER: Final = 0x1FF << 12  # of a pending 2-MiB page: 4-KiB pieces done
TDHP: Final = 1 << 52  # the host waits for the lock
TDEX: Final = 1 << 53  # exported
TDBW: Final = 1 << 54  # blocked for writing
TDB: Final = 1 << 55  # blocked
TDP: Final = 1 << 56  # pending
VERIFY_PAGING_WRITE: Final = 1 << 57
PAGING_WRITE: Final = 1 << 58
ALIASES: Final = 7 << 58  # bit 57 + n: the page is in L2 VM n's Secure EPT too
ALIAS_SHIFT: Final = 58
SUPERVISOR_SHADOW_STACK: Final = 1 << 60
TDUP: Final = 1 << 61
SUPPRESS_VE: Final = 1 << 63
# In REMOVED entries the HPA field holds when the page was removed.
MIG_EPOCH_SHIFT: Final = 12
MIG_EPOCH_MASK: Final = 0xFFFF_FFFF << 12
MIG_EPOCH_VALID: Final = 1 << 44

ENTRIES_PER_PAGE: Final = 512

#: Bytes of guest physical address space that an entry at each level covers.
LEVEL_BYTES: Final = (1 << 12, 1 << 21, 1 << 30, 1 << 39, 1 << 48)
LEVEL_NAMES: Final = ("4K", "2M", "1G", "512G", "256T")
