"""How a run is steered: what the parts of a running TD share, made before any of them and handed to each.

Devices, the TDVMCALL server, the console and the vCPUs' threads all may end a run, and several of them must
be heard while every vCPU is in the guest or asleep.  None of them needs to know the others for that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from swtdx.vmm.processor import WAKE_VECTOR, Processor
from swtdx.vmm.result import EndReason


class RunControl:
    """One TD's.  :meth:`wake` and :meth:`end` may be called from any thread.

    ``outcome`` is how the run ended, None while it goes on.  ``deadline`` is the machine's TSC at which it
    times out, None for no limit.  ``lock`` is held by the thread that is outside the guest; it is None
    while the TD has only one processor, for then there is no one to lock out.
    """

    __slots__ = ("_poll_wanted", "_processors", "deadline", "lock", "outcome")

    def __init__(self) -> None:
        self.outcome: tuple[EndReason, str] | None = None
        self.deadline: int | None = None
        self.lock: threading.Lock | None = None
        self._poll_wanted = False
        self._processors: tuple[Processor, ...] = ()

    # ------------------------------------------------------------------ from any thread
    def wake(self) -> None:
        """Devices have something to do on a vCPU's thread: :meth:`poll_due` says so soon."""
        self._poll_wanted = True
        for cpu in self._processors[:1]:
            cpu.host.interrupt(WAKE_VECTOR)

    def end(self, reason: EndReason, detail: str = "") -> None:
        """End the run; the first reason given counts."""
        if self.outcome is None:
            self.outcome = (reason, detail)
        for cpu in self._processors:
            cpu.host.interrupt(WAKE_VECTOR)

    # ------------------------------------------------------------------ from the run loop
    def poll_due(self) -> bool:
        """Whether :meth:`wake` was called since this was asked last."""
        if not self._poll_wanted:
            return False
        # Cleared before the devices are looked at, and only if it was set: another thread may be setting it.
        self._poll_wanted = False
        return True

    def place(self, processors: Sequence[Processor]) -> None:
        """From now on the TD runs on ``processors``; how an earlier run on others ended is forgotten."""
        self._processors = tuple(processors)
        self.lock = threading.Lock() if len(processors) > 1 else None
        self.outcome = None

    def start(self, deadline: int | None) -> None:
        """A run begins, or goes on after TIMEOUT or PAUSED; whatever else has ended it stays."""
        self.deadline = deadline
        if self.outcome is not None and self.outcome[0] in (EndReason.TIMEOUT, EndReason.PAUSED):
            self.outcome = None
