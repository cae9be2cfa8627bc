"""A logical processor that executes machine code outside SEAM: what stops the engine there, carried out.

The engine runs the code; it stops where a TDX host's processor does something that QEMU's does not (CPUID and
MSRs, VMX instructions, SEAMCALL), and where physical memory is not what it seems.  Local APIC, interrupts and
most of the board are QEMU's own, and never stop.
"""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

from swtdx.arch.exits import TYPE_HARDWARE_EXCEPTION, TYPE_NMI
from swtdx.arch.regs import RAX, RCX, RDX, RSI, RSP
from swtdx.arch.units import MASK32, PAGE
from swtdx.arch.x86 import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    PF_WRITE,
    VECTOR_GP,
    VECTOR_MC,
    VECTOR_NMI,
    VECTOR_PF,
    VECTOR_UD,
)
from swtdx.machine.cpu.core import Mode
from swtdx.machine.engine.protocol import Access, EngineError, Event, Stop
from swtdx.machine.engine.qemu.root_engine import RootEngine
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.memory import MachineCheck, Requestor, ReservedBitFault
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.root.identity import Identity
from swtdx.machine.root.memory import Reach, RootMemory
from swtdx.machine.root.ports import NoPorts, RootPorts
from swtdx.machine.root.vmx import ARITHMETIC, RootVmx
from swtdx.machine.vmx import decode
from swtdx.machine.vmx.control_registers import load_cr0, load_cr4
from swtdx.machine.vmx.paging import linear_to_gpa

_SEAMCALL: Final = b"\x66\x0f\x01\xcf"
#: In VMX operation these cannot be cleared (SDM volume 3, section 24.8).
_CR0_FIXED: Final = CR0_PE | CR0_NE | CR0_PG


class PageFault(Exception):
    """#PF at ``linear``, in an instruction that is carried out here."""

    def __init__(self, linear: int, error: int) -> None:
        super().__init__(f"#PF at {linear:#x}")
        self.linear = linear
        self.error = error


class RootWorld:
    """The root world of one logical processor.

    ``devices`` are the pages of QEMU's board that it reaches, and ``ports`` answers at those I/O ports that
    the engine was told to stop at.  ``ended`` says why :meth:`run` has returned; None: it was stopped.
    """

    def __init__(
        self,
        lp: LogicalProcessor,
        devices: Collection[int],
        ports: RootPorts | None = None,
    ) -> None:
        machine = lp.machine
        engine = machine.engine
        if not isinstance(engine, RootEngine):
            raise EngineError(f"machine code in the root world needs the engine qemu-root, not {engine.name}")
        self.lp = lp
        self.ports = ports or NoPorts()
        self.context = engine.root_context(lp.index)
        self.table = engine.root_space(lp.index)
        self.ended: str | None = None
        #: How often the engine has stopped, by kind.
        self.stops: Counter[Stop] = Counter()
        self._engine = engine
        self._physical = machine.memory
        self._words = machine.memory.frames.cast("Q")
        self._memory = RootMemory(machine.memory, self.table, devices, machine.frames_mapped)
        self._identity = Identity(lp, self.context)
        self._vmx = RootVmx(self)
        self._stopping = False
        self._nmi = False
        machine.memory.subscribe(self.table.drop)
        engine.interrupted[lp.index] = self._interrupted
        self._handlers: dict[Stop, Callable[[Event], None]] = {
            Stop.MISS: self._miss,
            Stop.INTERRUPT: self._stopped,
            Stop.UNDEFINED: self._undefined,
            Stop.CPUID: self._cpuid,
            Stop.RDMSR: self._rdmsr,
            Stop.WRMSR: self._wrmsr,
            Stop.IO: self._io,
            Stop.CR_ACCESS: self._control_register,
            Stop.DR_ACCESS: self._debug_register,
            Stop.INVD: self._invalidate,
            Stop.WBINVD: self._invalidate,
            Stop.RDPMC: self._absent,
            Stop.MONITOR: self._absent,
            Stop.MWAIT: self._absent,
            Stop.SHUTDOWN: self._shutdown,
            Stop.EXCEPTION: self._exception,
        }

    # ------------------------------------------------------------------ starting and stopping
    def start(self, rip: int, *, page_table: int, gdt: int, rsi: int = 0) -> None:
        """Be in 64-bit mode at ``rip``, as a boot loader leaves a processor; all addresses are physical.

        ``page_table``: a PML4 that maps what is executed first; ``gdt``: four descriptors, of which the third
        is the code segment (0x10) and the fourth the data segment (0x18): Linux, "64-bit boot protocol".
        """
        context = self.context
        context.load_flat(gdt)
        context.efer = EFER_LME | EFER_NXE
        context.cr4 = CR4_PAE
        context.cr3 = page_table
        context.switch_paging(CR0_PG | CR0_PE | CR0_ET | CR0_NE | CR0_WP, EFER_LME | EFER_LMA | EFER_NXE)
        self.lp.write_cr4(CR4_PAE)
        context.rip = rip
        context.rflags = 2
        context.gpr[RSI] = rsi

    def stop(self, why: str | None = None) -> None:
        """Make :meth:`run` return soon.  Any thread may call."""
        if self.ended is None:
            self.ended = why
        self._stopping = True
        self._engine.kick(self.lp.index)

    def close(self) -> None:
        """Give back what it had of the engine."""
        self._physical.unsubscribe(self.table.drop)
        self._engine.interrupted.pop(self.lp.index, None)
        self.table.close()
        self._engine.release(self.context)

    def _interrupted(self, vector: int | None) -> None:
        """An interrupt, or an NMI, has ended a VM entry: a TD's microcode looks at ``pending``."""
        lp = self.lp
        if vector is not None:
            lp.pending.add(vector)
        elif lp.mode is Mode.SEAM_ROOT:
            lp.nmi_pending = True
        else:
            self._nmi = True

    # ------------------------------------------------------------------ running
    def run(self) -> None:
        """Execute until the software ends the machine, or :meth:`stop` is called; ``ended`` says why."""
        context, table, engine, index = self.context, self.table, self._engine, self.lp.index
        handlers, stops = self._handlers, self.stops
        while not self._stopping:
            table.serve(context)
            event = engine.run(index, context, table, None)
            stops[event.stop] += 1
            undelivered = context.undelivered()
            handler = handlers.get(event.stop)
            if handler is None:
                raise EngineError(
                    f"processor {index} stopped with {event.stop.name} (code {event.qualification:#x})"
                    f" at {context.rip:#x}"
                )
            try:
                handler(event)
            except InvalidOpcode:
                context.inject(VECTOR_UD, TYPE_HARDWARE_EXCEPTION, None)
            except GeneralProtection:
                context.inject(VECTOR_GP, TYPE_HARDWARE_EXCEPTION, 0)
            except PageFault as fault:
                context.cr2 = fault.linear
                context.inject(VECTOR_PF, TYPE_HARDWARE_EXCEPTION, fault.error)
            if undelivered is not None and not context.injecting:
                context.inject(*undelivered)
            if self._nmi and not context.injecting:
                self._nmi = False
                context.inject(VECTOR_NMI, TYPE_NMI, None)

    def _stopped(self, _event: Event) -> None:
        """A kick, or an NMI, which the loop delivers."""

    # ------------------------------------------------------------------ memory
    def _read_entry(self, pa: int) -> int | None:
        hpa = self.table.lookup(pa)
        if hpa is not None:
            entry: int = self._words[hpa >> 3]
            return entry
        try:
            return self._physical.read_u64(pa & -8, Requestor.HOST)
        except ReservedBitFault:
            return None

    def translate(self, linear: int, *, write: bool = False) -> int:
        """The physical address of ``linear``.

        Raises:
            PageFault: it is not mapped.
        """
        context = self.context
        pa = linear_to_gpa(linear, context.cr0, context.cr3, context.cr4, context.efer, self._read_entry)
        if pa is None:
            raise PageFault(linear, PF_WRITE if write else 0)
        return pa

    def read(self, linear: int, count: int) -> bytes:
        """``count`` bytes at ``linear``.

        Raises:
            PageFault: some are not mapped.
        """
        data = b""
        while len(data) < count:
            at = linear + len(data)
            data += self._physical.read(self.translate(at), min(count - len(data), PAGE - at % PAGE))
        return data

    def write(self, linear: int, data: bytes) -> None:
        """Store ``data`` at ``linear``.

        Raises:
            PageFault: it is not mapped.
        """
        done = 0
        while done < len(data):
            at = linear + done
            part = min(len(data) - done, PAGE - at % PAGE)
            pa = self.translate(at, write=True)
            self._physical.write(pa, data[done : done + part])
            self.lp.machine.code_written(pa & (1 << self._physical.addresses.hpa_bits) - 1, part)
            done += part

    def _code(self) -> bytes:
        """Up to 15 bytes at CS:RIP; fewer where the next page is not mapped."""
        context = self.context
        linear = context.rip if context.long_mode else context.cs_base + context.rip & MASK32
        count = decode.MAX_LENGTH
        if linear % PAGE <= PAGE - count and context.efer & EFER_LMA:
            hpa = self.table.code_address(linear, context.cr3, self._words)
            if hpa is not None:
                return bytes(self._physical.frames[hpa : hpa + count])
        code = self.read(linear, min(count, PAGE - linear % PAGE))
        if len(code) < count:
            with contextlib.suppress(PageFault):
                code += self.read(linear + len(code), count - len(code))
        return code

    def _bits(self) -> int:
        context = self.context
        return 64 if context.long_mode else 32 if context.code_is_32_bit else 16

    def operand(self) -> int | None:
        """The linear address of the memory operand of the instruction at RIP."""
        return decode.memory_operand(self._code(), self.context.rip, self._bits(), self.context)

    def _miss(self, event: Event) -> None:
        with self._physical.lock:
            try:
                reach = self._memory.fill(event.gpa)
            except ReservedBitFault:
                # QEMU's page walk does not know which address bits carry KeyIDs.
                self.context.inject(VECTOR_PF, TYPE_HARDWARE_EXCEPTION, 1 << 3 | 1)
                return
            except MachineCheck as broken:
                self.lp.machine_check(broken)
                self.context.inject(VECTOR_MC, TYPE_HARDWARE_EXCEPTION, None)
                return
        if reach is Reach.NOTHING and event.access & Access.WRITE:
            self.context.rip += decode.length(self._code(), self.context.rip, self._bits())

    def _invalidate(self, _event: Event) -> None:
        """WBINVD, WBNOINVD and INVD, which nothing here tells apart: dirty lines are written back."""
        length = decode.length(self._code(), self.context.rip, self._bits())
        self._physical.wbinvd()
        self.context.rip += length

    # ------------------------------------------------------------------ identity
    def _cpuid(self, _event: Event) -> None:
        gpr = self.context.gpr
        eax, ebx, ecx, edx = self._identity.cpuid(gpr[RAX] & MASK32, gpr[RCX] & MASK32)
        gpr[RAX], gpr[3], gpr[RCX], gpr[RDX] = eax, ebx, ecx, edx
        self.context.rip += 2

    def _rdmsr(self, _event: Event) -> None:
        gpr = self.context.gpr
        value = self._identity.rdmsr(gpr[RCX] & MASK32)
        gpr[RAX], gpr[RDX] = value & MASK32, value >> 32
        self.context.rip += 2

    def _wrmsr(self, _event: Event) -> None:
        gpr = self.context.gpr
        self._identity.wrmsr(gpr[RCX] & MASK32, gpr[RAX] & MASK32 | (gpr[RDX] & MASK32) << 32)
        self.context.rip += 2

    # ------------------------------------------------------------------ control and debug registers
    def _control_register(self, _event: Event) -> None:
        context = self.context
        decoded = decode.control_register_access(self._code(), self._bits())
        if decoded is None:
            raise InvalidOpcode("no access to a control register")
        kind, number, gpr, length = decoded
        if context.cpl:
            raise GeneralProtection("a control register was accessed with CPL above 0")
        if kind in ("from", "smsw"):
            if gpr < 0:
                self.write(self.operand() or 0, (context.cr0 & 0xFFFF).to_bytes(2, "little"))
            else:
                context.gpr[gpr] = {0: context.cr0, 3: context.cr3, 4: context.cr4}[number]
        elif kind == "to":
            self._load_control(number, context.gpr[gpr] if context.long_mode else context.gpr[gpr] & MASK32)
        elif kind == "clts":
            self._load_control(0, context.cr0 & ~CR0_TS)
        else:
            word = (
                context.gpr[gpr] if gpr >= 0 else int.from_bytes(self.read(self.operand() or 0, 2), "little")
            )
            self._load_control(0, context.cr0 & ~0xE | word & 0xF)
        context.rip += length

    def _load_control(self, number: int, value: int) -> None:
        context, lp = self.context, self.lp
        if number == 0:
            if lp.mode is Mode.ROOT and ~value & _CR0_FIXED:
                raise GeneralProtection(f"CR0 = {value:#x} in VMX operation")
            load_cr0(context, value)
        elif number == 3:
            context.cr3 = value & ~(1 << 63)
        elif number == 4:
            before = lp.cr4
            lp.write_cr4(value)
            try:
                load_cr4(context, value)
            except GeneralProtection:
                lp.cr4 = before
                raise
        else:
            raise InvalidOpcode(f"CR{number} does not exist")

    def _debug_register(self, _event: Event) -> None:
        context = self.context
        bits = self._bits()
        decoded = decode.debug_register_access(self._code(), bits)
        if decoded is None or (decoded[1] in (4, 5) and context.cr4 & CR4_DE):
            raise InvalidOpcode("no access to a debug register")
        write, number, gpr, length = decoded
        if context.cpl:
            raise GeneralProtection("a debug register was accessed with CPL above 0")
        number = number + 2 if number in (4, 5) else number
        if write:
            value = context.gpr[gpr] if bits == 64 else context.gpr[gpr] & MASK32
            if number > 3 and value >> 32:
                raise GeneralProtection(f"DR{number} with reserved bits")
            context.write_dr(number, value)
        else:
            context.gpr[gpr] = context.read_dr(number)
        context.rip += length

    # ------------------------------------------------------------------ I/O
    def _io(self, event: Event) -> None:
        """IN and OUT, one datum.  String instructions find nothing there: they are done at once."""
        context = self.context
        what = event.qualification
        port, size = what >> 16, (what & 7) + 1
        # The next RIP is known: a device may end the machine.
        context.rip += event.length
        if what & 1 << 4:
            return
        mask = (1 << 8 * size) - 1
        if what & 1 << 3:
            value = self.ports.read(port, size) & mask
            context.gpr[RAX] = value if size == 4 else context.gpr[RAX] & ~mask | value
        else:
            self.ports.write(port, size, context.gpr[RAX] & mask)

    # ------------------------------------------------------------------ instructions that QEMU does not know
    def _undefined(self, _event: Event) -> None:
        code = self._code()
        if code.startswith(_SEAMCALL):
            self._seamcall()
            return
        reason, _ = decode.undefined_reason(code, self._bits())
        instruction = decode.decode(code, self.context.rip, self._bits())
        if reason is not None:
            self._vmx.execute(reason, instruction)
        elif decode.is_movdir64b(instruction):
            self._movdir64b(instruction)
        else:
            raise InvalidOpcode("not an instruction of this processor")

    def _seamcall(self) -> None:
        lp, context = self.lp, self.context
        if context.cpl:
            raise GeneralProtection(f"SEAMCALL with CPL {context.cpl}")
        lp.gpr[:] = struct.unpack("<16Q", context.gpr_bytes)
        stack = lp.gpr[RSP]
        lp.seamcall()
        # An NMI that was a VM exit is software's from here on, as are those that it blocks.
        lp.nmi_blocked = False
        lp.gpr[RSP] = stack
        context.gpr_bytes[:] = struct.pack("<16Q", *lp.gpr)
        context.rflags = context.rflags & ~ARITHMETIC | lp.cf
        context.rip += len(_SEAMCALL)

    def _movdir64b(self, instruction: Any) -> None:
        source = self.operand()
        register = decode.register_operand(instruction, 0)
        assert source is not None, "it has an operand in memory"
        assert register is not None, "it has one in a register"
        target = self.context.gpr[register]
        if target % 64:
            raise GeneralProtection("MOVDIR64B to an address that is not aligned to 64 bytes")
        self._physical.direct_store(self.translate(target, write=True), self.read(source, 64), Requestor.HOST)
        self.context.rip += int(instruction.len)

    def _absent(self, _event: Event) -> None:
        raise InvalidOpcode("this board has no such instruction")

    # ------------------------------------------------------------------ the end
    def _shutdown(self, _event: Event) -> None:
        self.ended = "triple fault"
        self._stopping = True

    def _exception(self, event: Event) -> None:
        """#MC: QEMU has none of its own."""
        self.context.inject(event.vector, TYPE_HARDWARE_EXCEPTION, None)
