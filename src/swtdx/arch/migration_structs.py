"""Structures of migration: declared for tools that decode them; the module answers no such leaf.

Sources: ``migration.h`` and ``tdx_api_defs.h`` of the TDX module 1.5.01.  Offsets and sizes in bytes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from swtdx.arch.layout import Blob, Field, Struct

MBMD_ALIGNMENT: Final = 128


class MBMD(Struct, size=48, source="migration.h"):
    """Metadata of a migration bundle: header, 8 bytes that depend on the type, MAC."""

    size_ = Field(0, 2)
    mig_version = Field(2, 2)
    migs_index = Field(4, 2)
    mb_type = Field(6, 1, "MbType")
    reserved = Blob(7, 1, reserved=True)
    mb_counter = Field(8, 4)
    mig_epoch = Field(12, 4, "0xFFFFFFFF: out of order, after the start token")
    iv_counter = Field(16, 8)
    specific = Field(24, 8)
    mac = Blob(32, 16, "AES-256-GCM")


MIG_EPOCH_OUT_OF_ORDER: Final = 0xFFFF_FFFF


class MbType(IntEnum):
    """MBMD.mb_type."""

    IMMUTABLE_TD_STATE = 0
    TD_STATE = 1
    VCPU_STATE = 2
    MEMORY = 16
    EPOCH_TOKEN = 32
    ABORT_TOKEN = 33


#: Bit ranges (high, low) of a GPA list entry.
GPA_LIST_ENTRY: Final[dict[str, tuple[int, int]]] = {
    "level": (1, 0), "pending": (2, 2), "l2_map": (9, 7), "mig_type": (11, 10),
    "gpa": (51, 12), "operation": (53, 52), "status": (60, 56),
}  # fmt: skip

GPA_LIST_OPERATIONS: Final = ("NOP", "MIGRATE", "CANCEL", "REMIGRATE")
GPA_LIST_STATUSES: Final = (
    "SUCCESS", "SKIPPED", "SEPT_WALK_FAILED", "SEPT_ENTRY_BUSY", "SEPT_ENTRY_STATE_INCORRECT",
    "TLB_TRACKING_NOT_DONE", "OP_STATE_INCORRECT", "MIGRATED_IN_CURRENT_EPOCH",
    "MIG_BUFFER_NOT_AVAILABLE", "NEW_PAGE_NOT_AVAILABLE", "INVALID_PAGE_MAC",
    "DISALLOWED_IMPORT_OVER_REMOVED", "TD_PAGE_BUSY", "L2_SEPT_WALK_FAILED",
    "ATTR_LIST_ENTRY_INVALID", "GPA_LIST_ENTRY_INVALID",
)  # fmt: skip
