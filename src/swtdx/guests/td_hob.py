"""The TD HOB: how a VMM tells TD firmware what memory there is.

A list of hand-off blocks of UEFI's Platform Initialization specification, written into the TD_HOB section
before the TD starts, and measured by the firmware into RTMR0: so every byte counts, and they are those of
QEMU (``hw/i386/tdvf-hob.c`` and ``target/i386/kvm/tdx.c`` of version 10.1).  There is a block for each range
of RAM in ascending order: what was added before the start is there, all other RAM has to be accepted.

Sources: UEFI PI 1.8, volume 3, chapter 5 (HOBs); measurement.md §5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.guests.errors import DoesNotFit
from swtdx.guests.memory_map import Range

_HEADER: Final = struct.Struct("<HHI")
_HANDOFF, _RESOURCE, _END = 1, 3, 0xFFFF
_HANDOFF_VERSION: Final = 9
_HANDOFF_BYTES: Final = 56
_RESOURCE_BYTES: Final = 48
_SYSTEM_MEMORY, _UNACCEPTED = 0, 7
#: Present, initialised, tested.
_ATTRIBUTES: Final = 7


@dataclass(frozen=True, slots=True)
class RamEntry:
    """A range of RAM; ``added``: its pages are there from the start, and need not be accepted."""

    base: int
    size: int
    added: bool


def ram_entries(ram: Iterable[Range], added: Iterable[tuple[str, Range]]) -> list[RamEntry]:
    """RAM, cut where pages are added before the start, in ascending order.

    Args:
        ram: all RAM.
        added: each a name for messages, and its range.

    Raises:
        DoesNotFit: one of ``added`` is not inside RAM.
    """
    entries = [RamEntry(part.base, part.size, False) for part in ram]
    for name, part in added:
        index = next((at for at, entry in enumerate(entries) if _holds(entry, part)), None)
        if index is None:
            raise DoesNotFit(
                f"the firmware wants {part.size:#x} bytes at GPA {part.base:#x} for its {name}, and there is "
                "no such RAM: give the TD more memory"
            )
        entry = entries[index]
        end = entry.base + entry.size
        pieces = ((entry.base, part.base, False), (part.base, part.end, True), (part.end, end, False))
        entries[index : index + 1] = [
            RamEntry(low, high - low, is_added) for low, high, is_added in pieces if low < high
        ]
    return entries


def _holds(entry: RamEntry, part: Range) -> bool:
    return not entry.added and entry.base <= part.base and part.end <= entry.base + entry.size


def encode_td_hob(gpa: int, size: int, entries: Sequence[RamEntry]) -> bytes:
    """The list, to lie at ``gpa`` where ``size`` bytes are for it.

    Raises:
        DoesNotFit: it is longer than ``size``.
    """
    resources = [
        _HEADER.pack(_RESOURCE, _RESOURCE_BYTES, 0)
        + struct.pack(
            "<16xIIQQ", _SYSTEM_MEMORY if entry.added else _UNACCEPTED, _ATTRIBUTES, entry.base, entry.size
        )
        for entry in entries
    ]
    body = b"".join(resources) + _HEADER.pack(_END, _HEADER.size, 0)
    end = gpa + _HANDOFF_BYTES + len(body)
    handoff = _HEADER.pack(_HANDOFF, _HANDOFF_BYTES, 0) + struct.pack(
        "<IIQQQQQ", _HANDOFF_VERSION, 0, 0, 0, 0, 0, end
    )
    hob = handoff + body
    if len(hob) > size:
        raise DoesNotFit(f"a TD HOB of {len(hob)} bytes does not fit into the firmware's {size}")
    return hob
