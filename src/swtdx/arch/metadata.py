"""Metadata fields by identifier and by name, and their enumeration.

Source: ``md_find_entry_idx`` and ``md_get_next_item_in_context`` in ``metadata_generic.c`` of the TDX
module 1.5.01.  The tables: :mod:`~swtdx.arch.metadata_sys`, :mod:`~swtdx.arch.metadata_td`,
:mod:`~swtdx.arch.metadata_vp`, :mod:`~swtdx.arch.metadata_vmcs`.  Fields of L2 VMCSs (TD
partitioning) are not declared.

The functions know every field that any version has; :class:`Fields` is of one.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import Final

from swtdx.arch import cpuid_policy, metadata_td, metadata_vp
from swtdx.arch.cpuid_table import BASE_CPUID, TOPOLOGY_CPUID, CpuidTable
from swtdx.arch.metadata_field import (
    CODE_MASK,
    NULL_ID,
    Accessor,
    Context,
    MetadataField,
    is_null,
    is_single_element,
    with_context,
)
from swtdx.arch.metadata_sys import BASE_SYS_FIELDS, SYS_FIELDS
from swtdx.arch.metadata_td import BASE_TD_FIELDS, TD_FIELDS
from swtdx.arch.metadata_vmcs import VMCS_FIELDS
from swtdx.arch.metadata_vp import VP_FIELDS

__all__ = [
    "BASE_FIELDS", "NULL_ID", "TABLES", "TOPOLOGY_FIELDS", "Accessor", "Context", "Fields", "MetadataField",
    "by_name", "is_null", "is_single_element", "lookup", "next_id", "with_context",
]  # fmt: skip

#: Rows at the end of a table for each L2 VM, and how many L2 VMs those are for.
_L2_ROWS: Final = {Context.SYS: 0, Context.TD: metadata_td.L2_ROWS, Context.VP: metadata_vp.L2_ROWS}
MAX_L2_VMS: Final = 3
CPUID_CLASS: Final = 20


def _index(table: tuple[MetadataField, ...]) -> dict[int, tuple[list[int], list[int]]]:
    classes: dict[int, tuple[list[int], list[int]]] = {}
    for position, row in enumerate(table):
        codes, positions = classes.setdefault(row.class_code, ([], []))
        codes.append(row.code)
        positions.append(position)
    return classes


class Fields:
    """Every field of one version of the module.

    ``tables`` has those of a context in the order of enumeration; ``cpuid`` is what CPUID_VALUES holds.
    """

    def __init__(self, tables: dict[int, tuple[MetadataField, ...]], cpuid: CpuidTable) -> None:
        self.tables: Final = tables
        self._cpuid = cpuid
        # By context and class: the first codes, ascending, and the rows' positions in the table.
        self._by_class = {context: _index(table) for context, table in tables.items()}
        self.lookup = lru_cache(maxsize=4096)(self._lookup)

    def _rows(self, context: int, l2_vms: int) -> int:
        return len(self.tables[context]) - _L2_ROWS[Context(context)] // MAX_L2_VMS * (MAX_L2_VMS - l2_vms)

    def _position(self, context: int, identifier: int, l2_vms: int) -> int | None:
        code = identifier & CODE_MASK
        class_code = identifier >> 56 & 0x3F
        if context == Context.TD and class_code == CPUID_CLASS:
            code &= 1
        found = self._by_class[context].get(class_code)
        if found is None:
            return None
        codes, positions = found
        place = bisect_right(codes, code) - 1
        if place < 0:
            return None
        position = positions[place]
        row = self.tables[context][position]
        if code >= row.code + row.total * row.stride or position >= self._rows(context, l2_vms):
            return None
        return position

    def _lookup(self, context: int, identifier: int, l2_vms: int = 0) -> tuple[MetadataField, int] | None:
        """The field of an identifier in ``context``, and which of its elements it names.

        Only class and field code of the identifier matter.  The element counts through all fields of the
        row; of CPUID_VALUES it is ``2 * index + element``, with the index of the row of CPUID.  None if
        there is no such element (METADATA_FIELD_ID_INCORRECT): among them VMCS encodings for the high half
        of a field, CPUID leaves that have no row, and fields of L2 VMs that the TD has not.
        """
        position = self._position(context, identifier, l2_vms)
        if position is None:
            return None
        row = self.tables[context][position]
        code = identifier & CODE_MASK
        if context == Context.TD and row.class_code == CPUID_CLASS:
            if code >> 17:
                return None
            leaf, subleaf, element = cpuid_policy.split_field_code(code)
            cpuid = self._cpuid.lookup(leaf, subleaf)
            return None if cpuid is None else (row, 2 * cpuid.index + element)
        index, rest = divmod(code - row.code, row.stride)
        return None if rest else (row, index)

    def _next_in_row(self, row: MetadataField, identifier: int, *, whole_fields: bool) -> int | None:
        if row.context == Context.TD and row.class_code == CPUID_CLASS:
            return self._next_cpuid(identifier, whole_fields=whole_fields)
        step = row.elements if whole_fields else 1
        place = ((identifier & CODE_MASK) - row.code) // (step * row.stride)
        return identifier + step * row.stride if place < row.total // step - 1 else None

    def _next_cpuid(self, identifier: int, *, whole_fields: bool) -> int | None:
        leaf, subleaf, element = cpuid_policy.split_field_code(identifier & CODE_MASK)
        if element == 0 and not whole_fields:
            return identifier + 1
        cpuid = self._cpuid.lookup(leaf, subleaf)
        if cpuid is None:
            raise ValueError(f"CPUID_VALUES has no leaf {leaf:#x}, sub-leaf {subleaf:#x}")
        if cpuid.index + 1 == len(self._cpuid.rows):
            return None
        following = self._cpuid.rows[cpuid.index + 1]
        return identifier & ~CODE_MASK | cpuid_policy.field_code(following.leaf, following.subleaf, 0)

    def _first(self, row: MetadataField) -> int:
        if row.context == Context.TD and row.class_code == CPUID_CLASS:
            first = self._cpuid.rows[0]
            return row.id | cpuid_policy.field_code(first.leaf, first.subleaf, 0)
        return row.id

    def next_id(
        self,
        context: int,
        identifier: int,
        accessor: int,
        *,
        write: bool = False,
        l2_vms: int = 0,
        whole_fields: bool = False,
    ) -> int:
        """The identifier after ``identifier`` that ``accessor`` may read (or write).

        The null identifier asks for the first one; :data:`NULL_ID` is returned after the last.  Within a
        row, bits of the caller's identifier other than the field code are kept, as the module does.
        ``whole_fields`` steps from field to field, not from element to element.

        Raises:
            ValueError: ``identifier`` names no field of the context.
        """
        table = self.tables[context]
        if is_null(identifier):
            position = -1
        else:
            found = self._position(context, identifier, l2_vms)
            if found is None:
                raise ValueError(f"{identifier:#018x} names no {Context(context).name} metadata field")
            position = found
            row = table[position]
            if row.masks[2 * accessor + write]:
                inside = self._next_in_row(row, identifier, whole_fields=whole_fields)
                if inside is not None:
                    return inside
        for row in table[position + 1 : self._rows(context, l2_vms)]:
            if row.masks[2 * accessor + write]:
                return self._first(row)
        return NULL_ID


_VP: Final = (*VMCS_FIELDS, *VP_FIELDS)
#: Of the module 1.5.01.
BASE_FIELDS: Final = Fields(
    {Context.SYS: BASE_SYS_FIELDS, Context.TD: BASE_TD_FIELDS, Context.VP: _VP}, BASE_CPUID
)
#: Of a module with TOPOLOGY_ENUM.
TOPOLOGY_FIELDS: Final = Fields(
    {Context.SYS: SYS_FIELDS, Context.TD: TD_FIELDS, Context.VP: _VP}, TOPOLOGY_CPUID
)
#: Every field that there is: of a context in the order of enumeration, by identifier, and what comes next.
TABLES: Final = TOPOLOGY_FIELDS.tables
lookup: Final = TOPOLOGY_FIELDS.lookup
next_id: Final = TOPOLOGY_FIELDS.next_id
_BY_NAME: Final = {(row.context, row.name): row for table in TABLES.values() for row in reversed(table)}


def by_name(context: int, name: str) -> MetadataField:
    """The field ``name`` of a context.

    Raises:
        KeyError: there is no such field.
    """
    try:
        return _BY_NAME[Context(context), name]
    except KeyError:
        raise KeyError(f"{Context(context).name} metadata has no field {name!r}") from None
