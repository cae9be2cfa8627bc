"""Fields of a TD, in TDR and TDCS (``metadata_td.c`` of 1.5.01)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.metadata import Accessor, MetadataField
from swtdx.arch.platform_structs import HP_LOCK_TIMEOUT_USEC
from swtdx.arch.td_config import CONFIG_FLEXIBLE_PENDING_VE, TD_CTLS_ENUM_TOPOLOGY, TD_CTLS_PENDING_VE_DISABLE
from swtdx.arch.units import MASK64
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import SYS
from swtdx.module.metadata.element import SIZES, Place, merged
from swtdx.module.objects.td import Td
from swtdx.module.state import ModuleState

_USEC: Final = 1_000_000


def place(module: ModuleState, td: Td, field: MetadataField, index: int) -> Place:
    """Where an element lives.

    Raises:
        LeafFailed: METADATA_FIELD_NOT_READABLE for a CPUID leaf that always raises #VE;
            METADATA_FIELD_ID_INCORRECT for a page that this TD has not.
    """
    if field.name == "CPUID_VALUES":
        row = index >> 1
        if module.cpuid.rows[row].faulting or not TDCS.cpuid_valid.get(td.tdcs, row):
            raise LeafFailed(st.TDX_METADATA_FIELD_NOT_READABLE)
    assert field.offset is not None
    offset = field.offset + index * field.size
    if field.in_tdr:
        return td.tdr, offset
    if offset >> 12 >= len(td.pages):
        raise LeafFailed(st.TDX_METADATA_FIELD_ID_INCORRECT)
    return td.pages[offset >> 12], offset & 0xFFF


def read(module: ModuleState, td: Td, field: MetadataField, index: int) -> int:
    """The element's value before any mask.

    Raises:
        LeafFailed: see :func:`place`.
    """
    view, offset = place(module, td, field, index)
    value: int = SIZES[field.size].unpack_from(view, offset)[0]
    if field.special_read:
        if field.name == "HP_LOCK_TIMEOUT":
            return value * _USEC // int(SYS.tsc_hz.get(module.data.sys))
        if field.name == "NUM_CPUID_VALUES":
            return len(module.cpuid.rows)
    return value


def write(
    module: ModuleState, td: Td, field: MetadataField, index: int, accessor: Accessor, value: int, wanted: int
) -> int:
    """Write the ``wanted`` bits of an element; the old value under the read mask.

    Raises:
        LeafFailed: METADATA_FIELD_NOT_WRITABLE, METADATA_FIELD_VALUE_NOT_VALID, METADATA_WR_MASK_NOT_VALID.
    """
    old = read(module, td, field, index)
    allowed = field.write_mask(accessor)
    new = merged(old, value, wanted, allowed)
    if field.special_write:
        new = _special(module, td, field, accessor, old, new, wanted & allowed)
    view, offset = place(module, td, field, index)
    SIZES[field.size].pack_into(view, offset, new)
    return old & field.read_mask(accessor)


def _special(
    module: ModuleState, td: Td, field: MetadataField, accessor: Accessor, old: int, new: int, mask: int
) -> int:
    if field.name == "HP_LOCK_TIMEOUT":
        if mask != MASK64:
            raise LeafFailed(st.TDX_METADATA_WR_MASK_NOT_VALID)
        lowest, highest, _ = HP_LOCK_TIMEOUT_USEC
        if not lowest <= new <= highest:
            raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
        return new * int(SYS.tsc_hz.get(module.data.sys)) // _USEC
    if field.name == "TD_CTLS" and accessor is Accessor.GUEST:
        flexible = TDCS.config_flags.get(td.tdcs) & CONFIG_FLEXIBLE_PENDING_VE
        if not flexible and (old ^ new) & TD_CTLS_PENDING_VE_DISABLE:
            raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
        if new & TD_CTLS_ENUM_TOPOLOGY and not TDCS.topology_enum_configured.get(td.tdcs):
            raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
    return new
