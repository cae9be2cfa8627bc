"""Fields of a vCPU, in TDVPS and in its VMCS (``metadata_vp.c`` of 1.5.01)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDCS, TDVPS
from swtdx.arch.metadata import Accessor, MetadataField
from swtdx.arch.msrs import DEBUGCTL_UNCORE_PMI
from swtdx.arch.units import NULL_PA, PAGE
from swtdx.arch.vmx_controls import PIN_PROCESS_POSTED, PROC2_PML
from swtdx.arch.x86 import APIC_PPR
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.vmx.vmcs import Vmcs
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import SYS
from swtdx.module.metadata.element import SIZES, Place, merged
from swtdx.module.objects.td import TDVPS_VAPIC, Vp
from swtdx.module.state import ModuleState
from swtdx.module.vcpu import load_state, save_state

_VMCS_CLASS: Final = 0
_NO_VECTOR: Final = 0xFFFF
_PID_BYTES: Final = 64
_LOWEST_VECTOR: Final = 0
_HIGHEST_VECTOR: Final = 255
#: Fields that hold a shared HPA, and the bytes at it.
_SHARED_HPA: Final = {
    f.POSTED_INTERRUPT_DESCRIPTOR: _PID_BYTES,
    f.SHARED_EPTP: PAGE,
    f.PML_ADDRESS: PAGE,
}
#: Classes of registers that are the processor's while the VMCS is active there, and rest in TDVPS when it
#: is not: debug and control registers, extended state, MSRs.
_RESTING: Final = (17, 18, 19)


class VpFields:
    """Access to one vCPU's fields; its VMCS is active on the processor that asks."""

    def __init__(self, module: ModuleState, lp: LogicalProcessor, vp: Vp, vmcs: Vmcs) -> None:
        self._module = module
        self._lp = lp
        self._vp = vp
        self._vmcs = vmcs

    def _place(self, field: MetadataField, index: int) -> Place:
        assert field.offset is not None
        offset = field.offset + index * field.size
        if offset >> 12 >= len(self._vp.pages):
            raise LeafFailed(st.TDX_METADATA_FIELD_ID_INCORRECT)
        return self._vp.pages[offset >> 12], offset & 0xFFF

    def read(self, field: MetadataField, index: int) -> int:
        """The element's value before any mask.

        Raises:
            LeafFailed: METADATA_FIELD_ID_INCORRECT: this vCPU, or this processor, has no such field.
        """
        if field.class_code == _VMCS_CLASS:
            return self._read_vmcs(field.code + index * field.stride)
        if field.name == "VCPU_STATE_DETAILS":
            return self._interrupt_deliverable()
        if field.class_code in _RESTING:
            save_state(self._lp, self._vp, self._vmcs)
        view, offset = self._place(field, index)
        value: int = SIZES[field.size].unpack_from(view, offset)[0]
        if field.name == "IA32_SPEC_CTRL":
            value &= ~int(TDCS.ia32_spec_ctrl_mask.get(self._vp.td.tdcs))
        return value

    def _read_vmcs(self, encoding: int) -> int:
        try:
            return self._vmcs.read(encoding)
        except KeyError:
            raise LeafFailed(st.TDX_METADATA_FIELD_ID_INCORRECT) from None

    def _interrupt_deliverable(self) -> int:
        """VMXIP: the highest requested vector has a priority above the processor's."""
        requested = self._vmcs.read(f.GUEST_INTERRUPT_STATUS) & 0xFF
        return int(requested & 0xF0 > self._vp.pages[TDVPS_VAPIC][APIC_PPR] & 0xF0)

    def write(self, field: MetadataField, index: int, accessor: Accessor, value: int, wanted: int) -> int:
        """Write the ``wanted`` bits of an element; the old value under the read mask.

        Raises:
            LeafFailed: METADATA_FIELD_NOT_WRITABLE, METADATA_FIELD_VALUE_NOT_VALID,
                TD_VMCS_FIELD_NOT_INITIALIZED.
        """
        old = self.read(field, index)
        allowed = field.write_mask(accessor)
        mask = wanted & allowed
        if not mask:
            raise LeafFailed(st.TDX_METADATA_FIELD_NOT_WRITABLE)
        encoding = field.code + index * field.stride if field.class_code == _VMCS_CLASS else -1
        # Of an address that was never set, bits that cannot be written become 0.
        base = old & allowed if encoding in _SHARED_HPA and old == NULL_PA else old
        new = merged(base, value, wanted, allowed)
        if encoding in _SHARED_HPA:
            self._check_shared(new, _SHARED_HPA[encoding])
        if encoding >= 0:
            new = self._check_vmcs(encoding, mask, new)
            self._vmcs.write(encoding, new)
        else:
            self._write_tdvps(field, index, new)
        return old & field.read_mask(accessor)

    def _write_tdvps(self, field: MetadataField, index: int, new: int) -> None:
        if field.name == "XFAM":
            raise LeafFailed(st.TDX_METADATA_FIELD_NOT_WRITABLE)
        view, offset = self._place(field, index)
        SIZES[field.size].pack_into(view, offset, new)
        if field.class_code in _RESTING:
            load_state(self._lp, self._vp, self._vmcs)

    def _check_shared(self, pa: int, size: int) -> None:
        module = self._module
        sys = module.data.sys
        hpa = pa & (1 << module.hpa_bits) - 1
        base, length = SYS.seamrr_base.get(sys), SYS.seamrr_size.get(sys)
        private = pa >> module.hpa_bits >= SYS.first_private_hkid.get(sys)
        if pa >> module.max_pa or private or (hpa < base + length and base < hpa + size):
            raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)

    def _check_vmcs(self, encoding: int, mask: int, new: int) -> int:
        """Special rules of some VMCS fields; the value to write."""
        vmcs = self._vmcs
        if encoding == f.PIN_BASED_CONTROLS:
            if new & PIN_PROCESS_POSTED:
                self._need_posted_interrupts()
            TDVPS.shadow_pinbased_exec_ctls.set(self._vp.main, 0, new)
        elif encoding == f.POSTED_INTERRUPT_DESCRIPTOR:
            TDVPS.shadow_pid_hpa.set(self._vp.main, 0, new)
        elif encoding == f.POSTED_INTERRUPT_NOTIFICATION_VECTOR:
            if not _LOWEST_VECTOR <= new <= _HIGHEST_VECTOR:
                raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
            TDVPS.shadow_posted_int_notification_vector.set(self._vp.main, 0, new)
        elif encoding == f.SHARED_EPTP:
            TDVPS.shadow_shared_eptp.set(self._vp.main, 0, new)
        elif encoding == f.SECONDARY_CONTROLS:
            must, may = self._module.facts.secondary_controls
            unset_address = vmcs.read(f.PML_ADDRESS) == NULL_PA
            pml_refused = new & PROC2_PML and (not self._vp.td.debug or unset_address)
            if mask & (~new & must | new & ~may) or pml_refused:
                raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
        elif encoding in (f.GUEST_CR0, f.GUEST_CR4):
            return self._control_register(encoding, new)
        elif encoding == f.GUEST_CR3:
            if new >= self._vp.td.shared_bit:
                raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
        elif encoding == f.GUEST_DEBUGCTL:
            # Only of a debug TD, which may have any: IA32_DEBUGCTL is not writable otherwise.
            return new & ~DEBUGCTL_UNCORE_PMI
        return new

    def _need_posted_interrupts(self) -> None:
        vmcs = self._vmcs
        if vmcs.read(f.POSTED_INTERRUPT_NOTIFICATION_VECTOR) == _NO_VECTOR:
            raise LeafFailed(st.TDX_TD_VMCS_FIELD_NOT_INITIALIZED | f.POSTED_INTERRUPT_NOTIFICATION_VECTOR)
        if vmcs.read(f.POSTED_INTERRUPT_DESCRIPTOR) == NULL_PA:
            raise LeafFailed(st.TDX_TD_VMCS_FIELD_NOT_INITIALIZED | f.POSTED_INTERRUPT_DESCRIPTOR)

    def _control_register(self, encoding: int, new: int) -> int:
        """CR0 or CR4 as if the guest wrote it: bits that the module owns must read as their shadow."""
        vmcs = self._vmcs
        which = (
            (f.CR0_GUEST_HOST_MASK, f.CR0_READ_SHADOW)
            if encoding == f.GUEST_CR0
            else (f.CR4_GUEST_HOST_MASK, f.CR4_READ_SHADOW)
        )
        mask, shadow = (vmcs.read(each) for each in which)
        if (new ^ shadow) & mask:
            raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
        return vmcs.read(encoding) & mask | new & ~mask
