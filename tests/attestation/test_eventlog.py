"""Event logs: bytes against the specification, and finding the event that differs."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.attestation.errors import EventLogError
from swtdx.attestation.eventlog.format import Event, event, parse, write
from swtdx.attestation.eventlog.replay import compare, first_difference, replay
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.world import World
from swtdx.guests import event_log as shim

# The first record as OVMF writes it on a TD, spelled out: PCR 1, EV_NO_ACTION, 20 zero bytes, 33 bytes
# of "Spec ID Event03", class 0, version 2.0, errata 0, 64-bit, one algorithm: SHA-384 of 48 bytes.
FIRST = bytes.fromhex(
    "0100000003000000" + "00" * 20 + "21000000"
    "53706563204944204576656e74303300" + "00000000" + "00020002" + "01000000" + "0c003000" + "00"
)


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def boot_log() -> list[Event]:
    """A small log with every kind of event that matters."""
    return [
        event(0, 0, 0x8000000B, b"\x09TdxTable\0", b"the TD HOB"),
        event(1, 0, 0x80000001, b"a variable"),
        event(2, 0, 0x4, bytes(4)),
        event(3, 1, 0x80000003, b"path of a loader", b"the loader"),
        event(4, 1, 0x80000007, b"Exit Boot Services Invocation"),
        event(5, 2, 0xD, b"kernel_cmdline: quiet", b"quiet"),
        event(6, 2, 0xD, b"initrd", b"the initrd"),
        event(7, 2, 0xD, b"more", b"and more"),
    ]


def by_hand(events: list[Event]) -> list[bytes]:
    """RTMRs by the definition: SHA-384 of the old value and the digest, from 48 zero bytes."""
    values = [bytes(48)] * 4
    for each in events:
        if each.kind != 3 and each.register:
            values[each.register - 1] = sha384(values[each.register - 1] + each.digest)
    return values


def test_the_bytes_are_the_specifications() -> None:
    data = b"Exit"
    log = write([event(0, 2, 0x80000007, data)])
    record = struct.pack("<IIIH", 3, 0x80000007, 1, 0x000C) + sha384(data) + struct.pack("<I", 4) + data
    assert log == FIRST + record
    (read,) = parse(log)
    assert (read.register_name, read.kind_name, read.rtmr) == ("RTMR2", "EV_EFI_ACTION", 2)
    assert read.offset == len(FIRST)
    assert read.data_matches is True


@pytest.mark.parametrize("filler", [b"", b"\xff" * 512, bytes(512), b"\xff" * 3])
def test_filler_after_the_log(filler: bytes) -> None:
    events = boot_log()
    assert [replace(each, offset=0) for each in parse(write(events) + filler)] == events


def test_replay_is_the_definition_and_skips_what_extends_nothing() -> None:
    events = [
        *boot_log(),
        Event(8, 1, 3, sha384(b"no action"), b"no action"),
        Event(9, 0, 0x8, sha384(b"firmware"), b"firmware"),
    ]
    assert replay(events) == by_hand(boot_log())
    assert replay([]) == [bytes(48)] * 4


def test_a_log_fits_the_quote_of_its_td() -> None:
    events = boot_log()
    world = World()
    first, second, third, fourth = by_hand(events)
    quote = world.quote(replace(world.report_fields(), rtmrs=(first, second, third, fourth)))
    body = ParsedQuote(quote).body()
    results = compare(parse(write(events)), [body[f"rtmr{i}"] for i in range(4)])
    assert all(result.matches for result in results)
    assert [result.events for result in results] == [3, 2, 3, 0]


@pytest.mark.parametrize("index", range(8))
def test_an_event_that_was_never_extended_is_found(index: int) -> None:
    events = boot_log()
    real = by_hand(events[:index] + events[index + 1 :])
    (result,) = (each for each in compare(events, real) if not each.matches)
    assert result.event == events[index]
    assert result.note


@pytest.mark.parametrize("index", range(8))
def test_an_event_extended_twice_is_found(index: int) -> None:
    events = boot_log()
    real = by_hand([*events[: index + 1], events[index], *events[index + 1 :]])
    (result,) = (each for each in compare(events, real) if not each.matches)
    assert result.event == events[index]


def test_changed_data_is_found_where_the_digest_must_be_its_hash() -> None:
    events = boot_log()
    real = by_hand(events)
    forged = replace(events[4], data=b"Exit Boot Services Invocatiom", digest=sha384(b"something"))
    results = compare([*events[:4], forged, *events[5:]], real)
    assert [result.matches for result in results] == [True, False, True, True]
    assert results[1].event == forged
    assert "changed here" in results[1].note


def test_swapped_events_are_found() -> None:
    events = boot_log()
    swapped = [*events[:5], events[6], events[5], events[7]]
    results = compare(swapped, by_hand(events))
    assert results[2].event == events[6]
    assert "wrong order" in results[2].note


def test_what_cannot_be_found_is_not_invented() -> None:
    events = boot_log()
    real = by_hand([*events, event(8, 2, 0xD, b"hidden", b"an extend that is not in the log")])
    results = compare(events, real)
    assert results[2].event is None
    assert "reference log" in results[2].note
    untouched = compare(events, [bytes(48)] * 4)
    assert [result.event for result in untouched] == [events[0], events[3], events[5], None]


def test_a_reference_log_shows_the_first_difference() -> None:
    good = boot_log()
    changed = [*good[:5], event(5, 2, 0xD, b"kernel_cmdline: debug", b"debug"), *good[6:]]
    ((rtmr, found, note),) = first_difference(changed, good)
    assert (rtmr, found) == (2, changed[5])
    assert changed[5].digest.hex()[:16] in note
    assert first_difference(good, good) == []
    ((rtmr, found, note),) = first_difference(good[:-1], good)
    assert (rtmr, found) == (2, None)
    assert "'more'" in note
    ((rtmr, found, _),) = first_difference(good, good[:-1])
    assert (rtmr, found) == (2, good[-1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0x4, 0xD, 0x80000007]), st.binary(max_size=40)),
        max_size=12,
    )
)
def test_what_is_written_is_read(contents: list[tuple[int, int, bytes]]) -> None:
    events = [event(index, *content) for index, content in enumerate(contents)]
    assert [replace(each, offset=0) for each in parse(write(events))] == events


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        (b"", "ends in the header's register index"),
        (FIRST[:40], "ends in the header"),
        (FIRST.replace(b"Event03", b"Event02"), "Spec ID Event02"),
        (b"\1\0\0\0\4" + FIRST[5:], "starts with event type 0x4"),
        (FIRST + struct.pack("<II", 7, 4) + bytes(60), "there is no measurement register 7"),
        (FIRST + struct.pack("<III", 1, 4, 0) + bytes(60), "0 digests"),
        (FIRST + struct.pack("<IIIH", 1, 4, 1, 0x99) + bytes(60), "algorithm 0x99"),
        (FIRST + struct.pack("<IIIH", 1, 4, 1, 0xB) + bytes(36), "no SHA-384 digest"),
        (FIRST + struct.pack("<IIIH", 1, 4, 1, 0xC) + bytes(48) + b"\xff\xff\0\0", "ends in event 0"),
        (write([]) + bytes(8) + b"trailer", "are not filler"),
    ],
)
def test_malformed_logs_are_named(log: bytes, complaint: str) -> None:
    with pytest.raises(EventLogError) as error:
        parse(log)
    assert complaint in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_an_error_or_a_log(noise: bytes) -> None:
    for data in (noise, FIRST + noise):
        try:
            events = parse(data)
        except EventLogError:
            continue
        assert write(events) == data[: len(write(events))] or not events


def test_our_shims_log_reads_and_replays_the_same() -> None:
    # Written by the guests' room, from the same specifications.
    events = [
        shim.Event(1, 0x8000000A, sha384(b"k"), shim.firmware_blob(b"kernel", 0xC000_0000, 12345)),
        shim.Event(2, 0xD, sha384(b"c"), b"kernel_cmdline: quiet"),
        shim.Event(2, 0x6, sha384(b"i"), shim.tagged_event(0x8F3B22EC, b"Linux initrd\0")),
    ]
    log = shim.encode_log(events)
    assert log.startswith(FIRST)
    read = parse(log + b"\xff" * 100)
    assert replay(read) == list(shim.replay(events))
    assert [each.text() for each in read] == [
        "kernel at 0xc0000000, 12345 bytes",
        "kernel_cmdline: quiet",
        "tag 0x8f3b22ec: Linux initrd",
    ]
