"""Logical processors, as software sees them: registers, modes, and SEAMCALL as the only door to SEAM."""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING, Any, Final

from swtdx.arch.msrs import IA32_FEATURE_CONTROL
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import CR4_VMXE
from swtdx.machine import seamops
from swtdx.machine.cpu.cpuid import Cpuid, Regs
from swtdx.machine.cpu.features import cr4_bits
from swtdx.machine.cpu.fuses import Fuses
from swtdx.machine.cpu.model import DEFAULT_MODEL, find_model
from swtdx.machine.cpu.msr_file import MsrFile
from swtdx.machine.cpu.msr_rules import FEATURE_LOCK, FEATURE_VMX
from swtdx.machine.cpu.package import package_of
from swtdx.machine.cpu.pconfig import pconfig
from swtdx.machine.cpu.topology import Topology
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.snapshot import SectionReader, SectionWriter, SnapshotError
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
    ACM = "an authenticated code module"


_ROOT: Final = Mode.ROOT
_SEAM_ROOT: Final = Mode.SEAM_ROOT


#: The modes in which a processor can be saved.
_SAVED_MODES: Final = (Mode.LEGACY, Mode.ROOT)


class LogicalProcessor:
    """One logical processor of the machine.

    ``gpr`` is the register file of the software that runs on it outside SEAM (16 integers, x86
    order); ``cf`` and ``zf`` are the flags that SEAMCALL and PCONFIG report in.  ``msrs`` is its MSR
    file.  Machine options that it looks at: ``model`` (a name in ``machine.cpu.model``) and ``boot``
    (number of this boot since the machine was made; reports of another boot do not verify).

    Raises:
        ValueError: the machine's configuration names no such model, or too many processors.
    """

    def __init__(self, machine: Machine, index: int, package: int) -> None:
        self.machine = machine
        self._seam = machine.seam
        #: Number of the processor in the machine, from 0.
        self.index = index
        self.package = package
        config = machine.config
        topology = Topology(config.packages, config.processors_per_package)
        #: What CPUID leaf 0x1F says; the same as ``index`` if packages have 2, 4, 8, ... processors.
        self.x2apic_id = topology.apic_id(index)
        self.model = find_model(config.options.get("model", DEFAULT_MODEL))
        self.msrs = MsrFile(self, package_of(machine, package), self.model)
        self._cpuid = Cpuid(self.model, topology, lambda: machine.tsc_hz)
        self.cr4 = 0
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
        #: The TSC when the guest stopped last.
        self.last_exit_tsc = 0
        self.in_guest = False
        self._woken = threading.Event()
        self.vmx = VmxUnit(self)
        if index == 0:
            fuses = Fuses(config.seed, config.options.get("boot", 0))
            machine.seam.power_on(fuses, self.model.cpusvn, self.model.se_svn)

    # ------------------------------------------------------------------ snapshots
    def check_saveable(self) -> None:
        """Nothing of a processor that is in SEAM or runs a guest can be saved.

        Raises:
            SnapshotError: it is.
        """
        if self.mode not in _SAVED_MODES or self.in_guest:
            raise SnapshotError(f"processor {self.index} is in {self.mode.value}; stop it before saving")

    def save_state(self, out: SectionWriter) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        self.check_saveable()
        out.u8(_SAVED_MODES.index(self.mode))
        for register in self.gpr:
            out.u64(register)
        for register in self.xmm:
            out.write(register.to_bytes(16, "little"))
        out.u8(self.cf | self.zf << 1)
        out.u64(self.cr4)
        out.blob(bytes(sorted(self.pending)))
        out.u64(MASK64 if self.timer_deadline is None else self.timer_deadline)
        out.u8(self.timer_vector)

    def load_state(self, section: SectionReader) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        mode = section.u8()
        if mode >= len(_SAVED_MODES):
            raise section.fail(f"processor {self.index} is in mode {mode}, which does not exist")
        self.mode = _SAVED_MODES[mode]
        self.gpr[:] = [section.u64() for _ in range(16)]
        self.xmm[:] = [int.from_bytes(section.read(16), "little") for _ in range(16)]
        flags = section.u8()
        self.cf, self.zf = bool(flags & 1), bool(flags & 2)
        self.cr4 = section.u64()
        self.pending.update(section.blob())
        deadline = section.u64()
        self.timer_deadline = None if deadline == MASK64 else deadline
        self.timer_vector = section.u8()

    # ------------------------------------------------------------------ identity and registers
    def cpuid(self, leaf: int, subleaf: int = 0) -> Regs:
        """CPUID outside a TD: EAX, EBX, ECX, EDX."""
        return self._cpuid.execute(self.x2apic_id, self.cr4, leaf, subleaf)

    def rdmsr(self, index: int) -> int:
        """RDMSR.

        Raises:
            GeneralProtection: see :meth:`MsrFile.read`.
        """
        return self.msrs.read(index)

    def wrmsr(self, index: int, value: int) -> None:
        """WRMSR.

        Raises:
            GeneralProtection: see :meth:`MsrFile.write`.
        """
        self.msrs.write(index, value)

    def write_cr4(self, value: int) -> None:
        """MOV to CR4.

        Raises:
            GeneralProtection: bits that the processor does not have, or VMXE cleared in VMX operation.
        """
        if value & ~cr4_bits():
            raise GeneralProtection(f"CR4 = {value:#x}: this processor has only bits {cr4_bits():#x}")
        if self.mode not in (Mode.LEGACY, Mode.ACM) and not value & CR4_VMXE:
            raise GeneralProtection("CR4.VMXE cannot be cleared in VMX operation")
        self.cr4 = value

    def pconfig(self) -> None:
        """PCONFIG with the operands in ``gpr``; see :func:`swtdx.machine.cpu.pconfig.pconfig`."""
        pconfig(self)

    def wbinvd(self) -> None:
        """WBINVD: write back and invalidate all caches."""
        self.machine.memory.wbinvd()

    @property
    def in_seam(self) -> bool:
        """Whether software in SEAM VMX root mode executes here."""
        return self.mode is Mode.SEAM_ROOT

    @property
    def in_acm(self) -> bool:
        """Whether an authenticated code module executes here."""
        return self.mode is Mode.ACM

    def addresses_changed(self) -> None:
        """TME was activated: physical addresses divide otherwise, and memory lost its contents."""
        self.vmx = VmxUnit(self)

    # ------------------------------------------------------------------ modes
    def vmxon(self) -> None:
        """VMXON: enter VMX root operation.

        Raises:
            InvalidOpcode: CR4.VMXE is clear.
            GeneralProtection: the processor is in VMX operation already, or IA32_FEATURE_CONTROL does
                not allow it (not locked, or VMX outside SMX not enabled).
        """
        if not self.cr4 & CR4_VMXE:
            raise InvalidOpcode(f"VMXON on processor {self.index} with CR4.VMXE clear")
        if self.mode is not Mode.LEGACY:
            raise GeneralProtection(f"VMXON on processor {self.index}, which is in {self.mode.value}")
        allowed = FEATURE_LOCK | FEATURE_VMX
        if self.msrs.peek(IA32_FEATURE_CONTROL) & allowed != allowed:
            raise GeneralProtection(
                f"VMXON on processor {self.index}: the BIOS has not locked IA32_FEATURE_CONTROL with VMX"
            )
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
        if self.mode is not _ROOT:
            raise InvalidOpcode(f"SEAMCALL on processor {self.index}, which is in {self.mode.value}")
        seam = self._seam
        if not seam.enabled:
            raise GeneralProtection("SEAMCALL without a valid SEAM range")
        if self.gpr[0] & P_SEAMLDR_BIT:
            self._call_p_seamldr()
            return
        gates = seam.gates
        if not gates:
            self.cf = True
            return
        self.cf = False
        # One processor executes SEAM code at a time, and no other one's stores come in between; the engine
        # runs guests outside this lock.
        with seam.lock:
            self.mode = _SEAM_ROOT
            try:
                gates[self.index](self)
            finally:
                self.mode = _ROOT

    def _call_p_seamldr(self) -> None:
        """SEAMCALL with bit 63: one processor at a time; the others get VMfailInvalid."""
        seam = self._seam
        entry = seam.p_seamldr_entry
        if entry is None or not seam.p_seamldr_lock.acquire(blocking=False):
            self.cf = True
            return
        self.cf = False
        try:
            with seam.lock:
                self.mode = Mode.SEAM_ROOT
                try:
                    entry(self)
                finally:
                    self.mode = Mode.ROOT
        finally:
            seam.p_seamldr_lock.release()

    def seamret(self) -> None:
        """SEAMRET: leave SEAM for the software that executed SEAMCALL.

        Software in SEAM is a Python callable here and returns; the instruction is for everybody else.

        Raises:
            InvalidOpcode: the processor is not in SEAM VMX root operation.
        """
        if self.mode is not _SEAM_ROOT:
            raise InvalidOpcode(f"SEAMRET on processor {self.index}, which is in {self.mode.value}")
        self.cf = False
        self.mode = _ROOT

    def seamops(self, leaf: int, *operands: Any, **named: Any) -> Any:
        """SEAMOPS: the function of :mod:`swtdx.machine.seamops` that is ``leaf``, with its operands.

        Raises:
            InvalidOpcode: the processor is not in SEAM VMX root operation.
            GeneralProtection: there is no such leaf.
            SeamOpsError: the leaf failed; ``result`` is what RAX would hold.
        """
        if self.mode is not _SEAM_ROOT:
            raise InvalidOpcode(f"SEAMOPS on processor {self.index}, which is in {self.mode.value}")
        function = seamops.LEAVES.get(leaf)
        if function is None:
            raise GeneralProtection(f"SEAMOPS leaf {leaf:#x} does not exist")
        return function(self._seam, *operands, **named)

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
                left = min(left, threading.TIMEOUT_MAX)
                wait = left if wait is None else min(wait, left)
            woken = machine.wait(self.index, self._woken, wait)
            if not woken and timeout is not None and wait == timeout:
                return

    def machine_check(self, cause: Exception) -> None:
        """#MC on this processor; kept for the software that handles it."""
        self.machine.machine_checks.append((self.index, cause))
