"""Byte layouts of architectural structures, declared once and validated when declared.

A :class:`Struct` is a class of named members at fixed byte offsets::

    class CMR_INFO(Struct, size=16, source="tdx_api_defs.h"):
        "A convertible memory range."
        base = Field(0, 8, "multiple of 4 KiB")
        size_ = Field(8, 8, "bytes")

    CMR_INFO.base.set(buffer, 1 << 20)

Members read and write any buffer (``bytes``, ``bytearray``, ``memoryview``, ``mmap``) in place; nothing is
copied and no object wraps the buffer, because the state of swtdx lives in simulated memory and a leaf
touches only a few fields of it.  They are plain class attributes: a type checker knows each of them, and
to look one up costs next to nothing.

All integers are little-endian, as everywhere in the TDX ABI.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, ClassVar, Final

from swtdx.arch.bits import Register

_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}

#: Anything the buffer protocol can unpack from (reading).
ReadBuffer = bytes | bytearray | memoryview
#: Anything the buffer protocol can pack into (writing).
WriteBuffer = bytearray | memoryview


class LayoutError(ValueError):
    """A layout was declared, or used, in a way that its bytes do not allow."""


class Field:
    """An unsigned little-endian integer of ``size`` bytes (1, 2, 4 or 8) at byte ``offset``.

    ``holds`` says what the integer is, where it is more than a number: a state (an enumeration) or bit
    fields (a :class:`~swtdx.arch.bits.Register`).
    """

    # What reads has the offset in its format, as bytes to skip: an addition less on the hot path. What
    # writes cannot, because it would put zeros there.
    __slots__ = ("_pack", "_unpack", "count", "doc", "holds", "name", "offset", "size")

    def __init__(
        self, offset: int, size: int, doc: str = "", holds: type[IntEnum] | type[Register] | None = None
    ) -> None:
        if size not in _CODES:
            raise LayoutError(f"an integer field has 1, 2, 4 or 8 bytes, not {size}")
        if offset < 0:
            raise LayoutError(f"a field cannot start at offset {offset}")
        self._unpack = struct.Struct(f"<{offset}x{_CODES[size]}").unpack_from
        self._pack = struct.Struct(f"<{_CODES[size]}").pack_into
        self.offset = offset
        self.size = size
        self.count = 1
        self.doc = doc
        self.holds = holds
        self.name = ""

    @property
    def span(self) -> int:
        """Bytes that the field covers."""
        return self.size

    def get(self, buffer: Any, base: int = 0) -> int:
        """The value, from ``buffer`` with the structure starting at byte ``base``."""
        return self._unpack(buffer, base)[0]  # type: ignore[no-any-return]

    def set(self, buffer: Any, value: int, base: int = 0) -> None:
        """Store ``value``.

        Raises:
            LayoutError: the value does not fit in the field.
        """
        try:
            self._pack(buffer, base + self.offset, value)
        except struct.error:
            raise LayoutError(
                f"{self.name or 'field'}: {value:#x} does not fit in {self.size} bytes"
            ) from None

    def show(self, value: int) -> str:
        """``value`` for people: the name of a state, the names of its bits, else hexadecimal."""
        kind = self.holds
        if kind is None:
            return hex(value)
        if issubclass(kind, IntEnum):
            return kind(value).name if value in list(kind) else f"{value} (not a {kind.__name__})"
        return str(kind(value))


def packed(*fields: Field) -> struct.Struct:
    """What packs and unpacks several fields of a structure at once, from its start; gaps become zeros.

    Raises:
        LayoutError: the fields are not in ascending order.
    """
    end, codes = 0, "<"
    for field in fields:
        if field.offset < end:
            raise LayoutError(f"{field.name or 'a field'} at {field.offset} is not behind the one before")
        codes += f"{field.offset - end}x{_CODES[field.size]}"
        end = field.offset + field.size
    return struct.Struct(codes)


class Array:
    """``count`` unsigned little-endian integers of ``size`` bytes each, ``stride`` bytes apart."""

    __slots__ = ("_pack", "_unpack", "count", "doc", "name", "offset", "size", "stride")

    def __init__(self, offset: int, size: int, count: int, doc: str = "", stride: int | None = None) -> None:
        if size not in _CODES:
            raise LayoutError(f"array elements have 1, 2, 4 or 8 bytes, not {size}")
        if count < 1 or offset < 0:
            raise LayoutError(f"an array of {count} elements cannot start at offset {offset}")
        self._unpack = struct.Struct(f"<{offset}x{_CODES[size]}").unpack_from
        self._pack = struct.Struct(f"<{_CODES[size]}").pack_into
        self.offset = offset
        self.size = size
        self.count = count
        self.stride = size if stride is None else stride
        if self.stride < size:
            raise LayoutError(f"array elements of {size} bytes overlap at a stride of {self.stride}")
        self.doc = doc
        self.name = ""

    @property
    def span(self) -> int:
        """Bytes that the array covers."""
        return self.stride * (self.count - 1) + self.size

    def get(self, buffer: Any, index: int, base: int = 0) -> int:
        """Element ``index``.

        Raises:
            LayoutError: there is no such element.
        """
        if not 0 <= index < self.count:
            raise LayoutError(f"{self.name or 'array'} has elements 0..{self.count - 1}, not {index}")
        return self._unpack(buffer, base + index * self.stride)[0]  # type: ignore[no-any-return]

    def set(self, buffer: Any, index: int, value: int, base: int = 0) -> None:
        """Store element ``index``.

        Raises:
            LayoutError: there is no such element, or the value does not fit.
        """
        if not 0 <= index < self.count:
            raise LayoutError(f"{self.name or 'array'} has elements 0..{self.count - 1}, not {index}")
        try:
            self._pack(buffer, base + self.offset + index * self.stride, value)
        except struct.error:
            raise LayoutError(
                f"{self.name or 'array'}[{index}]: {value:#x} does not fit in {self.size} bytes"
            ) from None

    def all(self, buffer: Any, base: int = 0) -> list[int]:
        """Every element, in order."""
        return [self.get(buffer, index, base) for index in range(self.count)]


class Blob:
    """``size`` opaque bytes at ``offset`` (a hash, a reserved area, a nested structure)."""

    __slots__ = ("count", "doc", "name", "offset", "reserved", "size")

    def __init__(self, offset: int, size: int, doc: str = "", *, reserved: bool = False) -> None:
        if size < 1 or offset < 0:
            raise LayoutError(f"a blob of {size} bytes cannot start at offset {offset}")
        self.offset = offset
        self.size = size
        self.count = 1
        self.reserved = reserved
        self.doc = doc
        self.name = ""

    @property
    def span(self) -> int:
        """Bytes that the blob covers."""
        return self.size

    def get(self, buffer: Any, base: int = 0) -> bytes:
        """A copy of the bytes."""
        start = base + self.offset
        return bytes(buffer[start : start + self.size])

    def set(self, buffer: Any, value: ReadBuffer, base: int = 0) -> None:
        """Store exactly ``size`` bytes.

        Raises:
            LayoutError: ``value`` has another length.
        """
        if len(value) != self.size:
            raise LayoutError(f"{self.name or 'blob'} holds {self.size} bytes, not {len(value)}")
        start = base + self.offset
        buffer[start : start + self.size] = value


Member = Field | Array | Blob


class Struct:
    """A structure of ``size`` bytes; its class attributes are its members.

    A class derived from another structure has its members, too.  Keywords of the class: ``size`` in
    bytes; ``label``, the name for people (by default the class's); ``source``, where the layout is from.
    A trailing underscore in a member's name (``size_``) is not part of its name for people.

    Raises:
        LayoutError: when the class is made: a member overlaps another, lies outside the structure, or
            has the name of something that every structure has.
    """

    #: The structure's name for people.
    name: ClassVar[str] = "structure"
    #: Bytes of the structure.
    size: ClassVar[int] = 0
    #: Where the layout is from.
    source: ClassVar[str] = ""
    #: The members by attribute name, in order of declaration.
    fields: ClassVar[Mapping[str, Member]] = MappingProxyType({})

    def __init_subclass__(cls, *, size: int, label: str = "", source: str = "") -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Member)}
        cls.name = name = label or cls.__name__
        cls.size = size
        cls.source = source
        taken: list[tuple[int, int, str]] = []
        for keyword, member in own.items():
            if hasattr(Struct, keyword):
                raise LayoutError(f"{name}.{keyword}: every structure has that attribute; call it {keyword}_")
            if member.name:
                raise LayoutError(f"{name}.{keyword} is {member.name}: a member belongs to one structure")
            member.name = f"{name}.{keyword.rstrip('_')}"
        members = {**cls.fields, **own}
        for keyword, member in members.items():
            end = member.offset + member.span
            if end > size:
                raise LayoutError(
                    f"{name}.{keyword.rstrip('_')} ends at byte {end}, beyond the {size} bytes of {name}"
                )
            taken.append((member.offset, end, keyword.rstrip("_")))
        taken.sort()
        for (_, end, label), (start, _, other) in itertools.pairwise(taken):
            if start < end:
                raise LayoutError(f"{name}.{label} and {name}.{other} overlap at byte {start}")
        cls.fields = MappingProxyType(members)

    def __init__(self) -> None:
        raise TypeError(f"{self.name} is a layout: {type(self).__name__}.new() makes its bytes")

    @classmethod
    def new(cls) -> bytearray:
        """A zeroed buffer of the structure's size."""
        return bytearray(cls.size)

    @classmethod
    def integer(cls, name: str) -> Field:
        """The integer member of that name, for code that has names as data.

        Raises:
            LayoutError: the structure has no integer of that name.
        """
        member = cls.fields.get(name)
        if not isinstance(member, Field):
            raise LayoutError(f"{cls.name} has no integer {name!r}")
        return member

    @classmethod
    def describe(cls, buffer: Any, base: int = 0) -> dict[str, int | list[int] | str]:
        """Every member's value, for people.

        Integers, lists of integers, hexadecimal strings; states and bit fields by their names.
        """
        shown: dict[str, int | list[int] | str] = {}
        for label, member in cls.fields.items():
            if isinstance(member, Field):
                value = member.get(buffer, base)
                shown[label] = value if member.holds is None else member.show(value)
            elif isinstance(member, Array):
                shown[label] = member.all(buffer, base)
            elif not member.reserved:
                shown[label] = member.get(buffer, base).hex()
        return shown

    @classmethod
    def reserved_is_zero(cls, buffer: Any, base: int = 0) -> bool:
        """Whether every byte that is declared reserved, or not declared at all, is zero."""
        covered = bytearray(cls.size)
        for member in cls.fields.values():
            if not (isinstance(member, Blob) and member.reserved):
                covered[member.offset : member.offset + member.span] = b"\1" * member.span
        data = bytes(buffer[base : base + cls.size])
        return not any(byte for byte, used in zip(data, covered, strict=True) if not used)
