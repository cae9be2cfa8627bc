"""Memory as software and devices outside SEAM get it: no way to claim other rights."""

from __future__ import annotations

from swtdx.machine.memory.addresses import LINE, AddressMap
from swtdx.machine.memory.faults import Requestor
from swtdx.machine.memory.physical import PhysicalMemory


class HostMemory:
    """What the hypervisor can do with physical memory.

    Every access is a HOST access: private KeyIDs fault, the SEAM range aborts, a TD's lines read as
    zeros. Addresses (``pa``) may carry a shared KeyID; errors are those of :class:`PhysicalMemory`.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    @property
    def addresses(self) -> AddressMap:
        """How addresses divide into KeyID and HPA."""
        return self._memory.addresses

    @property
    def populated(self) -> tuple[tuple[int, int], ...]:
        """``(base, size)`` in bytes of the ranges that have memory."""
        return self._memory.populated

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``."""
        return self._memory.read(pa, size, Requestor.HOST)

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``pa``."""
        self._memory.write(pa, data, Requestor.HOST)

    def read_u64(self, pa: int) -> int:
        """The aligned little-endian 64-bit integer at ``pa``."""
        return self._memory.read_u64(pa, Requestor.HOST)

    def write_u64(self, pa: int, value: int) -> None:
        """Store an aligned little-endian 64-bit integer."""
        self._memory.write_u64(pa, value, Requestor.HOST)

    def direct_store(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """MOVDIR64B of whole 64-byte lines."""
        self._memory.direct_store(pa, data, Requestor.HOST)

    def direct_zero(self, pa: int, size: int) -> None:
        """MOVDIR64B of zeros: how a hypervisor takes back pages that were a TD's."""
        self._memory.direct_zero(pa, size, Requestor.HOST)

    def wbinvd(self) -> None:
        """Write back and invalidate all caches."""
        self._memory.wbinvd()

    def wbnoinvd(self) -> None:
        """Write back all caches and keep the lines."""
        self._memory.wbnoinvd()

    def clflush(self, pa: int, size: int = LINE) -> None:
        """CLFLUSH of all lines that ``size`` bytes at ``pa`` touch."""
        self._memory.clflush(pa, size, Requestor.HOST)


class DeviceMemory:
    """What a device's DMA can do: refused accesses read as all ones and write nothing, silently."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``."""
        return self._memory.read(pa, size, Requestor.DEVICE)

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``pa``."""
        self._memory.write(pa, data, Requestor.DEVICE)
