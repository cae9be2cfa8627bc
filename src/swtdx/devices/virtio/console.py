"""The virtio console: a byte stream each way, /dev/hvc0 in Linux.

Two things save TD exits.  The driver is asked not to notify us of the receive buffers that it adds,
unless input waits for one.  And "your output has been taken" is told late: Linux asks for an
interrupt for every 16 bytes that it prints, but then spins until they are taken anyway, so that by
the time of the next output it has seen the news and no longer wants the interrupt (by EVENT_IDX).
What is still wanted when the host next polls is delivered then.

Source: VIRTIO 1.2, section 5.3.  One port; the queues are numbered so that more can follow.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final

from swtdx.devices.virtio.device import F_EVENT_IDX, Transport
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
        self._output = output
        self._wake = wake
        self._size = size if size is not None else (0, 0)
        self._resized = False
        self._input = bytearray()
        self._input_lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`.  Input that waits is kept."""
        self._transport: Transport | None = None
        self._receive: Virtqueue | None = None
        self._transmit: Virtqueue | None = None
        self._refill_wanted = False
        self._unfinished = False

    def send(self, data: bytes) -> None:
        """Input for the guest; kept until it has room.  Callable from any thread."""
        with self._input_lock:
            self._input += data
        self._wake()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now.  Callable from any thread."""
        self._size = (columns, rows)
        self._resized = True
        self._wake()

    @property
    def pending(self) -> int:
        """Bytes of input that the guest has not been given."""
        return len(self._input)

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        columns, rows = self._size
        return _CONFIG.pack(columns, rows, 1, 0)

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport = transport
        if queues[_RECEIVE].enabled:
            self._receive = queues[_RECEIVE]
            self._receive.set_notify(False)
        if queues[_TRANSMIT].enabled:
            self._transmit = queues[_TRANSMIT]
        self._resized = False
        if self._input:
            self._wake()

    def notify(self, index: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if index == _TRANSMIT:
            self._settle()
            self._drain()
        elif index == _RECEIVE:
            self._fill()

    def poll(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if self._resized and self._transport is not None:
            self._resized = False
            if self.features >> _F_SIZE & 1:
                self._transport.config_changed()
        if self._unfinished:
            self._drain()
        self._settle()
        self._fill()

    def _settle(self) -> None:
        """Send the interrupt for output taken earlier, if the driver still wants it."""
        if self._transport is not None and self._transmit is not None:
            self._transport.used(self._transmit)

    def _drain(self) -> None:
        """Take the output that is there; a guest that adds while we take is served in turns."""
        queue = self._transmit
        if queue is None:
            return
        self._unfinished = False
        for _ in range(2 * queue.size):
            chain = queue.pop()
            if chain is None:
                if not queue.event_idx:
                    return
                queue.set_notify(True)
                if not queue.available():
                    return
                continue
            data = queue.gather(chain)
            queue.push(chain, 0)
            if data:
                self._output(data)
        self._unfinished = True
        self._wake()

    def _fill(self) -> None:
        """Hand out input as far as there are buffers; ask to hear of new ones only if there is more."""
        queue = self._receive
        if queue is None or self._transport is None:
            return
        pushed = False
        for _ in range(2 * queue.size):
            with self._input_lock:
                part = bytes(self._input[:65536])
            if not part:
                break
            chain = queue.pop()
            if chain is None:
                if self._refill_wanted:
                    break
                self._want_refills(queue, True)
                continue  # one may have come before the driver could see our wish
            done = queue.scatter(chain, part)
            queue.push(chain, done)
            pushed = True
            with self._input_lock:
                del self._input[:done]
        if self._refill_wanted and not self._input:
            self._want_refills(queue, False)
        if pushed:
            self._transport.used(queue)

    def _want_refills(self, queue: Virtqueue, wanted: bool) -> None:
        self._refill_wanted = wanted
        queue.set_notify(wanted)
