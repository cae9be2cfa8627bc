"""Explaining a metadata field."""

from __future__ import annotations

from typing import Final

from swtdx.arch import cpuid_policy, metadata
from swtdx.arch.metadata import CPUID_CLASS, MAX_L2_VMS, TABLES, Accessor, Context, MetadataField
from swtdx.arch.metadata_field import CODE_MASK
from swtdx.explaining.model import Explanation, table

_CONTEXTS: Final = {
    Context.SYS: ("the module", ("TDH.SYS.RD", "", "TDG.SYS.RD", "")),
    Context.TD: ("a TD", ("TDH.MNG.RD", "TDH.MNG.WR", "TDG.VM.RD", "TDG.VM.WR")),
    Context.VP: ("a VCPU", ("TDH.VP.RD", "TDH.VP.WR", "TDG.VP.RD", "TDG.VP.WR")),
}
_ACCESSORS: Final = {
    Accessor.HOST: "host",
    Accessor.HOST_DEBUG: "host of a debug TD",
    Accessor.GUEST: "guest",
    Accessor.MIGTD: "migration TD",
}
#: Bits of an identifier that a leaf cannot supply itself: NON_ARCH (63), reserved (62), class (61:56), and
#: reserved (55).  Context, sizes and counts may be left out, as Linux's TDCS_NOTIFY_ENABLES does.
_NEEDED: Final = 0xFF80_0000_0000_0000
#: What a list may have beyond the field's own: counts of fields and elements, sizes from the list, a mask.
_COUNTS: Final = 0x000C_7FFC_0000_0000
_CONTEXT: Final = 0x0070_0000_0000_0000
_NON_ARCH: Final = 1 << 63


def explain_field(row: MetadataField, identifier: int, element: int) -> Explanation:
    """A field, and which of its elements the identifier names."""
    owner, leaves = _CONTEXTS[row.context]
    facts = [
        ("Identifier", f"{row.id:#018x}"),
        *_deviation(row, identifier),
        ("Of", f"{owner} (context {row.context:d}, class {row.class_code}, field code {row.code:#x})"),
        ("Size", f"{row.size} bytes" if row.size > 1 else "1 byte"),
    ]
    if row.total > 1:
        facts.append(
            ("Elements", f"{row.fields} fields of {row.elements}" if row.elements > 1 else str(row.fields))
        )
        facts.append(("This one", _element(row, identifier, element)))
    if row.offset is not None:
        facts.append(("Stored at", f"{_structure(row)} offset {row.offset:#x}"))
    rows = []
    full = (1 << (8 * row.size)) - 1
    for accessor, who in _ACCESSORS.items():
        host = accessor in (Accessor.HOST, Accessor.HOST_DEBUG)
        read, write = leaves[:2] if host else leaves[2:] if accessor == Accessor.GUEST else ("", "")
        for word, mask, by in (
            ("read", row.read_mask(accessor), read),
            ("write", row.write_mask(accessor), write),
        ):
            if mask:
                rows.append((who, word, "all bits" if mask == full else f"bits {mask:#x}", by))
    notes = []
    if row.special_read:
        notes.append("computed when it is read")
    if row.special_write:
        notes.append("checked when it is written")
    if not rows:
        notes.append("nobody may read or write it")
    summary = f"{row.context.name} metadata" + (f": {', '.join(notes)}" if notes else "")
    return Explanation(
        "field",
        f"{identifier:#x}",
        row.name,
        summary,
        tuple(facts),
        table("Access", ("Who", "May", "What", "By"), rows),
    )


def _excess(identifier: int, row: MetadataField) -> int:
    """Bits that make it something else: set here, not in the field's identifier, and not of a list.

    A number that might be a status (bit 63, and no context) may leave bits out and have none too many.
    """
    excess = identifier & ~row.id & ~CODE_MASK
    like_a_status = identifier & _NON_ARCH and not identifier & _CONTEXT
    return excess if like_a_status else excess & ~_COUNTS


def _deviation(row: MetadataField, identifier: int) -> list[tuple[str, str]]:
    if not (identifier ^ row.id) & ~CODE_MASK:
        return []
    return [
        (
            "Given as",
            f"{identifier:#018x}: context, size or counts differ; the leaves take those as they need",
        )
    ]


def _element(row: MetadataField, identifier: int, element: int) -> str:
    if row.context == Context.TD and row.class_code == CPUID_CLASS:
        leaf, subleaf, half = cpuid_policy.split_field_code(identifier & CODE_MASK)
        where = f"leaf {leaf:#x}" + ("" if subleaf == cpuid_policy.NA else f", sub-leaf {subleaf:#x}")
        return f"{where}, {'EDX:ECX' if half else 'EBX:EAX'}"
    if row.elements > 1:
        return f"field {element // row.elements}, element {element % row.elements}"
    return f"{element}, identifier {row.element_id(element):#018x}"


def _structure(row: MetadataField) -> str:
    if row.context == Context.TD:
        return "TDR" if row.in_tdr else "TDCS"
    return "TDVPS"


def by_identifier(identifier: int) -> list[Explanation]:
    """Every field that the identifier can name.

    The module looks only at class and field code, and each leaf puts its own context in; so an
    identifier with context 0 may name a field of the module, of a TD or of a VCPU.  One that fits a
    field in all bits wins.  A number with other bits set (those of a status, above all) names none.
    """
    if identifier >> 64 or not identifier >> 32:
        return []
    found = []
    for context in Context:
        hit = metadata.lookup(context, identifier, MAX_L2_VMS)
        if hit is not None:
            row, element = hit
            if (identifier ^ row.id) & _NEEDED or _excess(identifier, row):
                continue
            exact = (identifier ^ row.id) & ~CODE_MASK == 0
            found.append((exact, identifier >> 52 & 7 in (0, context), row, element))
    chosen = [hit for hit in found if hit[0]] or [hit for hit in found if hit[1]]
    return [explain_field(row, identifier, element) for _, _, row, element in chosen]


def by_name(text: str) -> list[Explanation]:
    """Every field called so; ``TD.XFAM`` picks one context, ``CMR_BASE[3]`` an element."""
    name, bracket, index = text.upper().rstrip("]").partition("[")
    scope, dot, rest = name.partition(".")
    contexts = list(Context)
    if dot and scope in Context.__members__:
        contexts, name = [Context[scope]], rest
    if bracket and not index.isdecimal():
        return []
    found = []
    for context in contexts:
        for row in TABLES[context]:
            if row.name.upper() != name:
                continue
            element = int(index or 0)
            cpuid = context == Context.TD and row.class_code == CPUID_CLASS
            if element < row.total:
                # The codes of CPUID_VALUES name leaves; the row's own is that of leaf 0.
                identifier = row.id if cpuid else row.element_id(element)
                found.append(explain_field(row, identifier, element))
    return found
