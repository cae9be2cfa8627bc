"""The common configuration structure of virtio over PCI: features, status and the queues' addresses.

Source: VIRTIO 1.2, 4.1.4.3.  The fields beyond ``queue_device`` belong to features that no device
here offers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from swtdx.arch.units import MASK32
from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import (
    F_ACCESS_PLATFORM,
    F_VERSION_1,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
)
from swtdx.devices.virtio.queue import Virtqueue

#: "No MSI-X vector".
NO_VECTOR: Final = 0xFFFF
_REQUIRED: Final = 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM
_IMAGE: Final = struct.Struct("<IIIIHHBBHHHHHQQQ")


class CommonConfig:
    """The structure's registers.

    Args:
        offered: feature bits, 64.
        vectors: how many MSI-X vectors exist; others read back as :data:`NO_VECTOR`.
        status_written: called with the old and the new device status when the driver changes it.
    """

    LENGTH: Final = _IMAGE.size

    def __init__(
        self,
        queues: Sequence[Virtqueue],
        offered: int,
        vectors: int,
        status_written: Callable[[int, int], None],
    ) -> None:
        self.queues = queues
        self.offered = offered
        self._vectors = vectors
        self._status_written = status_written
        self._writers: dict[tuple[int, int], Callable[[int], None]] = {
            (0x00, 4): self._select_offered,
            (0x08, 4): self._select_accepted,
            (0x0C, 4): self._accept,
            (0x10, 2): self._set_config_vector,
            (0x14, 1): self._set_status,
            (0x16, 2): self._select_queue,
            (0x18, 2): self._set_size,
            (0x1A, 2): self._set_vector,
            (0x1C, 2): self._enable,
        }
        for base, area in ((0x20, "desc"), (0x28, "avail"), (0x30, "used")):
            # 64-bit fields may be written in halves, and Linux does.
            self._writers[base, 4] = partial(self._set_area, area, MASK32, 0)
            self._writers[base + 4, 4] = partial(self._set_area, area, MASK32, 32)
            self._writers[base, 8] = partial(self._set_area, area, (1 << 64) - 1, 0)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.driver_features = 0
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.queues)
        self._offered_select = 0
        self._accepted_select = 0
        self._queue_select = 0
        for queue in self.queues:
            queue.reset()

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`: the registers, and the queues."""
        out.u8(self.status)
        out.u64(self.driver_features)
        out.u32(self._offered_select)
        out.u32(self._accepted_select)
        out.u16(self._queue_select)
        out.u16(self.config_vector)
        out.u16(len(self.queues))
        for queue, vector in zip(self.queues, self.queue_vectors, strict=True):
            out.u16(vector)
            queue.save_state(out)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self.status = section.u8()
        self.driver_features = section.u64()
        self._offered_select = section.u32()
        self._accepted_select = section.u32()
        self._queue_select = section.u16()
        self.config_vector = section.u16()
        queues = section.u16()
        if queues != len(self.queues):
            raise section.fail(f"a virtio device of {queues} queues, and this has {len(self.queues)}")
        for queue in self.queues:
            self.queue_vectors[queue.index] = section.u16()
            queue.load_state(section)

    @property
    def running(self) -> bool:
        """Whether the driver is ready and the device is well."""
        return self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK

    @property
    def _selected(self) -> Virtqueue | None:
        index = self._queue_select
        return self.queues[index] if index < len(self.queues) else None

    def read(self, offset: int, size: int) -> int:
        """Any bytes of the structure."""
        queue = self._selected
        offered = self.offered >> 32 * self._offered_select & MASK32 if self._offered_select < 2 else 0
        accepted = (
            self.driver_features >> 32 * self._accepted_select & MASK32 if self._accepted_select < 2 else 0
        )
        # Generation 0: no device here has configuration that takes more than one access to read.
        image = _IMAGE.pack(
            self._offered_select,
            offered,
            self._accepted_select,
            accepted,
            self.config_vector,
            len(self.queues),
            self.status,
            0,
            self._queue_select,
            queue.size if queue else 0,
            self.queue_vectors[queue.index] if queue else NO_VECTOR,
            queue.enabled if queue else 0,
            queue.index if queue else 0,
            queue.desc if queue else 0,
            queue.avail if queue else 0,
            queue.used if queue else 0,
        )
        return int.from_bytes(image[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a field, whole; anything else is ignored, as are fields that are the device's.

        Raises:
            QueueError: a queue was enabled that cannot work.
        """
        writer = self._writers.get((offset, size))
        if writer is not None:
            writer(value)

    def _select_offered(self, value: int) -> None:
        self._offered_select = value

    def _select_accepted(self, value: int) -> None:
        self._accepted_select = value

    def _accept(self, value: int) -> None:
        if self._accepted_select < 2 and not self.status & STATUS_FEATURES_OK:
            shift = 32 * self._accepted_select
            self.driver_features = self.driver_features & ~(MASK32 << shift) | value << shift

    def _set_config_vector(self, value: int) -> None:
        self.config_vector = value if value < self._vectors else NO_VECTOR

    def _set_status(self, value: int) -> None:
        before = self.status
        if value == 0:
            self._reset()
        else:
            if value & STATUS_FEATURES_OK and not before & STATUS_FEATURES_OK and not self._acceptable():
                value &= ~STATUS_FEATURES_OK
            if not value & STATUS_FEATURES_OK:
                value &= ~STATUS_DRIVER_OK  # there is no running without having agreed on features
            self.status = value | before & STATUS_NEEDS_RESET
        self._status_written(before, self.status)

    def _acceptable(self) -> bool:
        accepted = self.driver_features
        return not accepted & ~self.offered and accepted & _REQUIRED == _REQUIRED

    def _select_queue(self, value: int) -> None:
        self._queue_select = value

    def _set_size(self, value: int) -> None:
        queue = self._selected
        if queue is not None and not queue.enabled and 0 < value <= queue.max_size and not value & value - 1:
            queue.size = value

    def _set_vector(self, value: int) -> None:
        queue = self._selected
        if queue is not None:
            self.queue_vectors[queue.index] = value if value < self._vectors else NO_VECTOR

    def _set_area(self, area: str, mask: int, shift: int, value: int) -> None:
        queue = self._selected
        if queue is not None and not queue.enabled:
            setattr(queue, area, getattr(queue, area) & ~(mask << shift) | value << shift)

    def _enable(self, value: int) -> None:
        queue = self._selected
        if value == 1 and queue is not None and not queue.enabled:
            queue.enable()
