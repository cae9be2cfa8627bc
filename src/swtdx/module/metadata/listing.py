"""Metadata lists: TDH.SYS.RDALL and TDG.SYS.RDALL (``md_dump_list`` in ``metadata_generic.c`` of 1.5.01).

A list is a header of 8 bytes (size in bytes 15:0, number of sequences 31:16), then sequences: the
identifier of the first field with counts in it, and 8 bytes for each element.
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import metadata
from swtdx.arch import status as st
from swtdx.arch.metadata import NULL_ID, Accessor, Context, Fields, MetadataField
from swtdx.arch.metadata_field import CODE_MASK
from swtdx.module.errors import LeafFailed
from swtdx.module.metadata import system
from swtdx.module.state import ModuleState

SIZE: Final = 4096
_HEADER: Final = 8
_SIZE_CODE: Final = 3 << 32


def _start_of_field(fields: Fields, identifier: int) -> MetadataField | None:
    """The row of an identifier that names the first element of a field, with its size; else None."""
    found = fields.lookup(Context.SYS, identifier)
    if found is None:
        return None
    row, index = found
    same_size = not (identifier ^ row.id) & _SIZE_CODE
    return row if same_size and index % row.elements == 0 else None


def dump(module: ModuleState, first: int, accessor: Accessor) -> tuple[bytes, int]:
    """A list of module fields from ``first`` on, at most 4096 bytes, and where to go on.

    Returns the null identifier with the last fields.

    Raises:
        LeafFailed: METADATA_FIELD_ID_INCORRECT.
    """
    identifier = metadata.with_context(first, Context.SYS)
    if metadata.is_null(identifier):
        identifier = module.fields.next_id(Context.SYS, identifier, accessor, whole_fields=True)
    if _start_of_field(module.fields, identifier) is None:
        raise LeafFailed(st.TDX_METADATA_FIELD_ID_INCORRECT)
    out = bytearray(_HEADER)
    sequences = 0
    while identifier != NULL_ID:
        sequence, following = _sequence(module, identifier, accessor, SIZE - len(out))
        if not sequence:
            break
        out += sequence
        sequences += 1
        identifier = following
    struct.pack_into("<HH", out, 0, len(out), sequences)
    return bytes(out), identifier


def _sequence(module: ModuleState, first: int, accessor: Accessor, room: int) -> tuple[bytes, int]:
    """Fields that follow each other, as far as they fit in ``room`` bytes; and the field after them."""
    row = _start_of_field(module.fields, first)
    assert row is not None
    values: list[int] = []
    identifier = first
    # The header counts up to 512 fields; ``room`` ends before.
    while identifier != NULL_ID:
        here = _start_of_field(module.fields, identifier)
        expected = (first & CODE_MASK) + len(values) * row.stride
        if here is None or here.class_code != row.class_code or identifier & CODE_MASK != expected:
            break
        if here.elements != row.elements or here.size != row.size:
            break
        if 8 * (1 + len(values) + row.elements) > room:
            break
        values += [_element(module, here, identifier, accessor, n) for n in range(row.elements)]
        identifier = module.fields.next_id(Context.SYS, identifier, accessor, whole_fields=True)
    if not values:
        return b"", first
    header = first & ~(0xF << 34 | 0x1FF << 38 | 1 << 51)
    header |= (row.elements - 1) << 34 | (len(values) // row.elements - 1) << 38
    return struct.pack(f"<{1 + len(values)}Q", header, *values), identifier


def _element(
    module: ModuleState, row: MetadataField, identifier: int, accessor: Accessor, number: int
) -> int:
    index = ((identifier & CODE_MASK) - row.code) // row.stride + number
    return system.value(module, row, index) & row.read_mask(accessor)
