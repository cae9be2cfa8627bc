"""Two boots compared: `swtdx eventlog diff`, and what differs in words."""

from __future__ import annotations

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

from swtdx.attestation.eventlog.diff import differences
from swtdx.attestation.eventlog.format import Event, event, write
from swtdx.attestation.eventlog.reading import read_log
from swtdx.attestation.eventlog.replay import replay
from swtdx.cli.main import cli
from swtdx.guests.memory_map import Range
from swtdx.guests.td_hob import encode_td_hob, ram_entries

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
VARIABLE, BOOT, APPLICATION, FLAGS, TAG, SEPARATOR = 0x80000001, 0x80000002, 0x80000003, 0xA, 0x6, 0x4
IPL, HANDOFF = 0xD, 0x8000000B
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")


def variable(name: str, value: bytes) -> bytes:
    head = GLOBAL.bytes_le + struct.pack("<QQ", len(name), len(value))
    return head + name.encode("utf-16-le") + value


def image(path: str, base: int = 0x7E000000, size: int = 4096) -> bytes:
    name = path.encode("utf-16-le") + b"\0\0"
    nodes = struct.pack("<BBH", 4, 4, 4 + len(name)) + name + bytes.fromhex("7fff0400")
    return struct.pack("<QQQQ", base, size, 0, len(nodes)) + nodes


def table(signature: bytes, body: bytes, oem: bytes = b"SWTDX ") -> bytes:
    head = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), 5, 0, oem, b"SWTDX_TD", 1, b"SWTD", 1)
    raw = bytearray(head + body)
    raw[9] = -sum(raw) & 0xFF
    return bytes(raw)


def hashes(*values: bytes) -> bytes:
    body = b"".join(bytes(16) + value for value in values)
    return SHA256.bytes_le + struct.pack("<III", 28 + len(body), 0, 48) + body


def known(made: Event, name: str, content: bytes) -> Event:
    return replace(made, digest=hashlib.sha384(content).digest(), content=content, content_name=name)


def madt(*apic_ids: int) -> bytes:
    entries = (struct.pack("<BBBBI", 0, 8, uid, apic, 1) for uid, apic in enumerate(apic_ids))
    return table(b"APIC", struct.pack("<II", 0xFEE00000, 0) + b"".join(entries))


def hob(memory: int) -> bytes:
    entries = ram_entries([Range(0, memory)], [("TD_HOB", Range(0x809000, 0x2000))])
    return encode_td_hob(0x809000, 0x2000, entries)[:-8]


LOG = [
    known(event(0, 0, HANDOFF, b"\x09TdxTable\0" + bytes(8)), "TD HOB", hob(512 << 20)),
    event(1, 0, VARIABLE, variable("SecureBoot", b"\0")),
    event(2, 0, VARIABLE, variable("dbx", hashes(b"a" * 32, b"b" * 32))),
    event(3, 0, SEPARATOR, bytes(4)),
    known(event(4, 0, FLAGS, b"ACPI DATA"), "etc/acpi/tables", table(b"FACP", bytes(40)) + madt(0)),
    event(5, 1, APPLICATION, image("\\EFI\\BOOT\\BOOTX64.EFI"), b"the loader"),
    event(6, 0, BOOT, variable("BootOrder", b"\0\0")),
    known(event(7, 2, TAG, struct.pack("<II", 0x8F3B22ED, 5) + b"words"), "kernel command line",
          "console=hvc0 quiet root=/dev/vda\0".encode("utf-16-le")),
    event(8, 2, IPL, b"grub_cmd: linux /vmlinuz quiet"),
]  # fmt: skip


def changed(index: int, made: Event) -> list[Event]:
    return [*LOG[:index], replace(made, index=index), *LOG[index + 1 :]]


def one(second: list[Event]) -> str:
    (found,) = differences(LOG, second)
    return "\n".join((f"{found.register}: {found.words}", *found.details))


def test_a_log_is_like_itself_wherever_images_were_loaded() -> None:
    moved = replace(LOG[5], data=image("\\EFI\\BOOT\\BOOTX64.EFI", base=0x1000))
    assert differences(LOG, changed(5, moved)) == []


@pytest.mark.parametrize(
    ("index", "made", "said"),
    [
        (0, known(LOG[0], "TD HOB", hob(1 << 30)),
         ["RTMR0: the memory map", "only in A: memory to be accepted", "0x80b000 to 0x20000000",
          "0x80b000 to 0x40000000"]),
        (1, event(1, 0, VARIABLE, variable("SecureBoot", b"\1")),
         ["the variable SecureBoot", "A: SecureBoot = 00", "B: SecureBoot = 01"]),
        (2, event(2, 0, VARIABLE, variable("dbx", hashes(b"a" * 32, b"c" * 32))),
         ["the variable dbx", f"only in A: SHA-256 hash {'b' * 32}", f"only in B: SHA-256 hash {'c' * 32}"]),
        (4, known(LOG[4], "etc/acpi/tables", table(b"FACP", bytes(40)) + madt(0, 1)),
         ["ACPI tables", "MADT: 52 bytes in A, 60 in B",
          "MADT: only in B: processor 1 with APIC id 1 [00 08 01 01 01 00 00 00]"]),
        (4, known(LOG[4], "etc/acpi/tables", table(b"FACP", bytes(20) + b"\x17" + bytes(19)) + madt(0)),
         ["FADT: from byte 0x38: 00 in A, 17 in B"]),
        (4, known(LOG[4], "etc/acpi/tables", table(b"FACP", bytes(40), b"BOCHS ") + madt(0)),
         ["FADT: OEM id 'SWTDX' in A, 'BOCHS' in B"]),
        (4, known(LOG[4], "etc/acpi/tables", table(b"FACP", bytes(40)) + madt(0) + table(b"MCFG", bytes(8))),
         ["table MCFG, 44 bytes: only in B"]),
        (5, event(5, 1, APPLICATION, image("\\EFI\\BOOT\\BOOTX64.EFI", size=8192), b"another loader"),
         ["RTMR1: the application \\EFI\\BOOT\\BOOTX64.EFI has another hash", "4096 bytes in A, 8192 in B",
          hashlib.sha384(b"another loader").hexdigest()]),
        (6, event(6, 0, BOOT, variable("BootOrder", b"\1\0\0\0")),
         ["the variable BootOrder", "BootOrder = 0001 0000"]),
        (7, known(LOG[7], "kernel command line", "console=hvc0 debug root=/dev/vda\0".encode("utf-16-le")),
         ["RTMR2: the kernel command line differs", "'quiet' in A is 'debug' in B"]),
        (8, event(8, 2, IPL, b"grub_cmd: linux /vmlinuz quiet splash"),
         ["EV_IPL differs", "'splash' is in B only"]),
    ],
)  # fmt: skip
def test_what_differs_is_said_in_words(index: int, made: Event, said: list[str]) -> None:
    text = one(changed(index, made))
    assert [each for each in said if each not in text] == [], text


def test_events_that_one_log_lacks_and_events_that_moved() -> None:
    lacking = [*LOG[:2], *LOG[3:]]
    assert "only A has EV_EFI_VARIABLE_DRIVER_CONFIG dbx" in one(lacking)
    swapped = [LOG[0], LOG[2], LOG[1], *LOG[3:]]
    found = differences(LOG, swapped)
    assert len(found) == 1
    assert "is at another place" in found[0].words
    added = [*LOG, event(9, 3, 0x80000007, b"late")]
    assert "only B has EV_EFI_ACTION late" in one(added)


def test_data_that_the_digest_is_not_of() -> None:
    forged = replace(LOG[1], data=variable("SecureBoot", b"\1"))
    text = one(changed(1, forged))
    assert "same digest in both, which is not the hash of its data in B" in text


def test_logs_without_the_bytes_say_so() -> None:
    bare = [replace(each, content=None, content_name="") for each in LOG]
    other = [*bare[:7], replace(bare[7], digest=b"x" * 48), *bare[8:]]
    (found,) = differences(bare, other)
    assert found.words == "what EV_EVENT_TAG 'tag 0x8f3b22ed: words' was made of differs"
    assert any("does not hold what was measured" in each for each in found.details)


@given(st.data())
def test_there_are_differences_exactly_where_the_registers_differ(data: st.DataObject) -> None:
    second = list(LOG)
    for _ in range(data.draw(st.integers(0, 4))):
        kind = data.draw(st.sampled_from(["drop", "double", "swap", "change"]))
        if not second:
            break
        at = data.draw(st.integers(0, len(second) - 1))
        other = data.draw(st.integers(0, len(second) - 1))
        if kind == "drop":
            del second[at]
        elif kind == "double":
            second.insert(other, second[at])
        elif kind == "swap":
            second[at], second[other] = second[other], second[at]
        else:
            second[at] = replace(second[at], digest=data.draw(st.binary(min_size=48, max_size=48)))
    registers = {
        f"RTMR{n}" for n, (a, b) in enumerate(zip(replay(LOG), replay(second), strict=True)) if a != b
    }
    assert {each.register for each in differences(LOG, second)} == registers
    assert {each.register for each in differences(second, LOG)} == registers


# ------------------------------------------------------------------ the command
def measured(events: list[Event]) -> dict[str, Any]:
    """As `swtdx measure --firmware --json` writes them."""
    members = []
    for each in events:
        member = {
            "rtmr": each.rtmr,
            "digest": each.digest.hex(),
            "type": each.kind_name,
            "data": each.data.hex(),
        }
        if each.content is not None:
            member |= {"measured": each.content_name, "measured_bytes": each.content.hex()}
        members.append(member)
    return {"mrtd": "00" * 48, "events": members}


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(each) for each in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_compares_forms_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "ccel").write_bytes(write(LOG))
    (tmp_path / "json").write_text(json.dumps(measured(LOG)))
    status, text = run("eventlog", "diff", tmp_path / "ccel", tmp_path / "json")
    assert (status, text.count("is the same")) == (0, 4)
    later = changed(7, known(LOG[7], "kernel command line", "console=hvc0\0".encode("utf-16-le")))
    (tmp_path / "later").write_text(json.dumps(measured(later)))
    status, text = run("eventlog", "diff", tmp_path / "json", tmp_path / "later")
    assert status == 1
    assert text.count("is the same") == 3
    assert "event 7: the kernel command line differs" in text
    assert "'quiet root=/dev/vda' is in A only" in text
    status, text = run("eventlog", "diff", "--json", tmp_path / "json", tmp_path / "later")
    document = json.loads(text)
    assert status == 1
    assert document["first"]["rtmrs"] == [value.hex() for value in replay(LOG)]
    assert [(each["register"], each["first"], each["second"]) for each in document["differences"]] == [
        ("RTMR2", 7, 7)
    ]
    # The command of one log is what it was.
    assert run("eventlog", tmp_path / "json")[0] == 0
    assert run("eventlog", "diff", tmp_path / "json")[0] == 2
    assert run("eventlog", "diff", tmp_path / "json", tmp_path / "nothing")[0] == 2


def test_bytes_that_are_not_what_was_measured_are_refused(tmp_path: Path) -> None:
    document = measured(LOG)
    document["events"][7]["measured_bytes"] = "00"
    (tmp_path / "forged").write_text(json.dumps(document))
    status, text = run("eventlog", "diff", tmp_path / "forged", tmp_path / "forged")
    assert status == 2
    assert "event 7 of the JSON: the hash of measured_bytes is not the event's digest" in text
    assert [each.content_name for each in read_log(json.dumps(measured(LOG)).encode())][
        4
    ] == "etc/acpi/tables"
