"""The VMX unit of a logical processor: VMPTRLD, VMCLEAR, and VM entry down to the next VM exit.

Between an entry and an exit this is the processor's microcode: it fills the translation cache,
carries out what is native for the guest but unknown to the engine, virtualises the APIC, and turns
everything else into VM exits.  It decides nothing that a VMCS field does not tell it.

It looks into frames: tables, descriptors, code.  So it holds the memory's lock, except while the engine runs
the guest; what it looked up before that may be stale afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from swtdx.arch import vmcs as f
from swtdx.arch.exits import INTERRUPTION_VALID, TYPE_HARDWARE_EXCEPTION
from swtdx.arch.units import MASK64
from swtdx.arch.vmx_controls import PIN_PROCESS_POSTED
from swtdx.arch.x86 import CR4_LA57, EFER_LMA, VECTOR_GP
from swtdx.machine.engine.protocol import FIELD_MSRS, OTHER_MSRS, EngineError, Event, GuestContext, Stop
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.memory import MachineCheck, Requestor
from swtdx.machine.vmx import decode
from swtdx.machine.vmx import exit as reason
from swtdx.machine.vmx.apicv import VirtualApic, drain_posted
from swtdx.machine.vmx.control_registers import ControlRegisters
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.instructions import Handler, Instructions
from swtdx.machine.vmx.msrs import GuestMsrs
from swtdx.machine.vmx.paging import cached_address, linear_to_gpa
from swtdx.machine.vmx.translate import Translator
from swtdx.machine.vmx.vmcs import Vmcs

if TYPE_CHECKING:
    from swtdx.machine.processor import LogicalProcessor

#: MSRs that an engine runs natively when the MSR bitmap lets them through.
#: Address spaces of which a processor keeps translations.
MOST_SPACES: Final = 64
_TSC_UNIT: Final = 1 << 48


class VmxUnit:
    """VMX of one logical processor."""

    def __init__(self, lp: LogicalProcessor) -> None:
        self.lp = lp
        self.machine = lp.machine
        self.memory = lp.machine.memory
        self.guest = Requestor.TD
        self.exit = VmExit()
        self.active: dict[int, Vmcs] = {}
        self.current: Vmcs | None = None
        self._translator = Translator(self)
        self._msrs = GuestMsrs(self.guest_tsc)
        self._keyid_shift = self.memory.addresses.hpa_bits
        self._words = self.memory.frames.cast("Q")
        self._handlers: dict[Stop, Handler] = {
            Stop.MISS: self._miss,
            Stop.CR_ACCESS: ControlRegisters(self).access,
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

    def write_back(self, vmcs: Vmcs) -> None:
        """Copy an active VMCS to its region without clearing it (for snapshots)."""
        self.machine.engine.attend(self.lp.index, vmcs.context)
        vmcs.store(self.memory.map_page(*self.split(vmcs.pa)))

    # ------------------------------------------------------------------ addresses
    def split(self, pa: int) -> tuple[int, int]:
        """(HPA, KeyID) of a physical address."""
        shift = self._keyid_shift
        return pa & (1 << shift) - 1, pa >> shift

    def keyid_bits(self, keyid: int) -> int:
        """``keyid`` where physical addresses carry it."""
        return keyid << self._keyid_shift

    @staticmethod
    def shared_bit(vmcs: Vmcs) -> int:
        """The GPA bit that selects shared memory: 51 with a 5-level Secure EPT of GPAW 52, else 47."""
        return 1 << 51 if vmcs.controls[f.EPTP] >> 3 & 7 == 4 else 1 << 47

    def map_private_table(self, pa: int) -> memoryview:
        """A page that the processor reads with a private KeyID (Secure EPT, #VE area)."""
        return self.memory.map_page(*self.split(pa))

    def map_shared_table(self, pa: int) -> memoryview:
        """A page of the hypervisor's EPT."""
        return memoryview(self.memory.read(pa, 4096, Requestor.HOST))

    def flush(self, key: tuple[int, ...]) -> None:
        """INVEPT of one address space on this processor."""
        space = self.lp.spaces.get(key)
        if space is not None:
            space.flush()

    # ------------------------------------------------------------------ guest memory for microcode
    def code_bits(self, vmcs: Vmcs) -> int:
        """Whether the guest executes 64-, 32- or 16-bit code."""
        if vmcs.context.long_mode:
            return 64
        return 32 if vmcs.context.read(f.GUEST_CS_ACCESS_RIGHTS) & 1 << 14 else 16

    @staticmethod
    def linear_rip(vmcs: Vmcs) -> int:
        """The linear address of CS:RIP."""
        context = vmcs.context
        return int(context.rip if context.long_mode else context.cs_base + context.rip & 0xFFFFFFFF)

    def _read_qword(self, vmcs: Vmcs) -> Callable[[int], int | None]:
        lookup, frames, reach = vmcs.space.lookup, self.memory.frames, self._translator.reach

        def read(gpa: int) -> int | None:
            hpa = lookup(gpa)
            if hpa is None:
                hpa = reach(vmcs, gpa)
                if hpa is None:
                    return None
            value: int = struct.unpack_from("<Q", frames, hpa)[0]
            return value

        return read

    def fetch(self, vmcs: Vmcs, count: int = decode.MAX_LENGTH) -> bytes:
        """Up to ``count`` bytes of code at CS:RIP; fewer where the next page is not mapped."""
        context: GuestContext = vmcs.context
        known = context.code
        if known is not None:
            return known
        linear = self.linear_rip(vmcs)
        if linear & 4095 <= 4096 - count and context.efer & EFER_LMA and not context.cr4 & CR4_LA57:
            # The usual case, some ten thousand times in a boot: everything is cached.
            hpa = cached_address(linear, context.cr3, vmcs.space.lookup, self._words)
            if hpa is not None:
                return bytes(self.memory.frames[hpa : hpa + count])
        read = self._read_qword(vmcs)
        code = b""
        while len(code) < count:
            gpa = linear_to_gpa(linear, context.cr0, context.cr3, context.cr4, context.efer, read)
            hpa = None if gpa is None else self._translator.reach(vmcs, gpa)
            if hpa is None:
                break
            part = min(count - len(code), 4096 - (linear & 4095))
            code += bytes(self.memory.frames[hpa : hpa + part])
            linear += part
        return code

    def length(self, vmcs: Vmcs, usual: bytes) -> int:
        """Length of the instruction at RIP, most likely ``usual``."""
        code = self.fetch(vmcs)
        if code.startswith(usual):
            return len(usual)
        if not code:
            return len(usual)
        return decode.length(code, vmcs.context.rip, self.code_bits(vmcs))

    def read_linear(self, vmcs: Vmcs, linear: int, count: int) -> int:
        """``count`` (at most 8) bytes of guest memory within one page, 0 where it is not mapped."""
        context = vmcs.context
        read = self._read_qword(vmcs)
        gpa = linear_to_gpa(linear, context.cr0, context.cr3, context.cr4, context.efer, read)
        hpa = None if gpa is None else self._translator.reach(vmcs, gpa)
        return 0 if hpa is None else int.from_bytes(self.memory.frames[hpa : hpa + count], "little")

    def guest_tsc(self, vmcs: Vmcs) -> int:
        """What RDTSC gives the guest now."""
        tsc = self.machine.tsc()
        return (tsc * vmcs.controls[f.TSC_MULTIPLIER] >> 48) + vmcs.controls[f.TSC_OFFSET] & MASK64

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
        with self.memory.lock:
            try:
                return self._enter(vmcs)
            except MachineCheck as broken:
                outcome = self.exit.set(reason.EXCEPTION_OR_NMI)
                outcome.intr_info = reason.MACHINE_CHECK_INFO
                self.lp.machine_check(broken)
                return self._leave(vmcs, outcome, None)

    def _enter(self, vmcs: Vmcs) -> VmExit:
        context: GuestContext = vmcs.context
        lp = self.lp
        memory = self.memory
        engine = self.machine.engine
        self._prepare(vmcs)
        entry_event = vmcs.take_entry_event()
        if entry_event is not None:
            context.inject(*entry_event)
        shadow = False
        while True:
            if lp.pending:
                outcome = self._external_interrupt(vmcs)
                if outcome is not None:
                    return self._leave(vmcs, outcome, None)
            context.offer_interrupt(None if shadow else self._deliverable(vmcs))
            deadline = lp.timer_deadline
            if shadow:
                # Give the guest its one instruction: interrupts are offered again soon after.
                deadline = self.machine.tsc() + 100_000
            vmcs.space.serve(context)
            memory.lock.release()
            try:
                event = engine.run(lp.index, context, vmcs.space, deadline)
            finally:
                memory.lock.acquire()
            if memory.epoch != vmcs.apic_epoch:
                self._map_apic_page(vmcs)
            lp.runs += 1
            lp.last_exit_tsc = event.tsc
            if context.interrupt_taken():
                self._delivered(vmcs)
            if event.stop is Stop.INTERRUPT:
                shadow = False
                lp.poll_timer(event.tsc)
                undelivered = context.undelivered()
                if undelivered is not None:
                    context.inject(*undelivered)
                continue
            shadow = context.in_shadow and event.stop is Stop.MISS
            undelivered = context.undelivered()
            try:
                outcome = self._handlers[event.stop](vmcs, event)
            except GeneralProtection:
                context.inject(VECTOR_GP, TYPE_HARDWARE_EXCEPTION, 0)
                continue
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

    @staticmethod
    def msr_exits(vmcs: Vmcs, index: int, write: bool) -> bool:
        """The MSR bitmap's verdict (SDM volume 3, section 25.6.9)."""
        assert vmcs.msr_bitmap is not None
        if index < 0x2000:
            base = 0
        elif 0xC0000000 <= index < 0xC0002000:
            base, index = 1024, index - 0xC0000000
        else:
            return True
        return bool(vmcs.msr_bitmap[base + (2048 if write else 0) + (index >> 3)] >> (index & 7) & 1)

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
        return self.exit.set(reason.EXTERNAL_INTERRUPT)

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

    @staticmethod
    def _deliverable(vmcs: Vmcs) -> int | None:
        status = vmcs.context.read(f.GUEST_INTERRUPT_STATUS)
        if not status & 0xFF:
            return None
        assert vmcs.apic_page is not None
        return VirtualApic.deliverable(vmcs.apic_page, status)

    @staticmethod
    def _delivered(vmcs: Vmcs) -> None:
        assert vmcs.apic_page is not None
        status = vmcs.context.read(f.GUEST_INTERRUPT_STATUS)
        vmcs.context.write(f.GUEST_INTERRUPT_STATUS, VirtualApic.delivered(vmcs.apic_page, status))

    # ------------------------------------------------------------------ stops
    def _miss(self, vmcs: Vmcs, event: Event) -> VmExit | None:
        return self._translator.miss(vmcs, event.gpa, event.access)
