"""Serial lines between the host and us: UARTs of QEMU's board, whose other ends are sockets here."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final

#: I/O port and ISA interrupt of the UARTs of a PC, in Linux's order: ttyS0, ttyS1, ...
UARTS: Final = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 5), (0x2E8, 7))

Sink = Callable[[bytes], None]


class Lines:
    """So many serial lines, each with a function that takes what the host sends."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        assert len(sinks) <= len(UARTS), "a PC has four"
        self._sinks = list(sinks)
        pairs = [socket.socketpair() for _ in sinks]
        self._ours = [ours for ours, _ in pairs]
        self._theirs = [theirs for _, theirs in pairs]
        self._thread: threading.Thread | None = None
        self._stop, self._stopper = socket.socketpair()
        #: How many bytes each has sent.
        self.received = [0] * len(self._sinks)

    @property
    def fds(self) -> list[int]:
        """QEMU's ends."""
        return [end.fileno() for end in self._theirs]

    @property
    def devices(self) -> list[str]:
        """Words for QEMU's command line."""
        words: list[str] = []
        for number, (end, (port, interrupt)) in enumerate(zip(self._theirs, UARTS, strict=False)):
            words += [
                *("-chardev", f"socket,id=line{number},fd={end.fileno()}"),
                *("-device", f"isa-serial,chardev=line{number},iobase={port:#x},irq={interrupt}"),
            ]
        return words

    def start(self) -> None:
        """QEMU has its ends: listen."""
        for end in self._theirs:
            end.close()
        self._thread = threading.Thread(target=self._listen, name="swtdx serial lines", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, ours in enumerate(self._ours):
                selector.register(ours, selectors.EVENT_READ, number)
            selector.register(self._stop, selectors.EVENT_READ, -1)
            stopping = False
            while True:
                ready = selector.select(0 if stopping else None)
                served = False
                for key, _ in ready:
                    if key.data < 0:
                        stopping = True
                        continue
                    data = self._ours[key.data].recv(65536)
                    if not data:
                        selector.unregister(self._ours[key.data])
                        continue
                    served = True
                    self.received[key.data] += len(data)
                    self._sinks[key.data](data)
                if stopping and not served:
                    return

    def send(self, line: int, data: bytes) -> None:
        """Send to the host.  What its UART has no room for waits here."""
        with contextlib.suppress(OSError):
            self._ours[line].sendall(data)

    def close(self) -> None:
        """Take what was sent, and end.  Idempotent."""
        if self._thread is not None:
            self._stopper.send(b"!")
            self._thread.join()
            self._thread = None
        for end in (*self._ours, *self._theirs, self._stop, self._stopper):
            end.close()
