"""Port and MMIO address spaces: which device answers an access, decided in a dictionary or a bisection.

Devices claim ranges when a board is assembled; two devices that claim the same address are a mistake
of the board and refused at once.  At run time nothing a guest does raises: what no device claims reads
as all ones and swallows writes, as on a PC's buses.

An access carries its size in bytes.  A claim names the sizes that its device takes as they are; any
other access, and any that runs over the end of a claim, is cut into bytes as an ISA bridge would, so
that an 8-bit device never sees a wide access.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, Protocol

#: What an absent device answers, by size of the access in bytes.
ALL_ONES: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


class BusError(ValueError):
    """A claim that cannot be made, or an access that no guest instruction can produce."""


class BusDevice(Protocol):
    """What answers accesses inside one claim.  Offsets are bytes from the claim's start.

    Neither method may raise, whatever a guest writes.
    """

    def read(self, offset: int, size: int) -> int:
        """The little-endian value of ``size`` bytes at ``offset``; excess bits are dropped."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the little-endian ``value`` of ``size`` bytes at ``offset``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """One device's range ``[base, end)`` and the access sizes (bytes) that it takes whole."""

    base: int
    end: int
    device: BusDevice
    widths: frozenset[int]
    name: str


class _Space:
    """What both spaces share: checked claims and the slow path of an access."""

    def __init__(self, kind: str, limit: int, sizes: frozenset[int]) -> None:
        self._kind = kind
        self._limit = limit
        self._sizes = sizes
        self._claims: list[Claim] = []
        self._bases: list[int] = []

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Every claim, in order of address."""
        return tuple(self._claims)

    def _claim(self, base: int, length: int, device: BusDevice, name: str, widths: tuple[int, ...]) -> Claim:
        end = base + length
        if length < 1 or base < 0 or end > self._limit:
            raise BusError(
                f"{name}: {self._kind} {base:#x}..{end - 1:#x} is not inside 0..{self._limit - 1:#x}"
            )
        if 1 not in widths or not self._sizes.issuperset(widths):
            raise BusError(
                f"{name}: access widths {widths} must be among {sorted(self._sizes)} and include 1 byte"
            )
        index = bisect_right(self._bases, base)
        for other in self._claims[max(index - 1, 0) : index + 1]:
            if other.base < end and base < other.end:
                raise BusError(
                    f"{name} and {other.name} both claim {self._kind} {max(base, other.base):#x}; "
                    "move one of them"
                )
        claim = Claim(base, end, device, frozenset(widths), name)
        self._claims.insert(index, claim)
        self._bases.insert(index, base)
        return claim

    def _check(self, address: int, size: int) -> None:
        if size not in self._sizes:
            raise BusError(f"a {self._kind} access has {sorted(self._sizes)} bytes, not {size}")
        if not 0 <= address <= self._limit - size:
            raise BusError(f"{self._kind} {address:#x} (+{size}) is not inside 0..{self._limit - 1:#x}")

    def find(self, address: int) -> Claim | None:
        """The claim that covers ``address``, if any."""
        index = bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        claim = self._claims[index]
        return claim if address < claim.end else None

    def _read_bytes(self, address: int, size: int) -> int:
        value = 0
        for step in range(size):
            claim = self.find(address + step)
            byte = 0xFF if claim is None else claim.device.read(address + step - claim.base, 1) & 0xFF
            value |= byte << (8 * step)
        return value

    def _write_bytes(self, address: int, size: int, value: int) -> None:
        for step in range(size):
            claim = self.find(address + step)
            if claim is not None:
                claim.device.write(address + step - claim.base, 1, value >> (8 * step) & 0xFF)


class PortSpace(_Space):
    """The 64 KiB I/O port space.  Accesses have 1, 2 or 4 bytes."""

    SIZES: Final = frozenset((1, 2, 4))

    def __init__(self) -> None:
        super().__init__("port", 0x1_0000, self.SIZES)
        self._ports: dict[int, Claim] = {}

    def register(
        self, base: int, length: int, device: BusDevice, *, name: str, widths: tuple[int, ...] = (1,)
    ) -> None:
        """Give ports ``[base, base + length)`` to ``device``.

        Args:
            widths: access sizes in bytes that the device takes whole; others arrive byte by byte.

        Raises:
            BusError: the range is empty, outside the space, or partly claimed.
        """
        claim = self._claim(base, length, device, name, widths)
        self._ports.update(dict.fromkeys(range(base, base + length), claim))

    def read(self, port: int, size: int) -> int:
        """IN: ``size`` bytes (1, 2 or 4) from ``port``; all ones where no device answers.

        Raises:
            BusError: a size or port that IN cannot have.  For a TDVMCALL answer INVALID_OPERAND.
        """
        claim = self._ports.get(port)
        if claim is not None and size in claim.widths and port + size <= claim.end:
            return claim.device.read(port - claim.base, size) & ALL_ONES[size]
        self._check(port, size)
        if claim is None and size == 1:
            return 0xFF
        return self._read_bytes(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT: the low ``size`` bytes (1, 2 or 4) of ``value`` to ``port``.

        Raises:
            BusError: a size or port that OUT cannot have.  For a TDVMCALL answer INVALID_OPERAND.
        """
        claim = self._ports.get(port)
        if claim is not None and size in claim.widths and port + size <= claim.end:
            claim.device.write(port - claim.base, size, value & ALL_ONES[size])
            return
        self._check(port, size)
        if claim is not None or size > 1:
            self._write_bytes(port, size, value)


class MmioSpace(_Space):
    """Guest-physical addresses (without the shared bit) that are devices.  1, 2, 4 or 8 bytes."""

    SIZES: Final = frozenset((1, 2, 4, 8))

    def __init__(self, address_bits: int = 52) -> None:
        super().__init__("MMIO", 1 << address_bits, self.SIZES)

    def register(
        self, base: int, length: int, device: BusDevice, *, name: str, widths: tuple[int, ...] = (1, 2, 4, 8)
    ) -> None:
        """Give addresses ``[base, base + length)`` to ``device``; see :meth:`PortSpace.register`."""
        self._claim(base, length, device, name, widths)

    def read(self, address: int, size: int) -> int:
        """Read ``size`` bytes (1, 2, 4 or 8); all ones where no device answers.

        Raises:
            BusError: a size or address that no access can have.
        """
        claim = self.find(address)
        if claim is not None and size in claim.widths and address + size <= claim.end:
            return claim.device.read(address - claim.base, size) & ALL_ONES[size]
        self._check(address, size)
        return self._read_bytes(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write the low ``size`` bytes (1, 2, 4 or 8) of ``value``.

        Raises:
            BusError: a size or address that no access can have.
        """
        claim = self.find(address)
        if claim is not None and size in claim.widths and address + size <= claim.end:
            claim.device.write(address - claim.base, size, value & ALL_ONES[size])
            return
        self._check(address, size)
        self._write_bytes(address, size, value)
