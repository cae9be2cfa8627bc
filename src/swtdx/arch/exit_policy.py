"""What the module does when a TD's VCPU leaves by each VM exit reason.

The module's dispatcher is built of this table, and ``swtdx explain`` reads it.

Source: ``td_dispatcher/tdx_td_dispatcher.c`` and ``vm_exits/*.c`` of the TDX module 1.5.01;
tdcall.md §5.1.  Reasons that are not here cannot occur in a TD, or end it (NON_RECOVERABLE_TD).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from swtdx.arch.exits import ExitReason as R


class Outcome(Enum):
    """Who deals with an exit."""

    MODULE = "the module emulates it"
    VE = "#VE in the guest"
    UD = "#UD in the guest"
    GP = "#GP(0) in the guest"
    TD_EXIT = "a TD exit: TDH.VP.ENTER returns to the hypervisor"
    END = "the end: the VCPU, or the whole TD, cannot go on"


class Policy(NamedTuple):
    """What an exit reason leads to, and the exceptions from it."""

    outcome: Outcome
    note: str = ""


_VMX: Final = (
    R.VMCLEAR, R.VMLAUNCH, R.VMPTRLD, R.VMPTRST, R.VMREAD, R.VMRESUME, R.VMWRITE, R.VMXOFF, R.VMXON,
    R.INVEPT, R.INVVPID, R.VMFUNC, R.GETSEC, R.RSM, R.ENCLS, R.ENCLV, R.SEAMCALL,
)  # fmt: skip

#: Policy by exit reason.
EXIT_POLICY: Final[dict[int, Policy]] = {
    R.EXCEPTION_OR_NMI: Policy(Outcome.TD_EXIT, "NMI; a machine check makes the TD NON_ACCESSIBLE instead"),
    R.EXTERNAL_INTERRUPT: Policy(Outcome.TD_EXIT, "all registers but status and exit information are zeroed"),
    R.TRIPLE_FAULT: Policy(Outcome.END, "NON_RECOVERABLE_VCPU: this VCPU is disabled"),
    R.INIT: Policy(Outcome.TD_EXIT),
    R.OTHER_SMI: Policy(Outcome.TD_EXIT, "a machine-check SMI makes the TD NON_ACCESSIBLE instead"),
    R.C_STATE_SMI: Policy(Outcome.TD_EXIT),
    R.NMI_WINDOW: Policy(Outcome.MODULE, "the guest can take the NMI that the host has asked for (PEND_NMI)"),
    R.TASK_SWITCH: Policy(Outcome.TD_EXIT),
    R.CPUID: Policy(Outcome.MODULE, "#VE for unknown and faulting leaves, and where the guest asked for #VE"),
    R.HLT: Policy(Outcome.VE),
    R.INVD: Policy(Outcome.VE),
    R.RDPMC: Policy(Outcome.GP, "without ATTRIBUTES.PERFMON; with it there is no exit"),
    R.VMCALL: Policy(Outcome.VE),
    R.CR_ACCESS: Policy(
        Outcome.MODULE, "#GP or #VE for values that a TD may not have; CR3 and CR8 exit only in debug TDs"
    ),
    R.IO_INSTRUCTION: Policy(Outcome.VE),
    R.RDMSR: Policy(Outcome.VE, "or #GP, or emulated: the MSR policy says (swtdx explain msr ADDRESS)"),
    R.WRMSR: Policy(Outcome.VE, "or #GP, or emulated: the MSR policy says (swtdx explain msr ADDRESS)"),
    R.MWAIT: Policy(Outcome.VE),
    R.MONITOR: Policy(Outcome.VE),
    R.EPT_VIOLATION: Policy(
        Outcome.TD_EXIT,
        "#VE instead for a pending private page, unless PENDING_VE_DISABLE; #PF for GPA bits above the "
        "shared bit; a shared page without suppress-#VE raises #VE with no exit at all",
    ),
    R.EPT_MISCONFIGURATION: Policy(Outcome.TD_EXIT, "only the shared EPT, which is the hypervisor's"),
    R.WBINVD: Policy(Outcome.VE),
    R.XSETBV: Policy(Outcome.MODULE, "#GP for RCX other than 0 and for components outside XFAM"),
    R.APIC_WRITE: Policy(Outcome.VE),
    R.PCONFIG: Policy(Outcome.VE),
    R.ENQCMD_PASID: Policy(Outcome.GP),
    R.ENQCMDS_PASID: Policy(Outcome.UD),
    R.BUS_LOCK: Policy(Outcome.TD_EXIT),
    R.NOTIFICATION: Policy(Outcome.TD_EXIT, "an invalid VMCS context makes it NON_RECOVERABLE_TD"),
    R.TDCALL: Policy(
        Outcome.MODULE, "a TDG leaf; TDG.VP.VMCALL is a TD exit; #GP outside 64-bit mode"
    ),
    **{reason: Policy(Outcome.UD) for reason in _VMX},
}  # fmt: skip

#: What any other reason leads to.
UNEXPECTED: Final = Policy(Outcome.END, "NON_RECOVERABLE_TD: a TD never has such an exit")
