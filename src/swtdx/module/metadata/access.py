"""Reading and writing one metadata element, as the leaves *.RD and *.WR do."""

from __future__ import annotations

from collections.abc import Callable

from swtdx.arch import metadata
from swtdx.arch import status as st
from swtdx.arch.metadata import Accessor, Context, Fields, MetadataField
from swtdx.module.errors import LeafFailed

#: The value of an element: its row and its index.
Read = Callable[[MetadataField, int], int]
#: Writes an element: row, index, accessor, value, mask; returns the old value.
Write = Callable[[MetadataField, int, Accessor, int, int], int]


def _find(fields: Fields, context: Context, identifier: int, l2_vms: int) -> tuple[MetadataField, int]:
    if not metadata.is_single_element(identifier):
        raise LeafFailed(st.TDX_METADATA_FIELD_ID_INCORRECT)
    found = fields.lookup(context, identifier, l2_vms)
    if found is None:
        raise LeafFailed(st.TDX_METADATA_FIELD_ID_INCORRECT)
    return found


def first_id(
    fields: Fields, context: Context, identifier: int, accessor: Accessor, l2_vms: int = 0
) -> int | None:
    """The first identifier of a context, if ``identifier`` is the null one that asks for it."""
    if not metadata.is_null(identifier):
        return None
    return fields.next_id(context, identifier, accessor, l2_vms=l2_vms)


def read(
    fields: Fields, context: Context, identifier: int, accessor: Accessor, value: Read, l2_vms: int = 0
) -> int:
    """An element's value under the accessor's read mask.

    Raises:
        LeafFailed: METADATA_FIELD_ID_INCORRECT, METADATA_FIELD_NOT_READABLE.
    """
    row, index = _find(fields, context, metadata.with_context(identifier, context), l2_vms)
    found = value(row, index)
    mask = row.read_mask(accessor)
    if not mask:
        raise LeafFailed(st.TDX_METADATA_FIELD_NOT_READABLE)
    return found & mask


def following(fields: Fields, context: Context, identifier: int, accessor: Accessor, l2_vms: int = 0) -> int:
    """The identifier after one that was read."""
    identifier = metadata.with_context(identifier, context)
    return fields.next_id(context, identifier, accessor, l2_vms=l2_vms)


def write(
    fields: Fields, context: Context, identifier: int, accessor: Accessor, put: Write, value: int, mask: int,
    l2_vms: int = 0,
) -> int:  # fmt: skip
    """Write an element; its old value.

    Raises:
        LeafFailed: METADATA_FIELD_ID_INCORRECT, and what ``put`` raises.
    """
    row, index = _find(fields, context, metadata.with_context(identifier, context), l2_vms)
    return put(row, index, accessor, value, mask)
