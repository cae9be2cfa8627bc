"""A vCPU as the hypervisor knows it: its pages, its APIC, and what waits for its next VM entry."""

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from swtdx.arch import status as st
from swtdx.arch.units import MASK64
from swtdx.devices.saved import In, Out
from swtdx.machine.host import HostMemory
from swtdx.vmm import fields
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.apic import Clock, LocalApic, Target
from swtdx.vmm.processor import NOTIFICATION_VECTOR, WAKE_VECTOR, Processor
from swtdx.vmm.saved import get, put

#: Bytes of a posted-interrupt descriptor: 256 request bits, then ON and the notification vector.
PID_SIZE: Final = 64
_PIR: Final = struct.Struct("<5Q")
_ON: Final = 1
_LOWEST_POSTED: Final = 31


class VcpuState(enum.Enum):
    """Whether a vCPU has something to do."""

    RUNNABLE = "runnable"
    HALTED = "halted"
    #: Halted with its interrupts disabled: only an NMI wakes it.
    DEAF = "halted with interrupts disabled"


class Place(Protocol):
    """Where a vCPU lives while its TD runs, as the vCPU knows it: it only says what has changed."""

    def woken(self, vcpu: Vcpu) -> None:
        """``vcpu``, which is not in the guest, has got something to wake up for."""

    def arm(self) -> None:
        """A vCPU's timer was set or stopped."""


class Vcpu:
    """One vCPU.

    ``pages`` are the HPAs that the module has for it, its root page (TDVPR) first.  ``cpu`` is the
    processor that its state is associated with, None after TDH.VP.FLUSH.  ``place`` is where it waits for
    its next entry, None before the TD's first run; both change as the vCPU moves.  ``regs`` are the
    registers to hand over at its next entry.
    """

    def __init__(
        self,
        index: int,
        tdvpr: int,
        pid: int,
        memory: HostMemory,
        clock: Clock,
        others: Callable[[], list[Target]],
        *,
        fresh: bool = True,
    ) -> None:
        """``fresh`` False: its posted-interrupt descriptor is in memory already."""
        self.index = index
        self.tdvpr = tdvpr
        self.pages = [tdvpr]
        self.pid = pid
        self.cpu: Processor | None = None
        self.place: Place | None = None
        self.state = VcpuState.RUNNABLE
        self.regs = [0] * 16
        #: The vector that SetupEventNotifyInterrupt asked for.
        self.event_vector: int | None = None
        self.apic = LocalApic(self, clock, others, self._timer_changed)
        #: Something must be done before the next entry: posted vectors, or an NMI.
        self.attention = False
        #: In TDH.VP.ENTER on another thread's processor, which an interrupt brings out.
        self.in_guest = False
        #: Latest exit that resolved nothing, and how often in a row: see the run loop's spin guard.
        self.stuck_at = -1
        self.stuck_count = 0
        self._memory = memory
        self._vectors = 0
        #: Held while they change: devices' threads post while the vCPU's own delivers.
        self._posting = threading.Lock()
        self._nmi = False
        if fresh:
            memory.write(pid, bytes(PID_SIZE))
            memory.write(pid + 34, bytes((NOTIFICATION_VECTOR,)))

    # ------------------------------------------------------------------ snapshots
    def save_state(self, out: Out) -> None:
        """Write down what its pages do not hold."""
        put(
            out,
            pages=self.pages,
            cpu=None if self.cpu is None else self.cpu.index,
            state=self.state.name,
            regs=list(self.regs),
            event_vector=self.event_vector,
            attention=self.attention,
            vectors=self._vectors,
            nmi=self._nmi,
        )
        self.apic.save_state(out)

    def load_state(self, section: In, processors: Sequence[Processor]) -> None:
        """Take over what :meth:`save_state` wrote."""
        fields = get(section)
        self.pages = [int(page) for page in fields["pages"]]
        self.cpu = None if fields["cpu"] is None else processors[int(fields["cpu"])]
        self.state = VcpuState[fields["state"]]
        self.regs = [int(value) for value in fields["regs"]]
        self.event_vector = fields["event_vector"]
        self.attention = bool(fields["attention"])
        self._vectors, self._nmi = int(fields["vectors"]), bool(fields["nmi"])
        self.apic.load_state(section)

    # ------------------------------------------------------------------ interrupts
    @property
    def has_interrupt(self) -> bool:
        """Whether an interrupt or NMI waits that the guest has not been given."""
        return self.attention

    def post(self, vector: int) -> None:
        """Make an external interrupt pending (vector 31..255; others are dropped, as the module would)."""
        if _LOWEST_POSTED <= vector <= 0xFF:
            with self._posting:
                self._vectors |= 1 << vector
            self.attention = True
            self._wake()

    def post_nmi(self) -> None:
        """Make an NMI pending."""
        self._nmi = True
        self.attention = True
        self._wake()

    def _wake(self) -> None:
        """Something waits for the guest: have it entered, or out of the guest and entered again."""
        if self.in_guest:
            self.kick()
        elif self.place is not None:
            self.place.woken(self)

    def kick(self) -> None:
        """Make it leave the guest, if it is there on another thread's processor."""
        if self.in_guest and self.cpu is not None:
            self.cpu.host.interrupt(WAKE_VECTOR)

    def _timer_changed(self) -> None:
        if self.place is not None:
            self.place.arm()

    def deliver(self, cpu: Processor) -> None:
        """Hand what waits to the processor, right before an entry on ``cpu``; ``cpu.gpr`` is clobbered
        only if there is an NMI.

        Vectors go into the posted-interrupt descriptor, and the notification that makes the processor look
        there is an interrupt to itself: it is taken as soon as the guest is entered.

        Raises:
            SeamcallError: the module refuses the NMI.
        """
        self.attention = False
        if self._nmi:
            self._nmi = False
            status, _ = sc.tdh_vp_wr(cpu, self.tdvpr, fields.PEND_NMI, 1, 0xFF)
            cpu.need(status, "injecting an NMI")
        with self._posting:
            request, self._vectors = self._vectors, 0
        if request:
            # Nothing else writes to the descriptor: vectors for a vCPU that is in the guest wait until
            # the interrupt that `kick` sends has brought it out.
            words = _PIR.unpack(self._memory.read(self.pid, _PIR.size))
            merged = [words[n] | request >> 64 * n & MASK64 for n in range(4)]
            self._memory.write(self.pid, _PIR.pack(*merged, words[4] | _ON))
            cpu.host.interrupt(NOTIFICATION_VECTOR)

    def renotify(self, cpu: Processor) -> None:
        """Notify the processor again if it has not looked into the descriptor yet.

        The notification is lost when the entry does not happen, or when the hypervisor takes the processor's
        interrupts first (KVM: ``tdx_vcpu_run`` looks at ON before each entry).
        """
        if self._memory.read(self.pid + _PIR.size - 8, 1)[0] & _ON:
            cpu.host.interrupt(NOTIFICATION_VECTOR)

    def interrupt_in_virtual_apic(self, cpu: Processor) -> bool:
        """Whether the virtual APIC holds an interrupt that can be delivered now; clobbers ``cpu.gpr``.

        Raises:
            SeamcallError: the module refuses.
        """
        status, details = sc.tdh_vp_rd(cpu, self.tdvpr, fields.VCPU_STATE_DETAILS)
        cpu.need(status)
        return bool(details & 1)

    def guest_rip(self, cpu: Processor) -> int | None:
        """Where a debug TD's vCPU is, or None if the module does not say; clobbers ``cpu.gpr``."""
        status, rip = sc.tdh_vp_rd(cpu, self.tdvpr, fields.GUEST_RIP)
        return None if st.is_error(status) else rip

    # ------------------------------------------------------------------ processors
    def flush(self) -> None:
        """Part from the processor that holds its state.

        Raises:
            SeamcallError: the module refuses.
        """
        cpu = self.cpu
        if cpu is not None:
            with cpu.borrowed():
                status = sc.tdh_vp_flush(cpu, self.tdvpr)
                cpu.need(status, f"vCPU {self.index}", st.TDX_VCPU_NOT_ASSOCIATED)
            self.cpu = None
