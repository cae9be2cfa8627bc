"""Which of two Debian package versions is newer.

The algorithm of deb-version(7): epoch, upstream version and revision, each compared by alternating
runs of non-digits (in which ``~`` sorts before the end, and letters before anything else) and digits.
"""

from __future__ import annotations

import itertools
import re
from typing import Final

#: Larger than any character's rank below 0x110100; marks nothing by itself.
_OTHER: Final = 1 << 16

Key = tuple[int, tuple[tuple[tuple[int, ...], int], ...], tuple[tuple[tuple[int, ...], int], ...]]


def version_key(version: str) -> Key:
    """A sort key: versions compare as their keys do."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    return int(epoch) if epoch.isdigit() else 0, _part_key(upstream), _part_key(revision)


def _rank(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + _OTHER


def _part_key(part: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    # Each run of non-digits ends with rank 0, so that "~" (-1) sorts before the end of the part.
    runs = re.findall(r"(\D*)(\d*)", part)
    key = [
        ((*(_rank(character) for character in text), 0), int(digits or 0))
        for text, digits in itertools.takewhile(any, runs)
    ]
    # The end of a part is an empty run, followed by the number 0, for ever; one is enough.
    return (*key, ((0,), 0))
