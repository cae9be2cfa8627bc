"""The boot information page: the hypervisor's word to the shim, measured into MRTD.

``shim/shim.S`` reads it; the offsets are the same there.  All integers are little-endian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from swtdx.arch.layout import Array, Blob, Field, Struct
from swtdx.arch.units import PAGE
from swtdx.guests.errors import DoesNotFit
from swtdx.guests.event_log import DIGEST_BYTES, Event
from swtdx.guests.memory_map import Range

MAGIC: Final = int.from_bytes(b"swtdxbi1", "little")
MAX_RANGES: Final = 4
MAX_LOADS: Final = 8
NAME_BYTES: Final = 16
EVENT_BYTES: Final = 88


class BOOT_INFO(Struct, size=PAGE, label="swtdx boot information", source="src/swtdx/guests/shim/shim.S"):
    magic = Field(0, 8, '"swtdxbi1"')
    ranges = Field(8, 4, "how many RAM ranges")
    loads = Field(12, 4, "how many loads")
    entry = Field(16, 8, "GPA of the kernel's first instruction")
    boot_params = Field(24, 8, "GPA of the zero page")
    log = Field(32, 8, "GPA of the event log")
    log_bytes = Field(40, 8, "bytes set aside for it")
    range_table = Array(64, 8, 2 * MAX_RANGES, "base and bytes of each range")


class LOAD(Struct, size=192, label="swtdx load", source="src/swtdx/guests/shim/shim.S"):
    source_ = Field(0, 8, "GPA in shared memory, without the shared bit")
    target = Field(8, 8, "GPA in private memory")
    bytes_ = Field(16, 8)
    rtmr = Field(24, 4, "0..3")
    event_type = Field(28, 4)
    load_name = Blob(32, NAME_BYTES, "for messages")
    digest = Blob(48, DIGEST_BYTES, "SHA-384 of the content")
    event_content = Field(96, 4, "1 if the event's data ends with the content")
    event_bytes = Field(100, 4, "bytes of the event's own data")
    event = Blob(104, EVENT_BYTES, "the event's own data")


_LOAD_TABLE: Final = 128


@dataclass(frozen=True, slots=True)
class Load:
    """Something that the shim copies from shared memory to private memory, checks and measures.

    ``source`` is a GPA without the shared bit.  If ``log_content`` is set, the content itself follows
    ``event`` in the event log's record.
    """

    name: str
    content: bytes
    source: int
    target: int
    rtmr: int
    event_type: int
    event: bytes
    log_content: bool = False
    #: SHA-384 of the content.
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha384(self.content).digest())

    def measured_event(self) -> Event:
        """The record that it leaves in the event log."""
        data = self.event + (self.content if self.log_content else b"")
        return Event(self.rtmr, self.event_type, self.digest, data)


def encode_boot_info(
    *, ram: Sequence[Range], loads: Sequence[Load], entry: int, boot_params: int, log: Range
) -> bytes:
    """The page's 4096 bytes.

    Raises:
        DoesNotFit: more ranges or loads than the page has room for.
    """
    if len(ram) > MAX_RANGES or len(loads) > MAX_LOADS:
        raise DoesNotFit(f"the shim takes {MAX_RANGES} RAM ranges and {MAX_LOADS} pieces to load at most")
    page = BOOT_INFO.new()
    BOOT_INFO.magic.set(page, MAGIC)
    BOOT_INFO.ranges.set(page, len(ram))
    BOOT_INFO.loads.set(page, len(loads))
    BOOT_INFO.entry.set(page, entry)
    BOOT_INFO.boot_params.set(page, boot_params)
    BOOT_INFO.log.set(page, log.base)
    BOOT_INFO.log_bytes.set(page, log.size)
    for index, item in enumerate(ram):
        BOOT_INFO.range_table.set(page, 2 * index, item.base)
        BOOT_INFO.range_table.set(page, 2 * index + 1, item.size)
    for index, load in enumerate(loads):
        base = _LOAD_TABLE + index * LOAD.size
        LOAD.source_.set(page, load.source, base)
        LOAD.target.set(page, load.target, base)
        LOAD.bytes_.set(page, len(load.content), base)
        LOAD.rtmr.set(page, load.rtmr, base)
        LOAD.event_type.set(page, load.event_type, base)
        LOAD.load_name.set(page, load.name.encode("ascii").ljust(NAME_BYTES, b"\0"), base)
        LOAD.digest.set(page, load.digest, base)
        LOAD.event_content.set(page, int(load.log_content), base)
        LOAD.event_bytes.set(page, len(load.event), base)
        LOAD.event.set(page, load.event.ljust(EVENT_BYTES, b"\0"), base)
    return bytes(page)
