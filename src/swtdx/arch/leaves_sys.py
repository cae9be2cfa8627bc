# ruff: noqa: E501  (a table)
"""SEAMCALL leaves of the module as a whole and of physical pages: TDH.SYS.*, TDH.PHYMEM.*.

Source: ``api_calls/tdh_sys_*.c`` and ``tdh_phymem_*.c`` of the TDX module 1.5.01, check by check;
TDH.SYS.DISABLE, of which there is no public source yet, from what Linux says of it (``tdx_sys_disable`` in
``arch/x86/virt/vmx/tdx/tdx.c``).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaf import (
    HOST,
    ONES,
    SYS_DISABLE,
    TD_PRESERVING,
    ZERO,
    Bits,
    Input,
    Kind,
    Leaf,
    Lock,
    Outcome,
    Output,
    matrix,
)
from swtdx.arch.leaf_checks import (
    BOOT_NT4,
    HKID_BITS,
    TSC_ADJUST,
    VALUE_OUT,
    at,
    busy,
    field_in,
    invalid,
    metadata_read,
    next_out,
    page,
    plain,
)
from swtdx.arch.metadata_field import Context

#: Module states in which the dispatcher lets a leaf through: any but SHUTDOWN, or any at all.
EARLY: Final = matrix("YYYY.")
ALWAYS: Final = matrix("YYYYY")

_SYS_BUSY: Final = plain(s.TDX_SYS_BUSY, "the module's global lock")
_LP_INIT: Final = plain(s.TDX_SYS_LP_INIT_NOT_DONE, "TDH.SYS.LP.INIT was done on this processor")
_OWNED: Final = (
    invalid("RCX", "a 4-KiB aligned HPA below MAXPA, HKID bits 0"),
    at(s.TDX_OPERAND_ADDR_RANGE_ERROR, "RCX", "inside a TDMR whose PAMT block is initialised"),
)

SYS_LEAVES: Final = (
    Leaf(
        33, "TDH.SYS.INIT", HOST, "initialise the module, once, on any processor",
        inputs=(Input("RCX", "attributes, 0", kind=Kind.NUMBER),),
        outputs=(
            Output("RCX", "0; after INCORRECT_CPUID_VALUE the CPUID leaf and subleaf", ZERO),
            Output("RDX", "0; or the mask of EBX:EAX that was checked", ZERO),
            Output("R8", "0; or the mask of EDX:ECX that was checked", ZERO),
            Output("R9", "0; or the expected EBX:EAX", ZERO),
            Output("R10", "0; or the expected EDX:ECX", ZERO),
        ),
        outcomes=(
            _SYS_BUSY,
            invalid("RCX", "0"),
            plain(s.TDX_SYS_INIT_NOT_PENDING, "module state SYSINIT_PENDING"),
            plain(s.TDX_INCORRECT_MSR_VALUE, "IA32_ARCH_CAPABILITIES, XAPIC_DISABLE_STATUS, MISC_PACKAGE_CTLS, PERF_CAPABILITIES allow TDX"),
            BOOT_NT4,
            plain(s.TDX_CPUID_LEAF_NOT_SUPPORTED, "the CPUID leaves that TDX needs exist"),
            plain(s.TDX_INCORRECT_CPUID_VALUE, "CPUID values that TDX needs"),
            plain(s.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED, "CPUID leaf 0x1F describes threads, cores, packages in order"),
            plain(s.TDX_INVALID_WBINVD_SCOPE, "WBINVD covers the package"),
            plain(s.TDX_INCORRECT_MSR_VALUE, "the VMX capability MSRs allow what a TD VMCS needs"),
            Outcome(s.TDX_NUM_ACTIVATED_HKIDS_NOT_SUPPORTED, 2048, "fewer than 2048 private and shared KeyIDs"),
            Outcome(s.TDX_INCORRECT_MSR_VALUE, 0x99, "IA32_WBNOINVDP equals IA32_WBINVDP"),
            plain(s.TDX_CMR_LIST_INVALID, "CMRs aligned, in order, apart, without HKID"),
            plain(s.TDX_SMRR_NOT_SUPPORTED, "IA32_MTRRCAP: SMRR"),
            plain(s.TDX_SMRR_LOCK_NOT_SUPPORTED, "IA32_MTRRCAP: SMRR lock"),
            plain(s.TDX_SMRR_NOT_LOCKED, "every SMRR locked"),
            plain(s.TDX_INVALID_SMRR_CONFIGURATION, "every valid SMRR a naturally aligned power of two"),
            plain(s.TDX_SMRR_OVERLAPS_CMR, "no SMRR over a CMR"),
            plain(s.TDX_INCOMPATIBLE_SEAM_CAPABILITIES, "SEAMOPS leaves that the module needs"),
            plain(s.TDX_SYS_INCOMPATIBLE_SIGSTRUCT, "SIGSTRUCT handoff versions and pages match the build"),
            plain(s.TDX_RND_NO_ENTROPY, "RDRAND for the stack canary"),
        ),
        locks=(Lock("GLOBAL", "X"),), sys_states=EARLY,
    ),
    Leaf(
        35, "TDH.SYS.LP.INIT", HOST, "initialise a processor for the module, once on each",
        outputs=(
            Output("RCX", "0; after INCONSISTENT_CPUID_FIELD the CPUID leaf and subleaf", ZERO),
            Output("RDX", "0; or the mask of EBX:EAX that must agree", ZERO),
            Output("R8", "0; or the mask of EDX:ECX that must agree", ZERO),
        ),
        outcomes=(
            _SYS_BUSY,
            plain(s.TDX_SYS_LP_INIT_NOT_PENDING, "module state SYSINIT_DONE"),
            plain(s.TDX_SYS_LP_INIT_DONE, "not done on this processor yet"),
            plain(s.TDX_RND_NO_ENTROPY, "RDRAND for the single-step defence"),
            plain(s.TDX_INCOMPATIBLE_SEAM_CAPABILITIES, "the SEAM capabilities sampled by TDH.SYS.INIT"),
            plain(s.TDX_INCONSISTENT_MSR, "capabilities and package controls as sampled by TDH.SYS.INIT"),
            BOOT_NT4,
            plain(s.TDX_INCONSISTENT_CPUID_FIELD, "CPUID fields as sampled by TDH.SYS.INIT"),
            plain(s.TDX_INVALID_PKG_ID, "package number below 8"),
            TSC_ADJUST,
            plain(s.TDX_INCONSISTENT_MSR, "SMRRs, VMX capabilities, KeyIDs, cache sub-blocks as sampled by TDH.SYS.INIT"),
        ),
        locks=(Lock("GLOBAL", "S"),), sys_states=EARLY,
    ),
    Leaf(
        32, "TDH.SYS.INFO", HOST, "write TDSYSINFO_STRUCT and the list of CMRs",
        inputs=(
            Input("RCX", "buffer for TDSYSINFO_STRUCT (shared HPA, aligned to 1024)", kind=Kind.BUFFER, detail=1024),
            Input("RDX", "its size in bytes, at least 1024", kind=Kind.NUMBER, detail=1024),
            Input("R8", "buffer for 32 CMR_INFO (shared HPA, aligned to 512)", kind=Kind.BUFFER, detail=512),
            Input("R9", "entries in it, at least 32", kind=Kind.NUMBER, detail=32),
        ),
        outputs=(Output("RDX", "1024, bytes written", ZERO), Output("R9", "32, entries written", ZERO)),
        outcomes=(
            _LP_INIT,
            invalid("RCX", "shared HPA outside the SEAM range, aligned to 1024"),
            invalid("RDX", "at least 1024"),
            invalid("R8", "shared HPA outside the SEAM range, aligned to 512"),
            invalid("R9", "at least 32"),
        ),
        sys_states=EARLY,
    ),
    Leaf(
        34, "TDH.SYS.RD", HOST, "read a metadata element of the module",
        inputs=(field_in(Context.SYS),),
        outputs=(next_out(), VALUE_OUT),
        outcomes=(_LP_INIT, *metadata_read(enumerate_ids=True)),
        sys_states=EARLY,
    ),
    Leaf(
        37, "TDH.SYS.RDALL", HOST, "write a list of the module's metadata",
        inputs=(Input("RDX", "buffer for the list (shared HPA, 4 KiB)", kind=Kind.BUFFER, detail=4096), Input("R8", "first field id, -1 for all", kind=Kind.FIELD, detail=Context.SYS)),
        outputs=(Output("R8", "id to go on with, -1 when done", ONES),),
        outcomes=(
            _LP_INIT,
            invalid("RDX", "shared HPA outside the SEAM range, aligned to 4 KiB"),
            plain(s.TDX_METADATA_FIELD_ID_INCORRECT, "an existing field, its first element, its size"),
            plain(s.TDX_METADATA_LIST_OVERFLOW, "the rest of the list fits in the buffer"),
        ),
        sys_states=EARLY,
    ),
    Leaf(
        45, "TDH.SYS.CONFIG", HOST, "tell the module TDMRs, PAMTs and the global private HKID",
        inputs=(
            Input("RCX", "array of HPAs of TDMR_INFO (shared HPA, aligned to 512)", kind=Kind.BUFFER, detail=512),
            Input("RDX", "TDMRs, 1..64", kind=Kind.COUNT),
            Input("R8", "global private HKID", HKID_BITS, kind=Kind.HKID),
        ),
        outcomes=(
            _SYS_BUSY,
            plain(s.TDX_SYS_CONFIG_NOT_PENDING, "module state SYSINIT_DONE and TDH.SYS.LP.INIT done on all processors"),
            invalid("RCX", "shared HPA outside the SEAM range, aligned to 512"),
            invalid("RDX", "1..64"),
            invalid("R8", "a private HKID, upper bits 0"),
            invalid("RCX", "each TDMR_INFO: shared HPA outside the SEAM range, aligned to 512"),
            plain(s.TDX_INVALID_TDMR, "base and size add up to less than 2^64"),
            plain(s.TDX_NON_ORDERED_TDMR, "TDMRs ascend and do not overlap"),
            plain(s.TDX_INVALID_TDMR, "base and size multiples of 1 GiB, size not 0, below MAXPA, without HKID"),
            plain(s.TDX_INVALID_RESERVED_IN_TDMR, "reserved areas multiples of 4 KiB inside the TDMR"),
            plain(s.TDX_NON_ORDERED_RESERVED_IN_TDMR, "reserved areas ascend, do not overlap, none after an empty one"),
            plain(s.TDX_INVALID_PAMT, "PAMTs multiples of 4 KiB, below MAXPA, large enough"),
            plain(s.TDX_PAMT_OVERLAP, "PAMTs overlap neither each other nor memory of a TDMR that is not reserved"),
            plain(s.TDX_PAMT_OUTSIDE_CMRS, "PAMTs inside CMRs"),
            plain(s.TDX_TDMR_OUTSIDE_CMRS, "memory that is not reserved inside CMRs"),
        ),
        locks=(Lock("GLOBAL", "X"),), sys_states=EARLY,
    ),
    Leaf(
        31, "TDH.SYS.KEY.CONFIG", HOST, "program the global private key, once on each package",
        outcomes=(
            _SYS_BUSY,
            plain(s.TDX_SYS_KEY_CONFIG_NOT_PENDING, "module state SYSCONFIG_DONE"),
            plain(s.TDX_KEY_CONFIGURED, "this package has not the key yet (no error)"),
            busy("KET", "PCONFIG: the key table"),
            plain(s.TDX_KEY_GENERATION_FAILED, "PCONFIG: entropy"),
        ),
        locks=(Lock("GLOBAL", "X"), Lock("KET", "X")), sys_states=EARLY,
    ),
    Leaf(
        36, "TDH.SYS.TDMR.INIT", HOST, "initialise the PAMT of the next 4 MiB of a TDMR",
        inputs=(Input("RCX", "base of the TDMR (HPA)", kind=Kind.TDMR),),
        outputs=(Output("RDX", "address up to which whole GiB are initialised", ZERO),),
        outcomes=(
            invalid("RCX", "the 1-GiB aligned base of a TDMR, HKID bits 0"),
            busy("RCX", "the TDMR's own lock"),
            plain(s.TDX_TDMR_ALREADY_INITIALIZED, "something is left to do (no error)"),
        ),
        locks=(Lock("TDMR", "X"),),
    ),
    Leaf(
        44, "TDH.SYS.LP.SHUTDOWN", HOST, "does nothing; kept for old hosts", sys_states=ALWAYS,
    ),
    Leaf(
        52, "TDH.SYS.SHUTDOWN", HOST, "stop the module and leave its state to a successor",
        inputs=(Input("RCX", "handoff version", (Bits("hv", 15, 0), Bits("reserved", 63, 16))),),
        outcomes=(
            invalid("RCX", "a handoff version between MIN_UPDATE_HV and MODULE_HV"),
            plain(s.TDX_SYS_BUSY, "the module's global lock, and no other processor in the module"),
        ),
        locks=(Lock("GLOBAL", "X"),), support=TD_PRESERVING,
    ),
    Leaf(
        53, "TDH.SYS.UPDATE", HOST, "take over the state that a previous module left",
        outcomes=(
            _SYS_BUSY,
            plain(s.TDX_SYS_STATE_INCORRECT, "module state SYSINIT_DONE and TDH.SYS.LP.INIT done on all processors"),
            plain(s.TDX_SYS_INVALID_HANDOFF, "valid handoff data of a version that this module knows"),
        ),
        locks=(Lock("GLOBAL", "X"),), sys_states=EARLY, support=TD_PRESERVING,
    ),
    Leaf(
        69, "TDH.SYS.DISABLE", HOST, "give all memory back, cleared, and be as after loading (newer than 1.5.01)",
        outcomes=(
            _SYS_BUSY,
            plain(s.TDX_SYS_BUSY, "no processor runs a TD"),
        ),
        locks=(Lock("GLOBAL", "X"),), sys_states=EARLY, support=SYS_DISABLE,
    ),
)  # fmt: skip

_RDMD_REST: Final = (Output("R10", "0", ZERO), Output("R11", "0", ZERO))

PHYMEM_LEAVES: Final = (
    Leaf(
        24, "TDH.PHYMEM.PAGE.RDMD", HOST, "read a page's PAMT entry",
        inputs=(Input("RCX", "page (HPA, HKID bits 0)", kind=Kind.ANY_PAGE),),
        outputs=(
            Output("RCX", "page type", ZERO),
            Output("RDX", "HPA of the TDR that owns it, or 0", ZERO),
            Output("R8", "page size: 0 4 KiB, 1 2 MiB, 2 1 GiB", ZERO),
            Output("R9", "BEPOCH of REG and EPT pages, else 0", ZERO),
            *_RDMD_REST,
        ),
        outcomes=(*_OWNED, busy("RCX", "PAMT lock of the page, shared")),
        locks=(Lock("PAMT:RCX", "S"),),
    ),
    Leaf(
        28, "TDH.PHYMEM.PAGE.RECLAIM", HOST, "take back a page of a TD that is being torn down",
        inputs=(Input("RCX", "page (HPA, HKID bits 0)", kind=Kind.OWNED_PAGE),),
        outputs=(
            Output("RCX", "page type, as it was; filled once the page is known to be owned", ZERO),
            Output("RDX", "HPA of the TDR that owned it; filled with RCX", ZERO),
            Output("R8", "page size; filled with RCX", ZERO),
            Output("R9", "0", ZERO),
            *_RDMD_REST,
        ),
        outcomes=(
            *_OWNED,
            busy("RCX", "PAMT lock of the page, exclusive"),
            at(s.TDX_PAGE_METADATA_INCORRECT, "RCX", "neither NDA nor RSVD"),
            invalid("RCX", "aligned to the page's own size"),
            busy("TDR", "PAMT lock of the owner, shared"),
            plain(s.TDX_LIFECYCLE_STATE_INCORRECT, "the owner's life cycle is TEARDOWN"),
            plain(s.TDX_TD_ASSOCIATED_PAGES_EXIST, "a TDR goes last"),
        ),
        locks=(Lock("PAMT:RCX", "X"), Lock("TDR", "S")),
    ),
    Leaf(
        40, "TDH.PHYMEM.CACHE.WB", HOST, "write back a package's caches for the HKIDs that wait for it",
        inputs=(Input("RCX", "0 start, 1 resume", kind=Kind.NUMBER),),
        outcomes=(
            invalid("RCX", "0 or 1"),
            busy("WBCACHE", "this package's flush"),
            busy("KOT", "key ownership table, shared"),
            plain(s.TDX_NO_HKID_READY_TO_WBCACHE, "some HKID is FLUSHED (no error)"),
            plain(s.TDX_WBCACHE_RESUME_ERROR, "a flush was interrupted here"),
            plain(s.TDX_INTERRUPTED_RESUMABLE, "no interrupt between two sub-blocks"),
        ),
        locks=(Lock("WBCACHE", "X"), Lock("KOT", "S")),
    ),
    Leaf(
        41, "TDH.PHYMEM.PAGE.WBINVD", HOST, "flush the cache lines of one free page under one HKID",
        inputs=(Input("RCX", "page (HPA with the HKID)", kind=Kind.PAGE_AND_HKID),),
        outcomes=page("RCX", "NDA", exclusive=False),
        locks=(Lock("PAMT:RCX", "S"),),
    ),
)  # fmt: skip
