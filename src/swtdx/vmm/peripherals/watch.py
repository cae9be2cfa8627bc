"""Waiting for sockets on a thread of its own, so that a vCPU is told when one has something."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Final

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT


class Watch:
    """The thread; it starts with the first descriptor.

    :meth:`arm` and :meth:`forget` are for one other thread.

    What is armed fires once: ``wake`` is called, and :meth:`take` says of which descriptors.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        self._epoll = select.epoll()
        self._known: set[int] = set()
        self._ready: dict[int, int] = {}
        self._lock = threading.Lock()
        self._ending, self._end = os.pipe2(os.O_CLOEXEC)
        self._epoll.register(self._ending, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def arm(self, fd: int, events: int) -> None:
        """Tell once when ``fd`` is ready for ``events``, or broken."""
        if fd in self._known:
            self._epoll.modify(fd, events | select.EPOLLONESHOT)
        else:
            self._epoll.register(fd, events | select.EPOLLONESHOT)
            self._known.add(fd)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def forget(self, fd: int) -> None:
        """``fd`` is about to be closed."""
        if fd in self._known:
            self._known.remove(fd)
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        with self._lock:
            self._ready.pop(fd, None)

    def take(self) -> dict[int, int]:
        """Descriptors that have fired since this was asked last, and for what events."""
        if not self._ready:
            return {}
        with self._lock:
            ready, self._ready = self._ready, {}
        return ready

    def _run(self) -> None:
        while True:
            found = self._epoll.poll()
            if any(fd == self._ending for fd, _ in found):
                return
            with self._lock:
                for fd, events in found:
                    self._ready[fd] = self._ready.get(fd, 0) | events
            self.wake()

    def close(self) -> None:
        """End the thread."""
        os.close(self._end)
        if self._thread is not None:
            self._thread.join()
        self._epoll.close()
        os.close(self._ending)
