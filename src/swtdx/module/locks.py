"""The module's locks: 16-bit words in its structures, tried once, never waited for.

Only one logical processor executes module code at a time (``Seam.lock``), so a lock that is taken and
released within one leaf cannot be seen from outside: such a leaf only checks that it *could* take it.  What
others do see are the locks that TDH.VP.ENTER holds while the guest runs; those are really taken.

Layouts (module 1.5.01, tdx_locks.h): shared/exclusive: bit 0 exclusive, bits 15:1 number of readers;
with host priority: bit 0 exclusive, bit 1 host priority, bits 15:2 number of readers.
"""

from __future__ import annotations

import struct
from typing import Final

_U16: Final = struct.Struct("<H")
_get = _U16.unpack_from
_put = _U16.pack_into

EXCLUSIVE: Final = 1
HOST_PRIORITY: Final = 2
_READER: Final = 2
_HP_READER: Final = 4


def can_share(view: memoryview, offset: int) -> bool:
    """Whether the lock could be taken shared."""
    return not _get(view, offset)[0] & EXCLUSIVE


def can_own(view: memoryview, offset: int) -> bool:
    """Whether the lock could be taken exclusively."""
    return not _get(view, offset)[0]


def share(view: memoryview, offset: int) -> bool:
    """Take the lock shared; False when it is held exclusively."""
    word = _get(view, offset)[0]
    if word & EXCLUSIVE:
        return False
    _put(view, offset, word + _READER)
    return True


def unshare(view: memoryview, offset: int) -> None:
    """Release a shared lock."""
    _put(view, offset, _get(view, offset)[0] - _READER)


def hp_host_can_share(view: memoryview, offset: int) -> bool:
    """Host side of a host-priority lock: a failure leaves the host-priority bit set."""
    word = _get(view, offset)[0]
    if word & EXCLUSIVE:
        _put(view, offset, word | HOST_PRIORITY)
        return False
    if word & HOST_PRIORITY:
        _put(view, offset, word & ~HOST_PRIORITY)
    return True


def hp_host_can_own(view: memoryview, offset: int) -> bool:
    """Like :func:`hp_host_can_share`, exclusively."""
    word = _get(view, offset)[0]
    if word & ~HOST_PRIORITY:
        _put(view, offset, word | HOST_PRIORITY)
        return False
    if word:
        _put(view, offset, 0)
    return True


def hp_guest_can_share(view: memoryview, offset: int) -> bool:
    """Guest side: the lock is refused while the host has asked for it."""
    return not _get(view, offset)[0] & (EXCLUSIVE | HOST_PRIORITY)


def hp_guest_can_own(view: memoryview, offset: int) -> bool:
    """Guest side, exclusively."""
    return not _get(view, offset)[0]


def hp_share(view: memoryview, offset: int) -> None:
    """Really take a host-priority lock shared, after it was found shareable."""
    _put(view, offset, _get(view, offset)[0] + _HP_READER)


def hp_unshare(view: memoryview, offset: int) -> None:
    """Release it."""
    _put(view, offset, _get(view, offset)[0] - _HP_READER)
