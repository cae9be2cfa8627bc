"""The registers of a processor that executes machine code in the root world, or before VMXON.

QEMU runs it as it runs a TD's vCPU, by VMRUN, so that all that a TDX host's processor has and QEMU's does not
stops.  Interrupts do not: the local APIC is this software's own.
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch.exits import TYPE_HARDWARE_EXCEPTION
from swtdx.arch.units import MASK32
from swtdx.arch.x86 import CR4_SMXE, CR4_VMXE
from swtdx.machine.engine.qemu import vmcb
from swtdx.machine.engine.qemu.context import QemuContext

#: What stops; not HLT, PAUSE, INTR, and nothing that only a TD's processor hands over.
_INTERCEPTS: Final = vmcb.intercept(
    vmcb.EXIT_NMI,
    vmcb.EXIT_INIT,
    vmcb.EXIT_CPUID,
    vmcb.EXIT_RDPMC,
    vmcb.EXIT_RSM,
    vmcb.EXIT_INVD,
    vmcb.EXIT_WBINVD,
    vmcb.EXIT_INVLPGA,
    vmcb.EXIT_IOIO,
    vmcb.EXIT_MSR,
    vmcb.EXIT_SHUTDOWN,
    vmcb.EXIT_VMRUN,
    vmcb.EXIT_VMMCALL,
    vmcb.EXIT_VMLOAD,
    vmcb.EXIT_VMSAVE,
    vmcb.EXIT_STGI,
    vmcb.EXIT_CLGI,
    vmcb.EXIT_SKINIT,
    vmcb.EXIT_MONITOR,
    vmcb.EXIT_MWAIT,
)
#: The VMX interruption type of an external interrupt.
_EXTERNAL_INTERRUPT: Final = 0
#: CR4's bits that QEMU's processor does not have.
_HIDDEN_CR4: Final = CR4_VMXE | CR4_SMXE
#: Control registers whose reads, and whose writes, stop: with paging on, and off (a stand-in is loaded then).
_CR_PAGED: Final = (1 << 4, 1 << 0 | 1 << 4)
_CR_UNPAGED: Final = (0x19, 0x19)


class RootContext(QemuContext):
    """See the module's docstring."""

    __slots__ = ()
    root = True

    def _initialise(self) -> None:
        super()._initialise()
        struct.pack_into("<I", self._b, vmcb.INT_CTL, 0)

    def load_flat(self, gdt: int) -> None:
        """Segments as a boot loader leaves them for 64-bit code: flat, of the table at ``gdt``.

        CS is 0x10, data segments are 0x18, TR is 0x20 and not in the table, LDTR and IDTR are empty.
        """

        def segment(offset: int, selector: int, attributes: int, limit: int, base: int) -> None:
            struct.pack_into("<HHIQ", self._b, offset, selector, attributes, limit, base)

        segment(vmcb.CS, 0x10, 0xA9B, MASK32, 0)
        for offset in (vmcb.SS, vmcb.DS, vmcb.ES, vmcb.FS, vmcb.GS):
            segment(offset, 0x18, 0xC93, MASK32, 0)
        segment(vmcb.LDTR, 0, 0x82, 0, 0)
        segment(vmcb.TR, 0x20, 0x8B, 0x67, 0)
        segment(vmcb.GDTR, 0, 0, 0x1F, gdt)
        segment(vmcb.IDTR, 0, 0, 0, 0)
        self._b[vmcb.CPL] = 0
        self.needs_load = True

    @property
    def code_is_32_bit(self) -> bool:
        """CS.D."""
        return bool(self._b[vmcb.CS + 3] & 4)

    def use_ports(self, permission_map: int) -> None:
        """``permission_map``: where in QEMU's memory the 12 KiB lie that say which I/O ports stop."""
        struct.pack_into("<Q", self._b, vmcb.IOPM_PA, permission_map)

    def _apply_intercepts(self) -> None:
        struct.pack_into("<Q", self._b, vmcb.INTERCEPT, _INTERCEPTS)

    def _apply_paging(self) -> None:
        super()._apply_paging()
        self.q[vmcb.CR4 >> 3] &= ~_HIDDEN_CR4
        reads, writes = _CR_UNPAGED if self.unpaged else _CR_PAGED
        struct.pack_into("<HH", self._b, vmcb.INTERCEPT_CR, reads, writes)

    def undelivered(self) -> tuple[int, int, int | None] | None:
        """The event whose delivery the last stop interrupted: (vector, VMX type, error code).

        Also an interrupt, which the local APIC has handed over for good.  QEMU calls it an exception.
        """
        word = self._i[vmcb.EXIT_INT_INFO >> 2]
        vector, kind = word & 0xFF, word >> 8 & 7
        if word & vmcb.EVENT_VALID and kind == TYPE_HARDWARE_EXCEPTION and vector > 31:
            return vector, _EXTERNAL_INTERRUPT, None
        return super().undelivered()
