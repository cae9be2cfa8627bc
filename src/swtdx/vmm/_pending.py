"""ABI numbers that the hypervisor needs as plain ints, until ``swtdx.arch`` names each of them.

``tests/vmm/test_constants.py`` holds them against the arch tables.  Sources: seamcall.md (leaf numbers),
structures.md §13 (field ids), tdcall.md §7 (exits), ghci.md (TDVMCALL), all of shared/reference.
"""

from __future__ import annotations

from typing import Final

# SEAMCALL leaves (RAX bits 15:0).
TDH_VP_ENTER: Final = 0
TDH_MNG_ADDCX: Final = 1
TDH_MEM_PAGE_ADD: Final = 2
TDH_MEM_SEPT_ADD: Final = 3
TDH_VP_ADDCX: Final = 4
TDH_MEM_PAGE_RELOCATE: Final = 5
TDH_MEM_PAGE_AUG: Final = 6
TDH_MEM_RANGE_BLOCK: Final = 7
TDH_MNG_KEY_CONFIG: Final = 8
TDH_MNG_CREATE: Final = 9
TDH_VP_CREATE: Final = 10
TDH_MNG_RD: Final = 11
TDH_MEM_RD: Final = 12
TDH_MNG_WR: Final = 13
TDH_MEM_WR: Final = 14
TDH_MEM_PAGE_DEMOTE: Final = 15
TDH_MR_EXTEND: Final = 16
TDH_MR_FINALIZE: Final = 17
TDH_VP_FLUSH: Final = 18
TDH_MNG_VPFLUSHDONE: Final = 19
TDH_MNG_KEY_FREEID: Final = 20
TDH_MNG_INIT: Final = 21
TDH_VP_INIT: Final = 22
TDH_MEM_PAGE_PROMOTE: Final = 23
TDH_PHYMEM_PAGE_RDMD: Final = 24
TDH_MEM_SEPT_RD: Final = 25
TDH_VP_RD: Final = 26
TDH_MNG_KEY_RECLAIMID: Final = 27
TDH_PHYMEM_PAGE_RECLAIM: Final = 28
TDH_MEM_PAGE_REMOVE: Final = 29
TDH_MEM_SEPT_REMOVE: Final = 30
TDH_SYS_KEY_CONFIG: Final = 31
TDH_SYS_INFO: Final = 32
TDH_SYS_INIT: Final = 33
TDH_SYS_RD: Final = 34
TDH_SYS_LP_INIT: Final = 35
TDH_SYS_TDMR_INIT: Final = 36
TDH_SYS_RDALL: Final = 37
TDH_MEM_TRACK: Final = 38
TDH_MEM_RANGE_UNBLOCK: Final = 39
TDH_PHYMEM_CACHE_WB: Final = 40
TDH_PHYMEM_PAGE_WBINVD: Final = 41
TDH_VP_WR: Final = 43
TDH_SYS_LP_SHUTDOWN: Final = 44
TDH_SYS_CONFIG: Final = 45

#: The names of those leaves, by number.
LEAF_NAMES: Final[dict[int, str]] = {
    0: "TDH.VP.ENTER", 1: "TDH.MNG.ADDCX", 2: "TDH.MEM.PAGE.ADD", 3: "TDH.MEM.SEPT.ADD", 4: "TDH.VP.ADDCX",
    5: "TDH.MEM.PAGE.RELOCATE", 6: "TDH.MEM.PAGE.AUG", 7: "TDH.MEM.RANGE.BLOCK", 8: "TDH.MNG.KEY.CONFIG",
    9: "TDH.MNG.CREATE", 10: "TDH.VP.CREATE", 11: "TDH.MNG.RD", 12: "TDH.MEM.RD", 13: "TDH.MNG.WR",
    14: "TDH.MEM.WR", 15: "TDH.MEM.PAGE.DEMOTE", 16: "TDH.MR.EXTEND", 17: "TDH.MR.FINALIZE",
    18: "TDH.VP.FLUSH", 19: "TDH.MNG.VPFLUSHDONE", 20: "TDH.MNG.KEY.FREEID", 21: "TDH.MNG.INIT",
    22: "TDH.VP.INIT", 23: "TDH.MEM.PAGE.PROMOTE", 24: "TDH.PHYMEM.PAGE.RDMD", 25: "TDH.MEM.SEPT.RD",
    26: "TDH.VP.RD", 27: "TDH.MNG.KEY.RECLAIMID", 28: "TDH.PHYMEM.PAGE.RECLAIM", 29: "TDH.MEM.PAGE.REMOVE",
    30: "TDH.MEM.SEPT.REMOVE", 31: "TDH.SYS.KEY.CONFIG", 32: "TDH.SYS.INFO", 33: "TDH.SYS.INIT",
    34: "TDH.SYS.RD", 35: "TDH.SYS.LP.INIT", 36: "TDH.SYS.TDMR.INIT", 37: "TDH.SYS.RDALL",
    38: "TDH.MEM.TRACK", 39: "TDH.MEM.RANGE.UNBLOCK", 40: "TDH.PHYMEM.CACHE.WB",
    41: "TDH.PHYMEM.PAGE.WBINVD", 43: "TDH.VP.WR", 44: "TDH.SYS.LP.SHUTDOWN", 45: "TDH.SYS.CONFIG",
}  # fmt: skip

# Metadata field ids.
MD_PKG_FMS: Final = 0x0000000200000001
MD_MINOR_VERSION: Final = 0x0800000100000003
MD_MAJOR_VERSION: Final = 0x0800000100000004
MD_TDX_FEATURES0: Final = 0x0A00000300000008
MD_CONFIG_FLAGS_FIXED0: Final = 0x9900000300000006
MD_NULL: Final = (1 << 64) - 1
MD_TSC_OFFSET: Final = 0x111000030000000A
MD_TSC_MULTIPLIER: Final = 0x111000030000000B
MD_VCPU_STATE_DETAILS: Final = 0x9120000300000100
MD_PEND_NMI: Final = 0x202000000000000B
#: TD VMCS fields (structures.md §13.6): size code in bits 33:32, VMCS encoding in bits 15:0.
MD_VMCS_NOTIFICATION_VECTOR: Final = 0x0024000100000002
MD_VMCS_PID_ADDRESS: Final = 0x0024000300002016
MD_VMCS_SHARED_EPTP: Final = 0x002400030000203C
MD_VMCS_PIN_BASED_CONTROLS: Final = 0x0024000200004000

# VM exit reasons in RAX bits 15:0 after TDH.VP.ENTER.
EXIT_EXCEPTION_NMI: Final = 0
EXIT_EXTERNAL_INTERRUPT: Final = 1
EXIT_TRIPLE_FAULT: Final = 2
EXIT_INIT: Final = 3
EXIT_OTHER_SMI: Final = 6
EXIT_TASK_SWITCH: Final = 9
EXIT_EPT_VIOLATION: Final = 48
EXIT_EPT_MISCONFIGURATION: Final = 49
EXIT_BUS_LOCK: Final = 74
EXIT_NOTIFICATION: Final = 75
EXIT_TDCALL: Final = 77
#: Bit of the exit reason: a bus lock was pre-empted at the same time.
EXIT_BUS_LOCK_FLAG: Final = 1 << 26
EXIT_NAMES: Final[dict[int, str]] = {
    0: "exception or NMI", 1: "external interrupt", 2: "triple fault", 3: "INIT", 6: "SMI", 9: "task switch",
    48: "EPT violation", 49: "EPT misconfiguration", 74: "bus lock", 75: "notification", 77: "TDVMCALL",
}  # fmt: skip

# Extended exit qualification of an EPT violation (RDX bits 3:0).
QUAL_NONE: Final = 0
QUAL_ACCEPT: Final = 1
QUAL_ATTR_WR: Final = 5
QUAL_PENDING: Final = 6

# TDVMCALL sub-functions (R11) and status codes (R10).
CALL_CPUID: Final = 10
CALL_HLT: Final = 12
CALL_IO: Final = 30
CALL_RDMSR: Final = 31
CALL_WRMSR: Final = 32
CALL_MMIO: Final = 48
CALL_WBINVD: Final = 54
CALL_PCONFIG: Final = 65
CALL_GET_INFO: Final = 0x10000
CALL_MAP_GPA: Final = 0x10001
CALL_GET_QUOTE: Final = 0x10002
CALL_FATAL_ERROR: Final = 0x10003
CALL_EVENT_NOTIFY: Final = 0x10004
CALL_NAMES: Final[dict[int, str]] = {
    10: "CPUID", 12: "HLT", 30: "IO", 31: "RDMSR", 32: "WRMSR", 48: "MMIO", 54: "WBINVD", 65: "PCONFIG",
    0x10000: "GetTdVmCallInfo", 0x10001: "MapGPA", 0x10002: "GetQuote", 0x10003: "ReportFatalError",
    0x10004: "SetupEventNotifyInterrupt",
}  # fmt: skip
CALL_SUCCESS: Final = 0
CALL_RETRY: Final = 1
CALL_INVALID_OPERAND: Final = 0x8000000000000000
CALL_GPA_INUSE: Final = 0x8000000000000001
CALL_ALIGN_ERROR: Final = 0x8000000000000002
CALL_SUBFUNC_UNSUPPORTED: Final = 0x8000000000000003
