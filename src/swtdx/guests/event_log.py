"""The event log that the shim leaves for the CCEL table: TCG2 crypto-agile, SHA-384 only.

What is built here is what the shim is *expected* to write; the RTMRs follow from the same events.
Sources: TCG PC Client Platform Firmware Profile, sections 10.2.1 and 10.4.5; for which measurement
register holds what, the UEFI specification's section 38 (confidential computing) as OVMF follows it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.arch.event_types import EV_NO_ACTION

DIGEST_BYTES: Final = 48
TPM_ALG_SHA384: Final = 0x000C

EV_PLATFORM_CONFIG_FLAGS: Final = 0xA
EV_IPL: Final = 0xD

#: Linux's EFI stub marks an initrd with this (drivers/firmware/efi/libstub/efistub.h).
INITRD_EVENT_TAG_ID: Final = 0x8F3B22EC


@dataclass(frozen=True, slots=True)
class Event:
    """One measurement: SHA-384 ``digest`` extended into RTMR ``rtmr``, with data for people."""

    rtmr: int
    event_type: int
    digest: bytes
    data: bytes


def firmware_blob(name: bytes, base: int, size: int) -> bytes:
    """Data of EV_EFI_PLATFORM_FIRMWARE_BLOB2: the blob's name and where it lies."""
    return bytes([len(name)]) + name + struct.pack("<QQ", base, size)


def tagged_event(tag: int, text: bytes) -> bytes:
    """Data of EV_EVENT_TAG."""
    return struct.pack("<II", tag, len(text)) + text


def log_header() -> bytes:
    """The first record, in the old format, that names the format of all others.

    The errata number is 0, as in logs of OVMF on TDs (edk2 ``OvmfPkg/Tcg/TdTcg2Dxe``, which takes
    ``TCG_EfiSpecIDEventStruct_SPEC_ERRATA_TPM2``).
    """
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    spec_id += struct.pack("<IHHB", 1, TPM_ALG_SHA384, DIGEST_BYTES, 0)
    # OVMF writes measurement register 1 here; nothing is extended for EV_NO_ACTION.
    return struct.pack("<II20sI", 1, EV_NO_ACTION, bytes(20), len(spec_id)) + spec_id


def encode_event(event: Event) -> bytes:
    """One record.  Measurement register 0 is MRTD, so RTMR n is n + 1."""
    head = struct.pack("<IIIH", event.rtmr + 1, event.event_type, 1, TPM_ALG_SHA384)
    return head + event.digest + struct.pack("<I", len(event.data)) + event.data


def encode_log(events: Iterable[Event]) -> bytes:
    """The used part of the log; the rest of its area is filled with 0xFF."""
    return log_header() + b"".join(encode_event(event) for event in events)


def replay(events: Sequence[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """RTMR0 to RTMR3 after the events, from the zeros of a new TD.

    RTMR := SHA-384(RTMR followed by digest); source: TDX Module ABI, TDG.MR.RTMR.EXTEND.
    """
    rtmrs = [bytes(DIGEST_BYTES)] * 4
    for event in events:
        rtmrs[event.rtmr] = hashlib.sha384(rtmrs[event.rtmr] + event.digest).digest()
    return rtmrs[0], rtmrs[1], rtmrs[2], rtmrs[3]
