"""One port of a virtio console: a byte stream each way over a pair of queues.

Two things save TD exits.  The driver is asked not to notify us of the receive buffers that it adds,
unless input waits for one.  And "your output has been taken" is told late: Linux asks for an
interrupt for every 16 bytes that it prints, but then spins until they are taken anyway, so that by
the time of the next output it has seen the news and no longer wants the interrupt (by EVENT_IDX).
What is still wanted when the host next polls is delivered then.

Source: VIRTIO 1.2, section 5.3.6.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import Transport
from swtdx.devices.virtio.queue import Virtqueue

#: Bytes of input that are handed to the driver in one buffer at most.
_PIECE: Final = 65536


class PortStream:
    """The stream.  Everything but :meth:`send` is called under the transport's lock.

    Args:
        output: takes what the guest writes.
        wake: called when there is something for :meth:`poll` to do, from any thread; must not block.
    """

    def __init__(self, output: Callable[[bytes], None], wake: Callable[[], None]) -> None:
        self._output = output
        self._wake = wake
        self._input = bytearray()
        self._input_lock = threading.Lock()
        #: Whether the guest may be given input now; what comes meanwhile is kept.
        self.flowing = True
        self.reset()

    def reset(self) -> None:
        """Forget the driver.  Input that waits is kept."""
        self._transport: Transport | None = None
        self._receive: Virtqueue | None = None
        self._transmit: Virtqueue | None = None
        self._refill_wanted = False
        self._unfinished = False

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  Input that waits is kept."""
        with self._input_lock:
            out.blob(self._input)
        for flag in (self.flowing, self._refill_wanted, self._unfinished):
            out.u8(flag)
        out.u8(self._receive is not None)
        out.u8(self._transmit is not None)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        with self._input_lock:
            self._input = bytearray(section.blob())
        self.flowing, self._refill_wanted, self._unfinished, receives, transmits = map(bool, section.read(5))
        if not receives:
            self._receive = None
        if not transmits:
            self._transmit = None

    def attach(self, transport: Transport, receive: Virtqueue, transmit: Virtqueue) -> None:
        """The driver was ready when the state was saved that :meth:`load_state` will get."""
        self._transport = transport
        self._receive = receive
        self._transmit = transmit

    def activate(self, transport: Transport, receive: Virtqueue, transmit: Virtqueue) -> None:
        """The driver is ready.

        Raises:
            QueueError: a queue cannot be reached.
        """
        self._transport = transport
        if receive.enabled:
            self._receive = receive
            receive.set_notify(False)
        if transmit.enabled:
            self._transmit = transmit
        if self._input:
            self._wake()

    def send(self, data: bytes) -> None:
        """Input for the guest; kept until it has room.  Callable from any thread."""
        with self._input_lock:
            self._input += data
        self._wake()

    @property
    def pending(self) -> int:
        """Bytes of input that the guest has not been given."""
        return len(self._input)

    def transmitted(self) -> None:
        """The driver says that there is output.

        Raises:
            QueueError: it is not what a queue holds.
        """
        self._settle()
        self._drain()

    def poll(self) -> None:
        """Do what has piled up on the host's side.

        Raises:
            QueueError: a queue is not as it should be.
        """
        if self._unfinished:
            self._drain()
        self._settle()
        self.fill()

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

    def fill(self) -> None:
        """Hand out input as far as there are buffers; ask to hear of new ones only if there is more.

        Raises:
            QueueError: a queue is not as it should be.
        """
        queue = self._receive
        if queue is None or self._transport is None or not self.flowing:
            return
        pushed = False
        for _ in range(2 * queue.size):
            with self._input_lock:
                part = bytes(self._input[:_PIECE])
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
