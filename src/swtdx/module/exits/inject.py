"""Events that the module injects into the guest (``helpers.c``, ``td_other_exits.c`` of 1.5.01)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDVPS, VE_INFO, VE_INFO_VALID, VE_INFO_WHOLE
from swtdx.arch.exits import INTERRUPTION_ERROR_CODE, INTERRUPTION_VALID, ExitReason
from swtdx.arch.vmx_controls import BLOCKING_BY_NMI, PROC_NMI_WINDOW_EXITING
from swtdx.arch.x86 import RFLAGS_RF, VECTOR_DF, VECTOR_GP, VECTOR_PF, VECTOR_UD, VECTOR_VE
from swtdx.module.errors import TdExit
from swtdx.module.vcpu import Vcpu

_HARDWARE: Final = 3 << 8
_TRIPLE_FAULT: Final = ExitReason.TRIPLE_FAULT.value
_CONTRIBUTORY: Final = (VECTOR_PF, VECTOR_VE)


def _inject(vcpu: Vcpu, vector: int, error: int | None = None) -> None:
    """Set up a vector on entry.  An exception that hits a pending #DF shuts the vCPU down."""
    controls = vcpu.vmcs.controls
    pending = controls[f.ENTRY_INTERRUPTION_INFO]
    if pending & INTERRUPTION_VALID and pending & 0x700 == _HARDWARE and pending & 0xFF == VECTOR_DF:
        raise TdExit(st.TDX_NON_RECOVERABLE_VCPU, _TRIPLE_FAULT)
    controls[f.ENTRY_INTERRUPTION_INFO] = (
        INTERRUPTION_VALID | _HARDWARE | vector | (INTERRUPTION_ERROR_CODE if error is not None else 0)
    )
    if error is not None:
        controls[f.ENTRY_EXCEPTION_ERROR_CODE] = error


def _resume_flag(vcpu: Vcpu) -> None:
    vcpu.context.rflags = vcpu.context.rflags | RFLAGS_RF


def request_nmi_window(vcpu: Vcpu) -> None:
    """If the host has asked for an NMI: leave the guest as soon as it can take it; a #VE comes first."""
    if TDVPS.pend_nmi.get(vcpu.main) and not VE_INFO.valid.get(vcpu.main):
        vcpu.vmcs.controls[f.PROC_BASED_CONTROLS] |= PROC_NMI_WINDOW_EXITING


def unblock_nmis(vcpu: Vcpu) -> None:
    """End blocking by NMI."""
    vmcs = vcpu.vmcs
    vmcs.write(f.GUEST_INTERRUPTIBILITY, vmcs.read(f.GUEST_INTERRUPTIBILITY) & ~BLOCKING_BY_NMI)


def block_nmis(vcpu: Vcpu) -> None:
    """Block NMIs again: the IRET that has ended it will be executed once more."""
    vmcs = vcpu.vmcs
    vmcs.write(f.GUEST_INTERRUPTIBILITY, vmcs.read(f.GUEST_INTERRUPTIBILITY) | BLOCKING_BY_NMI)


def inject_ud(vcpu: Vcpu) -> None:
    """#UD at the instruction that exited."""
    _inject(vcpu, VECTOR_UD)
    _resume_flag(vcpu)


def inject_gp(vcpu: Vcpu) -> None:
    """#GP(0)."""
    _inject(vcpu, VECTOR_GP, 0)
    _resume_flag(vcpu)


def inject_pf(vcpu: Vcpu, gla: int, error: int) -> None:
    """#PF; becomes #DF when a #PF or #VE is being delivered already."""
    controls = vcpu.vmcs.controls
    pending = controls[f.ENTRY_INTERRUPTION_INFO]
    vcpu.context.cr2 = gla
    if pending & INTERRUPTION_VALID and pending & 0x700 == _HARDWARE and pending & 0xFF in _CONTRIBUTORY:
        _inject(vcpu, VECTOR_DF, 0)
    else:
        _inject(vcpu, VECTOR_PF, error)
    _resume_flag(vcpu)


def inject_ve(vcpu: Vcpu, reason: int, qualification: int, gpa: int = 0, gla: int = 0) -> None:
    """#VE with its information in VE_INFO; #DF while the guest has not read the last one."""
    main = vcpu.main
    if VE_INFO.valid.get(main):
        _inject(vcpu, VECTOR_DF, 0)
    else:
        out = vcpu.exit
        VE_INFO_WHOLE.pack_into(
            main,
            0,
            reason & 0xFFFFFFFF,
            VE_INFO_VALID,
            qualification,
            gla,
            gpa,
            0,
            out.length,
            out.instruction_info,
        )
        _inject(vcpu, VECTOR_VE)
    _resume_flag(vcpu)
