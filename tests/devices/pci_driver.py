"""A PCI driver for tests: finds functions, sizes and places BARs, walks capabilities.

Written from the PCI Local Bus Specification, driver's side; it knows nothing of our device models.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.devices.machines import Machine


@dataclass
class BarInfo:
    """A BAR as sizing shows it."""

    size: int
    io: bool
    wide: bool
    address: int = 0


class PciDevice:
    """One function of bus 0, reached through ports 0xCF8 and 0xCFC."""

    def __init__(self, machine: Machine, device: int, function: int = 0) -> None:
        self.machine = machine
        self._address = 1 << 31 | device << 11 | function << 8

    def read(self, register: int, size: int) -> int:
        self.machine.outp(0xCF8, 4, self._address | register & 0xFC)
        return self.machine.inp(0xCFC + (register & 3), size)

    def write(self, register: int, size: int, value: int) -> None:
        self.machine.outp(0xCF8, 4, self._address | register & 0xFC)
        self.machine.outp(0xCFC + (register & 3), size, value)

    @property
    def present(self) -> bool:
        return self.read(0, 4) != 0xFFFF_FFFF

    def bars(self) -> dict[int, BarInfo]:
        """Size every BAR by writing all ones, and put back what was there."""
        found: dict[int, BarInfo] = {}
        index = 0
        while index < 6:
            register = 0x10 + 4 * index
            before = self.read(register, 4)
            self.write(register, 4, 0xFFFF_FFFF)
            mask = self.read(register, 4)
            self.write(register, 4, before)
            io = bool(mask & 1)
            wide = not io and mask >> 1 & 3 == 2
            bits = mask & (~3 if io else ~15) & 0xFFFF_FFFF
            if bits:
                found[index] = BarInfo(size=bits & -bits, io=io, wide=wide)
            index += 2 if wide else 1
        return found

    def place(self, base: int) -> dict[int, BarInfo]:
        """Assign memory BARs from ``base`` on and switch decoding and bus mastering on."""
        bars = self.bars()
        for index, bar in sorted(bars.items(), key=lambda item: -item[1].size):
            if bar.io:
                continue
            bar.address = base
            self.write(0x10 + 4 * index, 4, base)
            if bar.wide:
                self.write(0x14 + 4 * index, 4, 0)
            base += bar.size
        self.write(0x04, 2, 0x0006)
        return bars

    def capabilities(self) -> list[tuple[int, int]]:
        """(id, offset) of each capability, in order."""
        if not self.read(0x06, 2) & 0x10:
            return []
        found: list[tuple[int, int]] = []
        at = self.read(0x34, 1) & 0xFC
        while at:
            assert len(found) < 48, "the capability list has a loop"
            found.append((self.read(at, 1), at))
            at = self.read(at + 1, 1) & 0xFC
        return found
