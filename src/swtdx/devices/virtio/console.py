"""The virtio console: a byte stream each way, /dev/hvc0 in Linux.

Source: VIRTIO 1.2, section 5.3.  One port; :mod:`swtdx.devices.virtio.ports` has several.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, Transport
from swtdx.devices.virtio.port import PortStream
from swtdx.devices.virtio.queue import Virtqueue

_F_SIZE: Final = 0
_RECEIVE: Final = 0
_TRANSMIT: Final = 1
_CONFIG: Final = struct.Struct("<HHII")


class VirtioConsole:
    """The device.

    Args:
        output: takes what the guest prints.
        size: columns and rows of the terminal, if known.
        wake: called, from the thread that calls :meth:`send` or :meth:`resize`, when there is
            something for :meth:`poll` to do; must not block.
    """

    device_id = 3
    class_code = 0x078000  # communication controller, other
    queue_sizes: tuple[int, ...] = (64, 64)

    def __init__(
        self,
        output: Callable[[bytes], None],
        *,
        size: tuple[int, int] | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.features = 1 << F_EVENT_IDX | (1 << _F_SIZE if size is not None else 0)
        self._stream = PortStream(output, wake)
        self._wake = wake
        self._size = size if size is not None else (0, 0)
        self._resized = False
        self._transport: Transport | None = None

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`.  Input that waits is kept."""
        self._transport = None
        self._stream.reset()

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`."""
        for cells in self._size:
            out.u16(cells)
        out.u8(self._resized)
        self._stream.save_state(out)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`.  The terminal's size is the one that the guest knows."""
        self._size = (section.u16(), section.u16())
        self._resized = bool(section.u8())
        self._stream.load_state(section)

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport = transport
        self._stream.attach(transport, queues[_RECEIVE], queues[_TRANSMIT])

    def send(self, data: bytes) -> None:
        """Input for the guest; kept until it has room.  Callable from any thread."""
        self._stream.send(data)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now.  Callable from any thread."""
        self._size = (columns, rows)
        self._resized = True
        self._wake()

    @property
    def pending(self) -> int:
        """Bytes of input that the guest has not been given."""
        return self._stream.pending

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        columns, rows = self._size
        return _CONFIG.pack(columns, rows, 1, 0)

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport = transport
        self._stream.activate(transport, queues[_RECEIVE], queues[_TRANSMIT])
        self._resized = False

    def notify(self, index: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if index == _TRANSMIT:
            self._stream.transmitted()
        elif index == _RECEIVE:
            self._stream.fill()

    def poll(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if self._resized and self._transport is not None:
            self._resized = False
            if self.features >> _F_SIZE & 1:
                self._transport.config_changed()
        self._stream.poll()
