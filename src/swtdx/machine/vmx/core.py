"""The core of the VMX unit: the memory, addresses and control fields that all its parts work on.

It decides nothing; what a stop of the engine means is decided by the parts that are handed it.
"""

from __future__ import annotations

from swtdx.arch import vmcs as f
from swtdx.arch.units import MASK64
from swtdx.machine.cpu.core import ProcessorCore
from swtdx.machine.memory import Requestor
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.vmcs import Vmcs


class VmxCore:
    """Of one logical processor.  ``exit`` is the last VM exit, or the one that is being made."""

    def __init__(self, lp: ProcessorCore) -> None:
        self.lp = lp
        self.machine = lp.machine
        self.memory = lp.machine.memory
        self.guest = Requestor.TD
        self.exit = VmExit()
        self._keyid_shift = self.memory.addresses.hpa_bits

    # ------------------------------------------------------------------ addresses
    def split(self, pa: int) -> tuple[int, int]:
        """(HPA, KeyID) of a physical address."""
        shift = self._keyid_shift
        return pa & (1 << shift) - 1, pa >> shift

    def keyid_bits(self, keyid: int) -> int:
        """``keyid`` where physical addresses carry it."""
        return keyid << self._keyid_shift

    @staticmethod
    def shared_bit(vmcs: Vmcs) -> int:
        """The GPA bit that selects shared memory: 51 with a 5-level Secure EPT of GPAW 52, else 47."""
        return 1 << 51 if vmcs.controls[f.EPTP] >> 3 & 7 == 4 else 1 << 47

    def map_private_table(self, pa: int) -> memoryview:
        """A page that the processor reads with a private KeyID (Secure EPT, #VE area)."""
        return self.memory.map_page(*self.split(pa))

    def map_shared_root(self, pa: int) -> memoryview:
        """The table at SHARED_EPTP: a page of zeros of the TD's own until the hypervisor has set it."""
        if self.memory.addresses.is_private(self.split(pa)[1]):
            return self.map_private_table(pa)
        return self.map_shared_table(pa)

    def map_shared_table(self, pa: int) -> memoryview:
        """A page of the hypervisor's EPT."""
        return memoryview(self.memory.read(pa, 4096, Requestor.HOST))

    # ------------------------------------------------------------------ what the VMCS says
    def code_bits(self, vmcs: Vmcs) -> int:
        """Whether the guest executes 64-, 32- or 16-bit code."""
        if vmcs.context.long_mode:
            return 64
        return 32 if vmcs.context.read(f.GUEST_CS_ACCESS_RIGHTS) & 1 << 14 else 16

    @staticmethod
    def linear_rip(vmcs: Vmcs) -> int:
        """The linear address of CS:RIP."""
        context = vmcs.context
        return int(context.rip if context.long_mode else context.cs_base + context.rip & 0xFFFFFFFF)

    def guest_tsc(self, vmcs: Vmcs) -> int:
        """What RDTSC gives the guest now."""
        tsc = self.machine.tsc()
        return (tsc * vmcs.controls[f.TSC_MULTIPLIER] >> 48) + vmcs.controls[f.TSC_OFFSET] & MASK64

    @staticmethod
    def msr_exits(vmcs: Vmcs, index: int, write: bool) -> bool:
        """The MSR bitmap's verdict (SDM volume 3, section 25.6.9)."""
        assert vmcs.msr_bitmap is not None
        if index < 0x2000:
            base = 0
        elif 0xC0000000 <= index < 0xC0002000:
            base, index = 1024, index - 0xC0000000
        else:
            return True
        return bool(vmcs.msr_bitmap[base + (2048 if write else 0) + (index >> 3)] >> (index & 7) & 1)
