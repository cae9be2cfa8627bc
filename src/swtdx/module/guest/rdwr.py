"""Metadata for the guest: TDG.VM.RD/WR, TDG.VP.RD/WR, TDG.SYS.RD, TDG.SYS.RDALL."""

from __future__ import annotations

from functools import partial
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.control_structs import TDCS
from swtdx.arch.metadata import NULL_ID, Accessor, Context
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, R9, RAX, RCX, RDX
from swtdx.module.errors import LeafFailed
from swtdx.module.guest.memory import buffer
from swtdx.module.metadata import access, listing, system, td
from swtdx.module.metadata.vp import VpFields
from swtdx.module.register import guest_leaf
from swtdx.module.vcpu import Vcpu

_GUEST: Final = Accessor.GUEST


def _version(vcpu: Vcpu) -> int:
    return int(vcpu.gpr[RAX]) >> 16 & 0xFF


def _own_vm(vcpu: Vcpu) -> None:
    """RCX names the VM, and there is only this one.

    Raises:
        LeafFailed: OPERAND_INVALID | RCX.
    """
    if vcpu.gpr[RCX]:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)


def _read(vcpu: Vcpu, context: Context, value: access.Read, *, enumerates: bool = True) -> int:
    gpr = vcpu.gpr
    identifier = gpr[RDX]
    gpr[R8] = 0
    if enumerates:
        gpr[RDX] = NULL_ID
    if context is not Context.SYS:
        _own_vm(vcpu)
    l2_vms = TDCS.num_l2_vms.get(vcpu.tdcs)
    if enumerates:
        first = access.first_id(vcpu.module.fields, context, identifier, _GUEST, l2_vms)
        if first is not None:
            gpr[RDX] = first
            return st.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT
    gpr[R8] = access.read(vcpu.module.fields, context, identifier, _GUEST, value, l2_vms)
    if enumerates:
        gpr[RDX] = access.following(vcpu.module.fields, context, identifier, _GUEST, l2_vms)
    return st.TDX_SUCCESS


def _write(vcpu: Vcpu, context: Context, put: access.Write) -> int:
    gpr = vcpu.gpr
    value, mask = gpr[R8], gpr[R9]
    gpr[R8] = 0
    _own_vm(vcpu)
    gpr[R8] = access.write(
        vcpu.module.fields, context, gpr[RDX], _GUEST, put, value, mask, TDCS.num_l2_vms.get(vcpu.tdcs)
    )
    return st.TDX_SUCCESS


@guest_leaf("TDG.VM.RD")
def vm_rd(vcpu: Vcpu) -> int:
    """One field of the guest's own TD."""
    return _read(vcpu, Context.TD, partial(td.read, vcpu.module, vcpu.td), enumerates=bool(_version(vcpu)))


@guest_leaf("TDG.VM.WR")
def vm_wr(vcpu: Vcpu) -> int:
    """Write one field of the guest's own TD."""
    return _write(vcpu, Context.TD, partial(td.write, vcpu.module, vcpu.td))


def _fields(vcpu: Vcpu) -> VpFields:
    return VpFields(vcpu.module, vcpu.lp, vcpu.vp, vcpu.vmcs)


@guest_leaf("TDG.VP.RD")
def vp_rd(vcpu: Vcpu) -> int:
    """One field of the guest's own vCPU."""
    return _read(vcpu, Context.VP, _fields(vcpu).read)


@guest_leaf("TDG.VP.WR")
def vp_wr(vcpu: Vcpu) -> int:
    """Write one field of the guest's own vCPU."""
    return _write(vcpu, Context.VP, _fields(vcpu).write)


@guest_leaf("TDG.SYS.RD")
def sys_rd(vcpu: Vcpu) -> int:
    """One field of the module."""
    return _read(vcpu, Context.SYS, partial(system.value, vcpu.module))


@guest_leaf("TDG.SYS.RDALL")
def sys_rdall(vcpu: Vcpu) -> int:
    """All fields of the module that a guest may read."""
    gpr = vcpu.gpr
    try:
        if gpr[RDX] & listing.SIZE - 1:
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
        target = buffer(vcpu, gpr[RDX], OperandId.RDX, write=True, private_only=True)
        data, following = listing.dump(vcpu.module, gpr[R8], _GUEST)
    except LeafFailed:
        # Not before: a TD exit on the way to the buffer leaves R8 alone, because TDCALL is executed again.
        gpr[R8] = NULL_ID
        raise
    target.write(data)
    gpr[R8] = following
    return st.TDX_SUCCESS if following == NULL_ID else st.TDX_METADATA_LIST_OVERFLOW
