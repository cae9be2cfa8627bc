"""Event logs as users have them: what an event is about in words, logs in JSON, and things that are no log.

The structures are built here from the UEFI and TCG specifications.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from swtdx.attestation.errors import EventLogError
from swtdx.attestation.eventlog.describe import describe
from swtdx.attestation.eventlog.format import EVENT_TYPES, Event, event, parse, write
from swtdx.attestation.eventlog.reading import read_log
from swtdx.attestation.eventlog.replay import extend, replay
from swtdx.attestation.world import World
from swtdx.cli.main import cli

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
SHIM = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
OTHER = uuid.UUID("11223344-5566-7788-99aa-bbccddeeff00")


def var(name: str, data: bytes, vendor: uuid.UUID = GLOBAL) -> bytes:
    text = name.encode("utf-16le")
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(data)) + text + data


def node(kind: int, sub: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, sub, 4 + len(body)) + body


END = node(0x7F, 0xFF, b"")
FILE = node(4, 4, "\\EFI\\BOOT\\BOOTX64.EFI\0".encode("utf-16le"))


def option(name: str, path: bytes = b"") -> bytes:
    return struct.pack("<IH", 1, len(path)) + f"{name}\0".encode("utf-16le") + path


def signatures(kind: uuid.UUID, size: int, count: int) -> bytes:
    return kind.bytes_le + struct.pack("<III", 28 + size * count, 0, size) + bytes(size * count)


def gpt(*names: str) -> bytes:
    header = b"EFI PART".ljust(56, b"\0") + OTHER.bytes_le + struct.pack("<QIII", 2, 128, 128, 0)
    entries = [(bytes(56) + name.encode("utf-16le")).ljust(128, b"\0") for name in names]
    return header + struct.pack("<Q", len(entries)) + b"".join(entries)


def tagged(tag: int, data: bytes) -> bytes:
    return struct.pack("<II", tag, len(data)) + data


DRIVER_CONFIG, BOOT, BOOT2, AUTHORITY = 0x80000001, 0x80000002, 0x8000000C, 0x800000E0


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (DRIVER_CONFIG, var("SecureBoot", b"\0"), "SecureBoot = 00"),
        (DRIVER_CONFIG, var("PK", b""), "PK, empty"),
        (DRIVER_CONFIG, var("db", signatures(X509, 1000, 1) + signatures(X509, 900, 1), SECURITY),
         "db = 2 certificates"),
        (DRIVER_CONFIG, var("dbx", signatures(SHA256, 48, 371), SECURITY), "dbx = 371 SHA-256 hashes"),
        (DRIVER_CONFIG, var("Mine", b"\1\2", OTHER), f"Mine {{{OTHER}}} = 0102"),
        (BOOT, var("BootOrder", struct.pack("<3H", 1, 0, 0x12)), "BootOrder = 0001 0000 0012"),
        (BOOT, var("Boot0000", option("UiApp")), "Boot0000: UiApp"),
        (BOOT2, var("Boot000A", option("Linux", FILE + END)), "Boot000A: Linux, \\EFI\\BOOT\\BOOTX64.EFI"),
        (BOOT, var("BootCurrent", b"\1\0"), "BootCurrent = 0001"),
        (BOOT, var("Boot0001", b"\1\2\3"), "Boot0001 = 010203"),
        (AUTHORITY, var("SbatLevel", b"sbat,1,2022\nshim,2\n", SHIM), "SbatLevel = sbat,1,2022 shim,2"),
        (0x80000003, struct.pack("<QQQQ", 0x1000, 4096, 0, 0), "PE image at 0x1000, 4096 bytes"),
        (0x80000004, struct.pack("<QQQQ", 0x2000, 5, 0, len(FILE + END)) + FILE + END,
         "PE image at 0x2000, 5 bytes, \\EFI\\BOOT\\BOOTX64.EFI"),
        (0x80000006, gpt("esp", "root"), f"GPT of disk {OTHER}, 2 partitions: esp, root"),
        (0x4, bytes(4), "separator 00000000"),
        (0x4, b"\xff" * 4, "separator ffffffff"),
        (0x4, b"\1\0\0\0", "separator of an error, 01000000"),
        (0xD, b"grub_cmd: menuentry A {\n\tlinux /vmlinuz console=ttyS0\n}\0",
         "grub_cmd: menuentry A { linux /vmlinuz console=ttyS0 }"),
        (0xD, b"grub_cmd [  ]\0`", "grub_cmd [ ]"),
        (0xD, "quiet splash\0".encode("utf-16le"), "quiet splash"),
        (0xD, b".linux\0", "section .linux (systemd-stub)"),
        (0x6, tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0"),
         "tag 0x8f3b22ed: LOADED_IMAGE::LoadOptions"),
        (0x6, tagged(0xF5BC582A, b"timeout 3\n"),
         "tag 0xf5bc582a (systemd-boot's loader configuration): timeout 3"),
        (0x6, b"LOADED_IMAGE::LoadOptions\0", "LOADED_IMAGE::LoadOptions"),
        (0x80000008, struct.pack("<QQ", 0x800000, 4096), "blob at 0x800000, 4096 bytes"),
        (0x8000000A, b"\3BFV" + struct.pack("<QQ", 0x1000, 2), "BFV at 0x1000, 2 bytes"),
        (0x8000000B, b"\3Tab" + struct.pack("<Q", 1) + OTHER.bytes_le + bytes(8), f"Tab, 1 table: {OTHER}"),
        (0x80000007, b"Exit Boot Services Invocation", "Exit Boot Services Invocation"),
        (0xA, b"td_hob".ljust(16, b"\0") + struct.pack("<I", 3) + b"abc", "td_hob, 3 bytes"),
        (0x3, b"SP800-155 Event3" + bytes(30), "SP800-155 Event3"),
        (0xA, b"", "no data"),
    ],
)  # fmt: skip
def test_what_an_event_is_about(kind: int, data: bytes, text: str) -> None:
    assert describe(kind, data) == text


@pytest.mark.parametrize(
    "kind", [DRIVER_CONFIG, BOOT, AUTHORITY, 0x80000003, 0x80000006, 0x8000000A, 0x8000000B, 0x6]
)
@pytest.mark.parametrize(
    "whole",
    [
        var("SecureBoot", b"\0"),
        struct.pack("<QQQQ", 0x1000, 4096, 0, 0),
        gpt("esp"),
        b"\3BFV" + struct.pack("<QQ", 0x1000, 2),
        tagged(0x8F3B22ED, b"text"),
    ],
)
def test_an_inner_size_that_does_not_fit_is_not_misread(kind: int, whole: bytes) -> None:
    """A byte more or less than the sizes inside say: only hex, or the text that the bytes are."""
    for data in (whole + b"\x7f", whole[:-1]):
        text = describe(kind, data)
        assert text.startswith(f"{len(data)} bytes {data[:16].hex()}"), text


@given(kind=st.sampled_from(sorted(EVENT_TYPES)), data=st.binary(max_size=200))
def test_nothing_breaks_a_description(kind: int, data: bytes) -> None:
    text = describe(kind, data)
    assert text
    assert text.isprintable()


LOG = [
    event(0, 0, DRIVER_CONFIG, var("SecureBoot", b"\1")),
    event(1, 1, 0x80000003, struct.pack("<QQQQ", 0x1000, 4096, 0, 0), b"the image"),
    event(2, 2, 0xD, b"grub_cmd: boot\0"),
    event(3, 0, 0x4, bytes(4)),
]


def dstack(events: list[Event]) -> Any:
    """As dstack's guest agent gives it: imr from 0, the data only of its own events."""
    boot = [
        {
            "imr": each.register - 1,
            "event_type": each.kind,
            "digest": each.digest.hex(),
            "event": "",
            "event_payload": "",
        }
        for each in events
    ]
    return [*boot, runtime("app-id", b"\x12\x34")]


def runtime(name: str, payload: bytes) -> dict[str, Any]:
    measured = (0x08000001).to_bytes(4, "little") + b":" + name.encode() + b":" + payload
    digest = hashlib.sha384(measured).hexdigest()
    return {
        "imr": 3,
        "event_type": 0x08000001,
        "digest": digest,
        "event": name,
        "event_payload": payload.hex(),
    }


def trustee(events: list[Event]) -> Any:
    """As the attestation service of confidential containers gives it: index from 1, data in base64."""
    return {
        "uefi_event_logs": [
            {
                "details": {"string": "x"},
                "digests": [{"alg": "SHA-384", "digest": each.digest.hex()}],
                "event": base64.b64encode(each.data).decode(),
                "index": each.register,
                "type": f"0x{each.kind:08X}",
                "type_name": each.kind_name,
            }
            for each in events
        ]
    }


def cel(events: list[Event]) -> Any:
    """TCG Canonical Event Log in JSON."""
    return [
        {
            "recnum": each.index,
            "pcr": each.register,
            "digests": [
                {"hashAlg": "sha256", "digest": "00" * 32},
                {"hashAlg": "sha384", "digest": each.digest.hex()},
            ],
            "content_type": "pcclient_std",
            "content": {"event_type": each.kind_name, "event_data": each.data.hex()},
        }
        for each in events
    ]  # fmt: skip


def run(*words: str | Path, stdin: bytes | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(each) for each in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def own(events: list[Event]) -> Any:
    status, text = run("eventlog", "--json", "-", stdin=write(events))
    assert status == 0
    return json.loads(text)


@pytest.mark.parametrize("form", [trustee, cel, own])
def test_logs_in_json_are_the_log(form: Any) -> None:
    for read in (
        read_log(json.dumps(form(LOG)).encode()),
        read_log(json.dumps({"log": json.dumps(form(LOG))}).encode()),
    ):
        assert [(each.register, each.kind, each.digest, each.data) for each in read] == [
            (each.register, each.kind, each.digest, each.data) for each in LOG
        ]
        assert replay(read) == replay(LOG)


def test_dstacks_log() -> None:
    for text in (json.dumps(dstack(LOG)), "\n".join(json.dumps(each) for each in dstack(LOG))):
        read = read_log(text.encode())
        assert replay(read)[:3] == replay(LOG)[:3]
        assert replay(read)[3] == extend(bytes(48), bytes.fromhex(runtime("app-id", b"\x12\x34")["digest"]))
        assert [each.data_matches for each in read] == [None] * 4 + [True]
        assert read[4].text().startswith("app-id: ")
        assert read[4].kind_name == "DSTACK_RUNTIME_EVENT"
    changed = dstack(LOG)
    changed[4]["event_payload"] = "1235"
    assert read_log(json.dumps(changed).encode())[4].data_matches is False


@pytest.mark.parametrize("form", [bytes.hex, lambda data: base64.b64encode(data).decode()])
def test_a_log_in_text(form: Any) -> None:
    log = write(LOG) + b"\xff" * 100
    assert read_log(form(log).encode()) == parse(log)
    assert read_log(json.dumps({"quote": "00" * 700, "cc_eventlog": form(log)}).encode()) == parse(log)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"CCEL" + struct.pack("<I", 56) + bytes(32) + struct.pack("<QQ", 0x10000, 0x7F000000),
            "ACPI table CCEL",
        ),
        (b"", "empty"),
        (b"\xff" * 4096, "empty"),
        (write(LOG)[:-3], "truncated"),
        (write(LOG)[:70], "truncated"),
        (write(LOG).hex()[:-6].encode(), "truncated"),
        (b'[{"imr": 0, "digest"', "truncated"),
        (b'{"a": [1, 2]}', "no event log in it"),
        (b'[{"imr": 9, "event_type": 4, "digest": "' + b"00" * 48 + b'"}]', "not a measurement register"),
        (b'[{"imr": 0, "event_type": 4, "digest": "00"}]', "not 48 bytes"),
        (b'[{"event_type": 4, "digest": "' + b"00" * 48 + b'"}]', "which register"),
        (struct.pack("<II20sI", 0, 8, bytes(20), 4) + bytes(40), "TPM 1.2"),
        (write([replace(LOG[0], register=7)]), "PCR"),
    ],
)
def test_what_is_no_log_is_told(data: bytes, said: str) -> None:
    with pytest.raises(EventLogError, match=said):
        read_log(data)
    status, text = run("eventlog", "-", stdin=data)
    assert status == 2
    assert said in text


def test_a_quote_and_a_report_are_told(world: World) -> None:
    for data, name in (
        (world.quote(), "TD quote"),
        (world.report_fields().report(world.report_key), "TDREPORT"),
    ):
        with pytest.raises(EventLogError, match=f"this is a {name}"):
            read_log(data)


def test_a_register_extended_at_run_time(world: World, tmp_path: Path) -> None:
    first, second, third, _ = replay(LOG)
    rtmrs = (first, second, third, extend(bytes(48), b"r" * 48))
    (tmp_path / "quote").write_bytes(world.quote(replace(world.report_fields(), rtmrs=rtmrs)))
    (tmp_path / "log").write_bytes(write(LOG))
    status, text = run("eventlog", tmp_path / "log", "--quote", tmp_path / "quote")
    assert status == 1
    assert "the log has no event of this register: software in the TD extended it at run time" in text
    status, text = run("eventlog", tmp_path / "log", "--quote", tmp_path / "quote", "--runtime", "3")
    assert status == 0
    assert "accepted, as it is extended at run time" in text
    # It accepts that register only, and a log that fits needs no leave.
    wrong = (extend(first, b"x" * 48), second, third, rtmrs[3])
    (tmp_path / "other").write_bytes(world.quote(replace(world.report_fields(), rtmrs=wrong)))
    assert run("eventlog", tmp_path / "log", "--quote", tmp_path / "other", "--runtime", "3")[0] == 1
    status, text = run(
        "eventlog", tmp_path / "log", "--quote", tmp_path / "other", "--json", "--runtime", "3"
    )
    assert [each["accepted"] for each in json.loads(text)["quote"]] == [False, True, True, True]


def test_show_takes_logs_too(tmp_path: Path) -> None:
    status, text = run("show", "-", stdin=json.dumps(trustee(LOG)).encode())
    assert (status, "SecureBoot = 01" in text) == (0, True)
    status, text = run("show", "--json", "-", stdin=write(LOG))
    assert json.loads(text)["rtmrs"] == [value.hex() for value in replay(LOG)]
    table = b"CCEL" + struct.pack("<I", 56) + bytes(48)
    for data, said in ((table, "ACPI table CCEL"), (write(LOG)[:-3], "truncated")):
        status, text = run("show", "-", stdin=data)
        assert (status, said in text) == (2, True)


def test_a_difference_says_what_the_event_is_about(world: World, tmp_path: Path) -> None:
    other = [event(0, 0, DRIVER_CONFIG, var("SecureBoot", b"\0")), *LOG[1:]]
    (tmp_path / "log").write_bytes(write(LOG))
    (tmp_path / "reference").write_bytes(write(other))
    status, text = run("eventlog", tmp_path / "log", "--reference", tmp_path / "reference")
    assert status == 1
    assert "RTMR0 differs from the reference log at event 0 (SecureBoot = 01)" in text
    assert "'SecureBoot = 01' instead of 'SecureBoot = 00'" in text
    first, second, third, fourth = replay(LOG)
    changed = [replace(LOG[0], data=var("SecureBoot", b"\0")), *LOG[1:]]
    (tmp_path / "changed").write_bytes(write(changed))
    wrong = world.quote(
        replace(world.report_fields(), rtmrs=(extend(first, b"x" * 48), second, third, fourth))
    )
    (tmp_path / "quote").write_bytes(wrong)
    status, text = run("eventlog", tmp_path / "changed", "--quote", tmp_path / "quote")
    assert "event 0 (SecureBoot = 00): its digest is not the hash of its data" in text
