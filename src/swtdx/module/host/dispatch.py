"""SEAMCALL: from RAX to the leaf and back (``tdx_vmm_dispatcher.c`` of 1.5.01; seamcall.md §1).

What a leaf is comes from its declaration in :mod:`swtdx.arch.host_leaves`: versions, module states in
which it runs, output registers and what they hold after an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.leaves import RAX_RESERVED
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.states import SysState
from swtdx.machine.processor import LogicalProcessor
from swtdx.module.call import HostCall
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import SYS
from swtdx.module.host import enter, mem_page, mem_range, mem_sept, mng, mr, phymem, rdwr, sys, sys_config, vp
from swtdx.module.served import Served
from swtdx.module.state import ModuleState

_LEAF_MODULES: Final = (
    enter, mem_page, mem_range, mem_sept, mng, mr, phymem, rdwr, sys, sys_config, vp,
)  # fmt: skip
_INVALID: Final = st.TDX_OPERAND_INVALID | OperandId.RAX
_SHUTDOWN: Final = int(SysState.SHUTDOWN)


def dispatch(leaves: Mapping[int, Served], module: ModuleState, lp: LogicalProcessor) -> None:
    """Execute the SEAMCALL whose operands are in ``lp.gpr``; ``leaves`` are the module's, by number."""
    gpr = lp.gpr
    rax = gpr[RAX]
    entry = leaves.get(rax & 0xFFFF)
    version = rax >> 16 & 0xFF
    if rax & RAX_RESERVED or (version and not (entry and entry.max_version)):
        gpr[RAX] = _INVALID
        return
    state = SYS.sys_state.get(module.data.sys)
    if entry is None or not entry.sys_states >> state & 1:
        gpr[RAX] = _refusal(state, entry)
        return
    if version > entry.max_version:
        # A leaf that has versions refuses an unknown one itself, its outputs made ready.
        for register, value in entry.outputs[entry.max_version]:
            gpr[register] = value
        gpr[RAX] = _INVALID
        return
    call = HostCall(module, lp, entry, gpr[:], version)
    outputs = entry.outputs[version]
    for register, value in outputs:
        gpr[register] = value
    try:
        gpr[RAX] = entry.handler(call)
    except LeafFailed as failed:
        gpr[RAX] = failed.status
        if call.keep_outputs:
            return
        for register, value in outputs:
            gpr[register] = value
        if entry.extended[0]:
            gpr[RCX] = failed.rcx
        if entry.extended[1]:
            gpr[RDX] = failed.rdx


def _refusal(state: int, entry: Served | None) -> int:
    """Why a leaf does not run at all."""
    if state == _SHUTDOWN:
        return st.TDX_SYS_SHUTDOWN
    if state != SysState.READY:
        return st.TDX_SYS_NOT_READY
    assert entry is None
    return _INVALID
