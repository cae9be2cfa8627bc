"""TDH.MR.*: the measurement of what a TD starts with."""

from __future__ import annotations

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RCX, RDX
from swtdx.arch.states import OpState
from swtdx.arch.units import EXTEND_CHUNK
from swtdx.module.call import HostCall
from swtdx.module.checks import open_td
from swtdx.module.errors import LeafFailed
from swtdx.module.objects import measurement
from swtdx.module.objects.sept import walk
from swtdx.module.register import host_leaf


@host_leaf("TDH.MR.EXTEND")
def mr_extend(call: HostCall) -> int:
    """Measure 256 bytes of a page that was added."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RDX], OperandId.RDX, call.leaf.op_states, exclusive=True)
    gpa = i[RCX]
    if gpa & EXTEND_CHUNK - 1 or gpa >= td.shared_bit:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    entry = walk(module.keyhole, td, gpa, 0)
    if not entry.is_present_leaf:
        raise entry.failed(st.TDX_EPT_ENTRY_NOT_PRESENT | OperandId.RCX)
    if not call.leaf.sept_states >> entry.state.index & 1:
        raise entry.failed(st.TDX_EPT_ENTRY_NOT_PRESENT)
    view = module.keyhole.map(entry.hpa, td.hkid)
    offset = gpa & 0xFFF
    measurement.chunk_extended(td.tdcs, gpa, view[offset : offset + EXTEND_CHUNK])
    return st.TDX_SUCCESS


@host_leaf("TDH.MR.FINALIZE")
def mr_finalize(call: HostCall) -> int:
    """Close the measurement; from now on the TD can run."""
    module, i = call.module, call.inputs
    td = open_td(module, i[RCX], OperandId.RCX, call.leaf.op_states, exclusive=True)
    tdcs = td.tdcs
    if not TDCS.num_vcpus.get(tdcs):
        raise LeafFailed(st.TDX_NO_VCPUS)
    measurement.finish(tdcs)
    # No service TD is bound: SERVTD_HASH is zero.
    TDCS.servtd_hash.set(tdcs, bytes(48))
    TDCS.op_state.set(tdcs, OpState.RUNNABLE)
    return st.TDX_SUCCESS
