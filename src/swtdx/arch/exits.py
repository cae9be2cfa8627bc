"""VM exits: reasons, qualifications, and what TDH.VP.ENTER adds to them.

Sources: Intel SDM volume 3, appendix C (basic exit reasons) and "Exit Qualification"; extended exit
qualifications from ``vmcs_defs.h`` and include/tdx_api_defs.h of the TDX module 1.5.01.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from swtdx.arch.bits import Bits


class ExitReason(IntEnum):
    """Basic exit reason, bits 15:0 of the exit reason."""

    EXCEPTION_OR_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT = 3
    SIPI = 4
    IO_SMI = 5
    OTHER_SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CR_ACCESS = 28
    DR_ACCESS = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    ENTRY_FAILURE_GUEST_STATE = 33
    ENTRY_FAILURE_MSR_LOADING = 34
    MWAIT = 36
    MONITOR_TRAP_FLAG = 37
    MONITOR = 39
    PAUSE = 40
    ENTRY_FAILURE_MACHINE_CHECK = 41
    #: Not in the SDM; the public module's source has it (``VMEXIT_REASON_C_STATE_SMI``).
    C_STATE_SMI = 42
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    GDTR_IDTR_ACCESS = 46
    LDTR_TR_ACCESS = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIGURATION = 49
    INVEPT = 50
    RDTSCP = 51
    PREEMPTION_TIMER = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PML_FULL = 62
    XSAVES = 63
    XRSTORS = 64
    PCONFIG = 65
    SPP = 66
    UMWAIT = 67
    TPAUSE = 68
    LOADIWKEY = 69
    ENCLV = 70
    ENQCMD_PASID = 72
    ENQCMDS_PASID = 73
    BUS_LOCK = 74
    NOTIFICATION = 75
    SEAMCALL = 76
    TDCALL = 77


#: The 32-bit exit reason.
EXIT_REASON_BITS: Final = (
    Bits("basic", 15, 0), Bits("bus_lock", 26, 26), Bits("enclave", 27, 27), Bits("pending_mtf", 28, 28),
    Bits("from_root", 29, 29), Bits("entry_failure", 31, 31),
)  # fmt: skip
BUS_LOCK_PREEMPTED: Final = 1 << 26
ENTRY_FAILURE: Final = 1 << 31

# Exit qualifications
IO_BITS: Final = (
    Bits("size_minus_1", 2, 0), Bits("in", 3, 3), Bits("string", 4, 4), Bits("rep", 5, 5),
    Bits("immediate", 6, 6), Bits("port", 31, 16),
)  # fmt: skip
CR_ACCESS_BITS: Final = (
    Bits("cr", 3, 0), Bits("access", 5, 4), Bits("lmsw_memory", 6, 6), Bits("gpr", 11, 8),
    Bits("lmsw_source", 31, 16),
)  # fmt: skip
#: ``access`` of a CR access.
CR_ACCESS_TYPES: Final = ("MOV to CR", "MOV from CR", "CLTS", "LMSW")
MOV_TO_CR: Final = 0
MOV_FROM_CR: Final = 1
CLTS: Final = 2
LMSW: Final = 3
EPT_VIOLATION_BITS: Final = (
    Bits("read", 0, 0), Bits("write", 1, 1), Bits("fetch", 2, 2), Bits("readable", 3, 3),
    Bits("writable", 4, 4), Bits("executable", 5, 5), Bits("user_executable", 6, 6),
    Bits("gla_valid", 7, 7), Bits("gla_final", 8, 8), Bits("nmi_unblocking", 12, 12),
    Bits("shadow_stack", 13, 13), Bits("supervisor_shadow_stack", 14, 14),
    Bits("paging_verification", 15, 15), Bits("asynchronous", 16, 16),
)  # fmt: skip
EPT_READ: Final = 1 << 0
EPT_WRITE: Final = 1 << 1
EPT_FETCH: Final = 1 << 2
EPT_GLA_VALID: Final = 1 << 7
EPT_GLA_FINAL: Final = 1 << 8
EPT_NMI_UNBLOCKING: Final = 1 << 12
#: The bits of each exit qualification whose format is declared, by exit reason.
QUALIFICATION_BITS: Final[dict[int, tuple[Bits, ...]]] = {
    ExitReason.IO_INSTRUCTION: IO_BITS,
    ExitReason.CR_ACCESS: CR_ACCESS_BITS,
    ExitReason.EPT_VIOLATION: EPT_VIOLATION_BITS,
}
#: Qualification of an SMI: it is a machine check.
SMI_MSMI: Final = 1 << 0
#: Qualification of a notification window (exit 75).
NOTIFICATION_CONTEXT_INVALID: Final = 1 << 0
NOTIFICATION_NMI_UNBLOCKING: Final = 1 << 12
#: Bits of an EPT violation's qualification that a TD exit hides from the host.
EPT_HIDDEN_FROM_HOST: Final = 0x3F << 7
#: VM-exit and VM-entry interruption information.
INTERRUPTION_BITS: Final = (
    Bits("vector", 7, 0), Bits("type", 10, 8), Bits("error_code_valid", 11, 11),
    Bits("nmi_unblocking", 12, 12), Bits("valid", 31, 31),
)  # fmt: skip
INTERRUPTION_VALID: Final = 1 << 31
INTERRUPTION_TYPE: Final = 7 << 8
INTERRUPTION_ERROR_CODE: Final = 1 << 11
INTERRUPTION_NMI_UNBLOCKING: Final = 1 << 12
#: What of IDT-vectoring information can be injected: valid, error code, type and vector.
INTERRUPTION_INJECTABLE: Final = 1 << 31 | 0xFFF


class InterruptionType(IntEnum):
    """``type`` of interruption information."""

    EXTERNAL = 0
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER = 7


#: The same as plain numbers, for busy code.
TYPE_HARDWARE_EXCEPTION: Final = InterruptionType.HARDWARE_EXCEPTION.value
TYPE_NMI: Final = InterruptionType.NMI.value


def is_nmi(information: int) -> bool:
    """Whether interruption (or IDT-vectoring) information is of an NMI."""
    return information & INTERRUPTION_TYPE == TYPE_NMI << 8


class ExtendedQualification(IntEnum):
    """RDX[3:0] after TDH.VP.ENTER."""

    NONE = 0
    ACCEPT = 1
    GPA_DETAILS = 2
    TD_ENTRY_MSR_LOAD_FAILURE = 3
    TD_ENTRY_XSTATE_LOAD_FAILURE = 4
    ATTR_WR = 5
    PENDING_EPT_VIOLATION = 6


EXTENDED_BITS: Final = (Bits("type", 3, 0), Bits("info", 63, 32))
#: ``info`` of ACCEPT, GPA_DETAILS and ATTR_WR; for TD_ENTRY_MSR_LOAD_FAILURE it is the MSR.
ACCEPT_INFO_BITS: Final = (
    Bits("requested_level", 2, 0), Bits("level", 5, 3), Bits("state", 13, 6), Bits("is_leaf", 14, 14),
    Bits("vm", 21, 20),
)  # fmt: skip

# RCX before TDH.VP.ENTER, beside the TDVPR page
#: HOST_RECOVERABILITY_HINT.
ENTER_HINT: Final = 1 << 52
ENTER_RESUME_L1: Final = 1 << 53

#: RCX after TDH.VP.ENTER: exit qualification, or the guest's register masks, and the VM.
VP_ENTER_RCX_BITS: Final = (
    Bits("qualification", 31, 0), Bits("gpr_select", 15, 0), Bits("xmm_select", 31, 16), Bits("vm", 33, 32),
)  # fmt: skip


def reason_name(reason: int) -> str:
    """The name of an exit reason, its flags ignored; a number if it has none."""
    basic = reason & 0xFFFF
    try:
        return ExitReason(basic).name
    except ValueError:
        return f"reason {basic}"
