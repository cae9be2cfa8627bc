"""Ranges of addresses: what is left of some when others are taken away."""

from __future__ import annotations

from collections.abc import Sequence

#: First address, bytes.
Range = tuple[int, int]


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """The parts of ``ranges`` that no range of ``taken`` covers, in the order of ``ranges``."""
    left: list[Range] = []
    for base, size in ranges:
        at, end = base, base + size
        for start, length in sorted(taken):
            if start < end and start + length > at:
                if start > at:
                    left.append((at, start - at))
                at = max(at, start + length)
        if at < end:
            left.append((at, end - at))
    return left
