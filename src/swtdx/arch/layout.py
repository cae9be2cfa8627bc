"""Byte layouts of architectural structures, declared once and validated when declared.

A :class:`Layout` is an immutable list of named fields at fixed byte offsets.  Fields read and write
any buffer (``bytes``, ``bytearray``, ``memoryview``, ``mmap``) in place; nothing is copied and no
object wraps the buffer, because the state of swtdx lives in simulated memory and a leaf touches only
a few fields of it.

All integers are little-endian, as everywhere in the TDX ABI.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

_FORMATS: Final = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}

#: Anything the buffer protocol can unpack from (reading).
ReadBuffer = bytes | bytearray | memoryview
#: Anything the buffer protocol can pack into (writing).
WriteBuffer = bytearray | memoryview


class LayoutError(ValueError):
    """A layout was declared, or used, in a way that its bytes do not allow."""


class Field:
    """An unsigned little-endian integer of ``size`` bytes (1, 2, 4 or 8) at byte ``offset``."""

    __slots__ = ("_max", "_pack", "_unpack", "count", "doc", "name", "offset", "size")

    def __init__(self, offset: int, size: int, doc: str = "") -> None:
        if size not in _FORMATS:
            raise LayoutError(f"an integer field has 1, 2, 4 or 8 bytes, not {size}")
        if offset < 0:
            raise LayoutError(f"a field cannot start at offset {offset}")
        codec = struct.Struct(_FORMATS[size])
        self._unpack = codec.unpack_from
        self._pack = codec.pack_into
        self._max = (1 << (8 * size)) - 1
        self.offset = offset
        self.size = size
        self.count = 1
        self.doc = doc
        self.name = ""

    @property
    def span(self) -> int:
        """Bytes that the field covers."""
        return self.size

    def get(self, buffer: Any, base: int = 0) -> int:
        """The value, from ``buffer`` with the structure starting at byte ``base``."""
        value: int = self._unpack(buffer, base + self.offset)[0]
        return value

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


class Array:
    """``count`` unsigned little-endian integers of ``size`` bytes each, ``stride`` bytes apart."""

    __slots__ = ("_codec", "count", "doc", "name", "offset", "size", "stride")

    def __init__(self, offset: int, size: int, count: int, doc: str = "", stride: int | None = None) -> None:
        if size not in _FORMATS:
            raise LayoutError(f"array elements have 1, 2, 4 or 8 bytes, not {size}")
        if count < 1 or offset < 0:
            raise LayoutError(f"an array of {count} elements cannot start at offset {offset}")
        self._codec = struct.Struct(_FORMATS[size])
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
        value: int = self._codec.unpack_from(buffer, base + self.offset + index * self.stride)[0]
        return value

    def set(self, buffer: Any, index: int, value: int, base: int = 0) -> None:
        """Store element ``index``.

        Raises:
            LayoutError: there is no such element, or the value does not fit.
        """
        if not 0 <= index < self.count:
            raise LayoutError(f"{self.name or 'array'} has elements 0..{self.count - 1}, not {index}")
        try:
            self._codec.pack_into(buffer, base + self.offset + index * self.stride, value)
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


class Layout:
    """A named structure of ``size`` bytes: fields by attribute, by name and by iteration.

    ``Layout("CMR_INFO", 16, base=Field(0, 8), size_=Field(8, 8))``; a trailing underscore in a
    field's keyword is dropped from its name.

    Raises:
        LayoutError: a field overlaps another or lies outside the structure.
    """

    __slots__ = ("_fields", "doc", "name", "size", "source")

    def __init__(self, name: str, size: int, /, doc: str = "", source: str = "", **fields: Member) -> None:
        taken: list[tuple[int, int, str]] = []
        members: dict[str, Member] = {}
        for keyword, member in fields.items():
            label = keyword.rstrip("_")
            start, end = member.offset, member.offset + member.span
            if end > size:
                raise LayoutError(f"{name}.{label} ends at byte {end}, beyond the {size} bytes of {name}")
            member.name = f"{name}.{label}"
            taken.append((start, end, label))
            members[keyword] = member
        taken.sort()
        for (_, end, label), (start, _, other) in itertools.pairwise(taken):
            if start < end:
                raise LayoutError(f"{name}.{label} and {name}.{other} overlap at byte {start}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "doc", doc)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "_fields", MappingProxyType(members))

    def __setattr__(self, name: str, value: object) -> None:
        raise LayoutError(f"{self.name} is immutable")

    def __getattr__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(f"{self.name} has no field {name!r}") from None

    def __iter__(self) -> Iterator[tuple[str, Member]]:
        return iter(self._fields.items())

    @property
    def fields(self) -> Mapping[str, Member]:
        """The declared fields by keyword, in order of declaration."""
        fields: Mapping[str, Member] = self._fields
        return fields

    def new(self) -> bytearray:
        """A zeroed buffer of the structure's size."""
        return bytearray(self.size)

    def describe(self, buffer: Any, base: int = 0) -> dict[str, int | list[int] | str]:
        """Every field's value, for people: integers, lists of integers, hex strings."""
        shown: dict[str, int | list[int] | str] = {}
        for label, member in self._fields.items():
            if isinstance(member, Field):
                shown[label] = member.get(buffer, base)
            elif isinstance(member, Array):
                shown[label] = member.all(buffer, base)
            elif not member.reserved:
                shown[label] = member.get(buffer, base).hex()
        return shown

    def reserved_is_zero(self, buffer: Any, base: int = 0) -> bool:
        """Whether every byte that is declared reserved, or not declared at all, is zero."""
        covered = bytearray(self.size)
        for member in self._fields.values():
            if not (isinstance(member, Blob) and member.reserved):
                covered[member.offset : member.offset + member.span] = b"\1" * member.span
        data = bytes(buffer[base : base + self.size])
        return not any(byte for byte, used in zip(data, covered, strict=True) if not used)
