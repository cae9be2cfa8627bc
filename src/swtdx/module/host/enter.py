"""TDH.VP.ENTER: run a vCPU until it leaves to the hypervisor (tdcall.md §7)."""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import CPUID_FLAGS, TDCS, TDR, TDVPS
from swtdx.arch.exits import BUS_LOCK_PREEMPTED, ENTER_HINT, ENTER_RESUME_L1, ExitReason
from swtdx.arch.msrs import IA32_MISC_ENABLE, MISC_ENABLE_LIMIT_CPUID, MISC_ENABLE_MONITOR
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, RAX, RBP, RCX, RDX, RSP
from swtdx.arch.states import LastTdExit, VcpuState
from swtdx.arch.td_config import CONFIG_NO_RBP_MOD
from swtdx.arch.x86 import FRAME_MASK
from swtdx.module import locks
from swtdx.module.call import HostCall
from swtdx.module.checks import associate, check_op_state, map_state, map_vp_pages, vp_page
from swtdx.module.errors import LeafFailed, TdExit
from swtdx.module.exits import stepping
from swtdx.module.exits.dispatch import TDVMCALL, dispatch
from swtdx.module.exits.inject import inject_ve, request_nmi_window
from swtdx.module.globals import LP_DATA
from swtdx.module.objects.pamt import Entry
from swtdx.module.objects.td import Vp
from swtdx.module.register import host_leaf
from swtdx.module.vcpu import GPRS, Vcpu, flush_translations, vmcs_of

_SIGN: Final = 1 << 63
_REGISTERS: Final = struct.Struct("<16Q")
_TDCALL_REASON: Final = ExitReason.TDCALL.value
_MONITOR: Final = CPUID_FLAGS.index("monitor_mwait")
#: Registers that an asynchronous TD exit clears.
_CLEARED: Final = (3, 5, 6, 7, 10, 11, 12, 13, 14, 15)

_READY: Final = int(VcpuState.READY)
_ACTIVE: Final = int(VcpuState.ACTIVE)
_DISABLED: Final = int(VcpuState.DISABLED)
_AFTER_TDVMCALL: Final = int(LastTdExit.TDVMCALL)
_ASYNC_FAULT: Final = int(LastTdExit.ASYNC_FAULT)
_ASYNC_TRAP: Final = int(LastTdExit.ASYNC_TRAP)

_state = TDVPS.vcpu_state
_last_exit = TDVPS.last_td_exit
_last_tsc = TDVPS.last_exit_tsc
_vcpu_epoch = TDVPS.vcpu_epoch
_td_epoch = TDCS.td_epoch
_refcount = TDCS.refcount


@host_leaf("TDH.VP.ENTER")
def vp_enter(call: HostCall) -> int:
    """See the module's docstring."""
    module, lp, i = call.module, call.lp, call.inputs
    misc_enable = lp.rdmsr(IA32_MISC_ENABLE)
    if misc_enable & MISC_ENABLE_LIMIT_CPUID:
        raise LeafFailed(st.TDX_LIMIT_CPUID_MAXVAL_SET)
    handle = i[RCX]
    if handle & ~(FRAME_MASK | ENTER_HINT | ENTER_RESUME_L1):
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    vp, tdvpr, tdr = vp_page(module, handle & FRAME_MASK, OperandId.RCX, exclusive=False)
    td = vp.td
    map_state(module, td)
    check_op_state(td, call.leaf.op_states)
    map_vp_pages(module, vp)
    newly_associated = associate(lp, vp, allow_disabled=False)
    main = vp.main
    last_exit = _last_exit.get(main)
    if handle & ENTER_HINT and last_exit != _ASYNC_TRAP:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    if handle & ENTER_RESUME_L1:
        # There is no L2 VM that could have exited.
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    module.check_tsc_adjust(lp)
    if lp.machine.tsc() - _last_tsc.get(main) & _SIGN:
        raise LeafFailed(st.TDX_TSC_ROLLBACK)
    if TDCS.cpuid_flags.get(td.tdcs, _MONITOR) and not misc_enable & MISC_ENABLE_MONITOR:
        raise LeafFailed(st.TDX_INCORRECT_MSR_VALUE | IA32_MISC_ENABLE)
    _begin_epoch(call, vp, newly_associated)
    try:
        faulting = stepping.entry_filter(module, vp)
    except LeafFailed:
        _end_epoch(vp)
        raise
    if faulting is not None:
        _end_epoch(vp)
        _state.set(main, _READY)
        _last_exit.set(main, _ASYNC_FAULT)
        refused = TdExit(st.TDX_SUCCESS, 48, qualification=2, gpa=faulting & -4096)
        return _asynchronous(call, refused, keep_rbp=True)
    vmcs = vmcs_of(module, lp, vp)
    view, at = module.data.lp(lp.index)
    if LP_DATA.last_tdvpr.get(view, at) != vp.hpa:
        flush_translations(lp, td)
        LP_DATA.last_tdvpr.set(view, vp.hpa, at)
    vcpu = Vcpu(module, lp, vp, vmcs)
    if stepping.wants_notice(vcpu):
        inject_ve(vcpu, lp.vmx.exit.reason, lp.vmx.exit.qualification, lp.vmx.exit.gpa)
    _load_registers(call, vcpu, last_exit, handle)
    request_nmi_window(vcpu)
    _state.set(main, _ACTIVE)
    held = module.memory.epoch
    _hold(tdr, tdvpr)
    try:
        outcome = _run(call, vcpu)
    finally:
        if module.memory.epoch == held:
            locks.hp_unshare(tdr.view, tdr.offset)
            locks.hp_unshare(tdvpr.view, tdvpr.offset)
        else:
            _release(call, vp)
    if outcome is None:
        return _synchronous(call, vcpu)
    return _asynchronous(call, outcome)


# ---------------------------------------------------------------- TLB epochs
def _begin_epoch(call: HostCall, vp: Vp, newly_associated: bool) -> None:
    tdcs = vp.td.tdcs
    if not locks.can_share(tdcs, TDCS.epoch_lock.offset):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.TD_EPOCH)
    epoch = _td_epoch.get(tdcs)
    parity = epoch & 1
    _refcount.set(tdcs, parity, _refcount.get(tdcs, parity) + 1)
    if epoch != _vcpu_epoch.get(vp.main):
        if not newly_associated:
            flush_translations(call.lp, vp.td)
        _vcpu_epoch.set(vp.main, epoch)


def _end_epoch(vp: Vp) -> None:
    parity = _vcpu_epoch.get(vp.main) & 1
    tdcs = vp.td.tdcs
    _refcount.set(tdcs, parity, _refcount.get(tdcs, parity) - 1)


# ---------------------------------------------------------------- locks held while the guest runs
def _hold(tdr: Entry, tdvpr: Entry) -> None:
    """Take the PAMT locks of TDR and TDVPR shared; other processors see them."""
    for entry in (tdr, tdvpr):
        locks.hp_share(entry.view, entry.offset)


def _release(call: HostCall, vp: Vp) -> None:
    """Release them where pages have left the cache meanwhile: they are looked up again."""
    pamt = call.module.pamt
    for hpa in (vp.td.tdr_hpa, vp.hpa):
        entry = pamt.owned(hpa, 0)
        locks.hp_unshare(entry.view, entry.offset)


# ---------------------------------------------------------------- registers
def _load_registers(call: HostCall, vcpu: Vcpu, last_exit: int, handle: int) -> None:
    """Guest registers from TDVPS, after a TDVMCALL with what the host passes back."""
    main, gpr = vcpu.main, vcpu.gpr
    if last_exit == _AFTER_TDVMCALL:
        mask = TDVPS.gpr.get(main, RCX)
        module = call.module
        saved = main[GPRS].cast("Q")
        inputs = call.inputs
        for number in module.selected(mask & 0xFFFC):
            saved[number] = inputs[number]
        saved[RAX] = st.TDX_SUCCESS
        if mask >> 16 & 0xFFFF:
            _pass_xmm_in(call, vcpu, mask >> 16 & 0xFFFF)
    elif last_exit == _ASYNC_TRAP:
        status = TDVPS.gpr.get(main, RAX)
        TDVPS.gpr.set(main, RAX, status & ~(1 << 60) | (1 << 60 if handle & ENTER_HINT else 0))
    rsp = gpr[RSP]
    vcpu.context.gpr_bytes[:] = main[GPRS]
    gpr[RSP] = rsp


def _save_registers(vcpu: Vcpu) -> None:
    vcpu.main[GPRS] = vcpu.context.gpr_bytes


def _pass_xmm_in(call: HostCall, vcpu: Vcpu, select: int) -> None:
    image = bytearray(vcpu.context.read_xstate())
    for number in range(16):
        if select >> number & 1:
            image[160 + 16 * number : 176 + 16 * number] = call.lp.xmm[number].to_bytes(16, "little")
    # XSTATE_BV: the SSE state is no longer in its initial configuration.
    image[512] |= 2
    vcpu.context.write_xstate(bytes(image))


def _pass_xmm_out(call: HostCall, vcpu: Vcpu, select: int) -> None:
    image = vcpu.context.read_xstate() if select else b""
    for number in range(16):
        where = 160 + 16 * number
        call.lp.xmm[number] = (
            int.from_bytes(image[where : where + 16], "little") if select >> number & 1 else 0
        )


# ---------------------------------------------------------------- the run
def _run(call: HostCall, vcpu: Vcpu) -> TdExit | None:
    """Enter and handle exits until a TD exit; None for a TDVMCALL."""
    lp = call.lp
    seam = lp.machine.seam
    enter = lp.vmx.enter
    memory = call.module.memory
    epoch = memory.epoch
    while True:
        seam.lock.release()
        lp.in_guest = True
        try:
            out = enter()
        finally:
            lp.in_guest = False
            seam.lock.acquire()
        if memory.epoch != epoch:
            # Pages left the cache meanwhile (another TD was torn down): look at them anew.
            vcpu.refresh()
            epoch = memory.epoch
        try:
            if TDR.fatal.get(vcpu.td.tdr):
                raise TdExit(
                    st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
                    out.reason,
                    out.qualification,
                    intr_info=out.intr_info,
                )
            _last_tsc.set(vcpu.main, lp.last_exit_tsc)
            if dispatch(vcpu, out) is TDVMCALL:
                return None
        except TdExit as leaving:
            return _leave(vcpu, leaving)


def _leave(vcpu: Vcpu, leaving: TdExit) -> TdExit:
    """What an asynchronous TD exit does to the vCPU and its TD."""
    case, main = leaving.case, vcpu.main
    if case in (
        st.TDX_NON_RECOVERABLE_TD,
        st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
        st.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
        st.TDX_NON_RECOVERABLE_TD_CORRUPTED_MD,
    ):
        TDR.fatal.set(vcpu.td.tdr, 1)
        leaving.case |= st.FATAL
        if case == st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE:
            return leaving
    elif case == st.TDX_NON_RECOVERABLE_VCPU:
        _state.set(main, _DISABLED)
    else:
        _state.set(main, _READY)
        trap = case in (st.TDX_CROSS_TD_TRAP, st.TDX_HOST_PRIORITY_BUSY_TIMEOUT)
        _last_exit.set(main, _ASYNC_TRAP if trap else _ASYNC_FAULT)
        if trap:
            vcpu.advance()
    _save_registers(vcpu)
    _end_epoch(vcpu.vp)
    return leaving


# ---------------------------------------------------------------- what the host gets
def _asynchronous(call: HostCall, leaving: TdExit, *, keep_rbp: bool = False) -> int:
    g = call.gpr
    for number in _CLEARED:
        if number != RBP or not keep_rbp:
            g[number] = 0
    g[RCX] = leaving.qualification & 0xFFFFFFFF
    g[RDX] = leaving.extended
    g[R8] = leaving.gpa
    g[R9] = leaving.intr_info
    _reset_xmm(call)
    return leaving.case | leaving.reason & 0xFFFFFFFF


def _synchronous(call: HostCall, vcpu: Vcpu) -> int:
    """TDG.VP.VMCALL: the selected registers of the guest, zero in the others."""
    g, gpr, main = call.gpr, _REGISTERS.unpack(vcpu.context.gpr_bytes), vcpu.main
    mask = gpr[RCX]
    g[2:16] = _ZEROES[2:]
    if TDCS.config_flags.get(vcpu.tdcs) & CONFIG_NO_RBP_MOD:
        g[RBP] = call.inputs[RBP]
    for number in call.module.selected(mask & 0xFFFC):
        g[number] = gpr[number]
    g[RCX] = mask & 0xFFFFFFFF
    if mask >> 16 & 0xFFFF:
        _pass_xmm_out(call, vcpu, mask >> 16 & 0xFFFF)
    else:
        _reset_xmm(call)
    vcpu.advance()
    _save_registers(vcpu)
    _state.set(main, _READY)
    _last_exit.set(main, _AFTER_TDVMCALL)
    _end_epoch(vcpu.vp)
    return _TDCALL_REASON | vcpu.exit.reason & BUS_LOCK_PREEMPTED


def _reset_xmm(call: HostCall) -> None:
    call.lp.xmm[:] = _ZEROES


_ZEROES: Final = [0] * 16
