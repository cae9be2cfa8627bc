"""What instructions that stop an engine do: carried out as native, or turned into a VM exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import (
    INTERRUPTION_NMI_UNBLOCKING,
    INTERRUPTION_VALID,
    TYPE_HARDWARE_EXCEPTION,
    InterruptionType,
)
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.x86 import VECTOR_BP, VECTOR_DB, VECTOR_DF, VECTOR_MC, VECTOR_PF, VECTOR_UD
from swtdx.machine.engine.protocol import Event, Stop
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.vmx import decode
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.debug import DebugRegisters
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.microcode import Microcode
from swtdx.machine.vmx.msrs import GuestMsrs
from swtdx.machine.vmx.vmcs import Vmcs

#: Returns the VM exit, or None when the guest goes on.
Handler = Callable[[Vmcs, Event], VmExit | None]

#: How long a processor that waits leaves its core to others, in seconds, and how often that is doubled.
_SHORTEST_PAUSE: Final = 20e-6
_LONGEST_PAUSE: Final = 8

_INT3: Final = b"\xcc"
_HAS_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21))


class Instructions:
    """The handlers of one logical processor, by the engine's reason to stop."""

    def __init__(self, unit: Microcode, msrs: GuestMsrs) -> None:
        self._unit = unit
        self._debug = DebugRegisters(unit)
        self._msrs = msrs
        #: The run of the processor that ended in the latest PAUSE, and how many before it did so in a row.
        self._paused_at = 0
        self._pauses = 0
        self.handlers: dict[Stop, Handler] = {
            Stop.UNDEFINED: self._undefined,
            Stop.CPUID: self._plain(reason.CPUID, b"\x0f\xa2"),
            Stop.HLT: self._plain(reason.HLT, b"\xf4"),
            Stop.INVD: self._plain(reason.INVD, b"\x0f\x08"),
            Stop.WBINVD: self._wbinvd,
            Stop.MONITOR: self._plain(reason.MONITOR, b"\x0f\x01\xc8"),
            Stop.MWAIT: self._plain(reason.MWAIT, b"\x0f\x01\xc9"),
            Stop.RDPMC: self._plain(reason.RDPMC, b"\x0f\x33"),
            Stop.XSETBV: self._plain(reason.XSETBV, b"\x0f\x01\xd1"),
            Stop.RDMSR: self._rdmsr,
            Stop.WRMSR: self._wrmsr,
            Stop.IO: self._io,
            Stop.RDTSC: self._rdtsc,
            Stop.RDTSCP: self._rdtsc,
            Stop.SHUTDOWN: self._shutdown,
            Stop.EXCEPTION: self._exception,
            Stop.TASK_SWITCH: self._task_switch,
            Stop.DR_ACCESS: self._debug.access,
            Stop.ICEBP: self._debug.int1,
            Stop.PAUSE: self._pause,
            Stop.SOFTWARE_INTERRUPT: self._software_interrupt,
            Stop.DEAD: self._dead,
            Stop.UNLOADABLE: self._unloadable,
        }

    def _plain(self, why: int, usual: bytes) -> Handler:
        """A handler for an instruction that always exits; ``usual`` is its usual encoding."""

        def handle(vmcs: Vmcs, _event: Event) -> VmExit | None:
            return self._unit.exit.set(why, 0, self._unit.length(vmcs, usual))

        return handle

    def _wbinvd(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        # QEMU 7.2 has one exit code for WBINVD and INVD (translate.c), so the bytes decide.
        code = self._unit.fetch(vmcs)
        bits = self._unit.code_bits(vmcs)
        why = reason.INVD if decode.is_invd(code, bits) else reason.WBINVD
        return self._unit.exit.set(why, 0, decode.length(code, vmcs.context.rip, bits))

    def _undefined(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        code = self._unit.fetch(vmcs)
        if not code:
            # The guest's own tables have changed under the instruction: it will fault by itself.
            return None
        bits = self._unit.code_bits(vmcs)
        if not code.startswith(decode.TDCALL_BYTES) and decode.is_int1(code, bits):
            # QEMU before 9.1 does not know it.
            return self._debug.int1(vmcs, event)
        why, length = decode.undefined_reason(code, bits)
        if why is None:
            if vmcs.controls[f.EXCEPTION_BITMAP] >> VECTOR_UD & 1:
                outcome = self._unit.exit.set(reason.EXCEPTION_OR_NMI)
                outcome.intr_info = VECTOR_UD | TYPE_HARDWARE_EXCEPTION << 8 | INTERRUPTION_VALID
                return outcome
            vmcs.context.inject(VECTOR_UD, TYPE_HARDWARE_EXCEPTION, None)
            return None
        if why == reason.TDCALL and vmcs.context.cpl:
            raise GeneralProtection("TDCALL with CPL above 0")
        return self._unit.exit.set(why, 0, length)

    def _rdmsr(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        context = vmcs.context
        index = context.gpr[RCX] & 0xFFFFFFFF
        length = self._unit.length(vmcs, b"\x0f\x32")
        if self._unit.msr_exits(vmcs, index, False):
            return self._unit.exit.set(reason.RDMSR, 0, length)
        value = self._msrs.read(vmcs, index)
        context.gpr[RAX] = value & 0xFFFFFFFF
        context.gpr[RDX] = value >> 32
        context.rip += length
        return None

    def _wrmsr(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        context = vmcs.context
        index = context.gpr[RCX] & 0xFFFFFFFF
        length = self._unit.length(vmcs, b"\x0f\x30")
        if self._unit.msr_exits(vmcs, index, True):
            return self._unit.exit.set(reason.WRMSR, 0, length)
        self._msrs.write(vmcs, index, context.gpr[RAX] & 0xFFFFFFFF | (context.gpr[RDX] & 0xFFFFFFFF) << 32)
        context.rip += length
        return None

    def _io(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        qualification = event.qualification
        if event.length >= 2:
            code = self._unit.fetch(vmcs)[: event.length]
            # IN/OUT with an immediate port are E4-E7: bit 6 of the qualification.
            if len(code) >= 2 and code[-2] & 0xFC == 0xE4:
                qualification |= 1 << 6
        return self._unit.exit.set(reason.IO, qualification, event.length)

    def _rdtsc(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        """RDTSC of a guest whose TSC does not tick at the host's rate."""
        context = vmcs.context
        value = self._unit.guest_tsc(vmcs)
        context.gpr[RAX] = value & 0xFFFFFFFF
        context.gpr[RDX] = value >> 32
        if event.stop is Stop.RDTSCP:
            context.gpr[RCX] = context.read_msr(0xC0000103) or 0
            context.rip += self._unit.length(vmcs, b"\x0f\x01\xf9")
        else:
            context.rip += self._unit.length(vmcs, b"\x0f\x31")
        return None

    def _pause(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        """PAUSE, which does nothing: others have the core for a while, and longer each time in a row."""
        unit = self._unit
        lp = unit.lp
        vmcs.context.rip += unit.length(vmcs, b"\xf3\x90")
        self._pauses = self._pauses + 1 if lp.runs == self._paused_at + 1 else 0
        self._paused_at = lp.runs
        unit.memory.lock.release()
        try:
            lp.halt(_SHORTEST_PAUSE * (1 << min(self._pauses, _LONGEST_PAUSE)))
        finally:
            unit.memory.lock.acquire()
        return None

    def _shutdown(self, _vmcs: Vmcs, _event: Event) -> VmExit | None:
        return self._unit.exit.set(reason.TRIPLE_FAULT)

    def _exception(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        if event.vector == VECTOR_DB and not vmcs.controls[f.EXCEPTION_BITMAP] >> VECTOR_DB & 1:
            self._debug.deliver(vmcs)
            return None
        context = vmcs.context
        bitmap = vmcs.controls[f.EXCEPTION_BITMAP] | 1 << VECTOR_DB | 1 << VECTOR_MC
        if not bitmap >> event.vector & 1:
            # Of an IRET that is being stepped over.
            if event.vector == VECTOR_PF:
                context.cr2 = event.qualification
            error = event.error_code if event.vector in _HAS_ERROR_CODE else None
            context.inject(event.vector, TYPE_HARDWARE_EXCEPTION, error)
            return None
        outcome = self._unit.exit.set(reason.EXCEPTION_OR_NMI)
        info = event.vector | TYPE_HARDWARE_EXCEPTION << 8 | INTERRUPTION_VALID
        if event.vector in _HAS_ERROR_CODE:
            info |= 1 << 11
            outcome.intr_error = event.error_code or 0
        if vmcs.unblocks_nmis and event.vector != VECTOR_DF:
            info |= INTERRUPTION_NMI_UNBLOCKING
        outcome.intr_info = info
        if event.vector == VECTOR_PF:
            outcome.qualification = event.qualification
        elif event.vector == VECTOR_DB:
            outcome.qualification = DebugRegisters.pending(vmcs)
        return outcome

    def _software_interrupt(self, vmcs: Vmcs, _event: Event) -> VmExit | None:
        """INT3 is a #BP, which may exit.  Else the engine executes what is in memory now."""
        bitmap = vmcs.controls[f.EXCEPTION_BITMAP]
        if not (bitmap >> VECTOR_BP & 1 and self._unit.fetch(vmcs).startswith(_INT3)):
            hpa = self._unit.code_at(vmcs)
            if hpa is not None:
                self._unit.machine.engine.rewrite(hpa & -8, 8)
            vmcs.context.believe_interrupt()
            return None
        outcome = self._unit.exit.set(reason.EXCEPTION_OR_NMI, 0, len(_INT3))
        outcome.intr_info = VECTOR_BP | InterruptionType.SOFTWARE_EXCEPTION << 8 | INTERRUPTION_VALID
        return outcome

    def _task_switch(self, _vmcs: Vmcs, _event: Event) -> VmExit | None:
        return self._unit.exit.set(reason.TASK_SWITCH)

    def _unloadable(self, _vmcs: Vmcs, _event: Event) -> VmExit | None:
        return self._unit.exit.set(reason.INVALID_GUEST_STATE)

    def _dead(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        # QEMU leaves the guest this way when it loads CR3 or CR4 with reserved bits.
        code = self._unit.fetch(vmcs)
        access = decode.control_register_access(code, self._unit.code_bits(vmcs)) if code else None
        if access is not None and access[0] == "to":
            raise GeneralProtection("a control register was loaded with reserved bits")
        return self._unit.exit.set(reason.INVALID_GUEST_STATE, event.qualification)
