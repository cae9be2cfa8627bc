"""The VMX unit of a logical processor: VMPTRLD, VMCLEAR, and VM entry down to the next VM exit.

Between an entry and an exit this is the processor's microcode: it fills the translation cache,
carries out what is native for the guest but unknown to the engine, virtualises the APIC, and turns
everything else into VM exits.  It decides nothing that a VMCS field does not tell it.

It looks into frames: tables, descriptors, code.  So it holds the memory's lock, except while the engine runs
the guest; what it looked up before that may be stale afterwards.
"""

from __future__ import annotations

from typing import Any, Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import INTERRUPTION_VALID, TYPE_HARDWARE_EXCEPTION, TYPE_NMI, ExitReason
from swtdx.arch.regs import RSP
from swtdx.arch.vmx_controls import (
    EXIT_ACK_INTERRUPT,
    PENDING_DEBUG_BS,
    PIN_PROCESS_POSTED,
    PROC_NMI_WINDOW_EXITING,
)
from swtdx.arch.x86 import CR0_ET, RFLAGS_TF, VECTOR_DB, VECTOR_GP
from swtdx.machine.cpu.core import ProcessorCore
from swtdx.machine.engine.protocol import FIELD_MSRS, OTHER_MSRS, EngineError, Event, GuestContext, Stop
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.memory import MachineCheck, Requestor
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.apicv import VirtualApic, drain_posted
from swtdx.machine.vmx.control_registers import ControlRegisters
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.instructions import Handler, Instructions
from swtdx.machine.vmx.microcode import Microcode
from swtdx.machine.vmx.miss import Misses
from swtdx.machine.vmx.msrs import GuestMsrs
from swtdx.machine.vmx.vmcs import Vmcs

#: Address spaces of which a processor keeps translations.
MOST_SPACES: Final = 64
_TSC_UNIT: Final = 1 << 48
# Looked at on every stop.
_ENTRY_INFO: Final = f.ENTRY_INTERRUPTION_INFO
_PROC_BASED: Final = f.PROC_BASED_CONTROLS
_INTERRUPT: Final = Stop.INTERRUPT
_STEP: Final = Stop.STEP
_MISS: Final = Stop.MISS
_SOFTWARE_INTERRUPT: Final = Stop.SOFTWARE_INTERRUPT
#: Instructions that are carried out here, if they do not exit.
_NATIVE: Final = frozenset((Stop.CR_ACCESS, Stop.DR_ACCESS, Stop.RDMSR, Stop.WRMSR, Stop.RDTSC, Stop.RDTSCP))
#: B0 to B3 and BS, which pending debug exceptions and DR6 have at the same places.
_DR6_CAUSES: Final = 0x400F
#: How often the guest is interrupted at one place in a shadow of STI or MOV SS, each time after twice as
#: long, until that counts as over: the instruction may be a jump to itself.
_SHADOW: Final = 8


class VmxUnit(Microcode):
    """VMX of one logical processor."""

    def __init__(self, lp: ProcessorCore) -> None:
        super().__init__(lp)
        self.active: dict[int, Vmcs] = {}
        self.current: Vmcs | None = None
        self._msrs = GuestMsrs(self.guest_tsc)
        self._handlers: dict[Stop, Handler] = {
            Stop.MISS: Misses(self).miss,
            Stop.CR_ACCESS: ControlRegisters(self).access,
            Stop.IRET: self._iret,
            **Instructions(self, self._msrs).handlers,
        }

    # ------------------------------------------------------------------ VMCS management
    def load(self, pa: int) -> Vmcs:
        """VMPTRLD: make the VMCS at physical address ``pa`` (with KeyID) active and current."""
        vmcs = self.active.get(pa)
        if vmcs is None:
            vmcs = Vmcs(pa, self.machine.engine.context(self.lp.index))
            vmcs.load(self.memory.map_page(*self.split(pa)))
            self.active[pa] = vmcs
        self.machine.engine.attend(self.lp.index, vmcs.context)
        self.current = vmcs
        return vmcs

    def clear(self, pa: int) -> None:
        """VMCLEAR: write the VMCS back to memory; it is no longer active here."""
        vmcs = self.active.pop(pa, None)
        if vmcs is None:
            return
        self.machine.engine.attend(self.lp.index, vmcs.context)
        vmcs.store(self.memory.map_page(*self.split(pa)))
        self.machine.engine.release(vmcs.context)
        if self.current is vmcs:
            self.current = None

    def forget(self) -> None:
        """No VMCS is active any more, and none is written back: the memory that held them is another's."""
        engine = self.machine.engine
        for vmcs in self.active.values():
            engine.attend(self.lp.index, vmcs.context)
            engine.release(vmcs.context)
        self.active.clear()
        self.current = None

    def write_back(self, vmcs: Vmcs) -> None:
        """Copy an active VMCS to its region without clearing it (for snapshots)."""
        self.machine.engine.attend(self.lp.index, vmcs.context)
        vmcs.store(self.memory.map_page(*self.split(vmcs.pa)))

    def flush(self, key: tuple[int, ...]) -> None:
        """INVEPT of one address space on this processor."""
        space = self.lp.spaces.get(key)
        if space is not None:
            space.flush()

    def read_guest_msr(self, vmcs: Vmcs, index: int) -> int:
        """A guest MSR that the processor holds (for software in SEAM that saves guest state)."""
        return self._msrs.read(vmcs, index)

    def write_guest_msr(self, vmcs: Vmcs, index: int, value: int) -> None:
        """Load a guest MSR that the processor holds."""
        self._msrs.write(vmcs, index, value)

    # ------------------------------------------------------------------ VM entry
    def enter(self) -> VmExit:
        """VMLAUNCH/VMRESUME of the current VMCS, until the next VM exit.

        The caller must not hold the memory's lock: a guest that runs must not keep others from memory.
        """
        vmcs = self.current
        assert vmcs is not None, "VM entry without a current VMCS"
        observer = self.lp.observer
        if observer is not None:
            observer.before_entry(vmcs)
        with self.memory.lock:
            try:
                outcome = self._enter(vmcs)
            except MachineCheck as broken:
                outcome = self.exit.set(reason.EXCEPTION_OR_NMI)
                outcome.intr_info = reason.MACHINE_CHECK_INFO
                self.lp.machine_check(broken)
                self._leave(vmcs, outcome, None)
        if observer is not None:
            observer.after_exit(vmcs, outcome)
        return outcome

    def _enter(self, vmcs: Vmcs) -> VmExit:
        context: GuestContext = vmcs.context
        lp = self.lp
        memory = self.memory
        engine = self.machine.engine
        controls = vmcs.controls
        if not context.cr0 & CR0_ET:
            # No VM entry changes it: it is always set (SDM volume 3, 27.3.2.1).
            context.cr0 = context.cr0 | CR0_ET
        if not vmcs.prepared or memory.epoch != vmcs.apic_epoch:
            self._prepare(vmcs)
        if vmcs.unchecked:
            if not ControlRegisters.loadable(vmcs):
                return self.exit.set(reason.INVALID_GUEST_STATE)
            vmcs.unchecked = False
        entry_event = vmcs.take_entry_event() if controls[_ENTRY_INFO] & INTERRUPTION_VALID else None
        if entry_event is not None:
            context.inject(*entry_event)
            if entry_event[1] == TYPE_NMI:
                context.nmi_blocked = True
        if vmcs.debug_exceptions:
            outcome = self._pending_debug(vmcs, lost=entry_event is not None)
            if outcome is not None:
                return outcome
        nmi_window = controls[_PROC_BASED] & PROC_NMI_WINDOW_EXITING
        shadow = _SHADOW if nmi_window and context.in_shadow else 0
        shadow_at = context.rip
        vmcs.unblocking = None
        stepping = False
        run, handlers, index = engine.run, self._handlers, lp.index
        lock, unlock = memory.lock.acquire, memory.lock.release
        while True:
            if (
                nmi_window
                and not shadow
                and not context.injecting
                and not (context.nmi_blocked or vmcs.unblocks_nmis)
            ):
                return self._leave(vmcs, self.exit.set(ExitReason.NMI_WINDOW), None)
            if lp.nmi_pending:
                return self._leave(vmcs, self._nmi(), None)
            if lp.pending:
                outcome = self._external_interrupt(vmcs)
                if outcome is not None:
                    return self._leave(vmcs, outcome, None)
            vector = None
            if context.interrupt_status & 0xFF and not shadow:
                vector = self._deliverable(vmcs)
            context.offer_interrupt(vector)
            deadline = lp.timer_deadline
            if vmcs.unblocking is not None or (nmi_window and not context.nmi_blocked):
                # An event is to be delivered, or an IRET to be executed, and something may come right then.
                stepping = not shadow and context.step()
            if shadow or (nmi_window and not context.nmi_blocked and not stepping):
                # Give the guest its one instruction, or its event: interrupts are offered again soon after.
                deadline = self.machine.tsc() + (100_000 << (_SHADOW - shadow if shadow else 0))
            space = vmcs.space
            space.serve(context)
            unlock()
            try:
                event = run(index, context, space, deadline)
            finally:
                lock()
            stop = event.stop
            if stepping:
                stepping = False
                context.stepped(event)
                stop = event.stop
                if stop is _STEP or not vmcs.unblocks_nmis:
                    vmcs.unblocking = None
            if memory.epoch != vmcs.apic_epoch:
                self._map_apic_page(vmcs)
            lp.runs += 1
            lp.last_exit_tsc = event.tsc
            if context.interrupt_taken():
                self._delivered(vmcs)
            if stop is _INTERRUPT or stop is _STEP:
                shadow = shadow - 1 if shadow and context.rip == shadow_at else 0
                lp.poll_timer(event.tsc)
                undelivered = context.undelivered()
                if undelivered is not None:
                    context.inject(*undelivered)
                continue
            if stop is not _MISS and stop is not _SOFTWARE_INTERRUPT:
                shadow = 0
            elif context.in_shadow or context.rip != shadow_at:
                # QEMU does not load it at entry: an instruction that misses twice is in it at the first only.
                shadow, shadow_at = (_SHADOW if context.in_shadow else 0), context.rip
            undelivered = context.undelivered()
            rip = context.rip if stop in _NATIVE else 0
            try:
                outcome = handlers[stop](vmcs, event)
            except GeneralProtection:
                context.inject(VECTOR_GP, TYPE_HARDWARE_EXCEPTION, 0)
                continue
            if outcome is None and rip and context.rip != rip and context.rflags & RFLAGS_TF:
                # The engine has not executed it, and so it has not trapped.
                vmcs.debug_exceptions = PENDING_DEBUG_BS
                outcome = self._pending_debug(vmcs, lost=False)
            if outcome is not None:
                return self._leave(vmcs, outcome, undelivered)
            if undelivered is not None and not context.injecting:
                context.inject(*undelivered)

    def _leave(self, vmcs: Vmcs, outcome: VmExit, undelivered: tuple[int, int, int | None] | None) -> VmExit:
        """Fill the IDT-vectoring information of an exit."""
        pending = vmcs.context.withdraw() or undelivered
        if pending is not None:
            vector, kind, error = pending
            outcome.idt_info = vector | kind << 8 | INTERRUPTION_VALID | (1 << 11 if error is not None else 0)
            outcome.idt_error = error or 0
        return outcome

    def _prepare(self, vmcs: Vmcs) -> None:
        """Derive what the engine needs from control fields that have changed."""
        controls = vmcs.controls
        key = (controls[f.EPTP], controls[f.HKID], controls[f.SHARED_EPTP])
        space = self.lp.spaces.get(key)
        if space is None:
            space = self._new_space(vmcs, key)
        vmcs.address_key, vmcs.space = key, space
        if vmcs.offset_set is None:
            scaled = controls[f.TSC_MULTIPLIER] != _TSC_UNIT
            vmcs.context.intercept_tsc(scaled)
            vmcs.context.set_tsc_offset(controls[f.TSC_OFFSET])
            vmcs.offset_set = controls[f.TSC_OFFSET]
        if not vmcs.exceptions_set:
            vmcs.context.intercept_exceptions(controls[f.EXCEPTION_BITMAP])
            vmcs.exceptions_set = True
        if vmcs.msr_bitmap is None:
            self._load_msr_bitmap(vmcs)
        if vmcs.apic_page is None or self.memory.epoch != vmcs.apic_epoch:
            self._map_apic_page(vmcs)
        vmcs.prepared = True

    def _new_space(self, vmcs: Vmcs, key: tuple[int, ...]) -> Any:
        """A translation cache for an address space; the oldest of too many goes."""
        spaces = self.lp.spaces
        engine = self.machine.engine
        if self.shared_bit(vmcs) >> engine.gpa_bits:
            raise EngineError(
                f"the {engine.name} engine reaches guest-physical addresses of {engine.gpa_bits} bits:"
                " give the TD a GPAW of 48, or use the scripted engine"
            )
        if len(spaces) >= MOST_SPACES:
            spaces.pop(next(iter(spaces))).close()
            for each in self.active.values():
                each.prepared = False
        spaces[key] = space = engine.space(self.lp.index)
        return space

    def _map_apic_page(self, vmcs: Vmcs) -> None:
        """Look at the virtual-APIC page anew, after some page has left the cache."""
        controls = vmcs.controls
        pa = controls[f.VIRTUAL_APIC_PAGE]
        vmcs.apic_page = self.map_private_table(pa | self.keyid_bits(controls[f.HKID]))
        vmcs.apic_epoch = self.memory.epoch

    def _load_msr_bitmap(self, vmcs: Vmcs) -> None:
        pa = vmcs.controls[f.MSR_BITMAP] | self.keyid_bits(vmcs.controls[f.HKID])
        vmcs.msr_bitmap = memoryview(bytes(self.map_private_table(pa)))
        for index in (*FIELD_MSRS, *OTHER_MSRS):
            vmcs.context.allow_msr(
                index,
                read=not self.msr_exits(vmcs, index, False),
                write=not self.msr_exits(vmcs, index, True),
            )

    # ------------------------------------------------------------------ debug exceptions
    def _pending_debug(self, vmcs: Vmcs, *, lost: bool) -> VmExit | None:
        """The #DB that is pending in the guest, unless an event is injected in its place (``lost``).

        Source: Intel SDM volume 3, 27.7.3.
        """
        context: GuestContext = vmcs.context
        what, vmcs.debug_exceptions = vmcs.debug_exceptions & _DR6_CAUSES, 0
        if lost or not what:
            return None
        context.write_dr(6, context.read_dr(6) | what)
        event = context.event
        event.stop, event.vector, event.error_code = Stop.EXCEPTION, VECTOR_DB, None
        return self._handlers[Stop.EXCEPTION](vmcs, event)

    # ------------------------------------------------------------------ NMIs
    @staticmethod
    def _iret(vmcs: Vmcs, _event: Event) -> VmExit | None:
        """IRET ends blocking by NMI before it does anything else, even if it faults then."""
        context: GuestContext = vmcs.context
        context.nmi_blocked = False
        vmcs.unblocking = (context.rip, context.gpr[RSP])
        return None

    def _nmi(self) -> VmExit:
        """An NMI of the host's: from now on they are blocked, until software executes IRET."""
        self.lp.take_nmi()
        outcome = self.exit.set(reason.EXCEPTION_OR_NMI)
        outcome.intr_info = reason.NMI_INFO
        return outcome

    # ------------------------------------------------------------------ interrupts
    def _external_interrupt(self, vmcs: Vmcs) -> VmExit | None:
        """Pending host interrupts: a posted-interrupt notification is processed, others exit."""
        controls = vmcs.controls
        if controls[f.PIN_BASED_CONTROLS] & PIN_PROCESS_POSTED:
            notification = controls[f.POSTED_INTERRUPT_NOTIFICATION_VECTOR]
            if notification in self.lp.pending:
                self.lp.acknowledge(notification)
                self._process_posted(vmcs)
        if not self.lp.pending:
            return None
        outcome = self.exit.set(reason.EXTERNAL_INTERRUPT)
        if controls[f.EXIT_CONTROLS] & EXIT_ACK_INTERRUPT:
            vector = max(self.lp.pending)
            self.lp.acknowledge(vector)
            outcome.intr_info = INTERRUPTION_VALID | vector
        return outcome

    def _process_posted(self, vmcs: Vmcs) -> None:
        """Posted-interrupt processing (SDM volume 3, section 30.6)."""
        pa = vmcs.controls[f.POSTED_INTERRUPT_DESCRIPTOR]
        descriptor = bytearray(self.memory.read(pa, 64, Requestor.HOST))
        vectors = drain_posted(memoryview(descriptor))
        self.memory.write(pa, bytes(descriptor), Requestor.HOST)
        status = vmcs.context.read(f.GUEST_INTERRUPT_STATUS)
        assert vmcs.apic_page is not None
        for vector in vectors:
            status = VirtualApic.request(vmcs.apic_page, status, vector)
        vmcs.context.write(f.GUEST_INTERRUPT_STATUS, status)
        observer = self.lp.observer
        if observer is not None:
            observer.posted(vmcs, vectors)

    @staticmethod
    def _deliverable(vmcs: Vmcs) -> int | None:
        assert vmcs.apic_page is not None
        return VirtualApic.deliverable(vmcs.apic_page, vmcs.context.interrupt_status)

    def _delivered(self, vmcs: Vmcs) -> None:
        assert vmcs.apic_page is not None
        status = vmcs.context.read(f.GUEST_INTERRUPT_STATUS)
        vmcs.context.write(f.GUEST_INTERRUPT_STATUS, VirtualApic.delivered(vmcs.apic_page, status))
        observer = self.lp.observer
        if observer is not None:
            observer.delivered(vmcs, status & 0xFF)
