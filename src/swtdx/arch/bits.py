"""Named bit ranges, and integers made of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self, overload


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


class BitField:
    """Bits ``high`` to ``low`` of a :class:`Register`, both included; one bit if ``low`` is left out.

    On the class it is this object (``EPTP.walk_length.mask``), on a value the bits, shifted down
    (``EPTP(value).walk_length``).
    """

    __slots__ = ("high", "low", "mask", "name")

    def __init__(self, high: int, low: int | None = None) -> None:
        self.high = high
        self.low = high if low is None else low
        if not self.high >= self.low >= 0:
            raise ValueError(f"there are no bits {self.high} to {self.low}")
        #: The range in place.
        self.mask = (1 << (self.high + 1)) - (1 << self.low)
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, value: None, owner: type[Register]) -> Self: ...
    @overload
    def __get__(self, value: Register, owner: type[Register]) -> int: ...
    def __get__(self, value: Register | None, owner: type[Register]) -> Self | int:
        return self if value is None else (value & self.mask) >> self.low

    @property
    def bits(self) -> Bits:
        """Name and ends."""
        return Bits(self.name, self.high, self.low)


class Register(int):
    """An integer of ``width`` bits (a keyword of the class) with named bit ranges; it prints their names.

    >>> class CONTROL(Register, width=8):
    ...     ENABLE = BitField(7)
    ...     level = BitField(2, 0)
    >>> print(CONTROL(0x89))
    ENABLE level=0x1 bit 3
    >>> CONTROL(0x89).level
    1

    Raises:
        ValueError: when the class is made: a range overlaps another or lies outside the register.
    """

    width: ClassVar[int] = 64
    #: The declared ranges by name, in order of declaration.
    ranges: ClassVar[Mapping[str, BitField]] = MappingProxyType({})

    def __init_subclass__(cls, *, width: int = 64) -> None:
        cls.width = width
        cls.ranges = MappingProxyType(
            {name: member for name, member in vars(cls).items() if isinstance(member, BitField)}
        )
        ordered = sorted(cls.ranges.values(), key=lambda field: field.low)
        for lower, upper in itertools.pairwise(ordered):
            if upper.low <= lower.high:
                raise ValueError(f"{cls.__name__}.{lower.name} and {upper.name} overlap at bit {upper.low}")
        if ordered and ordered[-1].high >= width:
            raise ValueError(f"{cls.__name__}.{ordered[-1].name} is beyond the {width} bits of the register")

    @classmethod
    def flags(cls) -> dict[int, str]:
        """Number and name of every bit that has a name of its own."""
        return {field.low: name for name, field in cls.ranges.items() if field.high == field.low}

    def names(self) -> list[str]:
        """What is not 0: ``NAME`` for a bit, ``name=0x12`` for a range, ``bit 7`` for one without a name."""
        found, rest = [], int(self)
        for name, field in self.ranges.items():
            if self & field.mask:
                one = field.high == field.low
                found.append(name if one else f"{name}={(self & field.mask) >> field.low:#x}")
            rest &= ~field.mask
        return found + [f"bit {bit}" for bit in range(rest.bit_length()) if rest >> bit & 1]

    def __str__(self) -> str:
        return " ".join(self.names()) or "0"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {int(self):#x}: {self}>"
