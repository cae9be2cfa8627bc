"""VM exits of a TD: what the module does itself, and what becomes a TD exit.

Source: ``tdx_td_dispatcher.c`` of the TDX module 1.5.01; tdcall.md §5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDVPS, VE_INFO
from swtdx.arch.exits import INTERRUPTION_VALID
from swtdx.arch.vmx_controls import PROC_NMI_WINDOW_EXITING
from swtdx.arch.x86 import VECTOR_MC
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.errors import TdExit
from swtdx.module.exits import cpuid, cr_access, ept, msr, stepping
from swtdx.module.exits.inject import inject_gp, inject_ud, inject_ve
from swtdx.module.guest.dispatch import TDVMCALL, tdcall
from swtdx.module.vcpu import Vcpu

__all__ = ["TDVMCALL", "dispatch"]

_NMI: Final = 2
_NMI_WINDOW: Final = 8

#: A handler moves RIP itself if the instruction is done; it returns TDVMCALL or None.
Handler = Callable[[Vcpu, VmExit], object]


def _ve(vcpu: Vcpu, out: VmExit) -> None:
    inject_ve(vcpu, out.reason, out.qualification)


def _ud(vcpu: Vcpu, _out: VmExit) -> None:
    inject_ud(vcpu)


def _leave(_vcpu: Vcpu, out: VmExit) -> None:
    raise TdExit(st.TDX_SUCCESS, out.reason, out.qualification, intr_info=0)


def _interrupt(_vcpu: Vcpu, out: VmExit) -> None:
    raise TdExit(st.TDX_SUCCESS, out.reason, out.qualification, intr_info=out.intr_info)


def _triple_fault(_vcpu: Vcpu, out: VmExit) -> None:
    raise TdExit(st.TDX_NON_RECOVERABLE_VCPU, out.reason, out.qualification)


def _exception(vcpu: Vcpu, out: VmExit) -> None:
    if out.intr_info >> 8 & 7 != _NMI and out.intr_info & 0xFF == VECTOR_MC:
        case = st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE
    elif out.intr_info >> 8 & 7 == _NMI or vcpu.td.debug:
        case = st.TDX_SUCCESS
    else:
        case = st.TDX_NON_RECOVERABLE_TD
    raise TdExit(case, out.reason, out.qualification, intr_info=out.intr_info)


def _rdpmc(vcpu: Vcpu, _out: VmExit) -> None:
    inject_gp(vcpu)


def _unexpected(vcpu: Vcpu, out: VmExit) -> None:
    case = st.TDX_SUCCESS if vcpu.td.debug else st.TDX_NON_RECOVERABLE_TD
    raise TdExit(case, out.reason, out.qualification)


def _nmi_window(vcpu: Vcpu, _out: VmExit) -> None:
    """The guest can take the NMI that the host asked for."""
    controls = vcpu.vmcs.controls
    if TDVPS.pend_nmi.get(vcpu.main) and not VE_INFO.valid.get(vcpu.main):
        controls[f.ENTRY_INTERRUPTION_INFO] = INTERRUPTION_VALID | _NMI << 8 | _NMI
        TDVPS.pend_nmi.set(vcpu.main, 0)
    controls[f.PROC_BASED_CONTROLS] &= ~PROC_NMI_WINDOW_EXITING


_HANDLERS: Final[dict[int, Handler]] = {
    **dict.fromkeys(
        (
            reason.IO, reason.HLT, reason.INVD, reason.VMCALL, reason.WBINVD, reason.MWAIT, reason.MONITOR,
            reason.PCONFIG, 56,
        ),
        _ve,
    ),
    **dict.fromkeys((11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53, 59, 60, 70, 73, 76), _ud),
    72: _rdpmc,
    reason.RDPMC: _rdpmc,
    reason.TASK_SWITCH: _leave,
    74: _leave,
    3: _leave,
    75: _leave,
    reason.TRIPLE_FAULT: _triple_fault,
    reason.EXTERNAL_INTERRUPT: _interrupt,
    6: _interrupt,
    reason.EXCEPTION_OR_NMI: _exception,
    reason.CPUID: cpuid.cpuid_exit,
    reason.RDMSR: msr.rdmsr_exit,
    reason.WRMSR: msr.wrmsr_exit,
    reason.CR_ACCESS: cr_access.cr_access_exit,
    reason.EPT_VIOLATION: ept.violation_exit,
    reason.EPT_MISCONFIGURATION: ept.misconfiguration_exit,
    reason.TDCALL: tdcall,
    _NMI_WINDOW: _nmi_window,
}  # fmt: skip


def dispatch(vcpu: Vcpu, out: VmExit) -> object:
    """Handle one VM exit: TDVMCALL when the vCPU leaves by TDG.VP.VMCALL, else None to go on.

    Raises:
        TdExit: the vCPU leaves asynchronously.
    """
    stepping.progress(vcpu)
    if out.idt_info & INTERRUPTION_VALID:
        _revector(vcpu, out)
    return _HANDLERS.get(out.reason, _unexpected)(vcpu, out)


def _revector(vcpu: Vcpu, out: VmExit) -> None:
    """The exit interrupted an event's delivery: deliver it again at the next entry."""
    controls = vcpu.vmcs.controls
    controls[f.ENTRY_INTERRUPTION_INFO] = out.idt_info
    controls[f.ENTRY_EXCEPTION_ERROR_CODE] = out.idt_error
    controls[f.ENTRY_INSTRUCTION_LENGTH] = out.length
