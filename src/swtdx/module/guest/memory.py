"""Guest memory that a TDCALL operand names: checked, walked, mapped.

Source: ``check_walk_and_map_guest_side_gpa`` in ``helpers.c`` of the TDX module 1.5.01.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import sept
from swtdx.arch import sept_bits as bits
from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDCS
from swtdx.arch.sept_bits import READ, WRITE
from swtdx.arch.td_config import TD_CTLS_PENDING_VE_DISABLE
from swtdx.arch.units import PAGE
from swtdx.machine.memory import SEAM
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.ept import Walk
from swtdx.machine.vmx.ept import walk as ept_walk
from swtdx.module.checks import shared_buffer
from swtdx.module.errors import LeafFailed, RetryTdcall, TdExit
from swtdx.module.exits.ept import PENDING, to_host
from swtdx.module.exits.inject import inject_ve
from swtdx.module.objects.sept import walk
from swtdx.module.state import ModuleState
from swtdx.module.vcpu import Vcpu

_SIZES: Final = bits.LEVEL_BYTES


class GuestBuffer:
    """A buffer within one page of guest memory."""

    __slots__ = ("_module", "pa")

    def __init__(self, module: ModuleState, pa: int) -> None:
        self._module = module
        self.pa = pa

    def read(self, count: int) -> bytes:
        """``count`` bytes."""
        return self._module.memory.read(self.pa, count, SEAM)

    def write(self, data: bytes) -> None:
        """Store ``data``."""
        module = self._module
        module.memory.write(self.pa, data, SEAM)
        module.memory_written(self.pa & (1 << module.hpa_bits) - 1, len(data))


def buffer(vcpu: Vcpu, gpa: int, operand: int, *, write: bool, private_only: bool) -> GuestBuffer:
    """The buffer at ``gpa``.

    Raises:
        LeafFailed: OPERAND_INVALID.
        TdExit: EPT violation.
        RetryTdcall: a #VE was injected instead.
    """
    td = vcpu.td
    shared_bit = td.shared_bit
    shared = bool(gpa & shared_bit)
    if gpa >= shared_bit << 1 or (private_only and shared):
        raise LeafFailed(st.TDX_OPERAND_INVALID | operand)
    wanted = READ | (WRITE if write else 0)
    if shared:
        return GuestBuffer(vcpu.module, _shared(vcpu, gpa, wanted))
    entry = walk(vcpu.module.keyhole, td, gpa, 0)
    if not entry.raw & bits.LEAF or entry.raw & wanted != wanted:
        # A private entry gives all rights or none: bits 5:3 are 0.
        qualification = wanted
        if sept.state_of(entry.raw).flags & sept.ACCEPTABLE:
            if not TDCS.td_ctls.get(td.tdcs) & TD_CTLS_PENDING_VE_DISABLE:
                inject_ve(vcpu, reason.EPT_VIOLATION, qualification, gpa)
                raise RetryTdcall
            raise to_host(gpa, qualification, PENDING)
        raise to_host(gpa, qualification)
    size = _SIZES[entry.level]
    hpa = entry.hpa & -size | gpa & size - 1
    return GuestBuffer(vcpu.module, vcpu.module.private(td, hpa))


def _shared(vcpu: Vcpu, gpa: int, wanted: int) -> int:
    """Walk the hypervisor's EPT."""
    unit = vcpu.lp.vmx
    eptp = TDCS.eptp.get(vcpu.tdcs) & 0x3F | vcpu.vmcs.read(f.SHARED_EPTP) & bits.HPA
    root = unit.map_shared_root(eptp & bits.HPA)
    found = ept_walk(eptp, gpa, 0, unit.map_shared_table, Walk(), root=root, wanted=wanted)
    qualification = wanted & ~found.rights & 3 | (found.rights & 7) << 3
    if found.misconfigured:
        raise TdExit(st.TDX_SUCCESS, reason.EPT_MISCONFIGURATION, 0, 0, gpa & -PAGE)
    if found.entry & wanted != wanted:
        if found.convertible:
            inject_ve(vcpu, reason.EPT_VIOLATION, qualification, gpa)
            raise RetryTdcall
        raise to_host(gpa, qualification)
    size = _SIZES[found.level]
    pa = found.entry & 0x000FFFFFFFFFF000 & -size | gpa & size - 1
    try:
        # The module reaches memory with more rights than the hypervisor whose table this is.
        shared_buffer(vcpu.module, pa & -PAGE, PAGE, 0)
    except LeafFailed:
        raise TdExit(st.TDX_SUCCESS, reason.EPT_MISCONFIGURATION, 0, 0, gpa & -PAGE) from None
    return pa
