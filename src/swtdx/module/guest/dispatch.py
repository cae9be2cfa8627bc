"""TDCALL: from the exit to the leaf and back (``tdx_td_dispatcher.c`` of 1.5.01)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS, TDVPS
from swtdx.arch.leaves import BY_NAME, RAX_RESERVED
from swtdx.arch.metadata import NULL_ID
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, RAX, RCX, RDX
from swtdx.arch.td_config import CONFIG_NO_RBP_MOD
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.errors import LeafFailed, RetryTdcall, TdExit
from swtdx.module.exits.inject import inject_gp
from swtdx.module.guest import l2_tlb, mem, mem_attr, mr, rdwr, servtd, vp
from swtdx.module.vcpu import Vcpu

__all__ = ["TDVMCALL", "tdcall"]
_LEAF_MODULES: Final = (l2_tlb, mem, mem_attr, mr, rdwr, servtd, vp)

#: What :func:`tdcall` returns when the vCPU leaves to the host by TDG.VP.VMCALL.
TDVMCALL: Final = object()
_VMCALL: Final = BY_NAME["TDG.VP.VMCALL"].number
_VM_RD: Final = BY_NAME["TDG.VM.RD"].number
_INVALID_RAX: Final = st.TDX_OPERAND_INVALID | OperandId.RAX
_INVALID_RCX: Final = st.TDX_OPERAND_INVALID | OperandId.RCX
_CODE: Final = st.CODE_MASK
_hp_lock_busy: Final = TDVPS.hp_lock_busy.get


def tdcall(vcpu: Vcpu, out: VmExit) -> object:
    """Execute the guest's TDCALL."""
    del out
    if not vcpu.context.long_mode:
        inject_gp(vcpu)
        return None
    gpr = vcpu.gpr
    rax = gpr[RAX]
    if rax == _VMCALL:
        mask = gpr[RCX]
        forbidden = 0x33 if TDCS.config_flags.get(vcpu.tdcs) & CONFIG_NO_RBP_MOD else 0x13
        if not mask & (0xFFFFFFFF00000000 | forbidden):
            return TDVMCALL
        gpr[RAX] = _INVALID_RCX
        vcpu.advance()
        return None
    entry = vcpu.module.guest_leaves.get(rax & 0xFFFF)
    if entry is None or rax & RAX_RESERVED or rax >> 16 & 0xFF > entry.max_version:
        status = _INVALID_RAX
        if rax & (RAX_RESERVED | 0xFFFF) == _VM_RD:
            # It has versions, and refuses an unknown one itself, its outputs made ready.
            gpr[RDX], gpr[R8] = NULL_ID, 0
    else:
        try:
            vcpu.leaf = entry
            status = entry.handler(vcpu)
        except LeafFailed as failed:
            status = failed.status
        except RetryTdcall:
            return None
    if status & _CODE == st.TDX_OPERAND_BUSY_HOST_PRIORITY or _hp_lock_busy(vcpu.main):
        status = _host_priority(vcpu, status)
    gpr[RAX] = status
    vcpu.advance()
    return None


def _host_priority(vcpu: Vcpu, status: int) -> int:
    """A guest that a waiting host keeps off a lock is told OPERAND_BUSY, for a limited time.

    Raises:
        TdExit: HOST_PRIORITY_BUSY_TIMEOUT.
    """
    main = vcpu.main
    if status & _CODE != st.TDX_OPERAND_BUSY_HOST_PRIORITY:
        if TDVPS.hp_lock_busy.get(main):
            TDVPS.hp_lock_busy.set(main, 0)
        return status
    status = st.TDX_OPERAND_BUSY | status & 0xFFFFFFFF
    now = vcpu.lp.machine.tsc()
    if not TDVPS.hp_lock_busy.get(main):
        TDVPS.hp_lock_busy.set(main, 1)
        TDVPS.hp_lock_busy_start.set(main, now)
    elif now - TDVPS.hp_lock_busy_start.get(main) >= TDCS.hp_lock_timeout.get(vcpu.tdcs):
        TDVPS.hp_lock_busy.set(main, 0)
        vcpu.gpr[RAX] = status
        raise TdExit(st.TDX_HOST_PRIORITY_BUSY_TIMEOUT, 0)
    return status
