"""TDVF metadata: images made by the documents, each rule broken once, and Debian's OVMF."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from swtdx.guests.firmware import fetch_firmware
from swtdx.measure.errors import MeasureError
from swtdx.measure.tdvf import SectionType, parse_tdvf
from tests.measure.images import (
    BFV,
    CFV,
    MR_EXTEND,
    PAGE_AUG,
    PAYLOAD,
    PERM_MEM,
    ROWS,
    SEV_RESET,
    TD_HOB,
    TDX_OFFSET,
    Image,
    Row,
    guid,
    stream,
)

GOOD = Image()


def expected(image: Image) -> bytes:
    data = image.build()
    regions = [
        (row.gpa, row.size, data[row.offset : row.offset + row.raw], bool(row.attributes & MR_EXTEND))
        for row in image.rows
        if not row.attributes & PAGE_AUG
    ]
    return hashlib.sha384(stream(regions)).digest()


@pytest.mark.parametrize("style", ["ovmf", "td-shim"])
def test_sections_and_mrtd(style: str) -> None:
    image = replace(GOOD, td_shim=style == "td-shim")
    parsed = parse_tdvf(image.build())
    assert parsed.style == style
    assert parsed.descriptor == image.size - 0x800
    got = [(s.type, s.gpa, s.size, s.data_offset, s.data_size, s.attributes) for s in parsed.sections]
    assert got == [(row.kind, row.gpa, row.size, row.offset, row.raw, row.attributes) for row in ROWS]
    assert parsed.measure().digest() == expected(image)


def test_td_shim_sections() -> None:
    rows = (
        *ROWS,
        Row(PERM_MEM, 0x1000000, 0x2000000, attributes=PAGE_AUG),
        Row(PAYLOAD, 0x4000000, 0x5000, 0x100, 0x4321, MR_EXTEND),
    )
    image = replace(GOOD, rows=rows, td_shim=True)
    parsed = parse_tdvf(image.build())
    assert [section.added for section in parsed.sections] == [True] * 4 + [False, True]
    # The payload's contents end inside a page; what follows them is zero.
    assert parsed.measure().digest() == expected(image)


def test_sections_are_built_in_the_order_of_the_metadata() -> None:
    image = replace(GOOD, rows=ROWS[::-1])
    assert parse_tdvf(image.build()).measure().digest() == expected(image) != expected(GOOD)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (replace(GOOD, entries=((SEV_RESET, b"\0\0\0\0"),)), "without TDX"),
        (replace(GOOD, entries=((TDX_OFFSET, b"\0\0\0\1"),)), "outside the image"),
        (replace(GOOD, entries=((TDX_OFFSET, b"\0\0\0\0"),)), "outside the image"),
        (replace(GOOD, entries=((TDX_OFFSET, b"\0\0\0\0\0\0\0\0"),)), "has 26 bytes"),
        (replace(GOOD, table_length=17), "GUID table"),
        (replace(GOOD, table_length=0xFFFF, size=0x8000), "GUID table"),
        (replace(GOOD, entry_length=3), "wrong length"),
        (replace(GOOD, entry_length=0xFFFF), "wrong length"),
        (replace(GOOD, guid=bytes(16)), "no TDX metadata GUID"),
        (replace(GOOD, signature=b"TDVX"), "does not begin with TDVF"),
        (replace(GOOD, version=2), "version 2"),
        (replace(GOOD, count=0, length=16), "0 sections"),
        (replace(GOOD, count=5), "does not fit"),
        (replace(GOOD, length=17), "does not fit"),
        (replace(GOOD, count=1000, length=16 + 32000), "beyond the image"),
        (GOOD.with_row(0, kind=9), "unknown type 9"),
        (GOOD.with_row(0, attributes=4), "unknown attributes"),
        (GOOD.with_row(0, attributes=MR_EXTEND | PAGE_AUG), "at once"),
        (GOOD.with_row(0, gpa=0xFFFE8800), "4 KiB pages"),
        (GOOD.with_row(0, size=0x18001), "4 KiB pages"),
        (GOOD.with_row(0, gpa=1 << 52), "52 bits"),
        (GOOD.with_row(0, raw=0), "no firmware code"),
        (GOOD.with_row(0, raw=0x18001), "0x18001 bytes in the file"),
        (GOOD.with_row(0, offset=0x9000), "OVMF_CODE"),
        (GOOD.with_row(1, size=0), "no memory"),
        (GOOD.with_row(1, gpa=0xFFFE1000), "overlap"),
        (GOOD.with_row(2, raw=1), "no bytes in the file"),
        (GOOD.with_row(3, raw=0x1000), "no bytes in the file"),
        (GOOD.with_row(0, kind=CFV), "no BFV"),
        (GOOD.with_row(2, size=1 << 33, gpa=1 << 33), "limit"),
        (GOOD.with_row(3, kind=CFV), "0 TD_HOB"),
        (GOOD.with_row(2, kind=TD_HOB), "2 TD_HOB"),
    ],
)
def test_a_broken_rule_is_named(image: Image, word: str) -> None:
    with pytest.raises(MeasureError, match=word):
        parse_tdvf(image.build())


def test_no_truncation_is_measured() -> None:
    whole = GOOD.build()
    for length in (0, 1, 47, 4095, 4096, *range(len(whole) - 3000, len(whole), 97)):
        with pytest.raises(MeasureError):
            parse_tdvf(whole[:length])


def test_cut_at_the_front_is_not_measured() -> None:
    # The metadata is found from the end, so it is still whole; the sections' bytes are not.
    with pytest.raises(MeasureError, match="truncated"):
        parse_tdvf(GOOD.build()[0x8000:])


def test_any_byte_of_the_metadata_may_be_wrong() -> None:
    whole = GOOD.build()
    metadata = range(len(whole) - 0x800 - 16, len(whole) - 0x800 + 16 + 32 * len(ROWS))
    table = range(len(whole) - 0x20 - 62, len(whole) - 0x20)
    for at in (*metadata, *table):
        for value in (0x00, 0x7F, 0xFF):
            image = bytearray(whole)
            image[at] = value
            try:
                parsed = parse_tdvf(bytes(image))
            except MeasureError:
                continue
            if sum(section.size for section in parsed.sections) < 1 << 20:
                assert len(parsed.measure().digest()) == 48


@pytest.mark.network
def test_debians_ovmf() -> None:
    data = fetch_firmware().image.read_bytes()
    parsed = parse_tdvf(data)
    # What any edk2 build has: the firmware ends at 4 GiB, the variables start with a firmware volume
    # header ("_FVH" at 40), and all of the file is one of the two.
    bfv = next(section for section in parsed.sections if section.type is SectionType.BFV)
    cfv = next(section for section in parsed.sections if section.type is SectionType.CFV)
    assert bfv.gpa + bfv.size == 1 << 32
    assert bfv.measured
    assert not cfv.measured
    assert data[cfv.data_offset + 40 : cfv.data_offset + 44] == b"_FVH"
    assert bfv.data_size + cfv.data_size == len(data)
    # The metadata's own GUID occurs once before a descriptor that repeats the signature.
    at = data.rindex(guid("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae"))
    assert parsed.descriptor == at + 16
    (count,) = struct.unpack_from("<I", data, at + 28)
    rows = [struct.unpack_from("<IIQQII", data, at + 32 + 32 * i) for i in range(count)]
    regions = [
        (gpa, size, data[offset : offset + raw], bool(attributes & MR_EXTEND))
        for offset, raw, gpa, size, _, attributes in rows
    ]
    assert parsed.measure().digest() == hashlib.sha384(stream(regions)).digest()
    assert BFV in {row[4] for row in rows}
