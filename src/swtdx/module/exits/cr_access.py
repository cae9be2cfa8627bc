"""Writes to CR0 and CR4 that touch bits the module owns (``td_other_exits.c``, ``helpers.c``)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDCS, TDVPS
from swtdx.arch.exits import LMSW
from swtdx.arch.x86 import CR0_CD, CR0_NE, CR0_NW, CR0_PE, CR0_PG, CR0_WP, CR4_CET, CR4_VMXE
from swtdx.machine.vmx.exit import VmExit
from swtdx.module.errors import TdExit
from swtdx.module.exits.inject import inject_gp, inject_ve
from swtdx.module.vcpu import Vcpu

_CR0_IGNORED: Final = 0x1FFAFFC0
_CR0_RESERVED: Final = 0xFFFFFFFF << 32
_LMSW_BITS: Final = 0xE


def cr_access_exit(vcpu: Vcpu, out: VmExit) -> None:
    """#GP for what the processor would refuse, #VE for what a TD may not do."""
    kind = out.qualification >> 4 & 3
    number = out.qualification & 15
    if kind == LMSW:
        source = out.qualification >> 16 & 0xFFFF
        vcpu.vmcs.write(f.GUEST_CR0, vcpu.vmcs.read(f.GUEST_CR0) & ~_LMSW_BITS | source & _LMSW_BITS)
        vcpu.advance()
        return
    if kind or number not in (0, 4):
        case = st.TDX_SUCCESS if vcpu.td.debug else st.TDX_NON_RECOVERABLE_TD
        raise TdExit(case, out.reason, out.qualification)
    value = vcpu.gpr[out.qualification >> 8 & 15]
    allowed = _cr0_is_native(vcpu, value) if number == 0 else _cr4_is_native(vcpu, value)
    if not allowed:
        inject_gp(vcpu)
        return
    if number == 0 and not _cr0_is_owned(value):
        kept = vcpu.vmcs.read(f.GUEST_CR0) & _CR0_IGNORED
        vcpu.vmcs.write(f.GUEST_CR0, value & ~_CR0_IGNORED | kept)
        vcpu.advance()
        return
    inject_ve(vcpu, out.reason, out.qualification)


def _cr0_is_native(vcpu: Vcpu, value: int) -> bool:
    fixed0, fixed1, _, _ = vcpu.module.cr_fixed
    if ~value & fixed0 & ~(CR0_PE | CR0_PG) or value & ~fixed1:
        return False
    if value & CR0_PG and not value & CR0_PE:
        return False
    return not (vcpu.vmcs.read(f.GUEST_CR4) & CR4_CET and not value & CR0_WP)


def _cr0_is_owned(value: int) -> bool:
    return bool(not value & CR0_PE or not value & CR0_NE or value & (CR0_NW | CR0_CD | _CR0_RESERVED))


def _cr4_is_native(vcpu: Vcpu, value: int) -> bool:
    _, _, fixed0, fixed1 = vcpu.module.cr_fixed
    if ~value & fixed0 & ~CR4_VMXE or value & ~fixed1:
        return False
    xfam, attributes = TDVPS.xfam.get(vcpu.main), TDCS.attributes.get(vcpu.tdcs)
    refused = (
        (value >> 22 & 1 and not xfam >> 9 & 1)
        or (value & CR4_CET and xfam >> 11 & 3 != 3)
        or (value >> 25 & 1 and not xfam >> 14 & 1)
        or value >> 19 & 1
        or (value >> 24 & 1 and not attributes >> 30 & 1)
        or (value & CR4_CET and not vcpu.vmcs.read(f.GUEST_CR0) & CR0_WP)
    )
    return not refused
