# ruff: noqa: E501  (a table)
"""SEAMCALL leaves of TDs and VCPUs: TDH.MNG.*, TDH.VP.*.

Source: ``api_calls/tdh_mng_*.c``, ``tdh_vp_*.c`` and ``td_transitions/tdh_vp_enter.c`` of the TDX
module 1.5.01, check by check; version 1 of TDH.VP.INIT from later public versions.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.features import TOPOLOGY_ENUM
from swtdx.arch.leaf import HOST, LEAF, ZERO, Input, Kind, Leaf, Lock, Outcome, Output, matrix
from swtdx.arch.leaf_checks import (
    BOOT_NT4,
    HKID_BITS,
    METADATA_WRITE,
    OLD_OUT,
    STATE,
    TDCX_COMPLETE,
    TSC_ADJUST,
    VALUE_OUT,
    VCPU_FLAG_BITS,
    WRITE_IN,
    X2APIC_ID_BITS,
    busy,
    field_in,
    invalid,
    metadata_read,
    new_page,
    next_out,
    plain,
    td,
    td_exclusive,
    tdr,
    tdr_in,
    tdvpr_in,
    vcpu,
)
from swtdx.arch.metadata_field import Context

_VERSION: Final = invalid("RAX", "version 0 or 1")
_VCPU_FREE: Final = (
    plain(s.TDX_VCPU_STATE_INCORRECT, "VCPU state READY"),
    plain(s.TDX_VCPU_ASSOCIATED, "associated with this processor or with none"),
)
_KEY: Final = (
    busy("KET", "PCONFIG: the key table"),
    plain(s.TDX_KEY_GENERATION_FAILED, "PCONFIG: entropy"),
)

MNG_LEAVES: Final = (
    Leaf(
        9, "TDH.MNG.CREATE", HOST, "create a TD: give it a TDR page and an HKID",
        inputs=(Input("RCX", "new TDR page (HPA, HKID bits 0)", kind=Kind.NEW_PAGE), Input("RDX", "private HKID", HKID_BITS, kind=Kind.HKID)),
        outcomes=(
            invalid("RDX", "a private HKID, upper bits 0"),
            *new_page("RCX"),
            busy("KOT", "key ownership table, exclusive"),
            plain(s.TDX_HKID_NOT_FREE, "the HKID is free"),
            plain(s.TDX_RND_NO_ENTROPY, "RDRAND for the TD's UUID"),
        ),
        locks=(Lock("TDR", "X"), Lock("KOT", "X")),
    ),
    Leaf(
        8, "TDH.MNG.KEY.CONFIG", HOST, "program the TD's key, once on each package",
        inputs=(tdr_in("RCX"),),
        outcomes=(
            *tdr("RCX", exclusive=True),
            plain(s.TDX_TD_FATAL, "the TD is not marked fatal"),
            plain(s.TDX_LIFECYCLE_STATE_INCORRECT, "life cycle HKID_ASSIGNED"),
            plain(s.TDX_KEY_CONFIGURED, "this package has not the key yet (no error)"),
            *_KEY,
        ),
        locks=(Lock("TDR", "X"), Lock("KET", "X")),
    ),
    Leaf(
        1, "TDH.MNG.ADDCX", HOST, "add a page to the TDCS",
        inputs=(Input("RCX", "new TDCX page (HPA, HKID bits 0)", kind=Kind.NEW_PAGE), tdr_in("RDX")),
        outcomes=(
            *tdr("RDX", exclusive=True),
            plain(s.TDX_TD_FATAL, "the TD is not marked fatal"),
            plain(s.TDX_TD_KEYS_NOT_CONFIGURED, "life cycle KEYS_CONFIGURED"),
            plain(s.TDX_TDCX_NUM_INCORRECT, "fewer than 9 TDCX pages"),
            *new_page("RCX"),
            plain(s.TDX_RND_NO_ENTROPY, "with the 6th page: RDRAND for the migration key"),
            plain(s.TDX_OP_STATE_INCORRECT, "from the 7th page on: operation state UNINITIALIZED"),
        ),
        locks=(Lock("TDR", "X"), Lock("PAMT:RCX", "X")),
        op_states=matrix("Y.........."),
    ),
    Leaf(
        21, "TDH.MNG.INIT", HOST, "initialise a TD from TD_PARAMS",
        inputs=(tdr_in("RCX"), Input("RDX", "TD_PARAMS (shared HPA, aligned to 1024)", kind=Kind.TD_PARAMS, detail=1024)),
        outputs=(Output("RCX", "0; after OPERAND_INVALID | CPUID_CONFIG the CPUID leaf (31:0) and subleaf (63:32)", ZERO),),
        outcomes=(
            BOOT_NT4,
            *td_exclusive("RCX"),
            invalid("RDX", "shared HPA outside the SEAM range, aligned to 1024"),
            invalid("ATTRIBUTES", "only supported bits; bits that go together"),
            invalid("XFAM", "only supported bits, FIXED1 bits set, groups whole"),
            invalid("MAX_VCPUS", "not 0; at most MAX_VCPUS_PER_TD where there is that field"),
            invalid("NUM_L2_VMS", "at most 3"),
            plain(s.TDX_TDCS_NOT_ALLOCATED, "6 TDCX pages, and one for each L2 VM"),
            invalid("RDX", "reserved bytes at 20 are 0"),
            invalid("EXEC_CONTROLS", "CONFIG_FLAGS: only supported bits"),
            invalid("EPTP_CONTROLS", "write-back, 4 or 5 levels, fit for GPAW; all else 0"),
            invalid("TSC_FREQUENCY", "4..400 (units of 25 MHz)"),
            TSC_ADJUST,
            invalid("RDX", "reserved bytes at 42 are 0"),
            invalid("RDX", "reserved bits of MSR_CONFIG_CTLS are 0"),
            invalid("RDX", "reserved bytes at 232 are 0"),
            invalid("CPUID_CONFIG", "only configurable bits; a known CPU model; HLE and RTM alike"),
            Outcome(s.TDX_INCORRECT_MSR_VALUE, 0x10A, "TSX only if the processor has IA32_TSX_CTRL"),
            plain(s.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED, "with TOPOLOGY_ENUM: leaf 0x1F all 0, or ascending levels from sub-leaf 0 with one of cores"),
            invalid("RDX", "reserved bytes after CPUID_CONFIG are 0"),
            invalid("IA32_ARCH_CAPABILITIES_CONFIG", "only configurable bits, as the processor allows"),
            invalid("RDX", "ATTRIBUTES, XFAM and the rest go together"),
        ),
        locks=(Lock("TDR", "X"),),
        op_states=matrix("Y.........."),
    ),
    Leaf(
        11, "TDH.MNG.RD", HOST, "read a metadata element of a TD",
        inputs=(tdr_in("RCX"), field_in(Context.TD)),
        outputs=(next_out(1), VALUE_OUT),
        outcomes=(_VERSION, *td("RCX"), *metadata_read(enumerate_ids=True)),
        locks=(Lock("TDR", "S"), Lock("OP_STATE", "S")),
        op_states=matrix(".YYYYYYYYYY"), max_version=1,
    ),
    Leaf(
        13, "TDH.MNG.WR", HOST, "write a metadata element of a TD",
        inputs=(tdr_in("RCX"), field_in(Context.TD), *WRITE_IN),
        outputs=(OLD_OUT,),
        outcomes=(*td("RCX"), *METADATA_WRITE),
        locks=(Lock("TDR", "S"), Lock("OP_STATE", "S")),
        op_states=matrix(".YYY..YYYYY"),
    ),
    Leaf(
        19, "TDH.MNG.VPFLUSHDONE", HOST, "check that no processor holds a VCPU of the TD; block it",
        inputs=(tdr_in("RCX"),),
        outcomes=(
            *tdr("RCX", exclusive=True),
            busy("KOT", "key ownership table, exclusive"),
            plain(s.TDX_LIFECYCLE_STATE_INCORRECT, "life cycle HKID_ASSIGNED or KEYS_CONFIGURED"),
            plain(s.TDX_FLUSHVP_NOT_DONE, "no VCPU is associated with a processor"),
        ),
        locks=(Lock("TDR", "X"), Lock("KOT", "X")),
    ),
    Leaf(
        20, "TDH.MNG.KEY.FREEID", HOST, "give the TD's HKID back",
        inputs=(tdr_in("RCX"),),
        outcomes=(
            *tdr("RCX", exclusive=True),
            plain(s.TDX_LIFECYCLE_STATE_INCORRECT, "life cycle BLOCKED"),
            busy("KOT", "key ownership table, exclusive"),
            plain(s.TDX_WBCACHE_NOT_COMPLETE, "every package has written back its caches"),
        ),
        locks=(Lock("TDR", "X"), Lock("KOT", "X")),
    ),
    Leaf(
        27, "TDH.MNG.KEY.RECLAIMID", HOST, "does nothing; kept for old hosts",
        inputs=(Input("RCX", "not looked at"),),
    ),
)  # fmt: skip

_EXIT: Final = (
    Output("RCX", "exit qualification (31:0) or the guest's RCX, and the VM (33:32)", LEAF),
    Output("RDX", "extended exit qualification, or a register of the guest", LEAF),
    Output("RBX", "0, or a register of the guest", LEAF),
    Output("RBP", "0, or a register of the guest; kept if CONFIG_FLAGS.NO_RBP_MOD", LEAF),
    Output("RSI", "0, or a register of the guest", LEAF),
    Output("RDI", "0, or a register of the guest", LEAF),
    Output("R8", "GPA of an EPT violation or misconfiguration, or a register of the guest", LEAF),
    Output("R9", "interruption information, or a register of the guest", LEAF),
    *(Output(f"R{n}", "0, or a register of the guest", LEAF) for n in range(10, 16)),
)

VP_LEAVES: Final = (
    Leaf(
        10, "TDH.VP.CREATE", HOST, "create a VCPU: give it a TDVPR page",
        inputs=(Input("RCX", "new TDVPR page (HPA, HKID bits 0)", kind=Kind.NEW_PAGE), tdr_in("RDX")),
        outcomes=(*td("RDX"), *new_page("RCX")),
        locks=(Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("PAMT:RCX", "X")),
        op_states=matrix(".Y.....Y..."),
    ),
    Leaf(
        4, "TDH.VP.ADDCX", HOST, "add a page to the TDVPS",
        inputs=(Input("RCX", "new TDCX page (HPA, HKID bits 0)", kind=Kind.NEW_PAGE), tdvpr_in("RDX")),
        outcomes=(
            *vcpu("RDX", exclusive=True), *STATE,
            plain(s.TDX_VCPU_STATE_INCORRECT, "VCPU state UNINITIALIZED"),
            plain(s.TDX_TDCX_NUM_INCORRECT, "fewer than 15 TDVPS pages"),
            *new_page("RCX"),
        ),
        locks=(Lock("TDVPR", "X"), Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("PAMT:RCX", "X")),
        op_states=matrix(".Y.....Y..."),
    ),
    Leaf(
        22, "TDH.VP.INIT", HOST, "initialise a VCPU; it stays associated with this processor",
        inputs=(
            tdvpr_in("RCX"), Input("RDX", "the guest's first RCX and R8"),
            Input("R8", "the VCPU's x2APIC id", X2APIC_ID_BITS, since=1, kind=Kind.COUNT),
        ),
        outcomes=(
            *vcpu("RCX", exclusive=True), *STATE,
            TDCX_COMPLETE,
            plain(s.TDX_VCPU_STATE_INCORRECT, "VCPU state UNINITIALIZED"),
            plain(s.TDX_MAX_VCPUS_EXCEEDED, "fewer than MAX_VCPUS are initialised"),
            invalid("R8", "version 1: an x2APIC id, upper bits 0")._replace(since=1),
            Outcome(s.TDX_X2APIC_ID_NOT_UNIQUE, None, "version 1: no VCPU of the TD has this x2APIC id", since=1),
            TSC_ADJUST,
        ),
        # Version 1 takes the TDR exclusively.
        locks=(Lock("TDVPR", "X"), Lock("TDR", "S"), Lock("OP_STATE", "S")),
        op_states=matrix(".Y........."), max_version=1, version_needs=TOPOLOGY_ENUM,
    ),
    Leaf(
        0, "TDH.VP.ENTER", HOST, "run a VCPU until its TD exits",
        inputs=(
            Input("RCX", "TDVPR page and flags", VCPU_FLAG_BITS, kind=Kind.TDVPR),
            *(Input(name, "after a TDVMCALL: value for the guest, if its mask selects it")
              for name in ("RDX", "RBX", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))),
        ),
        outputs=_EXIT,
        outcomes=(
            BOOT_NT4,
            invalid("RCX", "reserved bits 0"),
            *vcpu("RCX", exclusive=False), *STATE,
            TDCX_COMPLETE,
            *_VCPU_FREE,
            invalid("RCX", "host_recoverability_hint only after a trap-like exit"),
            invalid("RCX", "resume_l1 only if the exit came from an L2 VM"),
            TSC_ADJUST,
            plain(s.TDX_TSC_ROLLBACK, "the TSC is not behind the last exit"),
            Outcome(s.TDX_INCORRECT_MSR_VALUE, 0x1A0, "MONITOR is enabled if the TD has it"),
            busy("TD_EPOCH", "TLB epoch lock, shared"),
            busy("SEPT_TREE", "Secure EPT tree lock, if the guest looks single-stepped by EPT faults"),
            plain(s.TDX_SUCCESS, "TD exit; bits 31:0 are the exit reason"),
            plain(s.TDX_NON_RECOVERABLE_VCPU, "TD exit: triple fault"),
            plain(s.TDX_NON_RECOVERABLE_TD, "TD exit: a state from which the TD cannot go on"),
            plain(s.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE, "TD exit: machine check"),
            plain(s.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE, "TD exit: the local APIC is disabled"),
            plain(s.TDX_NON_RECOVERABLE_TD_CORRUPTED_MD, "TD exit: the processor made no report"),
            plain(s.TDX_CROSS_TD_TRAP, "TD exit: a service TD could not reach its target"),
            plain(s.TDX_HOST_PRIORITY_BUSY_TIMEOUT, "TD exit: the guest waited too long for a lock"),
        ),
        locks=(Lock("TDVPR", "S"), Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("TD_EPOCH", "S")),
        op_states=matrix("..YY.....Y."),
    ),
    Leaf(
        18, "TDH.VP.FLUSH", HOST, "take a VCPU off the processor that holds it",
        inputs=(tdvpr_in("RCX"),),
        outcomes=(
            *vcpu("RCX", exclusive=True),
            plain(s.TDX_TD_KEYS_NOT_CONFIGURED, "life cycle KEYS_CONFIGURED"),
            TDCX_COMPLETE,
            plain(s.TDX_VCPU_NOT_ASSOCIATED, "associated with this processor"),
        ),
        locks=(Lock("TDVPR", "X"), Lock("TDR", "S")),
        op_states=matrix("YYYYYYYYYYY"),
    ),
    Leaf(
        26, "TDH.VP.RD", HOST, "read a metadata element of a VCPU; associates it with this processor",
        inputs=(tdvpr_in("RCX"), field_in(Context.VP)),
        outputs=(next_out(1), VALUE_OUT),
        outcomes=(
            _VERSION,
            *vcpu("RCX", exclusive=False), *STATE,
            TDCX_COMPLETE,
            plain(s.TDX_VCPU_STATE_INCORRECT, "VCPU state READY or DISABLED"),
            _VCPU_FREE[1],
            *metadata_read(enumerate_ids=True),
        ),
        locks=(Lock("TDVPR", "S"), Lock("TDR", "S"), Lock("OP_STATE", "S")),
        op_states=matrix(".YYYYYYYYYY"), max_version=1,
    ),
    Leaf(
        43, "TDH.VP.WR", HOST, "write a metadata element of a VCPU; associates it with this processor",
        inputs=(tdvpr_in("RCX"), field_in(Context.VP), *WRITE_IN),
        outputs=(OLD_OUT,),
        outcomes=(
            *vcpu("RCX", exclusive=False), *STATE,
            TDCX_COMPLETE,
            *_VCPU_FREE,
            *METADATA_WRITE,
            Outcome(s.TDX_TD_VMCS_FIELD_NOT_INITIALIZED, 0x0002, "posted interrupts: the vector was set"),
            Outcome(s.TDX_TD_VMCS_FIELD_NOT_INITIALIZED, 0x2016, "posted interrupts: the descriptor address was set"),
        ),
        locks=(Lock("TDVPR", "S"), Lock("TDR", "S"), Lock("OP_STATE", "S")),
        op_states=matrix(".YYY..YYYYY"),
    ),
)  # fmt: skip
