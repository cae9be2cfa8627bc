"""MRTD against the published vector and against the rule written out block by block."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.arch.units import PAGE
from swtdx.measure.errors import MeasureError
from swtdx.measure.mrtd import MrtdStream, Region, mrtd
from tests.measure.images import stream

#: measurement.md §1.2: a zero page at 0xFFFFF000, added and extended; and no page at all.
ZERO_PAGE = "07f08f558c5e2593b33452cf00c12a165c07b027a36424ecfa15ebf39b5415e0ed62418458e4bfd77f16fec0f1568dc9"
NO_PAGE = "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"


def test_the_reference_vectors() -> None:
    assert mrtd([Region(0xFFFFF000, PAGE, bytes(PAGE), measured=True)]).hex() == ZERO_PAGE
    assert mrtd([Region(0xFFFFF000, PAGE, b"", measured=True)]).hex() == ZERO_PAGE
    assert mrtd([]).hex() == NO_PAGE


REGIONS = st.lists(
    st.tuples(
        st.integers(0, (1 << 39) - 1).map(lambda page: page * PAGE),
        st.integers(0, 70).map(lambda pages: pages * PAGE),
        st.binary(max_size=600),
        st.floats(0, 1),
        st.booleans(),
    ),
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(REGIONS)
def test_any_list_of_regions_follows_the_rule(drawn: list[tuple[int, int, bytes, float, bool]]) -> None:
    regions = []
    for gpa, size, seed, part, measured in drawn:
        # Contents of any length up to the region's, so that they end anywhere in a page or a batch.
        length = int(size * part)
        data = (seed * (length // max(len(seed), 1) + 1))[:length]
        regions.append((gpa, size, data, measured))
    assert mrtd(Region(*region) for region in regions) == hashlib.sha384(stream(regions)).digest()


def test_the_order_of_pages_matters() -> None:
    low, high = Region(0, PAGE, b"a", True), Region(PAGE, PAGE, b"b", True)
    together = Region(0, 2 * PAGE, b"a".ljust(PAGE, b"\0") + b"b", True)
    assert mrtd([low, high]) == mrtd([together]) != mrtd([high, low])


def test_contents_count_only_if_they_are_extended() -> None:
    assert mrtd([Region(0, PAGE, b"a", False)]) == mrtd([Region(0, PAGE, b"b", False)])
    assert mrtd([Region(0, PAGE, b"a", True)]) != mrtd([Region(0, PAGE, b"b", True)])


def test_pages_are_counted() -> None:
    stream = MrtdStream()
    stream.add(Region(0, 3 * PAGE, b"", True))
    stream.add(Region(0x100000, 5 * PAGE, b"", False))
    assert (stream.pages, stream.measured_pages) == (8, 3)


@pytest.mark.parametrize(
    ("region", "word"),
    [
        (Region(1, PAGE, b"", True), "4 KiB pages"),
        (Region(0, 100, b"", True), "4 KiB pages"),
        (Region(0, -PAGE, b"", True), "4 KiB pages"),
        (Region(1 << 52, PAGE, b"", True), "52 bits"),
        (Region((1 << 52) - PAGE, 2 * PAGE, b"", True), "52 bits"),
        (Region(0, PAGE, bytes(PAGE + 1), True), "do not fit"),
    ],
)
def test_impossible_regions_are_refused(region: Region, word: str) -> None:
    with pytest.raises(MeasureError, match=word):
        mrtd([region])
