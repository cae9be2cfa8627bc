"""Firmware as the plan of a TD: what is added in which order, and the TD HOB, read as firmware reads it."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest

from swtdx.arch.guest_map import q35_map
from swtdx.guests.errors import DoesNotFit, GuestError, NotFirmware
from swtdx.guests.plan import GuestPlan
from swtdx.guests.tdvf_boot import build_tdvf_boot, load_firmware, parse_firmware, passes_rbp
from tests.measure.images import MR_EXTEND, PAGE_AUG, PERM_MEM, ROWS, TD_HOB, TEMP_MEM, Image, Row

MIB = 1 << 20
GIB = 1 << 30


def plan(image: Image, memory: int) -> GuestPlan:
    return build_tdvf_boot(parse_firmware(image.build()), memory, q35_map(memory))


def hobs(data: bytes, gpa: int) -> list[tuple[int, bytes]]:
    """(type, body) of each block, walked by lengths up to the end that the first one names."""
    found = []
    at = 0
    while True:
        kind, length, reserved = struct.unpack_from("<HHI", data, at)
        assert length >= 8
        assert length % 8 == reserved == 0
        found.append((kind, data[at + 8 : at + length]))
        at += length
        if kind == 0xFFFF:
            break
    version, mode, *addresses = struct.unpack("<IIQQQQQ", found[0][1])
    assert (found[0][0], version, mode) == (1, 9, 0)
    assert addresses == [0, 0, 0, 0, gpa + at], "QEMU leaves out all addresses but the end's"
    assert not any(data[at:])
    return found[1:-1]


def resources(made: GuestPlan) -> list[tuple[int, int, int]]:
    """(resource type, first GPA, bytes) of what the TD HOB says."""
    pages = {page.gpa: page.data for page in made.pages}
    hob = made.vp_init_rdx
    found = []
    for kind, body in hobs(pages[hob] + pages[hob + 4096], hob):
        owner, resource, attributes, start, size = struct.unpack("<16sIIQQ", body)
        assert (kind, owner, attributes) == (3, bytes(16), 7)
        found.append((resource, start, size))
    return found


def test_sections_in_the_order_of_the_metadata() -> None:
    made = plan(Image(), 64 * MIB)
    expected: list[tuple[int, bool]] = []
    for row in ROWS:
        expected += [(row.gpa + at, bool(row.attributes & MR_EXTEND)) for at in range(0, row.size, 4096)]
    assert [(page.gpa, page.measured) for page in made.pages] == expected
    image = Image().build()
    assert b"".join(page.data for page in made.pages[:24]) == image[0x8000:0x20000]
    assert b"".join(page.data for page in made.pages[24:32]) == image[:0x8000]
    assert not any(b"".join(page.data for page in made.pages[32:48]))
    assert made.vp_init_rdx == 0x809000


def test_the_hob_tells_what_is_there_and_what_is_to_be_accepted() -> None:
    """TempMem 0x810000+64K and the HOB's 8 KiB are there; the sections below 4 GiB are not RAM at all."""
    assert resources(plan(Image(), 64 * MIB)) == [
        (7, 0, 0x809000),
        (0, 0x809000, 0x2000),
        (7, 0x80B000, 0x5000),
        (0, 0x810000, 0x10000),
        (7, 0x820000, 64 * MIB - 0x820000),
    ]


@pytest.mark.parametrize(
    ("memory", "low"),
    [(2 * GIB, 2 * GIB), (0xAFFF_F000, 0xAFFF_F000), (0xB000_0000, 2 * GIB), (5 * GIB, 2 * GIB)],
)
def test_ram_ends_where_a_q35_s_does(memory: int, low: int) -> None:
    made = plan(Image(), memory)
    told = resources(made)
    assert sum(size for _, _, size in told) == memory
    assert [(part.base, part.size) for part in made.ram] == [(0, low), (4 * GIB, memory - low)][
        : 1 + (memory > low)
    ]
    for (_, start, size), (_, following, _) in itertools.pairwise(told):
        assert start + size in (following, low)


def test_pages_for_the_guest_to_accept() -> None:
    """A PermMem that is left for PAGE.AUG is not added, and counts as RAM also where there is none."""
    rows = (
        *ROWS,
        Row(PERM_MEM, 0x1000_0000, 0x2000, attributes=PAGE_AUG),
        Row(PERM_MEM, 0x1_0000_0000, 0x1000, attributes=PAGE_AUG),
    )
    made = plan(Image(rows=rows), 512 * MIB)
    added = {page.gpa for page in made.pages}
    assert not added & {0x1000_0000, 0x1000_1000, 0x1_0000_0000}
    assert [(part.base, part.size) for part in made.ram] == [(0, 512 * MIB), (0x1_0000_0000, 0x1000)]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DoesNotFit, match=r"0x10000 bytes at GPA 0x810000 for its section 2 \(TempMem\)"):
        plan(Image(), 8 * MIB)
    with pytest.raises(DoesNotFit, match=r"section 2 \(TempMem\) of the firmware.*only in part in RAM"):
        plan(Image(), 0x818000)
    with pytest.raises(DoesNotFit, match="whole number of 4 KiB pages"):
        plan(Image(), 64 * MIB + 1)
    crowded = [Row(TEMP_MEM, 0x10000 + at * 0x2000, 0x1000) for at in range(45)]
    with pytest.raises(DoesNotFit, match=r"a TD HOB of \d+ bytes does not fit into the firmware's 4096"):
        plan(Image(rows=(*ROWS[:2], Row(TD_HOB, 0x809000, 0x1000), *crowded)), 64 * MIB)


def test_firmware_that_passes_rbp() -> None:
    """As the assembler writes edk2's TdVmCall: before 2023 with RBP (bit 5) in the mask, then without."""
    for mask, passes in ((0xFFEC, True), (0xFFCC, False)):
        image = bytearray(Image().build())
        code = b"\xb9" + mask.to_bytes(4, "little") + b"\x4d\x31\xff" * 8 + b"\x66\x0f\x01\xcc"
        image[0x9000 : 0x9000 + len(code)] = code
        assert passes_rbp(parse_firmware(bytes(image))) is passes


def test_what_is_no_firmware_is_named(tmp_path: Path) -> None:
    file = tmp_path / "OVMF.fd"
    with pytest.raises(GuestError, match=r"OVMF\.fd cannot be read: No such file"):
        load_firmware(file)
    file.write_bytes(bytes(0x10000))
    with pytest.raises(NotFirmware, match=r"OVMF\.fd: no TDX metadata"):
        load_firmware(file)
    with pytest.raises(NotFirmware, match=r"section 0 \(BFV\) and section 1 \(CFV\) overlap|overlap at GPA"):
        parse_firmware(Image().with_row(1, gpa=0xFFFE1000).build())
    with pytest.raises(NotFirmware, match=r"section 0 \(BFV\) has its bytes at"):
        parse_firmware(Image().with_row(0, offset=0x1_0000, raw=0x18000).build())
