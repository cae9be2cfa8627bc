"""Logical processors, as software sees them: registers, modes, and SEAMCALL as the only door to SEAM."""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING, Any, Final

from swtdx.arch.regs import RAX
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.vmx.unit import VmxUnit

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine

#: SEAMCALL with this bit of RAX set goes to the P-SEAMLDR, else to the TDX Module.
P_SEAMLDR_BIT: Final = 1 << 63


class Mode(enum.Enum):
    """What a logical processor is executing in."""

    LEGACY = "VMX off"
    ROOT = "VMX root"
    SEAM_ROOT = "SEAM VMX root"
    SEAM_NON_ROOT = "SEAM VMX non-root"


class LogicalProcessor:
    """One logical processor of the machine.

    ``gpr`` is the register file of the software that runs on it outside SEAM (16 integers, x86
    order); ``cf`` and ``zf`` are the flags that SEAMCALL and PCONFIG report in.
    """

    def __init__(self, machine: Machine, index: int, package: int) -> None:
        self.machine = machine
        #: Number of the processor in the machine, from 0; also its x2APIC id.
        self.index = index
        self.package = package
        self.mode = Mode.LEGACY
        self.gpr: list[int] = [0] * 16
        #: XMM0..15 of the software outside SEAM, 128 bits each.
        self.xmm: list[int] = [0] * 16
        self.cf = False
        self.zf = False
        #: External interrupts that wait at the local APIC, by vector.
        self.pending: set[int] = set()
        #: The local APIC's TSC-deadline timer: a host TSC value, and the vector it raises.
        self.timer_deadline: int | None = None
        self.timer_vector = 0
        #: Translation caches by address space (EPTP, HKID, shared EPTP).
        self.spaces: dict[tuple[int, ...], Any] = {}
        #: How often an engine ran a guest here.
        self.runs = 0
        self.in_guest = False
        self._woken = threading.Event()
        self.vmx = VmxUnit(self)

    # ------------------------------------------------------------------ modes
    def vmxon(self) -> None:
        """VMXON: enter VMX root operation.

        Raises:
            GeneralProtection: the processor is in VMX operation already.
        """
        if self.mode is not Mode.LEGACY:
            raise GeneralProtection(f"VMXON on processor {self.index}, which is in {self.mode.value}")
        self.mode = Mode.ROOT

    def vmxoff(self) -> None:
        """VMXOFF: leave VMX operation.

        Raises:
            InvalidOpcode: the processor is not in VMX root operation.
        """
        if self.mode is not Mode.ROOT:
            raise InvalidOpcode(f"VMXOFF on processor {self.index}, which is in {self.mode.value}")
        self.mode = Mode.LEGACY

    def seamcall(self) -> None:
        """SEAMCALL: hand over to the P-SEAMLDR or the TDX Module and come back.

        The operands are in ``gpr``.  CF=1 (VMfailInvalid) says that nobody was there to answer.

        Raises:
            InvalidOpcode: the processor is not in VMX root operation.
            GeneralProtection: the BIOS has not enabled SEAM.
        """
        if self.mode is not Mode.ROOT:
            raise InvalidOpcode(f"SEAMCALL on processor {self.index}, which is in {self.mode.value}")
        seam = self.machine.seam
        if not seam.enabled:
            raise GeneralProtection("SEAMCALL without a valid SEAM range")
        entry = seam.p_seamldr_entry if self.gpr[RAX] & P_SEAMLDR_BIT else seam.module_entry(self.index)
        if entry is None:
            self.cf = True
            return
        self.cf = False
        # One processor executes SEAM code at a time; the engine runs guests outside this lock.
        with seam.lock:
            self.mode = Mode.SEAM_ROOT
            try:
                entry(self)
            finally:
                self.mode = Mode.ROOT

    # ------------------------------------------------------------------ interrupts and time
    def interrupt(self, vector: int) -> None:
        """An external interrupt arrives at the local APIC.  Any thread may call."""
        self.pending.add(vector)
        self._woken.set()
        if self.in_guest:
            self.machine.engine.kick(self.index)

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
        """HLT: wait until an interrupt is pending, or the timer fires, or ``timeout`` seconds pass."""
        machine = self.machine
        while not self.pending:
            self._woken.clear()
            if self.pending:
                return
            wait = timeout
            if self.timer_deadline is not None:
                left = (self.timer_deadline - machine.tsc()) / machine.tsc_hz
                if left <= 0:
                    self.poll_timer(machine.tsc())
                    return
                wait = left if wait is None else min(wait, left)
            if not self._woken.wait(wait) and timeout is not None and wait == timeout:
                return

    def machine_check(self, cause: Exception) -> None:
        """#MC on this processor; kept for the software that handles it."""
        self.machine.machine_checks.append((self.index, cause))
