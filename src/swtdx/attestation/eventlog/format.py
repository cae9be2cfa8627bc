"""The confidential-computing event log: TCG2's crypto-agile format with measurement register indices.

Layout: measurement.md section 3 (edk2 ``CcMeasurement.h``, TCG PC Client
Platform Firmware Profile section 10).  All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from swtdx.arch.event_types import EV_NO_ACTION

from ..errors import EventLogError
from .describe import DSTACK, describe

#: Algorithm id of SHA-384 (TPM_ALG_SHA384), and its size in bytes.
SHA384: Final = 0x000C
DIGEST: Final = 48

#: Event types by number (TCG PC Client Platform Firmware Profile, table 27).
EVENT_TYPES: Final = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    DSTACK: "DSTACK_RUNTIME_EVENT",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

#: Types whose digest is the hash of the event data itself; that of the others is of something the
#: data only describes.  (Platform Firmware Profile section 10.4; for EV_EFI_VARIABLE_BOOT2 and
#: EV_EFI_VARIABLE_DRIVER_CONFIG it says the UEFI_VARIABLE_DATA, which is the event data.)
SELF_DESCRIBING: Final = frozenset({0x4, 0x5, 0x80000001, 0x80000007, 0x8000000C})

_SPEC_ID: Final = b"Spec ID Event03\0"
_ALGORITHMS: Final = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32}


@dataclass(frozen=True)
class Event:
    """One event.

    Args:
        index: number in the log, 0 for the first event after the header.
        register: measurement register as logged: 0 MRTD, 1..4 RTMR0..3.
        kind: event type.
        digest: SHA-384 digest that was extended, 48 bytes.
        data: event data.
        offset: byte of the log at which the event starts.
        known: False where a log (in JSON) has the digest and not the data.
        name: what a log in JSON calls the event.
        content: the bytes that were measured, where a log in JSON has them beside the data.
        content_name: what those are: a file of fw_cfg, the kernel's command line.
    """

    index: int
    register: int
    kind: int
    digest: bytes
    data: bytes
    offset: int = 0
    known: bool = True
    name: str = ""
    content: bytes | None = None
    content_name: str = ""

    @property
    def rtmr(self) -> int | None:
        """Number of the RTMR that was extended, or None for an event that extends none."""
        return self.register - 1 if 1 <= self.register <= 4 and self.kind != EV_NO_ACTION else None

    @property
    def kind_name(self) -> str:
        """Name of the event type, or its number."""
        return EVENT_TYPES.get(self.kind, f"{self.kind:#010x}")

    @property
    def register_name(self) -> str:
        """MRTD, RTMR0..RTMR3."""
        return "MRTD" if self.register == 0 else f"RTMR{self.register - 1}"

    @property
    def data_matches(self) -> bool | None:
        """Whether the digest is the data's hash; None for types of which that cannot be said."""
        if not self.known:
            return None
        if self.kind == DSTACK and self.name:
            measured = b":".join((self.kind.to_bytes(4, "little"), self.name.encode(), self.data))
            return hashlib.sha384(measured).digest() == self.digest
        if self.kind not in SELF_DESCRIBING:
            return None
        return hashlib.sha384(self.data).digest() == self.digest

    @property
    def measured(self) -> bytes | None:
        """The bytes whose hash the digest is, if the log has them."""
        return self.data if self.content is None and self.data_matches else self.content

    def text(self) -> str:
        """The data in a few readable words."""
        if not self.known and not self.data:
            return self.name or "the log has no data of it"
        text = describe(self.kind, self.data)
        return f"{self.name}: {text}" if self.name else text

    def encode(self) -> bytes:
        """The event as a CC_EVENT record."""
        head = struct.pack("<IIIH", self.register, self.kind, 1, SHA384)
        return head + self.digest + struct.pack("<I", len(self.data)) + self.data


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise EventLogError(
                f"the event log ends in {what}: {size} bytes are needed from byte {self.at}, "
                f"{len(self.data) - self.at} are there; it is truncated"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")


def _header(cursor: _Cursor) -> dict[int, int]:
    """Read the first record; gives digest sizes by algorithm."""
    cursor.number(4, "the header's register index")
    kind = cursor.number(4, "the header's event type")
    if kind != EV_NO_ACTION:
        if kind in EVENT_TYPES and len(cursor.data) > 32:
            raise EventLogError(
                f"the event log starts with event type {kind:#x} ({EVENT_TYPES[kind]}), without a header: "
                "it is a log of a TPM 1.2 (SHA-1), not a CCEL"
            )
        raise EventLogError(
            f"the event log starts with event type {kind:#x}; a CCEL starts with EV_NO_ACTION, type 3"
        )
    cursor.take(20, "the header's SHA-1 digest")
    content = _Cursor(cursor.take(cursor.number(4, "the header's size"), "the header"))
    signature = content.take(16, "the signature")
    if signature != _SPEC_ID:
        raise EventLogError(f"the event log's header says {signature!r}, not {_SPEC_ID!r}")
    content.take(8, "the platform class and version")
    count = content.number(4, "the number of algorithms")
    if count > 16:
        raise EventLogError(f"the event log's header announces {count} hash algorithms")
    sizes = dict(_ALGORITHMS)
    for _ in range(count):
        algorithm = content.number(2, "an algorithm")
        sizes[algorithm] = content.number(2, "a digest size")
    return sizes


def parse(data: bytes) -> list[Event]:
    """The events of a log; filler after the last one is skipped.

    Raises:
        EventLogError: the bytes are no such log; says at which byte and why.
    """
    cursor = _Cursor(bytes(data))
    sizes = _header(cursor)
    events: list[Event] = []
    while True:
        start = cursor.at
        head = cursor.data[start : start + 8]
        # The log's area is larger than the log: what is not used is ones or zeros.
        if len(head) < 8 or head in (b"\xff" * 8, bytes(8)):
            if any(cursor.data[start:]) and cursor.data[start:].strip(b"\xff"):
                cut = "; the log is truncated in an event" if len(head) < 8 else ""
                raise EventLogError(f"bytes after the last event, from byte {start}, are not filler{cut}")
            return events
        register = cursor.number(4, "an event")
        kind = cursor.number(4, "an event")
        where = f"event {len(events)} at byte {start}"
        if register > 4:
            raise EventLogError(
                f"{where}: there is no measurement register {register}"
                + ("; is this the log of a TPM, with PCR numbers?" if register < 24 else "")
            )
        count = cursor.number(4, where)
        if not 1 <= count <= 16:
            raise EventLogError(f"{where}: {count} digests")
        digest = b""
        for _ in range(count):
            algorithm = cursor.number(2, where)
            if algorithm not in sizes:
                raise EventLogError(f"{where}: hash algorithm {algorithm:#x} is not in the log's header")
            value = cursor.take(sizes[algorithm], where)
            if algorithm == SHA384:
                digest = value
        if not digest:
            raise EventLogError(f"{where} has no SHA-384 digest")
        content = cursor.take(cursor.number(4, where), where)
        events.append(Event(len(events), register, kind, digest, content, start))


def header() -> bytes:
    """The log's first record: Spec ID Event03, version 2.0, 64-bit, one algorithm, SHA-384.

    The errata number is 0, as in logs of OVMF on real TDs.
    """
    content = _SPEC_ID + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, SHA384, DIGEST, 0)
    return struct.pack("<II20sI", 1, EV_NO_ACTION, bytes(20), len(content)) + content


def write(events: Iterable[Event]) -> bytes:
    """A whole log."""
    return header() + b"".join(event.encode() for event in events)


def event(index: int, rtmr: int, kind: int, data: bytes, measured: bytes | None = None) -> Event:
    """A new event that extends ``rtmr`` with the hash of ``measured`` (of ``data`` when None)."""
    digest = hashlib.sha384(data if measured is None else measured).digest()
    return Event(index, rtmr + 1, kind, digest, data)
