"""The core of a logical processor: the registers, flags and local APIC that all its parts work on.

It is made before the parts (MSR file, VMX unit), and is what they are handed.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import Any

from swtdx.machine.cpu.topology import Topology
from swtdx.machine.engine.protocol import Wakeup
from swtdx.machine.observe import Observer
from swtdx.machine.uncore import Uncore


class Mode(enum.Enum):
    """What a logical processor is executing in."""

    LEGACY = "VMX off"
    ROOT = "VMX root"
    SEAM_ROOT = "SEAM VMX root"
    SEAM_NON_ROOT = "SEAM VMX non-root"
    ACM = "an authenticated code module"


class ProcessorCore:
    """See the module's docstring, and :class:`swtdx.machine.processor.LogicalProcessor` for what is what."""

    def __init__(self, machine: Uncore, index: int, package: int) -> None:
        self.machine = machine
        #: Number of the processor in the machine, from 0.
        self.index = index
        self.package = package
        config = machine.config
        self.topology = Topology(config.packages, config.processors_per_package)
        #: What CPUID leaf 0x1F says; the same as ``index`` if packages have 2, 4, 8, ... processors.
        self.x2apic_id = self.topology.apic_id(index)
        self.cr4 = 0
        self.mode = Mode.LEGACY
        self.gpr: list[int] = [0] * 16
        #: XMM0..15 of the software outside SEAM, 128 bits each.
        self.xmm: list[int] = [0] * 16
        self.cf = False
        self.zf = False
        #: External interrupts that wait at the local APIC, by vector.
        self.pending: set[int] = set()
        #: An NMI waits; there is room for one.  And whether NMIs are blocked: from one until IRET.
        self.nmi_pending = False
        self.nmi_blocked = False
        #: The software's NMI handler; without one they wait.
        self.nmi_handler: Callable[[], None] | None = None
        #: The local APIC's TSC-deadline timer: a host TSC value, and the vector it raises.
        self.timer_deadline: int | None = None
        self.timer_vector = 0
        #: Translation caches by address space (EPTP, HKID, shared EPTP).
        self.spaces: dict[tuple[int, ...], Any] = {}
        #: How often an engine ran a guest here.
        self.runs = 0
        #: The TSC when the guest stopped last.
        self.last_exit_tsc = 0
        self.in_guest = False
        #: Told of what crosses the boundary of SEAM here (:mod:`swtdx.machine.observe`).
        self.observer: Observer | None = None
        self._woken = Wakeup()

    @property
    def in_seam(self) -> bool:
        """Whether software in SEAM VMX root mode executes here."""
        return self.mode is Mode.SEAM_ROOT

    @property
    def in_acm(self) -> bool:
        """Whether an authenticated code module executes here."""
        return self.mode is Mode.ACM

    # ------------------------------------------------------------------ interrupts and time
    def interrupt(self, vector: int) -> None:
        """An external interrupt arrives at the local APIC.  Any thread may call."""
        self.pending.add(vector)
        self._woken.set()
        if self.in_guest:
            self.machine.engine.kick(self.index)

    def nmi(self) -> None:
        """An NMI arrives.  Any thread may call."""
        self.nmi_pending = True
        self._woken.set()
        if self.in_guest:
            self.machine.engine.kick(self.index)

    def take_nmi(self) -> None:
        """The NMI that waits is taken: by the handler, or by a VM exit."""
        self.nmi_pending = False
        self.nmi_blocked = True

    def deliver_nmi(self) -> bool:
        """Outside SEAM, between two instructions: run the handler if an NMI waits for it; whether one did."""
        handler = self.nmi_handler
        if not self.nmi_pending or self.nmi_blocked or handler is None:
            return False
        self.take_nmi()
        try:
            handler()
        finally:
            self.nmi_blocked = False
        return True

    def iret(self) -> None:
        """IRET of the software outside SEAM: NMIs are no longer blocked."""
        self.nmi_blocked = False
        self.deliver_nmi()

    def acknowledge(self, vector: int) -> None:
        """The interrupt was taken."""
        self.pending.discard(vector)

    def arm_timer(self, deadline: int | None, vector: int) -> None:
        """Raise ``vector`` at host TSC ``deadline``; None disarms."""
        self.timer_deadline = deadline
        self.timer_vector = vector

    def poll_timer(self, now: int) -> None:
        """Raise the timer's interrupt if its deadline has passed at host TSC ``now``."""
        if self.timer_deadline is not None and now >= self.timer_deadline:
            self.timer_deadline = None
            self.pending.add(self.timer_vector)

    def halt(self, timeout: float | None = None) -> None:
        """HLT: wait until an interrupt is pending, or the timer fires, or ``timeout`` seconds pass.

        An NMI ends it, too, behind its handler.
        """
        machine = self.machine
        while not self.pending:
            self._woken.clear()
            if self.deliver_nmi() or self.pending:
                return
            wait = timeout
            if self.timer_deadline is not None:
                left = (self.timer_deadline - machine.tsc()) / machine.tsc_hz
                if left <= 0:
                    self.poll_timer(machine.tsc())
                    return
                left = min(left, threading.TIMEOUT_MAX)
                wait = left if wait is None else min(wait, left)
            woken = machine.wait(self.index, self._woken, wait)
            if not woken and timeout is not None and wait == timeout:
                return

    def acquire(self, lock: threading.Lock) -> None:
        """Take a lock that software on several processors shares."""
        self.machine.acquire(self.index, lock)

    def pause(self, seconds: float) -> None:
        """Execute nothing for ``seconds`` of the host's time."""
        self.machine.pause(self.index, seconds)

    def machine_check(self, cause: Exception) -> None:
        """#MC on this processor; kept for the software that handles it."""
        self.machine.machine_checks.append((self.index, cause))
