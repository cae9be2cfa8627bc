# ruff: noqa: E501  (a table)
"""SEAMCALL leaves of private memory and its measurement: TDH.MEM.*, TDH.MR.*.

Source: ``api_calls/tdh_mem_*.c`` and ``tdh_mr_*.c`` of the TDX module 1.5.01, check by check.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaf import (
    HOST,
    LEAF,
    ONES,
    RESERVED,
    ROOT,
    SAME,
    SEPT,
    ZERO,
    Input,
    Kind,
    Leaf,
    Lock,
    Output,
    matrix,
)
from swtdx.arch.leaf_checks import (
    ENTRY,
    GPA_INVALID,
    SEPT_ENTRY,
    SEPT_INFO,
    TDR_FLAG_BITS,
    TRACKED,
    WALK,
    at,
    busy,
    gpa_level,
    invalid,
    new_page,
    plain,
    td,
    td_exclusive,
    tdr_in,
)

_VERSION: Final = invalid("RAX", "version 0 or 1")
_SHARED_LOCKS: Final = (Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SEPT", "S"), Lock("SEPT_ENTRY", "X"))
_TREE_LOCKS: Final = (Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SEPT", "X"), Lock("SEPT_ENTRY", "X"))
_RUN: Final = matrix(".YYYYY..YY.")
_L2_PAGES: Final = tuple(
    Input(f"R{8 + vm}", f"new Secure EPT page for L2 VM {vm}, or -1", (), 1, Kind.L2_PAGE) for vm in (1, 2, 3)
)
_L2_FREED: Final = tuple(
    Output(f"R{8 + vm}", f"freed Secure EPT page of L2 VM {vm}, or -1", ONES, 1) for vm in (1, 2, 3)
)
_FREED: Final = (Output("RCX", "HPA of the page that is free now", SEPT), SEPT_INFO[1])
_RESTART: Final = plain(s.TDX_INTERRUPTED_RESTARTABLE, "no interrupt is pending")
_REMOVED_LOCK: Final = busy("RCX", "PAMT lock of the page that goes, exclusive")

MEM_LEAVES: Final = (
    Leaf(
        3, "TDH.MEM.SEPT.ADD", HOST, "add a Secure EPT page",
        inputs=(
            gpa_level(1, ROOT),
            Input("RDX", "TDR page; bit 0 allows pages that exist already", TDR_FLAG_BITS, kind=Kind.TDR),
            Input("R8", "new Secure EPT page (HPA, bit 63 ignored); version 1: -1 for none", kind=Kind.NEW_PAGE),
            *_L2_PAGES,
        ),
        outputs=(
            *SEPT_INFO,
            Output("R8", "-1 if used, with bit 63 set if a page was there already; else its input with bit 63 clear", LEAF, 1),
            *(Output(f"R{8 + vm}", "as R8, for the L2 VM's page", LEAF, 1) for vm in (1, 2, 3)),
        ),
        outcomes=(
            _VERSION,
            invalid("RDX", "reserved bits 0"),
            *td("RDX"), *SEPT_ENTRY,
            invalid("R8", "version 0: not -1"),
            at(s.TDX_EPT_ENTRY_STATE_INCORRECT, "RCX", "free; or NL_MAPPED, for no page or with bit 0 of RDX"),
            *new_page("R8"),
            *(outcome for vm in (1, 2, 3) for outcome in (
                invalid(f"R{8 + vm}", "-1, unless the TD has this L2 VM"), *new_page(f"R{8 + vm}"))),
            plain(s.TDX_L2_SEPT_WALK_FAILED, "the L2 VM's walk reaches the level"),
            plain(s.TDX_L2_SEPT_ENTRY_NOT_FREE, "the L2 VM's entry is free"),
            plain(s.TDX_INTERRUPTED_RESUMABLE, "no interrupt between two pages"),
        ),
        locks=(*_SHARED_LOCKS, Lock("PAMT:R8", "X")),
        op_states=matrix(".YYY..YYYY."), sept_states=matrix("Y.Y............."), max_version=1,
    ),
    Leaf(
        2, "TDH.MEM.PAGE.ADD", HOST, "add and measure an initial page",
        inputs=(gpa_level(0, 0), tdr_in("RDX"), Input("R8", "new page (HPA, HKID bits 0)", kind=Kind.NEW_PAGE), Input("R9", "source page (shared HPA)", kind=Kind.SOURCE, detail=4096)),
        outputs=SEPT_INFO,
        outcomes=(
            *td_exclusive("RDX"),
            GPA_INVALID, WALK[1],
            ENTRY[1],
            invalid("R9", "shared HPA outside the SEAM range, aligned to 4 KiB"),
            *new_page("R8"),
        ),
        locks=(Lock("TDR", "X"), Lock("PAMT:R8", "X")),
        op_states=matrix(".Y........."), sept_states=matrix("Y..............."),
    ),
    Leaf(
        6, "TDH.MEM.PAGE.AUG", HOST, "add a page to a running TD, pending until the guest accepts it",
        inputs=(gpa_level(0, 1), tdr_in("RDX"), Input("R8", "new page (HPA, HKID bits 0), aligned to its size", kind=Kind.NEW_PAGE_OF_LEVEL)),
        outputs=SEPT_INFO,
        outcomes=(*td("RDX"), *SEPT_ENTRY, *new_page("R8")),
        locks=(*_SHARED_LOCKS, Lock("PAMT:R8", "X")),
        op_states=matrix(".YYY.....Y."), sept_states=matrix("YY.............."),
    ),
    Leaf(
        7, "TDH.MEM.RANGE.BLOCK", HOST, "stop new translations of a page, or of all below a Secure EPT page",
        inputs=(gpa_level(0, ROOT), tdr_in("RDX")),
        outputs=SEPT_INFO,
        outcomes=(
            *td("RDX"), GPA_INVALID, *WALK, ENTRY[0],
            at(s.TDX_GPA_RANGE_ALREADY_BLOCKED, "RCX", "not blocked yet (no error)"),
            ENTRY[1],
        ),
        locks=_TREE_LOCKS, op_states=_RUN, sept_states=matrix("..Y.Y.Y...Y.Y..."),
    ),
    Leaf(
        39, "TDH.MEM.RANGE.UNBLOCK", HOST, "undo TDH.MEM.RANGE.BLOCK after tracking",
        inputs=(gpa_level(0, ROOT), tdr_in("RDX")),
        outputs=SEPT_INFO,
        outcomes=(*td("RDX"), *SEPT_ENTRY, at(s.TDX_TLB_TRACKING_NOT_DONE, "SEPT_TREE", "tracked since it was blocked")),
        locks=_TREE_LOCKS, op_states=_RUN, sept_states=matrix("...Y.Y.....Y...."),
    ),
    Leaf(
        38, "TDH.MEM.TRACK", HOST, "start a new TLB epoch",
        inputs=(tdr_in("RCX"),),
        outcomes=(
            *td("RCX"),
            busy("TD_EPOCH", "TLB epoch lock, exclusive"),
            plain(s.TDX_PREVIOUS_TLB_EPOCH_BUSY, "no VCPU of the previous epoch still runs"),
        ),
        locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("TD_EPOCH", "X")),
        op_states=matrix(".YYYYYYYYY."),
    ),
    Leaf(
        29, "TDH.MEM.PAGE.REMOVE", HOST, "take a page away from a TD",
        inputs=(gpa_level(0, 2), tdr_in("RDX")),
        outputs=_FREED,
        outcomes=(*td("RDX"), *SEPT_ENTRY, _REMOVED_LOCK, *TRACKED),
        locks=(*_SHARED_LOCKS, Lock("PAMT", "X")),
        op_states=matrix(".YYYYY..YYY"), sept_states=matrix("....YYY...YYY..."),
    ),
    Leaf(
        30, "TDH.MEM.SEPT.REMOVE", HOST, "take an empty Secure EPT page away",
        inputs=(gpa_level(1, ROOT), tdr_in("RDX")),
        outputs=(*_FREED, *_L2_FREED),
        outcomes=(
            _VERSION,
            *td("RDX"), *SEPT_ENTRY, _REMOVED_LOCK, *TRACKED,
            at(s.TDX_EPT_PAGE_NOT_FREE, "RCX", "all 512 entries are free"),
        ),
        locks=(*_TREE_LOCKS, Lock("PAMT", "X")),
        op_states=matrix(".YYYYYYYYYY"), sept_states=matrix("..YY............"), max_version=1,
    ),
    Leaf(
        15, "TDH.MEM.PAGE.DEMOTE", HOST, "split a large page into 512",
        inputs=(
            gpa_level(1, 2),
            Input("RDX", "TDR page; bit 0 adds L2 pages only where needed", TDR_FLAG_BITS, kind=Kind.TDR),
            Input("R8", "new Secure EPT page (HPA)", kind=Kind.NEW_PAGE),
            *(Input(f"R{8 + vm}", f"new Secure EPT page for L2 VM {vm}, or -1", kind=Kind.L2_PAGE) for vm in (1, 2, 3)),
        ),
        outputs=(
            *SEPT_INFO,
            *(Output(f"R{8 + vm}", "its input; with bit 63 set if the TD has the L2 VM, but used no page", SAME) for vm in (1, 2, 3)),
        ),
        outcomes=(
            invalid("RDX", "reserved bits 0"),
            *td("RDX"), *SEPT_ENTRY, *TRACKED,
            *new_page("R8"),
            *(outcome for vm in (1, 2, 3) for outcome in (
                at(s.TDX_L2_SEPT_PAGE_NOT_PROVIDED, f"R{8 + vm}", "a page for an L2 VM that maps this one"), *new_page(f"R{8 + vm}"))),
            plain(s.TDX_L2_SEPT_WALK_FAILED, "the L2 VM's walk reaches the level"),
            _RESTART,
            busy("RCX", "PAMT locks of the page and its parts"),
        ),
        locks=(*_SHARED_LOCKS, Lock("PAMT:R8", "X"), Lock("PAMT", "X")),
        op_states=_RUN, sept_states=matrix("....YY....YY...."),
    ),
    Leaf(
        23, "TDH.MEM.PAGE.PROMOTE", HOST, "merge 512 pages into a large one",
        inputs=(gpa_level(1, 2, ", of the large page"), tdr_in("RDX")),
        outputs=(*_FREED, *_L2_FREED),
        outcomes=(
            _VERSION,
            *td("RDX"), *SEPT_ENTRY, _REMOVED_LOCK, *TRACKED,
            busy("RCX", "entry locks of the 512 small pages"),
            at(s.TDX_EPT_INVALID_PROMOTE_CONDITIONS, "RCX", "512 entries alike, MAPPED or PENDING, contiguous and aligned"),
            _RESTART,
            busy("RCX", "PAMT locks of the page and its parts"),
        ),
        locks=(*_SHARED_LOCKS, Lock("PAMT", "X")),
        op_states=_RUN, sept_states=matrix("..YY............"), max_version=1,
    ),
    Leaf(
        5, "TDH.MEM.PAGE.RELOCATE", HOST, "move a 4-KiB page to another HPA",
        inputs=(gpa_level(0, 0), tdr_in("RDX"), Input("R8", "new page (HPA, HKID bits 0)", kind=Kind.NEW_PAGE)),
        outputs=_FREED,
        outcomes=(
            *td("RDX"), *SEPT_ENTRY,
            invalid("R8", "not the page that is mapped already"),
            _REMOVED_LOCK, *TRACKED,
            *new_page("R8"),
        ),
        locks=(*_SHARED_LOCKS, Lock("PAMT", "X"), Lock("PAMT:R8", "X")),
        op_states=_RUN, sept_states=matrix("....YYYYYYYYYYYY"),
    ),
    Leaf(
        25, "TDH.MEM.SEPT.RD", HOST, "read a Secure EPT entry",
        inputs=(
            gpa_level(0, ROOT),
            Input("RDX", "TDR page; bit 0 asks for L2 attributes (debug TDs)", TDR_FLAG_BITS, kind=Kind.TDR),
        ),
        outputs=(
            Output("RCX", "the entry as the host may see it", SEPT),
            Output("RDX", "level (2:0), public state (15:8)", SEPT),
            Output("R8", "attributes for VMs 0..3, 16 bits each, if asked for; else its input", SAME),
        ),
        outcomes=(*td("RDX"), invalid("RDX", "bit 0 only for a TD with ATTRIBUTES.DEBUG"), GPA_INVALID, *WALK, ENTRY[0]),
        locks=_SHARED_LOCKS, op_states=matrix(".YYYYYYYYYY"), sept_states=matrix("YYYYYYYYYYYYYYYY"),
    ),
    Leaf(
        12, "TDH.MEM.RD", HOST, "read 8 bytes of a debug TD's private memory",
        inputs=(Input("RCX", "GPA, multiple of 8", kind=Kind.GPA, detail=8), tdr_in("RDX")),
        outputs=(*SEPT_INFO, Output("R8", "the 8 bytes", ZERO)),
        outcomes=(
            *td("RDX"),
            plain(s.TDX_TD_NON_DEBUG, "ATTRIBUTES.DEBUG"),
            invalid("RCX", "a multiple of 8"),
            WALK[0],
            invalid("RCX", "private, within GPAW"),
            at(s.TDX_EPT_ENTRY_NOT_PRESENT, "RCX", "the walk ends at a present leaf"),
            *ENTRY,
        ),
        locks=_SHARED_LOCKS, op_states=matrix(".YYYYYYYYYY"), sept_states=matrix("....Y.YYYY......"),
    ),
    Leaf(
        14, "TDH.MEM.WR", HOST, "write 8 bytes of a debug TD's private memory",
        inputs=(Input("RCX", "GPA, multiple of 8", kind=Kind.GPA, detail=8), tdr_in("RDX"), Input("R8", "the 8 bytes")),
        outputs=(*SEPT_INFO, Output("R8", "the 8 bytes before", ZERO)),
        outcomes=(
            *td("RDX"),
            plain(s.TDX_TD_NON_DEBUG, "ATTRIBUTES.DEBUG"),
            invalid("RCX", "a multiple of 8"),
            WALK[0],
            invalid("RCX", "private, within GPAW"),
            at(s.TDX_EPT_ENTRY_NOT_PRESENT, "RCX", "the walk ends at a present leaf"),
            *ENTRY,
        ),
        locks=_SHARED_LOCKS, op_states=matrix(".YYY..YYYYY"), sept_states=matrix("....Y...Y......."),
    ),
    Leaf(
        16, "TDH.MR.EXTEND", HOST, "measure 256 bytes of an initial page",
        inputs=(Input("RCX", "GPA, multiple of 256", kind=Kind.GPA, detail=256), tdr_in("RDX")),
        outputs=SEPT_INFO,
        outcomes=(
            *td_exclusive("RDX"),
            invalid("RCX", "a multiple of 256, private, within GPAW"),
            at(s.TDX_EPT_ENTRY_NOT_PRESENT, "RCX", "the walk ends at a present leaf"),
            plain(s.TDX_EPT_ENTRY_NOT_PRESENT, "the leaf is MAPPED"),
        ),
        locks=(Lock("TDR", "X"),),
        op_states=matrix(".Y........."), sept_states=matrix("....Y..........."),
    ),
    Leaf(
        17, "TDH.MR.FINALIZE", HOST, "close MRTD and make the TD runnable",
        inputs=(tdr_in("RCX"),),
        outcomes=(*td_exclusive("RCX"), plain(s.TDX_NO_VCPUS, "at least one VCPU is initialised")),
        locks=(Lock("TDR", "X"),),
        op_states=matrix(".Y........."),
    ),
    Leaf(42, "TDH.MEM.SEPT.WR", HOST, "a number without a function", support=RESERVED),
)  # fmt: skip
