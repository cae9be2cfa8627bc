"""A virtio console with several ports: the kernel's console, and named channels beside it.

Port 0 is a console (/dev/hvc0 in Linux).  Every other port is a channel that no kernel message and no
terminal line discipline touches: Linux shows it as /dev/vportXpY and its name in
/sys/class/virtio-ports/vportXpY/name.

Source: VIRTIO 1.2, section 5.3 (VIRTIO_CONSOLE_F_MULTIPORT: queues in 5.3.2, control messages in
5.3.6.2).  All integers are little-endian.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.device import F_EVENT_IDX, Transport
from swtdx.devices.virtio.port import PortStream
from swtdx.devices.virtio.queue import Chain, Virtqueue

_F_MULTIPORT: Final = 1
_CONFIG: Final = struct.Struct("<HHII")
_CONTROL: Final = struct.Struct("<IHH")
#: Queues: port 0's pair, the control pair, then a pair for each further port.
_CONTROL_RECEIVE: Final = 2
_CONTROL_TRANSMIT: Final = 3
#: Most of what a driver can leave us to say before it has buffers for it: a hostile one asks for more.
_MOST_WAITING: Final = 256


class Event(enum.IntEnum):
    """Control messages."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(frozen=True, slots=True)
class PortConfig:
    """A channel: its ``name`` in the guest, and what takes the bytes that the guest writes there."""

    name: str
    output: Callable[[bytes], None]


class _Port:
    """A port and what both ends have said of it."""

    def __init__(self, stream: PortStream, name: str | None) -> None:
        self.stream = stream
        #: None: the console.
        self.name = name
        self.ready = False
        #: The host has no more input: told the guest once all of it has been handed over.
        self.ending = False
        self.ended = False


class VirtioPorts:
    """The device.

    Args:
        console: takes what the guest prints on port 0.
        ports: the channels, ports 1 and up.
        wake: called, from the thread that calls :meth:`send` and the like, when there is something for
            :meth:`poll` to do; must not block.
    """

    device_id = 3
    class_code = 0x078000  # communication controller, other

    def __init__(
        self,
        console: Callable[[bytes], None],
        ports: Sequence[PortConfig],
        *,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.features = 1 << F_EVENT_IDX | 1 << _F_MULTIPORT
        self._wake = wake
        self._ports = [_Port(PortStream(console, wake), None)]
        self._ports += [_Port(PortStream(port.output, wake), port.name) for port in ports]
        self.queue_sizes: tuple[int, ...] = (64, 64) + (64, 64) + (64, 64) * len(ports)
        self._by_name = {port.name: port for port in self._ports if port.name is not None}
        self._to_say: deque[bytes] = deque()
        self._transport: Transport | None = None
        self._queues: Sequence[Virtqueue] = ()
        self.reset()

    def reset(self) -> None:
        """See :class:`~.device.VirtioDevice`.  Input that waits is kept."""
        self._transport = None
        self._queues = ()
        self._to_say.clear()
        for number, port in enumerate(self._ports):
            port.stream.reset()
            # Linux throws away what arrives at a channel that no program has open.
            port.stream.flowing = number == 0
            port.ready = port.ended = False

    def save_state(self, out: Out) -> None:
        """See :class:`~.device.VirtioDevice`."""
        out.u16(len(self._ports))
        for port in self._ports:
            out.text(port.name or "")
            port.stream.save_state(out)
            for flag in (port.ready, port.ending, port.ended):
                out.u8(flag)
        out.u16(len(self._to_say))
        for message in self._to_say:
            out.blob(message)

    def load_state(self, section: In) -> None:
        """See :class:`~.device.VirtioDevice`.  The channels must be the same, under the same names."""
        if section.u16() != len(self._ports):
            raise section.fail(f"a console of another number of ports than {len(self._ports)}")
        for port in self._ports:
            name = section.text()
            if name != (port.name or ""):
                raise section.fail(f"a console with a port {name!r}, and here it is {port.name!r}")
            port.stream.load_state(section)
            port.ready, port.ending, port.ended = map(bool, section.read(3))
        self._to_say = deque(section.blob() for _ in range(section.u16()))

    def attach(self, transport: Transport, queues: Sequence[Virtqueue]) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport = transport
        self._queues = queues
        for number, port in enumerate(self._ports):
            first = _first_queue(number)
            port.stream.attach(transport, queues[first], queues[first + 1])

    def send(self, data: bytes) -> None:
        """Input for the console.  Callable from any thread."""
        self._ports[0].stream.send(data)

    def resize(self, columns: int, rows: int) -> None:
        """A console beside channels has no size; nothing happens."""

    @property
    def pending(self) -> int:
        """Bytes of the console's input that the guest has not been given."""
        return self._ports[0].stream.pending

    def send_to(self, name: str, data: bytes) -> None:
        """Input for the channel ``name``.  Callable from any thread.

        Raises:
            KeyError: there is no such channel.
        """
        self._by_name[name].stream.send(data)

    def pending_at(self, name: str) -> int:
        """Bytes of input for the channel ``name`` that the guest has not been given.

        Raises:
            KeyError: there is no such channel.
        """
        return self._by_name[name].stream.pending

    def end(self, name: str) -> None:
        """No more input comes for ``name``: the guest reads to an end of file.  Callable from any thread.

        Raises:
            KeyError: there is no such channel.
        """
        self._by_name[name].ending = True
        self._wake()

    def config(self) -> bytes:
        """See :class:`~.device.VirtioDevice`."""
        return _CONFIG.pack(0, 0, len(self._ports), 0)

    def activate(self, transport: Transport, queues: Sequence[Virtqueue], features: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        self._transport = transport
        self._queues = queues
        # A driver without multiport has port 0 alone.
        ports = self._ports if features >> _F_MULTIPORT & 1 else self._ports[:1]
        for number, port in enumerate(ports):
            first = _first_queue(number)
            port.stream.activate(transport, queues[first], queues[first + 1])

    def notify(self, index: int) -> None:
        """See :class:`~.device.VirtioDevice`."""
        if index == _CONTROL_TRANSMIT:
            self._listen()
        elif index != _CONTROL_RECEIVE:
            stream = self._ports[max(0, index // 2 - 1)].stream
            if index & 1:
                stream.transmitted()
            else:
                stream.fill()
                self._tell_ends()
        self._say()

    def poll(self) -> None:
        """See :class:`~.device.VirtioDevice`."""
        for port in self._ports:
            port.stream.poll()
        self._tell_ends()
        self._say()

    # ------------------------------------------------------------------ control messages
    def _listen(self) -> None:
        """Take the driver's control messages."""
        queue = self._queues[_CONTROL_TRANSMIT]
        if not queue.enabled or self._transport is None:
            return
        for _ in range(2 * queue.size):
            chain = _next(queue)
            if chain is None:
                break
            message = queue.gather(chain)[: _CONTROL.size]
            queue.push(chain, 0)
            if len(message) == _CONTROL.size:
                self._heard(*_CONTROL.unpack(message))
        self._transport.used(queue)

    def _heard(self, number: int, event: int, value: int) -> None:
        if event == Event.DEVICE_READY:
            if value:
                for each in range(len(self._ports)):
                    self._tell(each, Event.DEVICE_ADD, 1)
            return
        if number >= len(self._ports):
            return
        port = self._ports[number]
        if event == Event.PORT_READY and value:
            port.ready = True
            if port.name is None:
                self._tell(number, Event.CONSOLE_PORT, 1)
            else:
                self._tell(number, Event.PORT_NAME, 1, port.name.encode())
            self._tell(number, Event.PORT_OPEN, 1)
        elif event == Event.PORT_OPEN and number > 0:
            port.stream.flowing = bool(value)
            port.stream.fill()
            self._tell_ends()

    def _tell_ends(self) -> None:
        """Close our end of channels whose input is over and has been handed over whole."""
        for number, port in enumerate(self._ports):
            if port.ending and port.ready and not port.ended and not port.stream.pending:
                port.ended = True
                self._tell(number, Event.PORT_OPEN, 0)

    def _tell(self, number: int, event: Event, value: int, more: bytes = b"") -> None:
        if len(self._to_say) < _MOST_WAITING:
            self._to_say.append(_CONTROL.pack(number, event, value) + more)

    def _say(self) -> None:
        """Hand over control messages as far as the driver has buffers; it brings them itself."""
        if not self._to_say or self._transport is None:
            return
        queue = self._queues[_CONTROL_RECEIVE]
        if not queue.enabled:
            return
        while self._to_say:
            chain = _next(queue)
            if chain is None:
                break
            message = self._to_say.popleft()
            queue.push(chain, queue.scatter(chain, message))
        self._transport.used(queue)


def _next(queue: Virtqueue) -> Chain | None:
    """The next chain; if there is none, the driver has been asked to say when there is."""
    chain = queue.pop()
    if chain is None:
        queue.set_notify(True)
        # One may have come before the driver could see that.
        chain = queue.pop()
    return chain


def _first_queue(number: int) -> int:
    """The receive queue of port ``number``; its transmit queue follows."""
    return 0 if number == 0 else 2 + 2 * number
