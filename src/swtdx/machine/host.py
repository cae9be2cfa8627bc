"""The machine's public face: what software outside SEAM can do with it.

The hypervisor and its tools import this module and nothing else of ``swtdx.machine`` (import-linter
checks it).  Memory is reached with the rights of such software: a private KeyID faults, a TD's line
reads as zeros, the SEAM range does not exist.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from swtdx.arch.x86 import CR4_VMXE
from swtdx.machine.cpu.features import host_word
from swtdx.machine.faults import GeneralProtection, InvalidOpcode, ProcessorFault
from swtdx.machine.memory import Requestor, ReservedBitFault

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine
    from swtdx.machine.processor import LogicalProcessor

T = TypeVar("T")

__all__ = [
    "GeneralProtection",
    "Host",
    "HostMemory",
    "HostProcessor",
    "InvalidOpcode",
    "ProcessorFault",
    "ReservedBitFault",
]


class HostMemory:
    """Physical memory as the hypervisor reaches it: addresses carry a shared KeyID or none."""

    def __init__(self, machine: Machine) -> None:
        self._memory = machine.memory

    def read(self, pa: int, count: int) -> bytes:
        """``count`` bytes at physical address ``pa``.

        Raises:
            ReservedBitFault: the address carries a private KeyID.
        """
        return self._memory.read(pa, count, Requestor.HOST)

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``pa``; the same rules as :meth:`read`."""
        self._memory.write(pa, bytes(data), Requestor.HOST)

    def read_u64(self, pa: int) -> int:
        """The little-endian 8 bytes at ``pa``."""
        return int.from_bytes(self._memory.read(pa, 8, Requestor.HOST), "little")

    def write_u64(self, pa: int, value: int) -> None:
        """Store 8 bytes, little-endian."""
        self._memory.write(pa, value.to_bytes(8, "little"), Requestor.HOST)

    def transfer(self, ranges: Sequence[tuple[int, int]], move: Callable[[list[memoryview]], T]) -> T:
        """Call ``move`` with writable views of (physical address, bytes) ranges; its result.

        What a device that is a bus master does with much data.  The views are good during the call only, and
        no other access to memory comes in between: ``move`` must not wait for a thread that makes one.

        Raises:
            ReservedBitFault: an address carries a private KeyID.
            BusAbort, MachineCheck: there is no memory, or it is poisoned.
        """
        return self._memory.transfer(ranges, move, Requestor.HOST)

    def clear(self, pa: int, size: int) -> None:
        """Zero whole 4 KiB pages with MOVDIR64B, which also cures poisoned lines."""
        self._memory.direct_zero(pa, size, Requestor.HOST)


class HostProcessor:
    """A logical processor as the software that runs on it in VMX root mode uses it."""

    __slots__ = ("_lp", "gpr", "index", "package", "xmm")

    def __init__(self, lp: LogicalProcessor) -> None:
        self._lp = lp
        self.index = lp.index
        self.package = lp.package
        #: RAX..R15, x86 order; read and written in place.
        self.gpr = lp.gpr
        #: XMM0..XMM15.
        self.xmm = lp.xmm

    def seamcall(self) -> bool:
        """SEAMCALL with the operands in ``gpr``; False is VMfailInvalid (CF=1: no module answered).

        Raises:
            InvalidOpcode: not in VMX root operation.
            GeneralProtection: SEAM is not enabled.
        """
        self._lp.seamcall()
        return not self._lp.cf

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """CPUID: EAX, EBX, ECX, EDX.

        Software of the machine is shown some features that SEAM code is not, because the module would pass
        them on to guests, which run on the engine.
        """
        eax, ebx, ecx, edx = self._lp.cpuid(leaf, subleaf)
        return eax, ebx, ecx | host_word(leaf, subleaf, "ecx"), edx

    def vmxon(self) -> None:
        """Set CR4.VMXE and enter VMX root operation.

        Raises:
            GeneralProtection: in VMX operation already, or the BIOS does not allow it.
        """
        self._lp.write_cr4(self._lp.cr4 | CR4_VMXE)
        self._lp.vmxon()

    def vmxoff(self) -> None:
        """Leave VMX root operation."""
        self._lp.vmxoff()

    @property
    def pending(self) -> Sequence[int]:
        """Vectors of external interrupts that wait at the local APIC, ascending."""
        return sorted(self._lp.pending)

    def acknowledge(self, vector: int) -> None:
        """Take an external interrupt."""
        self._lp.acknowledge(vector)

    def interrupt(self, vector: int) -> None:
        """Send an interrupt to this processor (an IPI, a device's MSI).  Any thread may call."""
        self._lp.interrupt(vector)

    def nmi(self) -> None:
        """Send an NMI to this processor.  Any thread may call.

        In a TD it is a TD exit.  Elsewhere the handler runs where the processor executes its next SEAMCALL,
        or halts, if NMIs are not blocked.
        """
        self._lp.nmi()

    def on_nmi(self, handler: Callable[[], None] | None) -> None:
        """Make ``handler`` the software's NMI handler.  Without one, NMIs wait."""
        self._lp.nmi_handler = handler

    def iret(self) -> None:
        """End an NMI handler that software has called itself, because the NMI was a VM exit."""
        self._lp.iret()

    def arm_timer(self, deadline: int | None, vector: int) -> None:
        """Raise ``vector`` when the TSC reaches ``deadline``; None disarms."""
        self._lp.arm_timer(deadline, vector)

    def halt(self, timeout: float | None = None) -> None:
        """Wait for an interrupt (or ``timeout`` seconds)."""
        self._lp.halt(timeout)

    def acquire(self, lock: threading.Lock) -> None:
        """Take a lock that software on several processors shares, while those go on."""
        self._lp.acquire(lock)

    def pause(self, seconds: float) -> None:
        """Execute nothing for ``seconds``, while other processors go on."""
        self._lp.pause(seconds)

    def poll_timer(self) -> None:
        """Raise the timer's interrupt now if its deadline has passed."""
        self._lp.poll_timer(self._lp.machine.tsc())


class Host:
    """The hypervisor's machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.processors = [HostProcessor(lp) for lp in machine.processors]
        self.memory = HostMemory(machine)

    def memory_map(self) -> list[tuple[int, int]]:
        """Usable physical memory as (base, size) in bytes, as the BIOS reports it."""
        return list(self._machine.usable)

    @property
    def packages(self) -> int:
        """Number of processor packages."""
        return self._machine.config.packages

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run software on several processors, by index, side by side until all of it has returned.

        ``failed`` is told of an exception in one of them, and has to make the others return; then the first
        one is raised.
        """
        self._machine.together(programs, failed)

    def tsc(self) -> int:
        """RDTSC."""
        return self._machine.tsc()

    @property
    def tsc_hz(self) -> float:
        """Frequency of the TSC in Hz."""
        return self._machine.tsc_hz

    @property
    def keyid_shift(self) -> int:
        """The lowest physical address bit that holds the KeyID."""
        return self._machine.memory.addresses.hpa_bits

    @property
    def shared_keyids(self) -> int:
        """IA32_MKTME_KEYID_PARTITIONING[31:0]: shared KeyIDs besides 0."""
        return self._machine.memory.addresses.shared_keyids

    @property
    def private_keyids(self) -> int:
        """IA32_MKTME_KEYID_PARTITIONING[63:32]."""
        return self._machine.memory.addresses.private_keyids

    def wbinvd(self, package: int) -> None:
        """WBINVD on a processor of ``package``."""
        self._machine.memory.wbinvd()
