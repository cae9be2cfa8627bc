"""A virtio driver for tests, from the driver's side of VIRTIO 1.2 (sections 2.7, 3.1 and 4.1).

It runs against QEMU's console and against ours.
"""

from __future__ import annotations

import struct

from tests.devices.machines import Machine
from tests.devices.pci_driver import PciDevice

VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
EVENT_IDX = 1 << 29

COMMON, NOTIFY, ISR, DEVICE, PCI_CFG = 1, 2, 3, 4, 5
NO_VECTOR = 0xFFFF


class Ring:
    """The driver's half of a split virtqueue, in guest memory from ``base`` on."""

    def __init__(self, machine: Machine, base: int, size: int, event_idx: bool) -> None:
        self.machine = machine
        self.size = size
        self.event_idx = event_idx
        self.desc = base
        self.avail = base + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        machine.mem_write(base, bytes(self.end - base))
        self._idx = 0
        self._seen = 0
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}

    def _half(self, gpa: int) -> int:
        return int.from_bytes(self.machine.mem_read(gpa, 2), "little")

    def put_descriptor(self, index: int, gpa: int, length: int, flags: int, following: int) -> None:
        self.machine.mem_write(self.desc + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def expose(self, head: int) -> None:
        """Put ``head`` into the available ring and move its index."""
        self.machine.mem_write(self.avail + 4 + 2 * (self._idx % self.size), struct.pack("<H", head))
        self._idx = self._idx + 1 & 0xFFFF
        self.machine.mem_write(self.avail + 2, struct.pack("<H", self._idx))

    def add(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> int:
        """Offer one buffer; returns the head of its chain."""
        pieces = [(gpa, length, 0) for gpa, length in readable]
        pieces += [(gpa, length, 2) for gpa, length in writable]
        taken = [self._free.pop() for _ in pieces]
        for place, (gpa, length, flags) in enumerate(pieces):
            last = place == len(pieces) - 1
            self.put_descriptor(
                taken[place], gpa, length, flags | (0 if last else 1), 0 if last else taken[place + 1]
            )
        self._chains[taken[0]] = taken
        self.expose(taken[0])
        return taken[0]

    def should_notify(self, added: int = 1) -> bool:
        """Whether the device wants to hear of the last ``added`` buffers."""
        if self.event_idx:
            event = self._half(self.used + 4 + 8 * self.size)
            return (self._idx - event - 1 & 0xFFFF) < added
        return not self._half(self.used) & 1

    def take(self) -> tuple[int, int] | None:
        """The next used element (head, bytes written), and ask to be interrupted for the one after."""
        if self._half(self.used + 2) == self._seen:
            return None
        at = self.used + 4 + 8 * (self._seen % self.size)
        head, written = struct.unpack("<II", self.machine.mem_read(at, 8))
        self._seen = self._seen + 1 & 0xFFFF
        if self.event_idx:
            self.machine.mem_write(self.avail + 4 + 2 * self.size, struct.pack("<H", self._seen))
        self._free += self._chains.pop(head)
        return head, written

    def want_interrupts(self, wanted: bool) -> None:
        self.machine.mem_write(self.avail, struct.pack("<H", 0 if wanted else 1))


class VirtioDriver:
    """Brings a virtio-pci function up, step by step or with :meth:`start`."""

    def __init__(self, machine: Machine, slot: int, window: int = 0xC000_0000) -> None:
        self.machine = machine
        self.pci = PciDevice(machine, slot)
        bars = self.pci.place(window)
        self._where: dict[int, tuple[int, int]] = {}
        self.window_capability = 0
        self.msix_capability = 0
        self.notify_multiplier = 0
        for capability, at in self.pci.capabilities():
            if capability == 0x11:
                self.msix_capability = at
                table = self.pci.read(at + 4, 4)
                self.msix_table = bars[table & 7].address + (table & ~7)
                pending = self.pci.read(at + 8, 4)
                self.msix_pending = bars[pending & 7].address + (pending & ~7)
            if capability != 0x09:
                continue
            kind, bar = self.pci.read(at + 3, 1), self.pci.read(at + 4, 1)
            if kind == PCI_CFG:
                self.window_capability = at
            elif kind not in self._where and bar in bars and bars[bar].address:
                offset, length = self.pci.read(at + 8, 4), self.pci.read(at + 12, 4)
                self._where[kind] = (bars[bar].address + offset, length)
                if kind == NOTIFY:
                    self.notify_multiplier = self.pci.read(at + 16, 4)
        self.rings: dict[int, Ring] = {}
        self._notify_at: dict[int, int] = {}

    def address(self, kind: int, offset: int = 0) -> int:
        return self._where[kind][0] + offset

    def length(self, kind: int) -> int:
        return self._where[kind][1]

    def common(self, offset: int, size: int) -> int:
        return self.machine.mmio_read(self.address(COMMON, offset), size)

    def set_common(self, offset: int, size: int, value: int) -> None:
        self.machine.mmio_write(self.address(COMMON, offset), size, value)

    @property
    def status(self) -> int:
        return self.common(0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.set_common(0x14, 1, value)

    def offered(self) -> int:
        low, high = 0, 0
        self.set_common(0x00, 4, 0)
        low = self.common(0x04, 4)
        self.set_common(0x00, 4, 1)
        high = self.common(0x04, 4)
        return high << 32 | low

    def accept(self, features: int) -> bool:
        """Negotiate ``features``; whether the device agreed."""
        self.status = 1
        self.status = 3
        for half in (0, 1):
            self.set_common(0x08, 4, half)
            self.set_common(0x0C, 4, features >> 32 * half & 0xFFFF_FFFF)
        self.status = 11
        return bool(self.status & 8)

    def set_queue(self, index: int, ring: Ring, vector: int = NO_VECTOR) -> int:
        """Program and enable one queue; returns the vector that the device took."""
        self.set_common(0x16, 2, index)
        self.set_common(0x18, 2, ring.size)
        for offset, value in ((0x20, ring.desc), (0x28, ring.avail), (0x30, ring.used)):
            self.set_common(offset, 4, value & 0xFFFF_FFFF)
            self.set_common(offset + 4, 4, value >> 32)
        self.set_common(0x1A, 2, vector)
        taken = self.common(0x1A, 2)
        self._notify_at[index] = self.common(0x1E, 2) * self.notify_multiplier
        self.set_common(0x1C, 2, 1)
        self.rings[index] = ring
        return taken

    def notify(self, index: int) -> None:
        self.machine.mmio_write(self.address(NOTIFY, self._notify_at[index]), 2, index)

    def enable_msix(self, vectors: int, mailboxes: int) -> None:
        """Unmask ``vectors`` vectors; vector n is a write of 0x100 + n to ``mailboxes`` + 4 n."""
        self.pci.write(self.msix_capability + 2, 2, 0x8000)
        for vector in range(vectors):
            entry = self.msix_table + 16 * vector
            for offset, value in ((0, mailboxes + 4 * vector), (4, 0), (8, 0x100 + vector), (12, 0)):
                self.machine.mmio_write(entry + offset, 4, value)

    def start(self, features: int, *, queues: int = 2, size: int = 16, memory: int = 0x10000) -> None:
        """Reset, negotiate and run with ``queues`` queues, queue n using vector n + 1 for n in order."""
        self.status = 0
        assert self.status == 0
        assert self.accept(features)
        self.set_common(0x10, 2, 0)
        for index in range(queues):
            ring = Ring(self.machine, memory, size, bool(features & EVENT_IDX))
            assert self.set_queue(index, ring, index + 1) in (index + 1, NO_VECTOR)
            memory = (ring.end + 0xFFF) & ~0xFFF
        self.status = 15
        assert self.status == 15
