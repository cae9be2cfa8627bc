"""A TD as a debugger sees it through the module's debug interfaces: TDH.VP.RD and WR, TDH.MEM.RD and WR.

They work for a TD with ATTRIBUTES.DEBUG alone, as on hardware, and so does what stops it: exceptions that the
host has asked for in the TD VMCS's exception bitmap are TD exits.  Breakpoints take the vCPUs' own debug
registers, and a step sets RFLAGS.TF.  A guest's own MOV DR leaves the TD meanwhile, and is carried out here
on a copy.

Source: TDX Module ABI (fields that a debug host may write); SDM volume 3, 18.2 (debug registers) and 4.5
(4-level paging).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.exits import ExitReason, is_nmi
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.units import MASK64, PAGE
from swtdx.arch.vmx_controls import PROC_MOV_DR_EXITING
from swtdx.arch.x86 import CR0_PG, FRAME_MASK, PTE_P, PTE_PS, RFLAGS_TF, VECTOR_BP, VECTOR_DB
from swtdx.gdb.registers import BY_NAME, REGISTERS
from swtdx.gdb.session import SIGTRAP, Breakpoint, Stop, TargetError
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.launch import Launch
from swtdx.vmm.result import EndReason
from swtdx.vmm.td_exit import TdExit
from swtdx.vmm.vcpu import Vcpu

_EXCEPTION: Final = int(ExitReason.EXCEPTION_OR_NMI)
_DR_ACCESS: Final = int(ExitReason.DR_ACCESS)
_DR6_RESET: Final = 0xFFFF0FF0
_INT3: Final = b"\xcc"
#: DR7: the kind of a breakpoint, and the code of its size.
_KINDS: Final = {Breakpoint.HARDWARE: 0, Breakpoint.WRITE: 1, Breakpoint.READ: 3, Breakpoint.ACCESS: 3}
_SIZES: Final = {1: 0, 2: 1, 8: 2, 4: 3}
_DR7_ONES: Final = 0x400
#: From so many debug registers in use on, breakpoints are INT3s: the rest is for those who ask for them.
_KEPT_FREE: Final = 2
_WATCHES: Final = {Breakpoint.WRITE: "watch", Breakpoint.READ: "rwatch", Breakpoint.ACCESS: "awatch"}


def _field(name: str) -> int:
    return by_name(Context.VP, name).id


_IDS: Final = {register.field: _field(register.field) for register in REGISTERS if register.field}
_XBUFF: Final = _field("XBUFF")
_BITMAP: Final = _field("EXCEPTION_BITMAP")
_CONTROLS: Final = _field("PROC_BASED_CONTROLS")
_RFLAGS, _RIP = _IDS["GUEST_RFLAGS"], _IDS["GUEST_RIP"]


class DebugTd:
    """The vCPUs and the memory of a debug TD, between two runs (:class:`swtdx.gdb.session.Target`)."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._td = launch.td
        self._software: dict[int, bytes] = {}
        self._hardware: list[tuple[Breakpoint, int, int]] = []
        self._translations: dict[tuple[int, int], int] = {}
        #: What the guest has written to its debug registers while they were the debugger's, by vCPU.
        self._own: dict[int, dict[int, int]] = {}
        self._stepping: int | None = None
        self._stop: Stop | None = None
        for worker in launch.runner.workers:
            worker.hook = self._exit

    # ------------------------------------------------------------------ on a vCPU's thread
    def _exit(self, found: TdExit) -> None:
        """A TD exit: one by an exception is for the debugger."""
        if found.status == _DR_ACCESS:
            found.handled = True
            self._move_debug_register(self._td.vcpus[found.vcpu], found["RCX"])
            return
        if found.status & 0xFFFF != _EXCEPTION or found.status >> 32 or is_nmi(found["R9"]):
            return
        vector, thread = found["R9"] & 0xFF, found.vcpu + 1
        more = ""
        if vector == VECTOR_DB:
            for number, (kind, address, _) in enumerate(self._hardware):
                if found["RCX"] >> number & 1:
                    # Which kind the debugger has asked for does not matter to it here.
                    more = "" if kind is Breakpoint.HARDWARE else f"{_WATCHES[kind]}:{address:x}"
        elif vector == VECTOR_BP:
            more = "swbreak:"
        if self._stop is None:
            self._stop = Stop(SIGTRAP, thread, more)
        found.handled = True
        found.goes_on = False
        self._launch.runner.stop(EndReason.PAUSED)

    def _move_debug_register(self, vcpu: Vcpu, access: int) -> None:
        """The guest's MOV DR: it sees what it has written, and the registers stay the debugger's.

        ``access`` is the exit qualification (SDM volume 3, table 28-4).
        """
        number, gpr = access & 7, access >> 8 & 15
        own = self._own.setdefault(vcpu.index, {6: _DR6_RESET, 7: _DR7_ONES})
        field = _IDS["GUEST_RSP"] if gpr == 4 else _IDS["RAX"] + gpr
        if access >> 4 & 1:
            self._write(vcpu, field, own.get(number, 0))
        else:
            own[number] = self._read(vcpu, field)
        rip = self._read(vcpu, _RIP)
        # 0F 21 or 0F 23 and a ModRM byte, perhaps behind a REX prefix.
        prefixed = self.read_memory(vcpu.index + 1, rip, 1)[0] & 0xF0 == 0x40
        self._write(vcpu, _RIP, rip + 3 + prefixed)

    # ------------------------------------------------------------------ running
    def resume(self, step: int | None) -> None:
        """It is about to run; thread ``step`` by one instruction."""
        self._translations.clear()
        self._stop = None
        self._stepping = step
        stops = (1 << VECTOR_DB if step is not None or self._hardware else 0) | (
            1 << VECTOR_BP if self._software else 0
        )
        keeps = PROC_MOV_DR_EXITING if self._hardware else 0
        for vcpu in self._td.vcpus:
            self._write(vcpu, _CONTROLS, keeps, PROC_MOV_DR_EXITING)
            self._write(vcpu, _BITMAP, stops, 1 << VECTOR_DB | 1 << VECTOR_BP)
        if step is not None:
            self._write(self._vcpu(step), _RFLAGS, RFLAGS_TF, RFLAGS_TF)

    def halted(self) -> Stop | None:
        """It has been running, and stands still: why, if that was for the debugger."""
        if self._stepping is not None:
            self._write(self._vcpu(self._stepping), _RFLAGS, 0, RFLAGS_TF)
            self._stepping = None
        return self._stop

    def release(self) -> None:
        """The debugger goes: nothing of it stays."""
        for address in list(self._software):
            self.remove(Breakpoint.SOFTWARE, address, 1)
        self._hardware.clear()
        self._arm()
        self.resume(None)
        for worker in self._launch.runner.workers:
            worker.hook = None

    # ------------------------------------------------------------------ threads and registers
    def threads(self) -> list[int]:
        """See :class:`~swtdx.gdb.session.Target`: the vCPUs."""
        return [vcpu.index + 1 for vcpu in self._td.vcpus]

    def describe(self, thread: int) -> str:
        """See :class:`~swtdx.gdb.session.Target`."""
        vcpu = self._vcpu(thread)
        return f"vCPU {vcpu.index}: {vcpu.state.value}"

    def _vcpu(self, thread: int) -> Vcpu:
        if not 1 <= thread <= len(self._td.vcpus):
            raise TargetError(f"there is no thread {thread}")
        return self._td.vcpus[thread - 1]

    def _read(self, vcpu: Vcpu, field: int) -> int:
        """TDH.VP.RD, on the processor that has the vCPU."""
        cpu = vcpu.cpu or self._td.cpu
        with cpu.borrowed():
            status, value = sc.tdh_vp_rd(cpu, vcpu.tdvpr, field)
        if st.is_error(status):
            raise TargetError(f"TDH.VP.RD of {field:#x}: {st.name_of(status)}")
        return value

    def _write(self, vcpu: Vcpu, field: int, value: int, mask: int = MASK64) -> None:
        cpu = vcpu.cpu or self._td.cpu
        with cpu.borrowed():
            status, _ = sc.tdh_vp_wr(cpu, vcpu.tdvpr, field, value, mask)
        if st.is_error(status):
            raise TargetError(f"TDH.VP.WR of {field:#x}: {st.name_of(status)}")

    def read_register(self, thread: int, register: int) -> bytes:
        """See :class:`~swtdx.gdb.session.Target`."""
        one, vcpu = REGISTERS[register], self._vcpu(thread)
        if one.xsave is not None:
            offset, size = one.xsave
            return self._xsave(vcpu, offset, size).ljust(one.size, b"\0")
        value = self._read(vcpu, _IDS[one.field])
        return (value & (1 << one.bits) - 1).to_bytes(one.size, "little")

    def _xsave(self, vcpu: Vcpu, offset: int, size: int) -> bytes:
        first, end = offset // 8, -(-(offset + size) // 8)
        words = (self._read(vcpu, _XBUFF + number) for number in range(first, end))
        return b"".join(word.to_bytes(8, "little") for word in words)[offset % 8 :][:size]

    def write_register(self, thread: int, register: int, value: bytes) -> None:
        """See :class:`~swtdx.gdb.session.Target`."""
        one, vcpu = REGISTERS[register], self._vcpu(thread)
        if one.xsave is None:
            self._write(vcpu, _IDS[one.field], int.from_bytes(value, "little"))
            if register in (BY_NAME["cr0"], BY_NAME["cr3"], BY_NAME["cr4"], BY_NAME["efer"]):
                self._translations.clear()
            return
        offset, size = one.xsave
        first, end = offset // 8 * 8, -(-(offset + size) // 8) * 8
        whole = bytearray(self._xsave(vcpu, first, end - first))
        whole[offset - first : offset - first + size] = value[:size]
        for number, (word,) in enumerate(struct.iter_unpack("<Q", whole), first // 8):
            self._write(vcpu, _XBUFF + number, word)

    # ------------------------------------------------------------------ memory
    def _physical(self, gpa: int, size: int) -> bytes:
        """Guest-physical memory, within one page."""
        shared = self._td.config.shared_bit
        if gpa & shared:
            hpa = self._td.shared.translate(gpa & ~shared)
            if hpa is None:
                raise TargetError(f"GPA {gpa:#x} is not memory")
            return self._td.hypervisor.host.memory.read(hpa, size)
        start, end = gpa & -8, gpa + size + 7 & -8
        cpu, data = self._td.cpu, bytearray()
        with cpu.borrowed():
            for at in range(start, end, 8):
                status, word = sc.tdh_mem_rd(cpu, at, self._td.root)
                if st.is_error(status):
                    raise TargetError(f"TDH.MEM.RD of GPA {at:#x}: {st.name_of(status)}")
                data += word.to_bytes(8, "little")
        return bytes(data[gpa - start : gpa - start + size])

    def _store(self, gpa: int, data: bytes) -> None:
        shared = self._td.config.shared_bit
        if gpa & shared:
            hpa = self._td.shared.translate(gpa & ~shared)
            if hpa is None:
                raise TargetError(f"GPA {gpa:#x} is not memory")
            self._td.hypervisor.host.memory.write(hpa, data)
            return
        start, end = gpa & -8, gpa + len(data) + 7 & -8
        whole = bytearray(self._physical(start, end - start))
        whole[gpa - start : gpa - start + len(data)] = data
        cpu = self._td.cpu
        with cpu.borrowed():
            for number, (word,) in enumerate(struct.iter_unpack("<Q", whole)):
                status, _ = sc.tdh_mem_wr(cpu, start + 8 * number, self._td.root, word)
                if st.is_error(status):
                    raise TargetError(f"TDH.MEM.WR of GPA {start + 8 * number:#x}: {st.name_of(status)}")

    def _translate(self, thread: int, linear: int) -> int:
        """The GPA of a linear address, by the guest's own tables."""
        vcpu = self._vcpu(thread)
        if not self._read(vcpu, _IDS["GUEST_CR0"]) & CR0_PG:
            return linear & 0xFFFFFFFF
        cr3 = self._read(vcpu, _IDS["GUEST_CR3"])
        page = self._translations.get((cr3, linear >> 12))
        if page is None:
            page = self._walk(cr3, linear & -PAGE)
            self._translations[cr3, linear >> 12] = page
        return page | linear & PAGE - 1

    def _walk(self, cr3: int, linear: int) -> int:
        """Four levels: a TD's kernel has LA57 off where GPAW is 48."""
        if linear >> 47 not in (0, 0x1FFFF):
            raise TargetError(f"{linear:#x} is not canonical")
        table = cr3
        for shift in (39, 30, 21, 12):
            entry = int.from_bytes(
                self._physical(table & FRAME_MASK | linear >> shift - 3 & 0xFF8, 8), "little"
            )
            if not entry & PTE_P:
                raise TargetError(f"{linear:#x} is not mapped")
            if shift == 12 or (entry & PTE_PS and shift < 39):
                return entry & FRAME_MASK & -(1 << shift) | linear & (1 << shift) - 1
            table = entry
        raise AssertionError

    def _pieces(self, thread: int, address: int, size: int) -> Iterator[tuple[int, int]]:
        while size > 0:
            part = min(size, PAGE - address % PAGE)
            yield self._translate(thread, address & MASK64), part
            address, size = address + part, size - part

    def read_memory(self, thread: int, address: int, size: int) -> bytes:
        """See :class:`~swtdx.gdb.session.Target`; software breakpoints do not show."""
        data = bytearray()
        try:
            for gpa, part in self._pieces(thread, address, size):
                data += self._physical(gpa, part)
        except TargetError:
            if not data:
                raise
        for place, old in self._software.items():
            if address <= place < address + len(data):
                data[place - address] = old[0]
        return bytes(data)

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        """See :class:`~swtdx.gdb.session.Target`."""
        for gpa, part in list(self._pieces(thread, address, len(data))):
            self._store(gpa, data[:part])
            data = data[part:]

    # ------------------------------------------------------------------ breakpoints
    def insert(self, kind: Breakpoint, address: int, size: int) -> None:
        """See :class:`~swtdx.gdb.session.Target`."""
        if kind is Breakpoint.SOFTWARE and len(self._hardware) >= _KEPT_FREE:
            if address not in self._software:
                old = self.read_memory(1, address, 1)
                self.write_memory(1, address, _INT3)
                self._software[address] = old
            return
        if kind is Breakpoint.SOFTWARE:
            # A debug register does it as well, leaves the guest's code as it is (a kernel changes its own,
            # and executes INT3 on purpose), and works where nothing is mapped yet.
            kind = Breakpoint.HARDWARE
        size = 1 if kind is Breakpoint.HARDWARE else size
        if (kind, address, size) in self._hardware:
            return
        if size not in _SIZES or address % size:
            raise TargetError(f"no watchpoint of {size} bytes at {address:#x}")
        if len(self._hardware) == 4:
            raise TargetError("all four debug registers are in use")
        self._hardware.append((kind, address, size))
        self._arm()

    def remove(self, kind: Breakpoint, address: int, size: int) -> None:
        """See :class:`~swtdx.gdb.session.Target`."""
        if kind is Breakpoint.SOFTWARE:
            old = self._software.pop(address, None)
            if old is not None:
                self.write_memory(1, address, old)
                return
            kind = Breakpoint.HARDWARE
        one = (kind, address, 1 if kind is Breakpoint.HARDWARE else size)
        if one in self._hardware:
            self._hardware.remove(one)
            self._arm()

    def _arm(self) -> None:
        """Load the debug registers of every vCPU."""
        dr7 = _DR7_ONES
        for number, (kind, _, size) in enumerate(self._hardware):
            dr7 |= 2 << 2 * number | (_KINDS[kind] | _SIZES[size] << 2) << 16 + 4 * number
        for vcpu in self._td.vcpus:
            for number, (_, address, _) in enumerate(self._hardware):
                self._write(vcpu, _IDS[f"DR{number}"], address)
            self._write(vcpu, _IDS["GUEST_DR7"], dr7)
