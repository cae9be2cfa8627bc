"""An event log out of whatever it was given as, and what it is if it is none.

Besides the CCEL itself: the CCEL in hex or base64, or in JSON around it; the logs in JSON that dstack and
the attestation service of confidential containers (Trustee) write, the TCG's Canonical Event Log (CEL) in
JSON, and ``swtdx eventlog --json``.

JSON, by the names of the members: dstack ``cc-eventlog`` (imr from 0, event_type, digest, event,
event_payload), Trustee ``deps/eventlog`` (index from 1, type, digests, event in base64), TCG Canonical Event
Log Format section 5 (recnum, pcr or index, digests with hashAlg, content).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from swtdx.arch.event_types import EV_NO_ACTION

from ..errors import EventLogError
from ..kinds import given, kind_of
from ..textforms import candidates
from .format import DIGEST, EVENT_TYPES, Event, parse

_NUMBERS: Final = {name: number for number, name in EVENT_TYPES.items()}
_RTMR: Final = re.compile(r"(?:RTMR|MR|IMR)?\[?(\d)\]?", re.IGNORECASE)
#: Members that say a register, and what number they give RTMR0.
_REGISTERS: Final = (
    ("imr", 0), ("rtmr", 0), ("rtmr_index", 0), ("register", 0),
    ("index", 1), ("imr_index", 1), ("mr", 1), ("pcr", 1), ("PCRIndex", 1), ("pcr_index", 1),
)  # fmt: skip
_TYPES: Final = ("event_type", "type", "EventType", "eventType", "type_name")
_SHA384_NAMES: Final = frozenset({"sha384", "sha-384", "sha_384", "tpm_alg_sha384", "12", "0xc", "0x000c"})
#: Length, and where the log's area is said, of the CCEL ACPI table (ACPI 6.5, section 5.2.34).
_CCEL_TABLE: Final = 56
_SPEC_ID: Final = b"Spec ID Event03\0"


def read_log(data: bytes) -> list[Event]:
    """The events of a log, whatever it is written in.

    Raises:
        EventLogError: it is no event log; says what it is where that can be told.
    """
    _refuse_others(data)
    problem: EventLogError | None = None
    for candidate, form in candidates(data):
        if _is_ccel(candidate):
            try:
                return parse(candidate)
            except EventLogError as error:
                if form == "binary":
                    raise
                problem = problem or EventLogError(f"{error} (read as {form})")
    if problem is not None:
        raise problem
    document = _json(data)
    if document is not None:
        return _from_json(document)
    # For what is wrong with it.
    return parse(data)


def _is_ccel(data: bytes) -> bool:
    return len(data) >= 48 and data[32:48] == _SPEC_ID


def _refuse_others(data: bytes) -> None:
    if data[:4] == b"CCEL" and len(data) >= _CCEL_TABLE:
        size, start = (int.from_bytes(data[at : at + 8], "little") for at in (40, 48))
        raise EventLogError(
            f"this is the ACPI table CCEL, which says where the log is ({size} bytes at {start:#x}); Linux "
            "shows the log itself as /sys/firmware/acpi/tables/data/CCEL"
        )
    if not data.strip(b"\0\xff \t\r\n"):
        raise EventLogError("the file is empty: no event log, not even its header")
    kind = kind_of(given(data)[0])
    if kind is not None and _json(data) is None:
        raise EventLogError(
            f"this is a {kind}, no event log, which starts with event type 3; `swtdx show` shows it"
        )


def _json(data: bytes) -> Any:
    text = data.removeprefix(b"\xef\xbb\xbf").strip().rstrip(b"\0")
    if text[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        lines = text.splitlines()
        try:
            # One event a line, as dstack keeps its runtime events.
            return [json.loads(line) for line in lines if line.strip()]
        except (ValueError, RecursionError):
            raise EventLogError("the file starts like JSON and is not: it may be truncated") from None


def _from_json(document: Any) -> list[Event]:
    for entries in _lists(document):
        events: list[Event] = []
        for entry in entries:
            event = _event(len(events), entry)
            if event is not None:
                events.append(event)
        if events:
            return events
    raise EventLogError(
        "this is JSON with no event log in it that is known here: a list of events with a register (imr, "
        "index, pcr), a type and a SHA-384 digest each"
    )


def _lists(value: Any, depth: int = 6) -> Iterator[list[dict[str, Any]]]:
    """Every list in it that looks like events, also in text that is JSON itself."""
    if not depth:
        return
    if isinstance(value, list):
        entries = [each for each in value if isinstance(each, dict)]
        if (
            entries
            and len(entries) == len(value)
            and any("digest" in each or "digests" in each for each in entries)
        ):
            yield entries
        for each in value:
            yield from _lists(each, depth - 1)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _lists(each, depth - 1)
    elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            yield from _lists(json.loads(value), depth - 1)
        except (ValueError, RecursionError):
            return


def _event(place: int, entry: dict[str, Any]) -> Event | None:
    where = f"event {place} of the JSON"
    inner = entry.get("content")
    content: dict[str, Any] = inner if isinstance(inner, dict) else {}
    kind = _kind({**content, **entry}, where)
    digest = _digest(entry, where)
    if kind == EV_NO_ACTION and digest is None:
        return None
    if digest is None:
        raise EventLogError(f"{where} has no SHA-384 digest")
    data, known, name = _data({**content, **entry})
    register = _register(entry, where)
    measured, what = _measured(entry, digest, where)
    return Event(place, register, kind, digest, data, 0, known, name, measured, what)


def _measured(entry: dict[str, Any], digest: bytes, where: str) -> tuple[bytes | None, str]:
    """What `swtdx measure --firmware --json` adds: the bytes that were measured, and their name."""
    name = entry.get("measured")
    value = entry.get("measured_bytes")
    if not isinstance(value, str):
        return None, name if isinstance(name, str) else ""
    raw = _bytes(value)
    if raw is None or hashlib.sha384(raw).digest() != digest:
        raise EventLogError(f"{where}: the hash of measured_bytes is not the event's digest")
    return raw, name if isinstance(name, str) else ""


def _register(entry: dict[str, Any], where: str) -> int:
    for member, first in _REGISTERS:
        value = entry.get(member)
        if isinstance(value, str):
            if value.upper() == "MRTD":
                return 0
            match = _RTMR.fullmatch(value.strip())
            if match is None:
                continue
            # A name says which RTMR it is, whatever the member is called.
            first = first if value.strip().isdigit() else 0
            value = int(match[1])
        if isinstance(value, int) and not isinstance(value, bool):
            register = value + 1 - first
            if not 0 <= register <= 4:
                raise EventLogError(f"{where}: {member} {value} is not a measurement register of a TD")
            return register
    raise EventLogError(f"{where} does not say which register it extends (imr, index, pcr ...)")


def _kind(entry: dict[str, Any], where: str) -> int:
    for member in _TYPES:
        value = entry.get(member)
        if isinstance(value, int) and not isinstance(value, bool):
            return value & 0xFFFFFFFF
        if isinstance(value, str):
            if value in _NUMBERS:
                return _NUMBERS[value]
            try:
                return int(value, 0) & 0xFFFFFFFF
            except ValueError:
                continue
    raise EventLogError(f"{where} has no event type (event_type, type)")


def _digest(entry: dict[str, Any], where: str) -> bytes | None:
    value = entry.get("digest")
    found = entry.get("digests")
    if isinstance(found, dict):
        found = [{"alg": name, "digest": each} for name, each in found.items()]
    if isinstance(found, list):
        for each in found:
            if not isinstance(each, dict):
                continue
            algorithm = each.get("hashAlg", each.get("alg", each.get("alg_id", each.get("AlgorithmId", ""))))
            if str(algorithm).lower() in _SHA384_NAMES:
                value = each.get("digest", each.get("hash", each.get("Digest")))
    if not isinstance(value, str) or not value:
        return None
    raw = _bytes(value)
    if raw is None or len(raw) != DIGEST:
        raise EventLogError(f"{where}: the digest {value[:24]!r} is not {DIGEST} bytes in hex or base64")
    return raw


def _data(entry: dict[str, Any]) -> tuple[bytes, bool, str]:
    """(event data, whether the log has it, the event's name)."""
    if "event_payload" in entry:
        # dstack: boot events have a name only when they are its own, and data that need not be kept.
        raw = _bytes(str(entry["event_payload"]))
        return raw or b"", bool(raw), str(entry.get("event") or "")
    for member in ("event_data", "data", "event", "Event"):
        value = entry.get(member)
        if isinstance(value, str):
            raw = _bytes(value)
            return (raw, True, "") if raw is not None else (b"", False, value)
        if isinstance(value, list) and all(isinstance(each, int) and 0 <= each <= 255 for each in value):
            return bytes(value), True, ""
    return b"", False, ""


def _bytes(text: str) -> bytes | None:
    """Hex or base64; None if it is neither."""
    stripped = text.strip().removeprefix("0x")
    try:
        return bytes.fromhex(stripped)
    except ValueError:
        pass
    try:
        return base64.b64decode(
            stripped.replace("-", "+").replace("_", "/") + "=" * (-len(stripped) % 4), validate=True
        )
    except (binascii.Error, ValueError):
        return None
