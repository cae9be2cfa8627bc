"""The chipset functions that firmware and operating systems look for: Q35 host bridge, ICH9 LPC.

They are mostly their identity.  What they do: the host bridge's PCIEXBAR switches ECAM on where
firmware wants it; the LPC bridge remembers PMBASE and ACPI_CNTL (the power block itself stays at
0x600, which is where OVMF programs it).

Sources: Intel 3 Series Express Chipset data sheet (host bridge registers), Intel ICH9 data sheet (LPC).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.platform_structs import VENDOR_INTEL
from swtdx.devices.pci.function import COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, PciFunction
from swtdx.devices.pci.host import PciHost
from swtdx.devices.power import PM_BASE
from swtdx.devices.saved import In

Q35_HOST: Final = 0x29C0
ICH9_LPC: Final = 0x2918

_PCIEXBAR: Final = 0x60
_SMRAM: Final = 0x9D
_PMBASE: Final = 0x40
_ACPI_CNTL: Final = 0x44
_RCBA: Final = 0xF0
#: ECAM sizes by PCIEXBAR's length field: 256, 128 or 64 buses of 1 MiB.
_ECAM_LENGTH: Final = (256 << 20, 128 << 20, 64 << 20, 0)


class HostBridge(PciFunction):
    """The Q35's function 00:00.0.

    Args:
        ecam: where ECAM is from the start (256 MiB, aligned to its size), or None until software
            programs PCIEXBAR.
    """

    def __init__(self, host: PciHost, ecam: int | None = None) -> None:
        super().__init__(VENDOR_INTEL, Q35_HOST, class_code=0x060000)
        self._host = host
        # bit 0 enable, bits 2:1 length, bits 35:26 base
        self.define(_PCIEXBAR, 0 if ecam is None else ecam | 1, 8, writable=0xF_FC00_0007)
        self.define(_SMRAM, 0x02, 1, writable=0x78)
        # PAM0..6: which parts of the BIOS area are RAM.  All of it is, whatever is written here.
        self.define(0x90, 0, 7, writable=0x30_3333_3333_3333)
        self.hook(_PCIEXBAR, 8, self._move_ecam)
        self._move_ecam()

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`: ECAM is where PCIEXBAR says."""
        super().load_state(section)
        self._move_ecam()

    def _move_ecam(self) -> None:
        value = int.from_bytes(self.config[_PCIEXBAR : _PCIEXBAR + 8], "little")
        length = _ECAM_LENGTH[value >> 1 & 3] if value & 1 else 0
        self._host.set_ecam(value & 0xF_FC00_0000 & -(length or 1), length)


class LpcBridge(PciFunction):
    """The ICH9's function 00:1f.0."""

    def __init__(self) -> None:
        super().__init__(VENDOR_INTEL, ICH9_LPC, class_code=0x060100, revision=2)
        # I/O, memory and bus mastering cannot be switched off, and firmware looks for devices behind a
        # bridge only where they are on.
        self.define(COMMAND, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER, 2)
        self.define(_PMBASE, PM_BASE | 1, 4, writable=0xFF80)
        self.define(_ACPI_CNTL, 0, 1, writable=0x87)
        for pirq in (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B):
            self.define(pirq, 0x80, 1, writable=0x8F)
        self.define(0xA0, 0, 8, writable=0xFFFF_FFFF)  # GEN_PMCON_1..: storage
        self.define(_RCBA, 0, 4, writable=0xFFFF_C001)
