"""Zero-step defence: a host that makes the guest fault on the same instruction again and again.

After six EPT violations without progress the module remembers the faulting GPAs and refuses to enter
until all of them are mapped; a TD that asked for it (NOTIFY_ENABLES) is told by a #VE.  Source:
``td_exit_stepping.c`` of the TDX module 1.5.01.  The single-step defence, which watches for interrupts
that come after one or two instructions, depends on instruction timing and is not modelled.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDCS, TDVPS, VE_INFO
from swtdx.arch.exits import INTERRUPTION_VALID
from swtdx.arch.operands import OperandId
from swtdx.arch.vmx_controls import BLOCKING_BY_NMI
from swtdx.module import locks
from swtdx.module.errors import LeafFailed
from swtdx.module.objects.sept import walk
from swtdx.module.objects.td import Vp
from swtdx.module.state import ModuleState
from swtdx.module.vcpu import Vcpu

#: Faulting exits on one instruction before faulting GPAs are remembered.
THRESHOLD: Final = 6
_LIST: Final = 32
_count = TDVPS.possibly_epf_stepping
_index = TDVPS.last_epf_gpa_list_idx
_gpas = TDVPS.last_epf_gpa_list


def progress(vcpu: Vcpu) -> None:
    """Every VM exit: a RIP that moved since the entry ends the suspicion."""
    if _count.get(vcpu.main) and vcpu.context.rip != vcpu.entry_rip:
        _count.set(vcpu.main, 0)
        _index.set(vcpu.main, 0)


def record_fault(vcpu: Vcpu, gpa: int) -> None:
    """An EPT violation on a private GPA becomes a TD exit."""
    main = vcpu.main
    count = _count.get(main)
    if count < THRESHOLD:
        _count.set(main, count + 1)
        return
    index = _index.get(main)
    if index < _LIST and all(_gpas.get(main, number) != gpa for number in range(index)):
        _gpas.set(main, index, gpa)
        _index.set(main, index + 1)


def entry_filter(module: ModuleState, vp: Vp) -> int | None:
    """The remembered GPA that would fault again at this entry, else None.

    Raises:
        LeafFailed: OPERAND_BUSY|SEPT_TREE.
    """
    main = vp.main
    count = _index.get(main)
    if not count:
        return None
    if not locks.can_own(vp.td.tdcs, TDCS.secure_ept_lock.offset):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.SEPT_TREE)
    for number in range(count):
        gpa = _gpas.get(main, number)
        entry = walk(module.keyhole, vp.td, gpa, 0)
        if not entry.raw & bits.LEAF or entry.raw & bits.RWX != bits.RWX:
            return int(gpa)
    return None


def wants_notice(vcpu: Vcpu) -> bool:
    """Whether the TD is to be told of a suspected zero-step attack by a #VE at this entry.

    Not while an event waits to be delivered, nor while the guest handles an NMI (``can_inject_epf_ve``).
    """
    vmcs = vcpu.vmcs
    return bool(
        _index.get(vcpu.main)
        and TDCS.notify_enables.get(vcpu.tdcs) & 1
        and not VE_INFO.valid.get(vcpu.main)
        and not vmcs.controls[f.ENTRY_INTERRUPTION_INFO] & INTERRUPTION_VALID
        and not vmcs.read(f.GUEST_INTERRUPTIBILITY) & BLOCKING_BY_NMI
    )
