"""Named bit ranges."""

from __future__ import annotations

from typing import NamedTuple


class Bits(NamedTuple):
    """A named bit range of an operand, both ends included."""

    name: str
    high: int
    low: int

    def of(self, value: int) -> int:
        """The range's bits of ``value``, shifted down."""
        return value >> self.low & ((1 << (self.high - self.low + 1)) - 1)

    @property
    def mask(self) -> int:
        """The range in place."""
        return (1 << (self.high + 1)) - (1 << self.low)


def split(ranges: tuple[Bits, ...], value: int) -> dict[str, int]:
    """Every range's value by its name, for people."""
    return {bits.name: bits.of(value) for bits in ranges}
