"""Networks for tests: a cable that leads nowhere, and one that leads back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

#: Frames that a loop holds; more are lost.
_MOST: Final = 256


class NullNetwork:
    """Swallows every frame (:class:`swtdx.devices.virtio.net.Network`)."""

    def connect(self, wake: Callable[[], None]) -> None:
        """Nothing ever comes."""

    def send(self, frame: Sequence[memoryview]) -> bool:
        """It is gone."""
        return True

    def receive(self) -> memoryview | None:
        """Nothing."""
        return None

    def close(self) -> None:
        """Nothing to do."""


class LoopbackNetwork:
    """What is sent comes back (:class:`swtdx.devices.virtio.net.Network`)."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._wake: Callable[[], None] = lambda: None

    def connect(self, wake: Callable[[], None]) -> None:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        self._frames.clear()
        self._wake = wake

    def send(self, frame: Sequence[memoryview]) -> bool:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        if len(self._frames) < _MOST:
            self._frames.append(b"".join(frame))
            self._wake()
        return True

    def receive(self) -> memoryview | None:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        return memoryview(self._frames.popleft()) if self._frames else None

    def close(self) -> None:
        """Nothing to do."""
