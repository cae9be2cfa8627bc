"""Metadata for the host: TDH.SYS.RD, SYS.RDALL, MNG.RD/WR, VP.RD/WR."""

from __future__ import annotations

from functools import partial
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.metadata import NULL_ID, Accessor, Context
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, RCX, RDX
from swtdx.machine.memory import SEAM
from swtdx.module.call import HostCall
from swtdx.module.checks import (
    associate,
    check_op_state,
    map_state,
    map_vp_pages,
    open_td,
    shared_buffer,
    vp_page,
)
from swtdx.module.host.sys import need_lp_init
from swtdx.module.metadata import access, listing, system, td
from swtdx.module.metadata.vp import VpFields
from swtdx.module.objects.td import Td
from swtdx.module.register import host_leaf
from swtdx.module.vcpu import vmcs_of

_FIRST: Final = st.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT


def _accessor(of: Td) -> Accessor:
    return Accessor.HOST_DEBUG if of.debug else Accessor.HOST


@host_leaf("TDH.SYS.RD")
def sys_rd(call: HostCall) -> int:
    """One field of the module."""
    need_lp_init(call)
    return _read(call, Context.SYS, Accessor.HOST, partial(system.value, call.module))


@host_leaf("TDH.SYS.RDALL")
def sys_rdall(call: HostCall) -> int:
    """All fields of the module, a page at a time."""
    module, i = call.module, call.inputs
    need_lp_init(call)
    shared_buffer(module, i[RDX], listing.SIZE, OperandId.RDX)
    data, following = listing.dump(module, i[R8], Accessor.HOST)
    module.memory.write(i[RDX], data, SEAM)
    call.gpr[R8] = following
    if following == NULL_ID:
        return st.TDX_SUCCESS
    call.keep_outputs = True
    return st.TDX_METADATA_LIST_OVERFLOW


def _read(
    call: HostCall, context: Context, accessor: Accessor, value: access.Read, l2_vms: int = 0,
    *, enumerates: bool = True,
) -> int:  # fmt: skip
    """Read the element that RDX names into R8, and the next identifier into RDX."""
    identifier, gpr = call.inputs[RDX], call.gpr
    if enumerates:
        first = access.first_id(call.module.fields, context, identifier, accessor, l2_vms)
        if first is not None:
            gpr[RDX] = first
            return _FIRST
    found = access.read(call.module.fields, context, identifier, accessor, value, l2_vms)
    gpr[R8] = found
    if enumerates:
        gpr[RDX] = access.following(call.module.fields, context, identifier, accessor, l2_vms)
    return st.TDX_SUCCESS


@host_leaf("TDH.MNG.RD")
def mng_rd(call: HostCall) -> int:
    """One field of a TD."""
    module = call.module
    of = open_td(module, call.inputs[RCX], OperandId.RCX, call.leaf.op_states)
    return _read(
        call, Context.TD, _accessor(of), partial(td.read, module, of), TDCS.num_l2_vms.get(of.tdcs),
        enumerates=bool(call.version),
    )  # fmt: skip


@host_leaf("TDH.MNG.WR")
def mng_wr(call: HostCall) -> int:
    """Write one field of a TD."""
    module, i = call.module, call.inputs
    of = open_td(module, i[RCX], OperandId.RCX, call.leaf.op_states)
    call.gpr[R8] = access.write(
        module.fields, Context.TD, i[RDX], _accessor(of), partial(td.write, module, of), i[R8], i[R9],
        TDCS.num_l2_vms.get(of.tdcs),
    )  # fmt: skip
    return st.TDX_SUCCESS


def _open_vcpu(call: HostCall, *, allow_disabled: bool) -> tuple[VpFields, Td]:
    """The vCPU in RCX, from now on associated with this processor.

    Raises:
        LeafFailed: the common checks, TDCX_NUM_INCORRECT, VCPU_STATE_INCORRECT, VCPU_ASSOCIATED.
    """
    module, lp = call.module, call.lp
    vp, _, _ = vp_page(module, call.inputs[RCX], OperandId.RCX, exclusive=False)
    map_state(module, vp.td)
    check_op_state(vp.td, call.leaf.op_states)
    map_vp_pages(module, vp)
    associate(lp, vp, allow_disabled=allow_disabled)
    return VpFields(module, lp, vp, vmcs_of(module, lp, vp)), vp.td


@host_leaf("TDH.VP.RD")
def vp_rd(call: HostCall) -> int:
    """One field of a vCPU."""
    fields, of = _open_vcpu(call, allow_disabled=True)
    return _read(
        call, Context.VP, _accessor(of), fields.read, TDCS.num_l2_vms.get(of.tdcs),
        enumerates=bool(call.version),
    )  # fmt: skip


@host_leaf("TDH.VP.WR")
def vp_wr(call: HostCall) -> int:
    """Write one field of a vCPU."""
    i = call.inputs
    fields, of = _open_vcpu(call, allow_disabled=False)
    call.gpr[R8] = access.write(
        call.module.fields, Context.VP, i[RDX], _accessor(of), fields.write, i[R8], i[R9],
        TDCS.num_l2_vms.get(of.tdcs),
    )  # fmt: skip
    return st.TDX_SUCCESS
