"""TDH.VP.ENTER of :mod:`tests.vmm.fake_module`: guest programs, TD exits, the virtual APIC."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from swtdx.arch import status as st

if TYPE_CHECKING:
    from tests.vmm.fake_machine import FakeProcessor, FakeVcpu
    from tests.vmm.fake_module import FakeModule

PAGE = 4096
BLOCK = 2 << 20
NV, PID, EPTP, PIN = 0x0024000100000002, 0x0024000300002016, 0x002400030000203C, 0x0024000200004000
SHARED = 1 << 47


def enter(module: FakeModule, lp: FakeProcessor, vcpu: FakeVcpu) -> int:
    """Run the vCPU's program to the next TD exit; RAX."""
    g = lp.gpr
    td = vcpu.td
    passed = g[:]
    assert vcpu.program is not None, "a vCPU without a program"
    td.running[vcpu.tdvpr] = td.epoch
    try:
        outcome: Any = None
        if vcpu.in_vmcall:
            vcpu.in_vmcall = False
            vcpu.operation = None
            outcome = passed
        while True:
            lp.poll()
            if lp.waiting:
                drain(module, lp, vcpu)
                if lp.waiting:
                    vcpu.__dict__["resume"] = outcome if vcpu.operation is None else None
                    return leave(g, 1)
            if vcpu.operation is None:
                outcome = vcpu.__dict__.pop("resume", None) or outcome
                try:
                    vcpu.operation = vcpu.program.send(outcome)
                except StopIteration:
                    vcpu.operation = ("triple fault",)
            done, result = step(module, lp, vcpu, vcpu.operation)
            if not done:
                return int(result)
            vcpu.operation, outcome = None, result
    finally:
        del td.running[vcpu.tdvpr]


def leave(g: list[int], reason: int, rcx: int = 0, rdx: int = 0, r8: int = 0) -> int:
    """Registers of an asynchronous exit."""
    g[1:16] = [0] * 15
    g[1], g[2], g[8] = rcx, rdx, r8
    return reason


def drain(module: FakeModule, lp: FakeProcessor, vcpu: FakeVcpu) -> None:
    """A notification makes the processor look into the posted-interrupt descriptor."""
    vector = vcpu.fields[NV]
    if vector in lp.waiting and vcpu.fields[PIN] & 0x80:
        lp.waiting.discard(vector)
        memory, pid = module.machine.memory, vcpu.fields[PID]
        requests = int.from_bytes(memory.read(pid, 32), "little")
        memory.write(pid, bytes(32))
        memory.write(pid + 32, bytes((memory.read(pid + 32, 1)[0] & 0xFE,)))
        vcpu.virr |= {bit for bit in range(256) if requests >> bit & 1}


def step(module: FakeModule, lp: FakeProcessor, vcpu: FakeVcpu, op: tuple[Any, ...]) -> tuple[bool, Any]:
    """One operation: (True, outcome), or (False, RAX of a TD exit)."""
    g = lp.gpr
    td = vcpu.td
    kind = op[0]
    if kind == "vmcall":
        g[1:16] = [0] * 15
        for register, value in op[1].items():
            g[register] = value
        g[1] = 0xFFCC
        vcpu.in_vmcall = True
        return False, 77
    if kind == "interrupts":
        taken, vcpu.virr = sorted(vcpu.virr), set()
        return True, taken
    if kind == "wait":
        module.machine.now += op[1]
        return True, None
    if kind == "triple fault":
        leave(g, 2)
        return False, st.TDX_NON_RECOVERABLE_VCPU | 2
    gpa = op[1]
    if kind == "shared":
        found = walk_shared(module.machine.memory.read_u64, vcpu.fields[EPTP], gpa, 4)
        if isinstance(found, int):
            return True, found
        return (True, "#VE") if found == "#VE" else (False, leave(g, 48, 1, 0, gpa & -PAGE | SHARED))
    entry = td.leaves.get(gpa & -PAGE) or td.leaves.get(gpa & -BLOCK)
    if entry is not None and entry.level == 0 and (gpa & -PAGE) not in td.leaves:
        entry = None
    if kind == "private":
        if entry is not None and entry.state == "MAPPED":
            return True, None
        pending = entry is not None and entry.state == "PENDING"
        return False, leave(g, 48, 1, 6 if pending else 0, gpa & -PAGE)
    assert kind == "accept"
    return accept(g, td, gpa, op[2], entry)


def accept(g: list[int], td: Any, gpa: int, level: int, entry: Any) -> tuple[bool, Any]:
    """TDG.MEM.PAGE.ACCEPT (tdcall.md section 3)."""
    if entry is not None and entry.level == level and entry.state == "PENDING":
        entry.state = "MAPPED"
        return True, "accepted"
    if level == 1 and (1, gpa) in td.tables:
        return True, "size mismatch"
    if entry is not None and entry.state == "MAPPED":
        return True, "already accepted"
    return False, leave(g, 48, 0, 1 | level << 32, gpa)


def walk_shared(read_u64: Any, root: int, gpa: int, levels: int, *, shared_bit: int = SHARED) -> int | str:
    """The shared EPT as the processor walks it, from the SDM: an HPA, "#VE" or "exit".

    The walk uses the GPA with its shared bit.
    """
    table = root
    address = gpa | shared_bit
    for level in range(levels - 1, -1, -1):
        entry = read_u64(table + 8 * (address >> 12 + 9 * level & 511))
        if not entry & 7:
            return "exit" if entry >> 63 else "#VE"
        if level == 0 or entry & 0x80:
            assert entry >> 3 & 7 == 6, "not write-back"
            size = PAGE << 9 * level
            base = int(entry) & 0x000FFFFFFFFFF000
            assert base % size == 0, "an unaligned mapping"
            return base | gpa & size - 1
        table = entry & 0x000FFFFFFFFFF000
    raise AssertionError


def unpack(data: bytes, at: int) -> int:
    """The 64-bit integer at ``at``."""
    value: int = struct.unpack_from("<Q", data, at)[0]
    return value
