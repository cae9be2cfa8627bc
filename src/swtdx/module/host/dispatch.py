"""SEAMCALL: from RAX to the leaf and back (``tdx_vmm_dispatcher.c`` of 1.5.01; seamcall.md §1).

What a leaf is comes from its declaration in :mod:`swtdx.arch.host_leaves`: versions, module states in
which it runs, output registers and what they hold after an error.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import regs
from swtdx.arch import status as st
from swtdx.arch.leaf import ONES, SEPT, ZERO, Leaf
from swtdx.arch.leaves import HOST_LEAVES, RAX_RESERVED
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.states import SysState
from swtdx.arch.units import MASK64
from swtdx.machine.processor import LogicalProcessor
from swtdx.module.call import HostCall
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import SYS
from swtdx.module.host import enter, mem_page, mem_range, mem_sept, mng, mr, phymem, rdwr, sys, sys_config, vp
from swtdx.module.host.register import HANDLERS, NAMES, Handler
from swtdx.module.state import ModuleState

_LEAF_MODULES: Final = (
    enter, mem_page, mem_range, mem_sept, mng, mr, phymem, rdwr, sys, sys_config, vp,
)  # fmt: skip
_INVALID: Final = st.TDX_OPERAND_INVALID | OperandId.RAX
_SHUTDOWN: Final = int(SysState.SHUTDOWN)


class Entry:
    """A leaf as the dispatcher needs it."""

    __slots__ = ("extended", "handler", "max_version", "outputs", "sys_states")

    def __init__(self, leaf: Leaf, handler: Handler) -> None:
        self.handler = handler
        self.max_version = leaf.max_version
        self.sys_states = leaf.sys_states
        #: By version: (register, value) that outputs get before the first check and after a failure.
        self.outputs = tuple(
            tuple(
                (regs.number(output.register), MASK64 if output.on_error == ONES else 0)
                for output in leaf.outputs
                if output.on_error in (ZERO, ONES, SEPT) and output.since <= version
            )
            for version in leaf.versions
        )
        #: Output registers that carry extended error information.
        named = {output.register for output in leaf.outputs if output.on_error in (ZERO, SEPT)}
        self.extended = ("RCX" in named, "RDX" in named)


def _table() -> dict[int, Entry]:
    table = {}
    for number, leaf in HOST_LEAVES.items():
        handler = HANDLERS.get(number)
        if leaf.supported != (handler is not None):
            raise RuntimeError(f"{leaf.name} is declared {leaf.support} and has handler {handler}")
        if handler is not None:
            if NAMES[number] != leaf.name:
                raise RuntimeError(f"leaf {number} is {leaf.name}, and its handler says {NAMES[number]}")
            table[number] = Entry(leaf, handler)
    return table


TABLE: Final = _table()


def dispatch(module: ModuleState, lp: LogicalProcessor) -> None:
    """Execute the SEAMCALL whose operands are in ``lp.gpr``."""
    gpr = lp.gpr
    rax = gpr[RAX]
    entry = TABLE.get(rax & 0xFFFF)
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
    call = HostCall(module, lp, gpr[:], version)
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


def _refusal(state: int, entry: Entry | None) -> int:
    """Why a leaf does not run at all."""
    if state == _SHUTDOWN:
        return st.TDX_SYS_SHUTDOWN
    if state != SysState.READY:
        return st.TDX_SYS_NOT_READY
    assert entry is None
    return _INVALID
