# ruff: noqa: E501  (a table: one row a line)
"""What each status of the TDX Module means, and what its low 32 bits carry.

Kept apart from :mod:`swtdx.arch.status`, which the hot paths use.  The meanings are read from the
handlers of the TDX module 1.5.01; codes that none of its handlers returns say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.arch import status

#: Name of each class, by bits 47:40 of a code.
CLASSES: Final[dict[int, str]] = {
    0x00: "general",
    0x01: "invalid operand",
    0x02: "resource busy",
    0x03: "page metadata",
    0x04: "dependent resources",
    0x05: "state of the module",
    0x06: "state of the TD",
    0x07: "state of the VCPU",
    0x08: "keys",
    0x09: "platform configuration",
    0x0A: "TDMR, PAMT and CMR configuration",
    0x0B: "Secure EPT and pages",
    0x0C: "metadata access",
    0x0D: "service TDs",
    0x0E: "migration",
    0x10: "report verification",
    0x11: "TD partitioning",
    0xFF: "software-defined",
}


@dataclass(frozen=True, slots=True)
class Status:
    """One completion status.

    ``details`` says what bits 31:0 carry: ``""`` nothing, ``operand`` an operand id, ``reason`` a
    VMX exit reason, ``msr`` an MSR address, ``leaf`` a CPUID leaf, ``level`` a Secure EPT level,
    ``vm_level`` a VM index (31:16) and a level (15:0), ``count`` a number of list entries, ``tdmr``
    / ``tdmr_pamt`` / ``tdmr_area`` / ``tdmr_pamt_tdmr`` one-byte indices from bit 0 up, ``smrr``,
    ``smrr_cmr``, ``package``, ``slot``, ``limit``, ``vmcs`` a VMCS field encoding, ``sequence`` a
    metadata sequence (31:16) and element (15:0).
    """

    value: int
    name: str
    details: str
    note: str

    @property
    def class_code(self) -> int:
        """Bits 47:40."""
        return self.value >> 40 & 0xFF

    @property
    def class_name(self) -> str:
        """The class in words."""
        return CLASSES[self.class_code]

    @property
    def error(self) -> bool:
        """Bit 63: the call failed."""
        return bool(self.value & status.ERROR)

    @property
    def non_recoverable(self) -> bool:
        """Bit 62: the same call will fail again."""
        return bool(self.value & status.NON_RECOVERABLE)

    @property
    def fatal(self) -> bool:
        """Bit 61: the TD can only be torn down."""
        return bool(self.value & status.FATAL)

    @property
    def hint(self) -> bool:
        """Bit 60: the host may cure the cause and say so at the next TDH.VP.ENTER."""
        return bool(self.value & status.HOST_RECOVERABILITY_HINT)


_UNUSED = "declared, but no handler of 1.5.01 returns it"

# name (without "TDX_"), what the low 32 bits carry, meaning
_ROWS: Final = (
    ("SUCCESS", "reason", "done; for TDH.VP.ENTER the low 32 bits are the exit reason, for leaves over lists the number of entries that failed"),
    ("NON_RECOVERABLE_VCPU", "reason", "TD exit: this VCPU is disabled for good (a triple fault, for instance)"),
    ("NON_RECOVERABLE_TD", "reason", "TD exit: the TD is marked fatal and can only be torn down"),
    ("INTERRUPTED_RESUMABLE", "", "an interrupt is pending; progress is kept, call again to go on"),
    ("INTERRUPTED_RESTARTABLE", "", "an interrupt is pending; nothing was done, call again"),
    ("NON_RECOVERABLE_TD_NON_ACCESSIBLE", "reason", "TD exit: machine check or MSMI, the TD's memory is out of reach"),
    ("INVALID_RESUMPTION", "", "a resumed migration call does not match the interrupted one"),
    ("NON_RECOVERABLE_TD_WRONG_APIC_MODE", "reason", "TD exit: the processor's local APIC turned out to be disabled or in the wrong mode"),
    ("CROSS_TD_FAULT", "", "TD exit: a service TD could not reach its target; its instruction will run again"),
    ("CROSS_TD_TRAP", "", "TD exit: a service TD could not reach its target; its instruction ended with a status"),
    ("NON_RECOVERABLE_TD_CORRUPTED_MD", "reason", "TD exit: the TD's metadata failed an integrity check"),
    ("OPERAND_INVALID", "operand", "an operand's value is not allowed"),
    ("OPERAND_ADDR_RANGE_ERROR", "operand", "a physical address is outside every initialised TDMR, or a shared one lies in the SEAM range"),
    ("OPERAND_BUSY", "operand", "an object is locked by somebody else; nothing was done, try again"),
    ("PREVIOUS_TLB_EPOCH_BUSY", "", "VCPUs that entered in the previous epoch are still running; force them out, then track again"),
    ("SYS_BUSY", "", "the module's global lock is taken; try again"),
    ("RND_NO_ENTROPY", "", "the random number generator ran dry; try again"),
    ("OPERAND_BUSY_HOST_PRIORITY", "operand", "internal: a lock is kept for the host; the guest sees OPERAND_BUSY"),
    ("HOST_PRIORITY_BUSY_TIMEOUT", "", "TD exit: the guest failed too long on a lock that the host claimed"),
    ("PAGE_METADATA_INCORRECT", "operand", "the PAMT says that the page has another type, size or owner than the call needs"),
    ("PAGE_ALREADY_FREE", "operand", _UNUSED),
    ("PAGE_NOT_OWNED_BY_TD", "operand", _UNUSED),
    ("PAGE_NOT_FREE", "operand", _UNUSED),
    ("TD_ASSOCIATED_PAGES_EXIST", "", "the TDR cannot go while the TD owns other pages"),
    ("SYS_INIT_NOT_PENDING", "", "TDH.SYS.INIT was done already"),
    ("SYS_LP_INIT_NOT_DONE", "", "TDH.SYS.LP.INIT has not run on this processor"),
    ("SYS_LP_INIT_DONE", "", "TDH.SYS.LP.INIT was done already on this processor"),
    ("SYS_NOT_READY", "", "the module is not ready for this leaf yet"),
    ("SYS_SHUTDOWN", "", "the module is shut down"),
    ("SYS_KEY_CONFIG_NOT_PENDING", "", "TDH.SYS.KEY.CONFIG is not the step that the module waits for"),
    ("SYS_STATE_INCORRECT", "", "the module's state does not allow an update"),
    ("SYS_INVALID_HANDOFF", "", "there is no usable handoff data from a previous module"),
    ("SYS_INCOMPATIBLE_SIGSTRUCT", "", "the module was signed for other TDMR or PAMT limits than it was built with"),
    ("SYS_LP_INIT_NOT_PENDING", "", "the module does not wait for TDH.SYS.LP.INIT"),
    ("SYS_CONFIG_NOT_PENDING", "", "TDH.SYS.CONFIG needs TDH.SYS.INIT, and TDH.SYS.LP.INIT on every processor"),
    ("INCOMPATIBLE_SEAM_CAPABILITIES", "", "the processor's SEAM capabilities do not suffice"),
    ("TD_FATAL", "", "the TD is marked fatal; it can only be torn down"),
    ("TD_NON_DEBUG", "", "only a TD with ATTRIBUTES.DEBUG allows this"),
    ("TDCS_NOT_ALLOCATED", "", "the TD has fewer TDCX pages than this call needs"),
    ("LIFECYCLE_STATE_INCORRECT", "", "the TD's life cycle is in another state (TDR.LIFECYCLE_STATE)"),
    ("OP_STATE_INCORRECT", "", "the TD's operation state does not allow this leaf (TDCS.OP_STATE)"),
    ("NO_VCPUS", "", "the TD has no initialised VCPU"),
    ("TDCX_NUM_INCORRECT", "", "the number of TDCX pages of this TD or VCPU is not what the call needs"),
    ("X2APIC_ID_NOT_UNIQUE", "x2APIC id", "another VCPU of the TD has this x2APIC id"),
    ("VCPU_STATE_INCORRECT", "", "the VCPU's state does not allow this leaf"),
    ("VCPU_ASSOCIATED", "", "the VCPU is associated with another processor; flush it there first"),
    ("VCPU_NOT_ASSOCIATED", "", "the VCPU is not associated with this processor"),
    ("NO_VALID_VE_INFO", "", "the guest asks for #VE information and there is none"),
    ("MAX_VCPUS_EXCEEDED", "", "TD_PARAMS.MAX_VCPUS VCPUs exist already"),
    ("TSC_ROLLBACK", "", "the time stamp counter is behind its value at the last exit of this VCPU"),
    ("TD_VMCS_FIELD_NOT_INITIALIZED", "vmcs", "posted interrupts cannot be enabled before vector and descriptor address are set"),
    ("TD_VMCS_FIELD_ERROR", "vmcs", _UNUSED),
    ("KEY_GENERATION_FAILED", "", "PCONFIG found no entropy for a key; try again"),
    ("TD_KEYS_NOT_CONFIGURED", "", "the TD's key is not programmed on every package (any more)"),
    ("KEY_STATE_INCORRECT", "", _UNUSED),
    ("KEY_CONFIGURED", "", "not an error: this package has the key already"),
    ("WBCACHE_NOT_COMPLETE", "", "caches of some package may still hold lines of this HKID"),
    ("HKID_NOT_FREE", "", "the HKID belongs to somebody"),
    ("NO_HKID_READY_TO_WBCACHE", "", "not an error: no HKID waits for a cache flush on this package"),
    ("WBCACHE_RESUME_ERROR", "", "there is no interrupted cache flush to resume on this package"),
    ("FLUSHVP_NOT_DONE", "", "some VCPU of the TD is still associated with a processor"),
    ("NUM_ACTIVATED_HKIDS_NOT_SUPPORTED", "limit", "the BIOS activated more KeyIDs than the module can manage"),
    ("INCORRECT_CPUID_VALUE", "", "a CPUID value of this processor is not what the module needs"),
    ("LIMIT_CPUID_MAXVAL_SET", "", "IA32_MISC_ENABLE limits CPUID to its lowest leaves"),
    ("INCONSISTENT_CPUID_FIELD", "", "CPUID differs from the processor that ran TDH.SYS.INIT"),
    ("CPUID_MAX_SUBLEAVES_UNRECOGNIZED", "", _UNUSED),
    ("CPUID_LEAF_1F_FORMAT_UNRECOGNIZED", "", "CPUID leaf 0x1F does not describe a topology that the module knows"),
    ("INVALID_WBINVD_SCOPE", "", "the scope of WBINVD is not the package"),
    ("INVALID_PKG_ID", "package", "the package's number is beyond what the module supports"),
    ("ENABLE_MONITOR_FSM_NOT_SET", "", _UNUSED),
    ("CPUID_LEAF_NOT_SUPPORTED", "leaf", "the processor lacks a CPUID leaf"),
    ("SMRR_NOT_LOCKED", "smrr", "an SMM range register is not locked"),
    ("INVALID_SMRR_CONFIGURATION", "smrr", "an SMM range register is not valid"),
    ("SMRR_OVERLAPS_CMR", "smrr_cmr", "SMM memory overlaps convertible memory"),
    ("SMRR_LOCK_NOT_SUPPORTED", "", "the processor cannot lock SMRRs"),
    ("SMRR_NOT_SUPPORTED", "", "the processor has no SMRRs"),
    ("INCONSISTENT_MSR", "msr", "an MSR differs from the processor that ran TDH.SYS.INIT"),
    ("INCORRECT_MSR_VALUE", "msr", "an MSR has a value that TDX does not allow"),
    ("SEAMREPORT_NOT_AVAILABLE", "", _UNUSED),
    ("SEAMDB_GETREF_NOT_AVAILABLE", "", _UNUSED),
    ("SEAMDB_REPORT_NOT_AVAILABLE", "", _UNUSED),
    ("SEAMVERIFYREPORT_NOT_AVAILABLE", "", _UNUSED),
    ("INVALID_TDMR", "tdmr", "a TDMR's base or size is not allowed"),
    ("NON_ORDERED_TDMR", "tdmr", "TDMRs must ascend and not overlap"),
    ("TDMR_OUTSIDE_CMRS", "tdmr", "memory of a TDMR that is not reserved lies outside every CMR"),
    ("TDMR_ALREADY_INITIALIZED", "", "not an error: all of this TDMR is initialised"),
    ("INVALID_PAMT", "tdmr_pamt", "a PAMT's base or size is not allowed"),
    ("PAMT_OUTSIDE_CMRS", "tdmr_pamt", "a PAMT lies outside every CMR"),
    ("PAMT_OVERLAP", "tdmr_pamt_tdmr", "a PAMT overlaps another one, or memory of a TDMR that is not reserved"),
    ("INVALID_RESERVED_IN_TDMR", "tdmr_area", "a reserved area's offset or size is not allowed"),
    ("NON_ORDERED_RESERVED_IN_TDMR", "tdmr_area", "reserved areas must ascend and not overlap"),
    ("CMR_LIST_INVALID", "", "the list of CMRs from MCHECK is not usable"),
    ("EPT_WALK_FAILED", "operand", "the Secure EPT walk ended early; RCX and RDX show where"),
    ("EPT_ENTRY_FREE", "operand", _UNUSED),
    ("EPT_ENTRY_NOT_FREE", "operand", _UNUSED),
    ("EPT_ENTRY_NOT_PRESENT", "operand", "the Secure EPT entry maps nothing that can be read"),
    ("EPT_ENTRY_NOT_LEAF", "operand", _UNUSED),
    ("EPT_ENTRY_LEAF", "operand", _UNUSED),
    ("GPA_RANGE_NOT_BLOCKED", "operand", "block the range first (TDH.MEM.RANGE.BLOCK)"),
    ("GPA_RANGE_ALREADY_BLOCKED", "operand", "not an error: the range is blocked already"),
    ("TLB_TRACKING_NOT_DONE", "operand", "TLBs may still hold this translation: TDH.MEM.TRACK, then force the VCPUs out"),
    ("EPT_INVALID_PROMOTE_CONDITIONS", "operand", "the 512 small pages cannot merge into one: other states, attributes or addresses"),
    ("PAGE_ALREADY_ACCEPTED", "level", "not an error for the module: the guest has this page already; a guest should be alarmed"),
    ("PAGE_SIZE_MISMATCH", "level", "the page is mapped at another size"),
    ("GPA_RANGE_BLOCKED", "operand", _UNUSED),
    ("EPT_ENTRY_STATE_INCORRECT", "operand", "the Secure EPT entry's state does not allow this leaf; RCX and RDX show it"),
    ("EPT_PAGE_NOT_FREE", "operand", "a Secure EPT page still has entries in use"),
    ("L2_SEPT_WALK_FAILED", "vm_level", "an L2 VM's Secure EPT walk ended early"),
    ("L2_SEPT_ENTRY_NOT_FREE", "vm_level", "an L2 VM's Secure EPT entry is in use"),
    ("PAGE_ATTR_INVALID", "", "these page attributes are not allowed together"),
    ("L2_SEPT_PAGE_NOT_PROVIDED", "operand", "an L2 VM needs a Secure EPT page and none was given"),
    ("METADATA_FIELD_ID_INCORRECT", "sequence", "no such metadata field, or its size, context or reserved bits are wrong"),
    ("METADATA_FIELD_NOT_WRITABLE", "sequence", "the caller may not write this field, or not these bits"),
    ("METADATA_FIELD_NOT_READABLE", "sequence", "the caller may not read this field"),
    ("METADATA_FIELD_VALUE_NOT_VALID", "sequence", "the field does not take this value"),
    ("METADATA_LIST_OVERFLOW", "sequence", "the metadata list does not fit in its buffer, or is longer than it says"),
    ("INVALID_METADATA_LIST_HEADER", "", "the header of a metadata list is wrong"),
    ("REQUIRED_METADATA_FIELD_MISSING", "sequence", "an imported list lacks a field"),
    ("METADATA_ELEMENT_SIZE_INCORRECT", "sequence", _UNUSED),
    ("METADATA_LAST_ELEMENT_INCORRECT", "sequence", _UNUSED),
    ("METADATA_FIELD_CURRENTLY_NOT_WRITABLE", "sequence", _UNUSED),
    ("METADATA_WR_MASK_NOT_VALID", "sequence", "the write mask selects bits outside the element"),
    ("METADATA_FIRST_FIELD_ID_IN_CONTEXT", "", "not an error: the first field id was asked for and returned"),
    ("METADATA_FIELD_SKIP", "", "internal: this element has no meaning here and is skipped in lists"),
    ("SERVTD_ALREADY_BOUND_FOR_TYPE", "", "another service TD of this type is bound"),
    ("SERVTD_TYPE_MISMATCH", "", "the slot is bound to another type of service TD"),
    ("SERVTD_ATTR_MISMATCH", "", "the slot is bound with other attributes"),
    ("SERVTD_INFO_HASH_MISMATCH", "", "the service TD's TDINFO hash is not the bound one"),
    ("SERVTD_UUID_MISMATCH", "", "the service TD's UUID is not the bound one"),
    ("SERVTD_NOT_BOUND", "slot", "no service TD is bound in this slot"),
    ("SERVTD_BOUND", "", "a service TD is bound in this slot"),
    ("TARGET_UUID_MISMATCH", "", "the target TD has another UUID"),
    ("TARGET_UUID_UPDATED", "", "the target TD's UUID changed; the new one is returned"),
    ("INVALID_MBMD", "", "a migration bundle's metadata is not valid"),
    ("INCORRECT_MBMD_MAC", "", "a migration bundle's MAC is wrong"),
    ("NOT_WRITE_BLOCKED", "", _UNUSED),
    ("ALREADY_WRITE_BLOCKED", "", _UNUSED),
    ("NOT_EXPORTED", "", _UNUSED),
    ("MIGRATION_STREAM_STATE_INCORRECT", "", "the migration stream cannot be used now"),
    ("MAX_MIGS_NUM_EXCEEDED", "", "the TD has all the migration streams it may have"),
    ("EXPORTED_DIRTY_PAGES_REMAIN", "", "exported pages were written since; export them again"),
    ("MIGRATION_DECRYPTION_KEY_NOT_SET", "", "the migration TD has not set the session key"),
    ("TD_NOT_MIGRATABLE", "", "the TD has not the MIGRATABLE attribute"),
    ("PREVIOUS_EXPORT_CLEANUP_INCOMPLETE", "", "pages of an aborted export wait for TDH.EXPORT.RESTORE"),
    ("NUM_MIGS_HIGHER_THAN_CREATED", "", "more migration streams are asked for than exist"),
    ("IMPORT_MISMATCH", "operand", "an imported page does not fit what is there"),
    ("MIGRATION_EPOCH_OVERFLOW", "", "the migration epoch cannot grow further"),
    ("MAX_EXPORTS_EXCEEDED", "", "the TD was exported as often as it can be"),
    ("INVALID_PAGE_MAC", "operand", "an imported page's MAC is wrong"),
    ("MIGRATED_IN_CURRENT_EPOCH", "operand", "this page was migrated in this epoch already"),
    ("DISALLOWED_IMPORT_OVER_REMOVED", "operand", "this page was removed by an import and cannot be imported again in this epoch"),
    ("SOME_VCPUS_NOT_MIGRATED", "", "not every VCPU has been imported"),
    ("ALL_VCPUS_IMPORTED", "", "every VCPU has been imported already"),
    ("MIN_MIGS_NOT_CREATED", "", "the TD has fewer migration streams than an export needs"),
    ("VCPU_ALREADY_EXPORTED", "", "this VCPU was exported in this session"),
    ("INVALID_MIGRATION_DECRYPTION_KEY", "", _UNUSED),
    ("INVALID_CPUSVN", "", "the report names a CPUSVN that this platform does not accept"),
    ("INVALID_REPORTMACSTRUCT", "", "the report's MAC was not made on this platform, or the report was changed"),
    ("L2_EXIT_HOST_ROUTED_ASYNC", "reason", "L2 exit: an asynchronous TD exit that the host passed on to L1"),
    ("L2_EXIT_HOST_ROUTED_TDVMCALL", "", "L2 exit: a TDVMCALL of L2 that the host passed on to L1"),
    ("L2_EXIT_PENDING_INTERRUPT", "", "L2 exit: an interrupt is pending for L1"),
    ("PENDING_INTERRUPT", "", "an interrupt is pending; the call did nothing or not all"),
    ("TD_EXIT_BEFORE_L2_ENTRY", "", "TD exit: the debugger asked to stop before entering L2"),
    ("TD_EXIT_ON_L2_VM_EXIT", "reason", "TD exit: the debugger asked to stop on L2 exits"),
    ("TD_EXIT_ON_L2_TO_L1", "reason", "TD exit: the debugger asked to stop on exits from L2 to L1"),
    ("GLA_NOT_CANONICAL", "", "a guest linear address is not canonical"),
)  # fmt: skip


def _value(short: str) -> int:
    return status.VALUES["TDX_" + short] if "TDX_" + short in status.VALUES else status.VALUES[short]


#: Every status of the module by value, in the order of the module's header.
STATUSES: Final[dict[int, Status]] = {
    _value(short): Status(_value(short), status.NAMES[_value(short)], details, note)
    for short, details, note in _ROWS
}

#: Meaning of the P-SEAMLDR's codes (whole 64-bit values).
PSEAMLDR_NOTES: Final[dict[int, str]] = {
    status.PSEAMLDR_SUCCESS: "done",
    status.PSEAMLDR_EBADPARAM: "a pointer, alignment, range, reserved bit or SEAMLDR_PARAMS field is wrong",
    status.PSEAMLDR_EBADCALL: "this call is not allowed now, or not on this processor",
    status.PSEAMLDR_EBADHANDOFF: "the new module cannot take over from the loaded one",
    status.PSEAMLDR_ENOMEM: "the module does not fit in its part of the SEAM range",
    status.PSEAMLDR_EUNSPECERR: "internal error",
    status.PSEAMLDR_EUNSUPCPU: "the SIGSTRUCT does not list this processor",
    status.PSEAMLDR_EBADSIG: "the SIGSTRUCT's format, key, signature or version is not accepted",
    status.PSEAMLDR_EBADHASH: "the module's pages do not have the signed hash",
    status.PSEAMLDR_EINTERRUPT: "an interrupt is pending; call again",
    status.PSEAMLDR_ENOENTROPY: "the random number generator ran dry; call again",
}

#: Meaning of the NP-SEAMLDR's codes (whole 64-bit values).
NPSEAMLDR_NOTES: Final[dict[int, str]] = {
    status.NPSEAMLDR_SUCCESS: "done",
    status.NPSEAMLDR_EBADPARAM: "an input is wrong",
    status.NPSEAMLDR_EMODBUSY: "a P-SEAMLDR or a TDX Module is loaded",
    status.NPSEAMLDR_ELDRINPROG: "another processor runs the loader",
    status.NPSEAMLDR_EBADRANGE: "the SEAM range is not usable",
    status.NPSEAMLDR_EBADPLATF: "this platform is not one the loader knows",
    status.NPSEAMLDR_ENOMEM: "the SEAM range is too small",
    status.NPSEAMLDR_EUNSPECERR: "internal error",
}

#: Meaning of the software-defined outcomes of the SEAMCALL instruction.
SW_NOTES: Final[dict[int, str]] = {
    status.SW_ERROR: "SEAMCALL did not reach any SEAM software",
    status.SW_UD: "SEAMCALL raised #UD: VMX is off, or the mode is wrong",
    status.SW_GP: "SEAMCALL raised #GP: TDX is not enabled by the BIOS",
    status.SW_VMFAILINVALID: "SEAMCALL ended in VMfailInvalid: no TDX Module, or no P-SEAMLDR, is loaded",
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A 64-bit status taken apart: the code, and its details in words."""

    status: Status
    details: int
    text: str


def _indices(kind: str, details: int) -> str:
    byte = [details >> shift & 0xFF for shift in (0, 8, 16)]
    size = ("4K", "2M", "1G")
    pamt = size[byte[1]] if byte[1] < 3 else f"level {byte[1]}"
    return {
        "tdmr": f"TDMR {byte[0]}",
        "tdmr_pamt": f"TDMR {byte[0]}, PAMT {pamt}",
        "tdmr_area": f"TDMR {byte[0]}, reserved area {byte[1]}",
        "tdmr_pamt_tdmr": f"TDMR {byte[0]}, PAMT {pamt}, other TDMR {byte[2]}",
        "smrr_cmr": f"SMRR {byte[0]}, CMR {byte[1]}",
        "vm_level": f"VM {details >> 16}, level {details & 0xFFFF}",
        "sequence": f"sequence {details >> 16}, element {details & 0xFFFF}",
    }[kind]


def details_text(kind: str, details: int) -> str:
    """Bits 31:0 of a status in words; ``kind`` is :attr:`Status.details`."""
    if kind == "operand":
        name = status.OPERAND_NAMES.get(details)
        return f"operand {name}" if name else f"operand id {details}"
    if kind in ("msr", "leaf", "vmcs"):
        word = {"msr": "MSR", "leaf": "CPUID leaf", "vmcs": "VMCS field"}[kind]
        return f"{word} {details:#x}"
    if kind == "reason":
        return f"exit reason {details & 0xFFFF}"
    if kind in ("tdmr", "tdmr_pamt", "tdmr_area", "tdmr_pamt_tdmr", "smrr_cmr", "vm_level", "sequence"):
        return _indices(kind, details)
    return f"{kind} {details:#x}" if kind else (f"{details:#x}" if details else "")


def decode(value: int) -> Decoded | None:
    """A module's 64-bit status in parts; None if its code is not one of the module's."""
    code = value & status.CODE_MASK
    # Imports that fail half-way add FATAL to a code that has it not.
    entry = STATUSES.get(code) or STATUSES.get(code & ~status.FATAL)
    if entry is None:
        return None
    details = value & status.DETAILS_MASK
    # A zero detail of most codes means "none was given"; operand id 0 is RAX and reason 0 is an NMI.
    text = details_text(entry.details, details) if details or entry.details == "operand" else ""
    return Decoded(entry, details, text)
