"""Metadata fields against structures.md §13 and against the identifiers that Linux uses."""

from __future__ import annotations

import pytest

from swtdx.arch import metadata
from swtdx.arch.control_structs import TDCS, TDR, TDVPS
from swtdx.arch.metadata import NULL_ID, Accessor, Context
from swtdx.arch.metadata_field import MetadataField
from tests.arch.vectors import lines

_COLUMNS = ("R", "W", "dR", "dW", "gR", "gW", "mR", "mW")


def _expected() -> dict[tuple[str, int], list[str]]:
    return {(row[0], int(row[2], 16)): row for row in (line.split() for line in lines("fields.txt"))}


def _ours() -> dict[tuple[str, int], MetadataField]:
    return {
        (context.name, row.id): row
        for context in Context
        for row in metadata.BASE_FIELDS.tables[context]
        # Fields of the TD VMCS have a section of their own.
        if not (context is Context.VP and row.class_code == 0)
    }


def test_every_field_of_the_reference_is_there_and_no_other() -> None:
    assert set(_ours()) == set(_expected())


#: Fields of later public versions of the module: what is different from 1.5.01, by name.
#: (identifier, fields, offset, access)
NEWER = {
    "MAX_VCPUS_PER_TD": (0x9900000100000008, 1, None, {"R"}),
    "TD_CTLS": (0x1110000300000017, 1, 0x120, {"dR", "gR", "gW"}),
    "TOPOLOGY_ENUM_CONFIGURED": (0x9110000000000019, 1, 0x12C, {"R", "dR", "gR", "mR"}),
    "X2APIC_IDS": (0x9C10000200000000, 576, 0x1100, {"R", "dR", "mR"}),
}


def test_what_came_after_1_5_01() -> None:
    base = {(row.context, row.name): row for table in metadata.BASE_FIELDS.tables.values() for row in table}
    assert metadata.BASE_FIELDS.tables[Context.VP] == metadata.TABLES[Context.VP]
    more = [
        row
        for context in (Context.SYS, Context.TD)
        for row in metadata.TABLES[context]
        if base.get((row.context, row.name)) != row
    ]
    found = {
        row.name: (
            row.id, row.fields, row.offset,
            {name for name, mask in zip(_COLUMNS, row.masks, strict=True) if mask},
        )
        for row in more
    }  # fmt: skip
    assert found == NEWER
    td_ctls = metadata.by_name(Context.TD, "TD_CTLS")
    assert (td_ctls.write_mask(Accessor.GUEST), base[Context.TD, "TD_CTLS"].write_mask(Accessor.GUEST)) == (
        3,
        1,
    )
    # Linux leaves context and element size out.
    found_at = metadata.lookup(Context.TD, metadata.with_context(0x9100000000000019, Context.TD))
    assert found_at is not None
    assert found_at[0].name == "TOPOLOGY_ENUM_CONFIGURED"
    assert metadata.BASE_FIELDS.lookup(Context.TD, 0x9110000000000019) is None


def test_shape_and_place_of_every_field() -> None:
    expected, ours = _expected(), _ours()
    for key, (_, name, _, fields, elements, offset, *_) in expected.items():
        row = ours[key]
        place = None if offset == "-" else int(offset, 16)
        assert (row.name, row.fields, row.elements) == (name, int(fields), int(elements))
        if place is not None:
            assert row.offset == place, name


def test_access_of_every_field() -> None:
    expected, ours = _expected(), _ours()
    for key, (_, name, _, _, _, _, *access) in expected.items():
        row = ours[key]
        full = (1 << 8 * row.size) - 1
        masks = dict.fromkeys(_COLUMNS, 0)
        for token in access:
            column, _, mask = token.partition("(")
            masks[column] = int(mask[:-1], 16) if mask else full
        assert dict(zip(_COLUMNS, row.masks, strict=True)) == masks, name


#: structures.md §13.7: identifiers that Linux and OVMF use, and the bits that they mean.
USED = [
    (Context.SYS, 0x0800000100000003, "MINOR_VERSION"),
    (Context.SYS, 0x0800000100000004, "MAJOR_VERSION"),
    (Context.SYS, 0x0A00000300000008, "TDX_FEATURES0"),
    (Context.SYS, 0x9100000100000008, "MAX_TDMRS"),
    (Context.SYS, 0x9100000100000011, "PAMT_2M_ENTRY_SIZE"),
    (Context.SYS, 0x9000000300000105, "CMR_SIZE"),
    (Context.SYS, 0x9900000300000400, "CPUID_CONFIG_LEAVES"),
    (Context.TD, 0x9410000300000000, "CPUID_VALUES"),
    (Context.TD, 0x1110000300000016, "CONFIG_FLAGS"),
    (Context.TD, 0x9110000300000010, "NOTIFY_ENABLES"),
    # Linux's guests leave the context out, and the element size.
    (Context.TD, 0x9100000000000010, "NOTIFY_ENABLES"),
    (Context.TD, 0x1100000000000000 | 10, "TSC_OFFSET"),
    (Context.VP, 0x202000000000000B, "PEND_NMI"),
    (Context.VP, 0x9120000300000100, "VCPU_STATE_DETAILS"),
    (Context.VP, 0x0024000300002016, "POSTED_INTERRUPT_DESCRIPTOR"),
    (Context.VP, 0x0024000200004000, "PIN_BASED_CONTROLS"),
]


@pytest.mark.parametrize(("context", "identifier", "name"), USED)
def test_identifiers_that_are_in_use(context: Context, identifier: int, name: str) -> None:
    found = metadata.lookup(context, metadata.with_context(identifier, context))
    assert found is not None
    assert found[0].name == name


def test_fields_lie_inside_their_structures_and_apart() -> None:
    for context, structure in ((Context.TD, TDCS), (Context.VP, TDVPS)):
        taken: dict[tuple[bool, int], str] = {}
        for row in metadata.TABLES[context]:
            if row.offset is None or row.name in ("VIRTUAL_TSC", "NUM_CPUID_VALUES"):
                # These two have an offset that nothing is stored at (they name TSC_FREQUENCY's).
                continue
            for byte in range(row.offset, row.offset + row.total * row.size):
                assert (row.in_tdr, byte) not in taken, f"{row.name} and {taken[row.in_tdr, byte]}"
                taken[row.in_tdr, byte] = row.name
        del structure
    assert all(field.offset < 4096 for field in TDR.fields.values())


@pytest.mark.parametrize("context", list(Context))
@pytest.mark.parametrize("accessor", list(Accessor))
def test_enumeration_visits_every_readable_element_once(context: Context, accessor: Accessor) -> None:
    seen = set()
    identifier = metadata.next_id(context, NULL_ID, accessor)
    while identifier != NULL_ID:
        assert identifier not in seen
        seen.add(identifier)
        found = metadata.lookup(context, identifier)
        assert found is not None, f"{identifier:#x}"
        assert found[0].read_mask(accessor)
        identifier = metadata.next_id(context, identifier, accessor)
    readable = [row for row in metadata.TABLES[context] if row.read_mask(accessor)]
    plain = [row for row in readable if row.name != "CPUID_VALUES" and "L2_" not in row.name]
    names = {found[0].name for found in (metadata.lookup(context, each) for each in seen) if found}
    assert {row.name for row in plain} <= names
