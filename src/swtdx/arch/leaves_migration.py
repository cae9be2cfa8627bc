# ruff: noqa: E501  (a table)
"""SEAMCALL leaves of migration and service TDs: declared, so that tools can name them; not served.

Source: ``migration_api_calls`` and ``op_state_lookup.c`` of the TDX module 1.5.01; operands and
purposes from seamcall.md §3 and §4.  Outcomes list only what is special to each leaf.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaf import HOST, MIGRATION, SERVICE_TD, Bits, Input, Leaf, Lock, Output, matrix
from swtdx.arch.leaf_checks import (
    GPA_LIST_BITS,
    MBMD_BITS,
    PAGE_LIST_BITS,
    STREAM_BITS,
    at,
    busy,
    gpa_level,
    invalid,
    plain,
    tdr_in,
    tdvpr_in,
)

_GPAS: Final = (Input("RCX", "GPA list", GPA_LIST_BITS), tdr_in("RDX"))
_GPAS_OUT: Final = (Output("RCX", "GPA list, its first entry not done yet"),)
_MBMD: Final = Input("R8", "MBMD buffer (shared HPA) and its size", MBMD_BITS)
_PAGES: Final = Input("R9", "list of pages (shared HPA)", PAGE_LIST_BITS)
_STREAM: Final = Input("R10", "migration stream and command", STREAM_BITS)
_MACS: Final = (Input("R11", "first MAC list (shared HPA)"), Input("R12", "second MAC list (shared HPA)"))
_SESSION: Final = (Lock("TDR", "S"), Lock("OP_STATE", "X"), Lock("MIG", "X"))
_BAD_STREAM: Final = plain(s.TDX_MIGRATION_STREAM_STATE_INCORRECT, "the stream is ready for this call")
_BAD_RESUME: Final = plain(s.TDX_INVALID_RESUMPTION, "a resumed call matches the interrupted one")
_MORE: Final = plain(s.TDX_INTERRUPTED_RESUMABLE, "no interrupt is pending")
_MB: Final = (plain(s.TDX_INVALID_MBMD, "a valid MBMD"), plain(s.TDX_INCORRECT_MBMD_MAC, "the MBMD's MAC"))
_COUNT: Final = plain(s.TDX_SUCCESS, "bits 31:0 count the entries that failed")

MIGRATION_LEAVES: Final = (
    Leaf(96, "TDH.MIG.STREAM.CREATE", HOST, "add a migration stream",
         inputs=(Input("RCX", "new page for the stream's context (HPA)"), tdr_in("RDX")),
         outcomes=(busy("MIG", "migration lock, exclusive"), plain(s.TDX_MAX_MIGS_NUM_EXCEEDED, "fewer than 512 streams")),
         locks=(*_SESSION, Lock("PAMT:RCX", "X")), op_states=matrix("YYY........"), support=MIGRATION),
    Leaf(72, "TDH.EXPORT.STATE.IMMUTABLE", HOST, "start an export and export what will not change",
         inputs=(tdr_in("RCX"), _MBMD, _PAGES, _STREAM),
         outcomes=(plain(s.TDX_TD_NOT_MIGRATABLE, "ATTRIBUTES.MIGRATABLE"),
                   plain(s.TDX_MIGRATION_DECRYPTION_KEY_NOT_SET, "the session key is set"),
                   plain(s.TDX_MAX_EXPORTS_EXCEEDED, "the export counter has room"),
                   plain(s.TDX_PREVIOUS_EXPORT_CLEANUP_INCOMPLETE, "an aborted export was cleaned up"),
                   plain(s.TDX_MIN_MIGS_NOT_CREATED, "at least 2 streams"),
                   plain(s.TDX_NUM_MIGS_HIGHER_THAN_CREATED, "no more streams than exist"),
                   plain(s.TDX_METADATA_LIST_OVERFLOW, "the state fits in the pages"),
                   plain(s.TDX_RND_NO_ENTROPY, "RDRAND"), _BAD_RESUME, _MORE),
         locks=(*_SESSION, Lock("MIGSC", "X")), op_states=matrix("..Y......Y."), support=MIGRATION),
    Leaf(65, "TDH.EXPORT.BLOCKW", HOST, "block pages for writing",
         inputs=_GPAS, outputs=_GPAS_OUT, outcomes=(_COUNT,),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SEPT", "S")),
         op_states=matrix("...Y......."), sept_states=matrix("....Y...Y.Y...Y."), support=MIGRATION),
    Leaf(75, "TDH.EXPORT.UNBLOCKW", HOST, "let a page be written again",
         inputs=(gpa_level(0, 0), tdr_in("RDX")),
         outcomes=(at(s.TDX_EPT_ENTRY_STATE_INCORRECT, "RCX", "blocked for writing"),),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SEPT", "S"), Lock("SEPT_ENTRY", "X")),
         op_states=matrix("..YYYY....."), sept_states=matrix("......YY.Y..YY.Y"), support=MIGRATION),
    Leaf(68, "TDH.EXPORT.MEM", HOST, "export pages",
         inputs=(*_GPAS, _MBMD, Input("R9", "list of buffers (shared HPA)", PAGE_LIST_BITS), _STREAM, *_MACS),
         outputs=_GPAS_OUT, outcomes=(_BAD_STREAM, _BAD_RESUME, _MORE, _COUNT),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("MIG", "S"), Lock("MIGSC", "X"), Lock("SEPT", "S")),
         op_states=matrix("...YYY....."), sept_states=matrix("....Y.YYYYY.YYYY"), support=MIGRATION),
    Leaf(70, "TDH.EXPORT.PAUSE", HOST, "stop the TD for the last part of an export",
         inputs=(tdr_in("RCX"),), locks=(Lock("TDR", "X"),), op_states=matrix("...Y......."), support=MIGRATION),
    Leaf(71, "TDH.EXPORT.TRACK", HOST, "start an epoch, or hand over with the start token",
         inputs=(tdr_in("RCX"), _MBMD, _STREAM),
         outcomes=(plain(s.TDX_EXPORTED_DIRTY_PAGES_REMAIN, "no exported page was written since"),
                   plain(s.TDX_MIGRATION_EPOCH_OVERFLOW, "the epoch has room")),
         locks=_SESSION, op_states=matrix("...YY......"), support=MIGRATION),
    Leaf(73, "TDH.EXPORT.STATE.TD", HOST, "export the TD's mutable state",
         inputs=(tdr_in("RCX"), _MBMD, _PAGES, _STREAM),
         outcomes=(plain(s.TDX_METADATA_LIST_OVERFLOW, "the state fits in the pages"), _BAD_RESUME, _MORE),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "X"), Lock("MIGSC", "X")), op_states=matrix("....Y......"), support=MIGRATION),
    Leaf(74, "TDH.EXPORT.STATE.VP", HOST, "export a VCPU",
         inputs=(tdvpr_in("RCX"), _MBMD, _PAGES, _STREAM),
         outcomes=(plain(s.TDX_VCPU_ALREADY_EXPORTED, "not exported in this session"),
                   plain(s.TDX_VCPU_ASSOCIATED, "associated with this processor or none"), _BAD_RESUME, _MORE),
         locks=(Lock("TDVPR", "X"), Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("MIGSC", "X")),
         op_states=matrix("....Y......"), support=MIGRATION),
    Leaf(64, "TDH.EXPORT.ABORT", HOST, "give an export up",
         inputs=(tdr_in("RCX"), _MBMD, _STREAM), outcomes=_MB, locks=_SESSION,
         op_states=matrix("...YYY....."), support=MIGRATION),
    Leaf(66, "TDH.EXPORT.RESTORE", HOST, "bring pages back to normal after an aborted export",
         inputs=_GPAS, outputs=_GPAS_OUT, outcomes=(_COUNT,),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SEPT", "S")),
         op_states=matrix("..Y........"), sept_states=matrix(".......YYY...YYY"), support=MIGRATION),
    Leaf(85, "TDH.IMPORT.STATE.IMMUTABLE", HOST, "start an import: initialise a TD from a bundle",
         inputs=(tdr_in("RCX"), _MBMD, _PAGES, _STREAM),
         outcomes=(*_MB, plain(s.TDX_NUM_MIGS_HIGHER_THAN_CREATED, "no more streams than exist"),
                   plain(s.TDX_REQUIRED_METADATA_FIELD_MISSING, "every field is there"), _BAD_RESUME, _MORE),
         locks=(Lock("TDR", "X"), Lock("MIGSC", "X")), op_states=matrix("Y.........."), support=MIGRATION),
    Leaf(83, "TDH.IMPORT.MEM", HOST, "import pages",
         inputs=(*_GPAS, _MBMD, Input("R9", "list of buffers (shared HPA)", PAGE_LIST_BITS), _STREAM, *_MACS,
                 Input("R13", "list of new pages (shared HPA)")),
         outputs=_GPAS_OUT,
         outcomes=(*_MB, _BAD_STREAM, _BAD_RESUME,
                   at(s.TDX_INVALID_PAGE_MAC, "GPA_LIST_ENTRY", "the page's MAC"),
                   at(s.TDX_IMPORT_MISMATCH, "GPA_LIST_ENTRY", "the page fits what is there"),
                   at(s.TDX_MIGRATED_IN_CURRENT_EPOCH, "GPA_LIST_ENTRY", "not migrated in this epoch"),
                   at(s.TDX_DISALLOWED_IMPORT_OVER_REMOVED, "GPA_LIST_ENTRY", "not removed in this epoch"),
                   _MORE, _COUNT),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("MIG", "S"), Lock("MIGSC", "X"), Lock("SEPT", "S")),
         op_states=matrix("......YYYY."), sept_states=matrix("YY..Y.....Y....."), support=MIGRATION),
    Leaf(84, "TDH.IMPORT.TRACK", HOST, "take in an epoch token",
         inputs=(tdr_in("RCX"), _MBMD, _STREAM),
         outcomes=(*_MB, plain(s.TDX_SOME_VCPUS_NOT_MIGRATED, "start token: every VCPU was imported")),
         locks=(Lock("TDR", "X"),), op_states=matrix("......YY..."), support=MIGRATION),
    Leaf(86, "TDH.IMPORT.STATE.TD", HOST, "import the TD's mutable state",
         inputs=(tdr_in("RCX"), _MBMD, _PAGES, _STREAM),
         outcomes=(*_MB, plain(s.TDX_REQUIRED_METADATA_FIELD_MISSING, "every field is there"), _BAD_RESUME, _MORE),
         locks=(Lock("TDR", "X"), Lock("MIGSC", "X")), op_states=matrix("......Y...."), support=MIGRATION),
    Leaf(87, "TDH.IMPORT.STATE.VP", HOST, "import a VCPU",
         inputs=(tdvpr_in("RCX"), _MBMD, _PAGES, _STREAM),
         outcomes=(*_MB, plain(s.TDX_VCPU_STATE_INCORRECT, "VCPU state UNINITIALIZED"),
                   plain(s.TDX_ALL_VCPUS_IMPORTED, "some VCPU is still to come"), _BAD_RESUME, _MORE),
         locks=(Lock("TDVPR", "X"), Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("MIGSC", "X")),
         op_states=matrix(".......Y..."), support=MIGRATION),
    Leaf(82, "TDH.IMPORT.COMMIT", HOST, "let the TD run while the rest comes in",
         inputs=(tdr_in("RCX"),), locks=(Lock("TDR", "X"),), op_states=matrix("........Y.."), support=MIGRATION),
    Leaf(81, "TDH.IMPORT.END", HOST, "finish an import",
         inputs=(tdr_in("RCX"),), locks=(Lock("TDR", "X"),), op_states=matrix("........YY."), support=MIGRATION),
    Leaf(80, "TDH.IMPORT.ABORT", HOST, "give an import up, and make the abort token",
         inputs=(tdr_in("RCX"), _MBMD, _STREAM), locks=(Lock("TDR", "X"),),
         op_states=matrix("......YYY.Y"), support=MIGRATION),
)  # fmt: skip

_BINDING: Final = (
    Input("R8", "slot, 0"),
    Input("R9", "SERVTD_TYPE, 0 for a migration TD"),
    Input("R10", "SERVTD_ATTR", (Bits("instance_binding", 0, 0), Bits("ignore_tdinfo", 47, 32))),
)
_SLOT: Final = (
    invalid("R8", "slot 0"),
    invalid("R9", "type 0"),
    invalid("R10", "only supported bits"),
    busy("SERVTD_BINDINGS", "bindings lock, exclusive"),
)

SERVICE_TD_LEAVES: Final = (
    Leaf(48, "TDH.SERVTD.BIND", HOST, "bind a service TD to a target TD",
         inputs=(tdr_in("RCX"), Input("RDX", "TDR page of the service TD (HPA)"), *_BINDING),
         outputs=(Output("RCX", "binding handle"), *(Output(f"R{n}", "UUID of the target TD") for n in range(10, 14))),
         outcomes=(*_SLOT, invalid("RDX", "not the target itself"),
                   plain(s.TDX_SERVTD_ALREADY_BOUND_FOR_TYPE, "no other of this type"),
                   plain(s.TDX_SERVTD_TYPE_MISMATCH, "the bound type"), plain(s.TDX_SERVTD_ATTR_MISMATCH, "the bound attributes"),
                   busy("RTMR", "RTMR lock of the service TD, shared"),
                   plain(s.TDX_SERVTD_INFO_HASH_MISMATCH, "the bound TDINFO hash"),
                   plain(s.TDX_SERVTD_UUID_MISMATCH, "the bound UUID"), plain(s.TDX_OP_STATE_INCORRECT, "both TDs' operation states")),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SERVTD_BINDINGS", "X")),
         op_states=matrix("YYYY....YY."), support=SERVICE_TD),
    Leaf(49, "TDH.SERVTD.PREBIND", HOST, "say which service TD may be bound later",
         inputs=(tdr_in("RCX"), Input("RDX", "TDINFO hash (shared HPA, aligned to 64)"), *_BINDING),
         outcomes=(*_SLOT, plain(s.TDX_SERVTD_ALREADY_BOUND_FOR_TYPE, "no other of this type"),
                   plain(s.TDX_SERVTD_BOUND, "not bound yet")),
         locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SERVTD_BINDINGS", "X")),
         op_states=matrix("YY........."), support=SERVICE_TD),
)  # fmt: skip

#: Operation states that the *service* TD of TDH.SERVTD.BIND may be in.
SERVTD_OTHER_OP_STATES: Final = matrix("..YYYY..YY.")
