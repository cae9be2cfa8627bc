"""One metadata field: its identifier taken apart, where it lives, who may access which bits.

Source: ``md_field_id_t`` in include/tdx_api_defs.h and ``metadata_generic.{h,c}`` of the TDX module
1.5.01.  The 64-bit identifier: field code 23:0, element size code 33:32, last element 37:34, last
field 46:38, INC_SIZE 50, WRITE_MASK_VALID 51, context 54:52, class 61:56, NON_ARCH 63; bits 31:24,
49:47, 55 and 62 are reserved.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Final, NamedTuple

#: Asks for the first identifier; answered when there is no next one.
NULL_ID: Final = 0xFFFF_FFFF_FFFF_FFFF
_CONTEXT_MASK: Final = 7 << 52
_RESERVED: Final = 0xFF << 24 | 7 << 47 | 1 << 55 | 1 << 62
_COUNTS: Final = 0xF << 34 | 0x1FF << 38
CODE_MASK: Final = 0xFF_FFFF
WRITE_MASK_VALID: Final = 1 << 51


class Context(IntEnum):
    """Whose metadata: the module's, a TD's (TDR and TDCS), a VCPU's (TDVPS)."""

    SYS = 0
    TD = 1
    VP = 2


class Accessor(IntEnum):
    """Who accesses: the value selects a pair of masks in :class:`Masks`."""

    HOST = 0
    HOST_DEBUG = 1  # the host, and the TD has ATTRIBUTES.DEBUG
    GUEST = 2
    MIGTD = 3  # a migration TD bound to the TD


class Masks(NamedTuple):
    """Bits of an element that may be read and written, by :class:`Accessor`."""

    host_read: int
    host_write: int
    debug_read: int
    debug_write: int
    guest_read: int
    guest_write: int
    migtd_read: int
    migtd_write: int


_COLUMNS: Final = {"R": 0, "W": 1, "dR": 2, "dW": 3, "gR": 4, "gW": 5, "mR": 6, "mW": 7}


class MetadataField(NamedTuple):
    """A row of a metadata table: one field, or an array of ``fields`` of them.

    Each field has ``elements`` elements, ``total`` in all.  ``offset`` is the byte offset of the first
    element in TDR, in TDCS or in TDVPS (see :attr:`page`); None if it lives in the module or in the VMCS.
    ``special_read`` and ``special_write`` say that the module computes or checks the value.  What follows
    is taken from the identifier once, because every access to a field asks for it.
    """

    id: int
    name: str
    fields: int
    elements: int
    offset: int | None
    masks: Masks
    special_read: bool
    special_write: bool
    #: Bits 54:52.
    context: Context
    #: Bits 61:56.
    class_code: int
    #: Bits 23:0: the field code of the first element.
    code: int
    #: Bytes of an element: 1, 2, 4 or 8.
    size: int
    #: How far the codes of two elements are apart: 2 in the VMCS, else 1.
    stride: int
    #: Elements in all fields together.
    total: int
    #: Whether it lives in the TDR page (rather than in TDCS).
    in_tdr: bool

    @property
    def page(self) -> int | None:
        """Index of the TDCS or TDVPS page that holds the first element; None without an offset."""
        return None if self.offset is None else self.offset >> 12

    @property
    def page_offset(self) -> int | None:
        """Byte offset in :attr:`page`; None without an offset."""
        return None if self.offset is None else self.offset & 0xFFF

    def read_mask(self, accessor: int) -> int:
        """Bits that ``accessor`` may read; 0 if it may not read the field."""
        return self.masks[2 * accessor]

    def write_mask(self, accessor: int) -> int:
        """Bits that ``accessor`` may write; 0 if it may not write the field."""
        return self.masks[2 * accessor + 1]

    def element_id(self, index: int) -> int:
        """The identifier of element ``index`` (not of CPUID_VALUES, whose codes name leaves).

        Raises:
            ValueError: there is no such element.
        """
        if not 0 <= index < self.total:
            raise ValueError(f"{self.name} has elements 0..{self.total - 1}, not {index}")
        return self.id + index * self.stride


@cache
def _access(access: str, size_code: int) -> tuple[Masks, bool, bool]:
    full = (1 << (8 << size_code)) - 1
    masks = [0] * 8
    special_read = special_write = False
    for token in access.split():
        if token[0] == "!":
            special_read |= token == "!R"
            special_write |= token == "!W"
            continue
        column, _, mask = token.partition("(")
        masks[_COLUMNS[column]] = int(mask[:-1], 16) if mask else full
    return Masks(*masks), special_read, special_write


def field(
    name: str, identifier: int, fields: int, elements: int, offset: int | None, access: str
) -> MetadataField:
    """A row from its short form.

    ``access`` lists who may do what: ``R`` and ``W`` the host, ``dR`` and ``dW`` the host of a debug
    TD, ``gR`` and ``gW`` the guest, ``mR`` and ``mW`` a migration TD, each with an optional mask in
    parentheses; ``!R`` and ``!W`` mark reads and writes that need more than a copy.
    """
    context, class_code = Context(identifier >> 52 & 7), identifier >> 56 & 0x3F
    return MetadataField(
        identifier, name, fields, elements, offset, *_access(access, identifier >> 32 & 3),
        context=context, class_code=class_code, code=identifier & CODE_MASK,
        size=1 << (identifier >> 32 & 3), stride=1 + (identifier >> 50 & 1), total=fields * elements,
        in_tdr=context == Context.TD and class_code <= 2,
    )  # fmt: skip


def is_null(identifier: int) -> bool:
    """Whether the identifier is the null one, whatever its context."""
    return identifier | _CONTEXT_MASK == NULL_ID


def is_single_element(identifier: int) -> bool:
    """Whether an identifier may be used to access one element: reserved bits and counts are 0.

    The module looks at nothing else but context, class and field code: element size, INC_SIZE,
    WRITE_MASK_VALID and NON_ARCH of the caller's identifier do not matter.
    """
    return not identifier & (_RESERVED | _COUNTS)


def with_context(identifier: int, context: int) -> int:
    """The identifier with its context replaced, as every leaf does with its operand."""
    return identifier & ~_CONTEXT_MASK | context << 52


def sequence_counts(identifier: int) -> tuple[int, int]:
    """Elements per field and fields, from the header of a sequence in a metadata list.

    The nine-bit count of fields wraps: a header that says 0x1FF less than none means one field more.
    """
    return (identifier >> 34 & 0xF) + 1, (identifier >> 38 & 0x1FF) + 1
