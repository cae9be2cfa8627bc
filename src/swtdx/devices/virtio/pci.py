"""virtio over PCI, without legacy: one BAR with the four structures, and MSI-X.

Every access that a driver makes costs several TD exits, so the structures are few and the
capabilities are in the order in which Linux looks for them.

A device offers VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM and does not work for a driver that
declines either: the second is what makes a TD's driver put its rings and buffers into shared memory.

Source: VIRTIO 1.2, section 4.1.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Final

from swtdx.devices.dma import Dma
from swtdx.devices.pci.function import STATUS, PciFunction
from swtdx.devices.pci.msix import MsixTable
from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.common import NO_VECTOR, CommonConfig
from swtdx.devices.virtio.device import (
    F_ACCESS_PLATFORM,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    STATUS_DRIVER_OK,
    STATUS_NEEDS_RESET,
    VirtioDevice,
)
from swtdx.devices.virtio.queue import QueueError, Virtqueue

VENDOR: Final = 0x1AF4
#: PCI device id of virtio device id 0.
DEVICE_ID_BASE: Final = 0x1040

# The BAR: registers in its first page, MSI-X in the second.
BAR_SIZE: Final = 0x2000
_COMMON: Final = 0x000
_ISR: Final = 0x100
_DEVICE: Final = 0x200
_NOTIFY: Final = 0x300
_TABLE: Final = 0x1000
_PBA: Final = 0x1800
_NOTIFY_MULTIPLIER: Final = 4
#: Vectors: one for the configuration and one for each queue, or, where that would be more than these, one for
#: all queues together.  A driver sets every vector up with several accesses, and Linux shares one if it must.
_MOST_VECTORS: Final = 4
_SHARED_VECTORS: Final = 2

_CAP_VENDOR: Final = 0x09
_CFG_COMMON, _CFG_NOTIFY, _CFG_ISR, _CFG_DEVICE, _CFG_PCI = 1, 2, 3, 4, 5
_ISR_QUEUE, _ISR_CONFIG = 1, 2
_STATUS_INTERRUPT: Final = 0x08


class VirtioPci(PciFunction):
    """A virtio device as a PCI function.

    Args:
        send_msi: performs a message-signalled interrupt: address, data.
    """

    def __init__(self, device: VirtioDevice, dma: Dma, send_msi: Callable[[int, int], None]) -> None:
        super().__init__(
            VENDOR,
            DEVICE_ID_BASE + device.device_id,
            class_code=device.class_code,
            revision=1,
            subsystem=(VENDOR, 0x40 + device.device_id),
        )
        self.device = device
        self._lock = threading.RLock()
        self._isr = 0
        #: Why the device stopped (DEVICE_NEEDS_RESET), or None while it is well.
        self.failure: str | None = None
        queues = [Virtqueue(dma, index, size) for index, size in enumerate(device.queue_sizes)]
        if len(queues) * _NOTIFY_MULTIPLIER > _TABLE - _NOTIFY:
            raise ValueError(f"a virtio function has room for fewer queues than {len(queues)}")
        vectors = len(queues) + 1 if len(queues) < _MOST_VECTORS else _SHARED_VECTORS
        self.common = CommonConfig(
            queues, device.features | 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM, vectors, self._status_written
        )
        self._msix = MsixTable(self, vectors, send_msi)
        self.add_bar(0, BAR_SIZE, self)
        self._add_structures(len(queues), len(device.config()))

    def _add_structures(self, queues: int, config_length: int) -> None:
        # In the order in which Linux's driver looks for them.
        self._add_structure(_CFG_COMMON, _COMMON, CommonConfig.LENGTH)
        self._add_structure(_CFG_ISR, _ISR, 1)
        self._add_structure(
            _CFG_NOTIFY, _NOTIFY, _NOTIFY_MULTIPLIER * queues, struct.pack("<I", _NOTIFY_MULTIPLIER)
        )
        if config_length:
            self._add_structure(_CFG_DEVICE, _DEVICE, config_length)
        self._msix.install(0, _TABLE, _PBA)
        # bar, offset and length are the driver's to write, and the data behind them is a window.
        body = struct.pack("<BBB3xII4x", 20, _CFG_PCI, 0, 0, 0)
        writable = b"\0\0\xff" + bytes(3) + b"\xff" * 12
        self._window = self.add_capability(_CAP_VENDOR, body, writable)

    def _add_structure(self, kind: int, offset: int, length: int, extra: bytes = b"") -> None:
        body = struct.pack("<BBB3xII", 16 + len(extra), kind, 0, offset, length) + extra
        self.add_capability(_CAP_VENDOR, body)

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        with self._lock:
            super().save_state(out)
            out.u8(self._isr)
            out.text(self.failure or "")
            self._msix.save_state(out)
            self.common.save_state(out)
            self.device.save_state(out)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        with self._lock:
            super().load_state(section)
            self._isr = section.u8()
            self.failure = section.text() or None
            self._msix.load_state(section)
            self.common.load_state(section)
            if self.common.running:
                self.device.attach(self, self.common.queues)
            self.device.load_state(section)

    # BAR 0

    def read(self, offset: int, size: int) -> int:
        """Read from BAR 0."""
        with self._lock:
            if offset >= _PBA:
                return self._msix.read_pending(offset - _PBA, size)
            if offset >= _TABLE:
                return self._msix.read_table(offset - _TABLE, size)
            if offset >= _NOTIFY:
                return 0
            if offset >= _DEVICE:
                start = offset - _DEVICE
                return int.from_bytes(self.device.config()[start : start + size], "little")
            if offset >= _ISR:
                return self._take_isr() if offset == _ISR else 0
            return self.common.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write to BAR 0."""
        with self._lock:
            if offset >= _TABLE:
                if offset < _PBA:
                    self._msix.write_table(offset - _TABLE, size, value)
            elif offset >= _NOTIFY:
                self._notify((offset - _NOTIFY) // _NOTIFY_MULTIPLIER)
            elif offset < _ISR:
                try:
                    self.common.write(offset, size, value)
                except QueueError as error:
                    self._stop(str(error))
            # The device-specific configuration of the devices that exist is read-only.

    def _take_isr(self) -> int:
        isr, self._isr = self._isr, 0
        self.config[STATUS] &= ~_STATUS_INTERRUPT
        return isr

    # Configuration space: the window of 4.1.4.9

    def _window_target(self) -> tuple[int, int] | None:
        config = self.config
        base = self._window
        bar = config[base + 4]
        offset, length = struct.unpack_from("<II", config, base + 8)
        if bar or length not in (1, 2, 4) or offset % length or offset + length > BAR_SIZE:
            return None
        return offset, length

    def read_config(self, offset: int, size: int) -> int:
        """See :meth:`PciFunction.read_config`; a read of the window reads the BAR."""
        data = self._window + 16
        with self._lock:
            if data <= offset < data + 4 and (target := self._window_target()) is not None:
                value = self.read(*target)
                self.config[data : data + 4] = value.to_bytes(4, "little")
            return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """See :meth:`PciFunction.write_config`; a write of the window writes the BAR."""
        data = self._window + 16
        with self._lock:
            super().write_config(offset, size, value)
            if data <= offset < data + 4 and (target := self._window_target()) is not None:
                at, length = target
                self.write(at, length, int.from_bytes(self.config[data : data + length], "little"))

    # The device and its driver

    def _status_written(self, before: int, after: int) -> None:
        if after == 0:
            self.failure = None
            self._isr = 0
            self.config[STATUS] &= ~_STATUS_INTERRUPT
            self.device.reset()
        elif after & ~before & STATUS_DRIVER_OK:
            features = self.common.driver_features
            for queue in self.common.queues:
                queue.event_idx = bool(features >> F_EVENT_IDX & 1)
                queue.indirect = bool(features >> F_INDIRECT_DESC & 1)
            if self.is_bus_master:
                self._guard(lambda: self.device.activate(self, self.common.queues, features))
            else:
                self._stop("the driver is ready but has not made the function a bus master")

    def _notify(self, index: int) -> None:
        queues = self.common.queues
        if self.common.running and index < len(queues) and queues[index].enabled:
            self._guard(lambda: self.device.notify(index))

    def poll(self) -> None:
        """Let the device do what has piled up on the host's side."""
        with self._lock:
            if self.common.running:
                self._guard(self.device.poll)

    def _guard(self, action: Callable[[], None]) -> None:
        """Do something that uses the driver's queues; if they are broken the device stops."""
        if not self.is_bus_master:
            return  # no DMA without the driver's leave
        try:
            action()
        except QueueError as error:
            self._stop(str(error))

    def _stop(self, failure: str) -> None:
        self.failure = failure
        self.common.status |= STATUS_NEEDS_RESET
        self.config_changed()

    def used(self, queue: Virtqueue) -> None:
        """See :class:`~.device.Transport`."""
        if queue.wants_interrupt():
            self._interrupt(self.common.queue_vectors[queue.index], _ISR_QUEUE)

    def config_changed(self) -> None:
        """See :class:`~.device.Transport`."""
        with self._lock:
            self._isr |= _ISR_CONFIG
            self._interrupt(self.common.config_vector, _ISR_CONFIG)

    def _interrupt(self, vector: int, reason: int) -> None:
        if self._msix.enabled:
            if vector != NO_VECTOR:
                self._msix.fire(vector)
        else:
            # There is no interrupt pin: a driver without MSI-X has to poll.
            self._isr |= reason
            self.config[STATUS] |= _STATUS_INTERRUPT
