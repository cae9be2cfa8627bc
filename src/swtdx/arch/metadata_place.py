"""Where metadata fields lie in control structures: taken from the structures' own declarations.

A row of a metadata table names a member of TDR, TDCS or TDVPS; byte offset, number of fields and number of
elements follow from it.  The functions here are for what is not simply a member: a part of one, several in
a row, a page that is a table of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from swtdx.arch.control_structs import TDR
from swtdx.arch.layout import Array, Blob, Field, Member
from swtdx.arch.metadata_field import MetadataField, field
from swtdx.arch.units import PAGE

_QWORD = 8


class Place(NamedTuple):
    """Byte offset of the first element (pages of a structure count as contiguous), and the field's shape."""

    offset: int
    fields: int
    elements: int


def element(array: Array, index: int) -> Place:
    """One element of an array that is a field by itself."""
    return Place(array.offset + index * array.stride, 1, 1)


def inside(outer: Blob, member: Field) -> Place:
    """A member of a structure that lies in another one."""
    return Place(outer.offset + member.offset, 1, 1)


def each(members: Sequence[Blob]) -> Place:
    """Equal members one after the other, as an array of fields of 8-byte elements."""
    return Place(members[0].offset, len(members), members[0].span // _QWORD)


def grouped(array: Array, *, fields: int) -> Place:
    """An array read as ``fields`` fields of 8-byte elements, whatever the size of its own."""
    return Place(array.offset, fields, array.span // fields // _QWORD)


def page(number: int, *, fields: int | None = None, size: int = _QWORD) -> Place:
    """A page that is a table of ``fields`` elements of ``size`` bytes; without ``fields`` the page's all."""
    return Place(number * PAGE, PAGE // size if fields is None else fields, 1)


def on_page(number: int, array: Array) -> Place:
    """An array in the structure that page ``number`` is."""
    return Place(number * PAGE + array.offset, array.count, 1)


def at(member: Field) -> Place:
    """What is computed, and has the offset of ``member`` without being stored there."""
    return Place(member.offset, 1, 1)


def _whole(name: str, member: Member, size: int) -> Place:
    """A member as a field of elements of ``size`` bytes.

    Raises:
        ValueError: its own elements have another size.
    """
    if isinstance(member, Blob):
        count, rest = divmod(member.span, size)
    else:
        count, rest = member.count, member.size - size
    if rest:
        raise ValueError(f"metadata field {name}: {member.name} is not made of elements of {size} bytes")
    return Place(member.offset, 1, count) if isinstance(member, Blob) else Place(member.offset, count, 1)


def stored(name: str, identifier: int, where: Member | Place, access: str) -> MetadataField:
    """A row for a field that lies in a control structure; ``access``: :func:`.metadata_field.field`.

    Raises:
        ValueError: the identifier says another element size, or another page, than the member has.
    """
    place = where if isinstance(where, Place) else _whole(name, where, 1 << (identifier >> 32 & 3))
    row = field(name, identifier, place.fields, place.elements, place.offset, access)
    if not isinstance(where, Place) and row.in_tdr != where.name.startswith(f"{TDR.name}."):
        raise ValueError(f"metadata field {name}: class {row.class_code} is not where {where.name} lies")
    return row
