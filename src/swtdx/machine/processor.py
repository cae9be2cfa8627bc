"""Logical processors, as software sees them: registers, modes, and SEAMCALL as the only door to SEAM."""

from __future__ import annotations

from typing import Any, Final

from swtdx.arch.layout import ReadBuffer
from swtdx.arch.leaves import P_SEAMLDR
from swtdx.arch.msrs import IA32_FEATURE_CONTROL
from swtdx.arch.regs import RAX
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import CR4_VMXE
from swtdx.machine import seamops
from swtdx.machine.cpu.core import Mode, ProcessorCore
from swtdx.machine.cpu.cpuid import Cpuid, Regs
from swtdx.machine.cpu.features import cr4_bits
from swtdx.machine.cpu.fuses import Fuses
from swtdx.machine.cpu.model import DEFAULT_MODEL, find_model
from swtdx.machine.cpu.msr_file import MsrFile
from swtdx.machine.cpu.msr_rules import FEATURE_LOCK, FEATURE_VMX, READ_RULES, WRITE_RULES
from swtdx.machine.cpu.pconfig import pconfig, program_key
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.memory import ProgramResult
from swtdx.machine.snapshot import SectionReader, SectionWriter, SnapshotError
from swtdx.machine.uncore import Uncore
from swtdx.machine.vmx.unit import VmxUnit

__all__ = ["LogicalProcessor", "Mode"]

_ROOT: Final = Mode.ROOT
_SEAM_ROOT: Final = Mode.SEAM_ROOT

#: The modes in which a processor can be saved.
_SAVED_MODES: Final = (Mode.LEGACY, Mode.ROOT)


class LogicalProcessor(ProcessorCore):
    """One logical processor of the machine.

    ``gpr`` is the register file of the software that runs on it outside SEAM (16 integers, x86
    order); ``cf`` and ``zf`` are the flags that SEAMCALL and PCONFIG report in.  ``msrs`` is its MSR
    file.  Machine options that it looks at: ``model`` (a name in ``machine.cpu.model``) and ``boot``
    (number of this boot since the machine was made; reports of another boot do not verify).

    Raises:
        ValueError: the machine's configuration names no such model, or too many processors.
    """

    def __init__(self, machine: Uncore, index: int, package: int) -> None:
        super().__init__(machine, index, package)
        config = machine.config
        self._seam = machine.seam
        self.model = find_model(config.options.get("model", DEFAULT_MODEL))
        self.msrs = MsrFile(self, machine.packages[package], self.model, READ_RULES, WRITE_RULES)
        self._cpuid = Cpuid(self.model, self.topology, lambda: machine.tsc_hz)
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
        out.u8(self.nmi_pending | self.nmi_blocked << 1)

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
        nmis = section.u8()
        self.nmi_pending, self.nmi_blocked = bool(nmis & 1), bool(nmis & 2)

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
        pconfig(self, self.msrs)

    def program_key(self, structure: ReadBuffer) -> ProgramResult:
        """PCONFIG's MKTME_KEY_PROGRAM for software that has the 256 bytes of ``structure`` at hand.

        Raises:
            GeneralProtection: see :func:`swtdx.machine.cpu.pconfig.program_key`.
        """
        return program_key(self, self.msrs, structure)

    def wbinvd(self) -> None:
        """WBINVD: write back and invalidate all caches."""
        self.machine.memory.wbinvd()

    def addresses_changed(self) -> None:
        """TME was activated: physical addresses divide otherwise, and memory lost its contents."""
        self.vmx = VmxUnit(self)

    def forget_guests(self) -> None:
        """The VMCSs that are active on it are gone, with the memory that held them; so are translations."""
        self.vmx.forget()
        for space in self.spaces.values():
            space.flush()

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

        The operands are in ``gpr``.  CF=1 (VMfailInvalid) says that no module was there to answer.

        Raises:
            InvalidOpcode: the processor is not in VMX root operation.
            GeneralProtection: the BIOS has not enabled SEAM.
        """
        observer = self.observer
        if observer is not None:
            observer.before_seamcall()
        if self.mode is not _ROOT:
            raise InvalidOpcode(f"SEAMCALL on processor {self.index}, which is in {self.mode.value}")
        seam = self._seam
        if not seam.enabled:
            raise GeneralProtection("SEAMCALL without a valid SEAM range")
        gates = seam.gates
        if self.gpr[RAX] & P_SEAMLDR:
            self._call_p_seamldr()
        elif not gates:
            self.cf = True
        else:
            self.cf = False
            # One processor executes SEAM code at a time, and no other one's stores come in between; the
            # engine runs guests outside this lock.
            with seam.lock:
                self.mode = _SEAM_ROOT
                try:
                    gates[self.index](self)
                finally:
                    self.mode = _ROOT
            if self.nmi_pending:
                self.deliver_nmi()
        if observer is not None:
            observer.after_seamcall()

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
