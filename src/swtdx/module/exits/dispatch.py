"""VM exits of a TD: what the module does itself, and what becomes a TD exit.

``arch.exit_policy`` says what each reason leads to; here are the handlers.

Source: ``tdx_td_dispatcher.c`` of the TDX module 1.5.01; tdcall.md §5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDVPS, VE_INFO
from swtdx.arch.exit_policy import EXIT_POLICY, Outcome
from swtdx.arch.exits import (
    BUS_LOCK_PREEMPTED,
    INTERRUPTION_INJECTABLE,
    INTERRUPTION_VALID,
    NOTIFICATION_CONTEXT_INVALID,
    NOTIFICATION_NMI_UNBLOCKING,
    SMI_MSMI,
    ExitReason,
    is_nmi,
)
from swtdx.arch.vmx_controls import PROC_NMI_WINDOW_EXITING
from swtdx.arch.x86 import VECTOR_MC
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.errors import TdExit
from swtdx.module.exits import cpuid, cr_access, ept, msr, stepping, xsetbv
from swtdx.module.exits.inject import (
    block_nmis,
    inject_gp,
    inject_ud,
    inject_ve,
    request_nmi_window,
    unblock_nmis,
)
from swtdx.module.guest.dispatch import TDVMCALL, tdcall
from swtdx.module.vcpu import Vcpu

__all__ = ["TDVMCALL", "dispatch"]

_pend_nmi: Final = TDVPS.pend_nmi.get

#: A handler moves RIP itself if the instruction is done; it returns TDVMCALL or None.
Handler = Callable[[Vcpu, VmExit], object]


def _ve(vcpu: Vcpu, out: VmExit) -> None:
    inject_ve(vcpu, out.reason, out.qualification)


def _ud(vcpu: Vcpu, _out: VmExit) -> None:
    inject_ud(vcpu)


def _gp(vcpu: Vcpu, _out: VmExit) -> None:
    inject_gp(vcpu)


def _smi(_vcpu: Vcpu, out: VmExit) -> None:
    case = st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE if out.qualification & SMI_MSMI else st.TDX_SUCCESS
    raise TdExit(case, out.reason, out.qualification, intr_info=out.intr_info)


def _notification(vcpu: Vcpu, out: VmExit) -> None:
    if out.qualification & NOTIFICATION_NMI_UNBLOCKING:
        block_nmis(vcpu)
    lost = out.qualification & NOTIFICATION_CONTEXT_INVALID
    raise TdExit(st.TDX_NON_RECOVERABLE_TD if lost else st.TDX_SUCCESS, out.reason, out.qualification)


def _leave(_vcpu: Vcpu, out: VmExit) -> None:
    raise TdExit(st.TDX_SUCCESS, out.reason, out.qualification, intr_info=0)


def _interrupt(_vcpu: Vcpu, out: VmExit) -> None:
    raise TdExit(st.TDX_SUCCESS, out.reason, out.qualification, intr_info=out.intr_info)


def _triple_fault(_vcpu: Vcpu, out: VmExit) -> None:
    raise TdExit(st.TDX_NON_RECOVERABLE_VCPU, out.reason, out.qualification)


def _exception(vcpu: Vcpu, out: VmExit) -> None:
    if not is_nmi(out.intr_info) and out.intr_info & 0xFF == VECTOR_MC:
        case = st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE
    elif is_nmi(out.intr_info) or vcpu.td.debug:
        case = st.TDX_SUCCESS
    else:
        case = st.TDX_NON_RECOVERABLE_TD
    raise TdExit(case, out.reason, out.qualification, intr_info=out.intr_info)


def _unexpected(vcpu: Vcpu, out: VmExit) -> None:
    case = st.TDX_SUCCESS if vcpu.td.debug else st.TDX_NON_RECOVERABLE_TD
    raise TdExit(case, out.reason, out.qualification)


def _nmi_window(vcpu: Vcpu, _out: VmExit) -> None:
    """The guest can take the NMI that the host asked for."""
    controls = vcpu.vmcs.controls
    if TDVPS.pend_nmi.get(vcpu.main) and not VE_INFO.valid.get(vcpu.main):
        controls[f.ENTRY_INTERRUPTION_INFO] = reason.NMI_INFO
        TDVPS.pend_nmi.set(vcpu.main, 0)
    controls[f.PROC_BASED_CONTROLS] &= ~PROC_NMI_WINDOW_EXITING


#: What an outcome means, where it is the same for all exits that have it.
_USUAL: Final[dict[Outcome, Handler]] = {
    Outcome.VE: _ve,
    Outcome.UD: _ud,
    Outcome.GP: _gp,
    Outcome.TD_EXIT: _leave,
}
#: Exits with a handler of their own, because what they lead to depends on more than the reason.
_OWN: Final[dict[int, Handler]] = {
    reason.EXCEPTION_OR_NMI: _exception,
    reason.EXTERNAL_INTERRUPT: _interrupt,
    reason.TRIPLE_FAULT: _triple_fault,
    ExitReason.OTHER_SMI: _smi,
    ExitReason.C_STATE_SMI: _interrupt,
    ExitReason.NOTIFICATION: _notification,
    ExitReason.NMI_WINDOW: _nmi_window,
    reason.CPUID: cpuid.cpuid_exit,
    reason.CR_ACCESS: cr_access.cr_access_exit,
    reason.RDMSR: msr.rdmsr_exit,
    reason.WRMSR: msr.wrmsr_exit,
    reason.EPT_VIOLATION: ept.violation_exit,
    reason.EPT_MISCONFIGURATION: ept.misconfiguration_exit,
    reason.XSETBV: xsetbv.xsetbv_exit,
    reason.TDCALL: tdcall,
}


def _handlers() -> dict[int, Handler]:
    """A handler for every exit that :data:`swtdx.arch.exit_policy.EXIT_POLICY` knows.

    Raises:
        LookupError: a row has no handler, or a handler no row.
    """
    if strangers := _OWN.keys() - EXIT_POLICY.keys():
        raise LookupError(f"handlers of exits without a policy: {sorted(strangers)}")
    found: dict[int, Handler] = {}
    for number, policy in EXIT_POLICY.items():
        handler = _OWN.get(number) or _USUAL.get(policy.outcome)
        if handler is None:
            raise LookupError(f"exit reason {number} ({policy.outcome.value}) needs a handler")
        found[int(number)] = handler
    return found


_HANDLERS: Final = _handlers()


def dispatch(vcpu: Vcpu, out: VmExit) -> object:
    """Handle one VM exit: TDVMCALL when the vCPU leaves by TDG.VP.VMCALL, else None to go on.

    Raises:
        TdExit: the vCPU leaves asynchronously.
    """
    stepping.progress(vcpu)
    if out.idt_info & INTERRUPTION_VALID:
        _revector(vcpu, out)
    if out.reason & BUS_LOCK_PREEMPTED:
        return _with_bus_lock(vcpu, out)
    done = _HANDLERS.get(out.reason & 0xFFFF, _unexpected)(vcpu, out)
    if done is None and _pend_nmi(vcpu.main):
        _look_for_nmi_window(vcpu)
    return done


def _look_for_nmi_window(vcpu: Vcpu) -> None:
    if not vcpu.vmcs.controls[f.ENTRY_INTERRUPTION_INFO] & INTERRUPTION_VALID:
        request_nmi_window(vcpu)


def _with_bus_lock(vcpu: Vcpu, out: VmExit) -> object:
    """A bus lock came with the exit: the host is told with this TD exit, or else by one of its own."""
    try:
        done = _HANDLERS.get(out.reason & 0xFFFF, _unexpected)(vcpu, out)
    except TdExit as leaving:
        leaving.reason |= BUS_LOCK_PREEMPTED
        raise
    if done is None:
        _look_for_nmi_window(vcpu)
        raise TdExit(st.TDX_SUCCESS, ExitReason.BUS_LOCK | BUS_LOCK_PREEMPTED)
    return done


def _revector(vcpu: Vcpu, out: VmExit) -> None:
    """The exit interrupted an event's delivery: deliver it again at the next entry."""
    controls = vcpu.vmcs.controls
    if is_nmi(out.idt_info):
        # It is delivered again, which is not possible while NMIs are blocked.
        unblock_nmis(vcpu)
    controls[f.ENTRY_INTERRUPTION_INFO] = out.idt_info & INTERRUPTION_INJECTABLE
    controls[f.ENTRY_EXCEPTION_ERROR_CODE] = out.idt_error
    controls[f.ENTRY_INSTRUCTION_LENGTH] = out.length
