"""A virtual-machine control structure that is active on a logical processor.

While it is active its guest state is the processor's (the engine's context) and its other fields are
cached by the processor, as VMX allows; VMCLEAR writes all of it to the 4 KiB region in memory.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import INTERRUPTION_VALID
from swtdx.arch.regs import RSP
from swtdx.arch.units import MASK64
from swtdx.machine.engine.protocol import OTHER_MSRS
from swtdx.machine.snapshot import SectionReader, SectionWriter

#: VMCS revision id of the modelled processor (bits 30:0 of the region's first word).
REVISION: Final = 0x5D
_COUNT: Final = len(f.NAMES)
_REGION: Final = struct.Struct(f"<{_COUNT}Q")

#: Guest state that VM entry checks here.
_CHECKED: Final = frozenset((f.GUEST_CR0, f.GUEST_CR4, f.GUEST_EFER))
_DEBUG_REGISTERS: Final = (0, 1, 2, 3, 6)


class Vmcs:
    """An active VMCS: control fields here, guest state in ``context``.

    ``pa`` is the region's physical address with its KeyID.
    """

    __slots__ = (
        "address_key", "apic_epoch", "apic_page", "context", "controls", "cr0_owned", "cr4_owned",
        "debug_exceptions",
        "exceptions_set", "launched",
        "msr_bitmap", "offset_set", "pa", "prepared", "scaled", "space", "unblocking", "unchecked",
    )  # fmt: skip

    def __init__(self, pa: int, context: Any) -> None:
        self.pa = pa
        self.context = context
        #: Every field that is not guest state, by encoding.
        self.controls: dict[int, int] = {
            encoding: 0 for encoding in f.NAMES if not f.is_guest_state(encoding)
        }
        self.launched = False
        #: The translation cache in use and the address space it belongs to.
        self.space: Any = None
        self.address_key: tuple[int, ...] = ()
        #: The bits of CR0 and CR4 that the host owns, as they really are.
        self.cr0_owned = 0
        self.cr4_owned = 0
        #: Whether all that follows from control fields, below and in the context, has been derived.
        self.prepared = False
        # Derived from control fields at entry; None: derive again.
        self.msr_bitmap: memoryview | None = None
        self.apic_page: memoryview | None = None
        self.apic_epoch = -1
        self.offset_set: int | None = None
        self.exceptions_set = False
        self.scaled = False
        #: Control registers were written, which VM entry has to check.
        self.unchecked = True
        #: The guest's pending debug exceptions: a #DB to come at the next entry.
        self.debug_exceptions = 0
        #: RIP and RSP of the IRET that the guest is at and that has ended blocking by NMI.
        self.unblocking: tuple[int, int] | None = None

    @property
    def unblocks_nmis(self) -> bool:
        """Whether the instruction at RIP is an IRET that has ended blocking by NMI, and is not done yet."""
        at = self.unblocking
        return at is not None and at == (self.context.rip, self.context.gpr[RSP])

    def read(self, encoding: int) -> int:
        """VMREAD.

        Raises:
            KeyError: the field does not exist.
        """
        value = self.controls.get(encoding)
        if value is not None:
            return value
        if encoding == f.GUEST_CR0:
            mask = self.controls[f.CR0_GUEST_HOST_MASK]
            return int(self.context.cr0) & ~mask | self.cr0_owned & mask
        if encoding == f.GUEST_CR4:
            mask = self.controls[f.CR4_GUEST_HOST_MASK]
            return int(self.context.cr4) & ~mask | self.cr4_owned & mask
        if encoding == f.GUEST_PENDING_DEBUG_EXCEPTIONS:
            return self.debug_exceptions
        f.width(encoding)
        value = self.context.read(encoding)
        return int(value)

    def write(self, encoding: int, value: int) -> None:
        """VMWRITE; the value is cut to the field's width.

        Raises:
            KeyError: the field does not exist.
        """
        value &= (1 << f.width(encoding)) - 1
        if encoding in _CHECKED:
            self.unchecked = True
        if encoding in self.controls:
            self.controls[encoding] = value
            self._forget(encoding)
        elif encoding == f.GUEST_CR0:
            self.cr0_owned = value
            self.context.cr0 = self._visible(value, f.CR0_GUEST_HOST_MASK, f.CR0_READ_SHADOW)
        elif encoding == f.GUEST_CR4:
            self.cr4_owned = value
            self.context.cr4 = self._visible(value, f.CR4_GUEST_HOST_MASK, f.CR4_READ_SHADOW)
        elif encoding == f.GUEST_PENDING_DEBUG_EXCEPTIONS:
            self.debug_exceptions = value
        else:
            self.context.write(encoding, value)

    def _visible(self, value: int, mask: int, shadow: int) -> int:
        owned = self.controls[mask]
        return value & ~owned | self.controls[shadow] & owned

    def _forget(self, encoding: int) -> None:
        """Drop what was derived from a control field that changes."""
        self.prepared = False
        if encoding == f.MSR_BITMAP:
            self.msr_bitmap = None
        elif encoding == f.VIRTUAL_APIC_PAGE:
            self.apic_page = None
        elif encoding in (f.TSC_OFFSET, f.TSC_MULTIPLIER):
            self.offset_set = None
        elif encoding == f.EXCEPTION_BITMAP:
            self.exceptions_set = False
        elif encoding in (f.EPTP, f.SHARED_EPTP, f.HKID):
            self.address_key = ()
        elif encoding in (f.CR0_GUEST_HOST_MASK, f.CR0_READ_SHADOW):
            self.context.cr0 = self._visible(
                self.context.cr0 | self.cr0_owned, f.CR0_GUEST_HOST_MASK, f.CR0_READ_SHADOW
            )
        elif encoding in (f.CR4_GUEST_HOST_MASK, f.CR4_READ_SHADOW):
            self.context.cr4 = self._visible(
                self.context.cr4 | self.cr4_owned, f.CR4_GUEST_HOST_MASK, f.CR4_READ_SHADOW
            )

    def store(self, region: memoryview) -> None:
        """VMCLEAR's write-back: every field to the 4 KiB region."""
        struct.pack_into("<II", region, 0, REVISION, 0)
        _REGION.pack_into(region, f.REGION_FIELDS, *(self.read(encoding) for encoding in f.NAMES))

    def load(self, region: memoryview) -> None:
        """VMPTRLD's read: every field from the region (zeros in a fresh one)."""
        values = _REGION.unpack_from(region, f.REGION_FIELDS)
        # Masks and shadows first: the guest's view of CR0 and CR4 depends on them.
        for encoding, value in zip(f.NAMES, values, strict=True):
            if encoding in self.controls:
                self.controls[encoding] = value
        for encoding, value in zip(f.NAMES, values, strict=True):
            if encoding not in self.controls:
                self.write(encoding, value)
        self.msr_bitmap = self.apic_page = self.offset_set = None
        self.address_key = ()
        self.exceptions_set = self.prepared = False

    def save_state(self, out: SectionWriter) -> None:
        """See :class:`swtdx.machine.saved.Saved`: the launch state, and the vCPU's registers that are not
        fields; the fields are in its region, into which it has been written back."""
        context = self.context
        out.u8(self.launched)
        for number in range(16):
            out.u64(context.gpr[number])
        out.u64(context.cr2)
        out.u64(context.xcr0)
        for number in _DEBUG_REGISTERS:
            out.u64(context.read_dr(number))
        for index in OTHER_MSRS:
            value = context.read_msr(index)
            out.u64(MASK64 if value is None else value)
        out.u32(len(context.extra_msrs))
        for index in sorted(context.extra_msrs):
            out.u32(index)
            out.u64(context.extra_msrs[index])
        out.blob(context.read_xstate())

    def load_state(self, section: SectionReader) -> None:
        """See :class:`swtdx.machine.saved.Saved`; it has been loaded from its region."""
        context = self.context
        self.launched = bool(section.u8())
        for number in range(16):
            context.gpr[number] = section.u64()
        context.cr2 = section.u64()
        context.xcr0 = section.u64()
        for number in _DEBUG_REGISTERS:
            context.write_dr(number, section.u64())
        for index in OTHER_MSRS:
            value = section.u64()
            if value != MASK64:
                context.write_msr(index, value)
        for _ in range(section.u32()):
            index = section.u32()
            context.extra_msrs[index] = section.u64()
        context.write_xstate(section.blob())

    def take_entry_event(self) -> tuple[int, int, int | None] | None:
        """The event to inject at this entry (vector, type, error code); its valid bit is cleared."""
        info = self.controls[f.ENTRY_INTERRUPTION_INFO]
        if not info & INTERRUPTION_VALID:
            return None
        self.controls[f.ENTRY_INTERRUPTION_INFO] = info & ~INTERRUPTION_VALID
        error = self.controls[f.ENTRY_EXCEPTION_ERROR_CODE] if info & 1 << 11 else None
        return info & 0xFF, info >> 8 & 7, error
