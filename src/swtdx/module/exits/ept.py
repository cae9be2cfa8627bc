"""EPT violations and misconfigurations (``td_ept_violation.c`` of 1.5.01)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import sept
from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.exits import EPT_HIDDEN_FROM_HOST, EPT_NMI_UNBLOCKING, EPT_WRITE
from swtdx.arch.td_config import TD_CTLS_PENDING_VE_DISABLE
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.errors import TdExit
from swtdx.module.exits import stepping
from swtdx.module.exits.inject import block_nmis, inject_pf, inject_ve
from swtdx.module.objects.sept import SeptEntry, walk
from swtdx.module.vcpu import Vcpu

#: Extended exit qualification types.
ACCEPT: Final = 1
PENDING: Final = 6
_FETCH: Final = 1 << 2


def to_host(gpa: int, qualification: int, extended: int = 0) -> TdExit:
    """An EPT violation as the host gets it: no linear address, no page offset."""
    return TdExit(
        st.TDX_SUCCESS, reason.EPT_VIOLATION, qualification & ~EPT_HIDDEN_FROM_HOST, extended, gpa & ~0xFFF
    )


def violation_exit(vcpu: Vcpu, out: VmExit) -> None:
    """#PF for reserved GPA bits, #VE or TD exit for a pending page, else a TD exit."""
    if out.qualification & EPT_NMI_UNBLOCKING:
        block_nmis(vcpu)
    td = vcpu.td
    gpa, shared_bit = out.gpa, td.shared_bit
    if gpa >= shared_bit << 1:
        _reserved_bits(vcpu, out)
        return
    extended = 0
    if not gpa & shared_bit:
        entry = walk(vcpu.module.keyhole, td, gpa, 0)
        if sept.state_of(entry.raw).flags & sept.ACCEPTABLE:
            if not TDCS.td_ctls.get(td.tdcs) & TD_CTLS_PENDING_VE_DISABLE:
                inject_ve(vcpu, out.reason, out.qualification, gpa, out.gla or 0)
                return
            extended = PENDING
        stepping.record_fault(vcpu, gpa)
    raise to_host(gpa, out.qualification, extended)


def _reserved_bits(vcpu: Vcpu, out: VmExit) -> None:
    """A GPA with bits above the shared bit is a #PF with RSVD set."""
    qualification = out.qualification
    error = 1 | 1 << 3
    if qualification & EPT_WRITE:
        error |= 1 << 1
    if vcpu.context.cpl == 3:
        error |= 1 << 2
    if qualification & _FETCH:
        error |= 1 << 4
    inject_pf(vcpu, out.gla or 0, error)


def misconfiguration_exit(_vcpu: Vcpu, out: VmExit) -> None:
    """Only the hypervisor's own EPT can be misconfigured."""
    raise TdExit(st.TDX_SUCCESS, reason.EPT_MISCONFIGURATION, 0, 0, out.gpa & ~0xFFF)


def refused(gpa: int, wanted: int, entry: SeptEntry, kind: int) -> TdExit:
    """The TD exit of TDG.MEM.PAGE.ACCEPT at a page that is not there or has the wrong size."""
    raw = entry.raw
    state = sept.state_of(raw)
    info = wanted | entry.level << 3 | state.public << 6 | (1 << 14 if state.is_leaf else 0)
    return to_host(gpa, EPT_WRITE | (raw & 7) << 3, kind | info << 32)
