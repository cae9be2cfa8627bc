"""Replaying a log against the RTMRs of a quote, and pointing at the first event that differs.

A quote has only the final values, so *that* a log differs is certain, but *where* must be found out:
from a reference log if there is one, from events whose digest is not the hash of their own data, or by
trying what single change of the log would explain the quote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .format import Event

#: RTMRs of a TD, and their value before anything is extended.
RTMRS: Final = 4
_START: Final = bytes(48)

#: Longest log of one RTMR for which changes are tried: the work grows with the square of the length.
_SEARCH: Final = 400


def extend(value: bytes, digest: bytes) -> bytes:
    """RTMR after TDG.MR.RTMR.EXTEND: SHA-384 of the old value and the digest (48 bytes each)."""
    return hashlib.sha384(value + digest).digest()


def replay_digests(digests: Sequence[bytes], start: bytes = _START) -> bytes:
    """An RTMR after these extensions."""
    for digest in digests:
        start = extend(start, digest)
    return start


def of_rtmr(events: Sequence[Event], rtmr: int) -> list[Event]:
    """The events that extend one RTMR, in order."""
    return [event for event in events if event.rtmr == rtmr]


def replay(events: Sequence[Event]) -> list[bytes]:
    """RTMR0..RTMR3 as the log says they are."""
    return [replay_digests([event.digest for event in of_rtmr(events, rtmr)]) for rtmr in range(RTMRS)]


@dataclass(frozen=True)
class RtmrResult:
    """One RTMR: what the log gives, what the quote has, and the first event that differs if they differ.

    ``event`` is None when the register matches, or when nothing in the log alone can tell; ``note``
    says what is known in words.
    """

    rtmr: int
    expected: bytes
    actual: bytes
    events: int
    event: Event | None = None
    note: str = ""

    @property
    def matches(self) -> bool:
        """Whether log and quote agree."""
        return self.expected == self.actual


def compare(events: Sequence[Event], rtmrs: Sequence[bytes]) -> list[RtmrResult]:
    """Replay a log against the four RTMRs of a quote (48 bytes each)."""
    results: list[RtmrResult] = []
    for rtmr in range(RTMRS):
        mine = of_rtmr(events, rtmr)
        value = replay_digests([event.digest for event in mine])
        result = RtmrResult(rtmr, value, rtmrs[rtmr], len(mine))
        if not result.matches:
            event, note = _explain(mine, rtmrs[rtmr])
            result = RtmrResult(rtmr, value, rtmrs[rtmr], len(mine), event, note)
        results.append(result)
    return results


def _explain(events: Sequence[Event], target: bytes) -> tuple[Event | None, str]:
    """The first event of one RTMR's log that can be shown to be wrong, and why."""
    if target == _START:
        return (events[0] if events else None), "the quote's register was never extended"
    if not events:
        return None, (
            "the log has no event of this register: software in the TD extended it at run time, which no "
            "CCEL can show (--runtime accepts that)"
        )
    for event in events:
        if event.data_matches is False:
            return event, "its digest is not the hash of its data: the log was changed here"
    values = [_START]
    for event in events:
        values.append(extend(values[-1], event.digest))
    for index, value in enumerate(values[:-1]):
        if value == target:
            return events[index], "the quote's register ends before this event: it was never extended"
    if len(events) <= _SEARCH:
        digests = [event.digest for event in events]
        for index, event in enumerate(events):
            if replay_digests(digests[index + 1 :], values[index]) == target:
                return event, "without this event the log fits: it was logged and not extended"
        for index, event in enumerate(events[:-1]):
            swapped = [digests[index + 1], digests[index], *digests[index + 2 :]]
            if replay_digests(swapped, values[index]) == target:
                return event, "with the next event first the log fits: the two are in the wrong order"
        for index, event in enumerate(events):
            if event.data_matches is None:
                remade = hashlib.sha384(event.data).digest()
                if replay_digests([remade, *digests[index + 1 :]], values[index]) == target:
                    return event, "with the hash of its data for digest the log fits: the digest was changed"
            if replay_digests(digests[index:], extend(values[index], event.digest)) == target:
                return event, "with this event twice the log fits: it was extended twice and logged once"
    return None, ("an event was changed, or one that was extended is missing; a reference log can tell which")


def first_difference(
    events: Sequence[Event], reference: Sequence[Event]
) -> list[tuple[int, Event | None, str]]:
    """Where a log first differs from a reference log, for each RTMR in which it does.

    Gives (RTMR, event or None when the log is shorter, what differs).
    """
    out: list[tuple[int, Event | None, str]] = []
    for rtmr in range(RTMRS):
        mine, theirs = of_rtmr(events, rtmr), of_rtmr(reference, rtmr)
        for have, want in zip(mine, theirs, strict=False):
            if have.digest != want.digest:
                what = f"digest {have.digest.hex()[:16]}... instead of {want.digest.hex()[:16]}..."
                if have.kind != want.kind:
                    what = f"{have.kind_name} instead of {want.kind_name}, {what}"
                if have.text() != want.text():
                    what += f": {have.text()!r} instead of {want.text()!r}"
                out.append((rtmr, have, what))
                break
        else:
            if len(mine) > len(theirs):
                out.append((rtmr, mine[len(theirs)], "the reference log ends before this event"))
            elif len(mine) < len(theirs):
                missing = theirs[len(mine)]
                out.append((rtmr, None, f"the log ends before {missing.kind_name} {missing.text()!r}"))
    return out
