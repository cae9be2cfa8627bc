"""An external interrupt throws the vCPU out; then an interrupt for the guest goes in without any exit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from swtdx.arch import ghci
from swtdx.arch.exits import INTERRUPTION_VALID, ExitReason
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.arch.msrs import IA32_X2APIC_EOI
from swtdx.arch.regs import R8, R9, R10, R11, R12, R13, R14, R15, RBP, RBX, RCX, RDI, RDX, RSI
from swtdx.machine.engine.scripted import Pause, Script, Sti, Tdcall, Write, Wrmsr
from swtdx.scenes.looking import look, registers
from swtdx.scenes.model import Step
from swtdx.scenes.stage import RAM, Stage, recorded
from swtdx.trace.record import Kind, Record
from swtdx.vmm.exits import EptViolation
from swtdx.vmm.processor import TIMER_VECTOR

#: The vector that the hypervisor posts to the guest.
VECTOR: Final = 0x41
_ACCEPT: Final = GUEST_BY_NAME["TDG.MEM.PAGE.ACCEPT"].number
_GET_INFO: Final = ghci.GET_TD_VMCALL_INFO
_KEEPERS: Final = (RBX, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15)
#: Cycles after which the host's timer fires.
_TIMER: Final = 40_000


class _Play:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.secrets = [stage.word(f"secret {n}") for n in _KEEPERS]
        self.kept: list[bool] = []
        self.taken: list[int] = []
        self.td = stage.td(self._guest)
        self.vcpu = self.td.vcpus[0]

    # ------------------------------------------------------------------ in the guest
    def _guest(self, cpu: Script) -> Any:
        def handler(vector: int) -> Any:
            self.taken.append(vector)
            yield Wrmsr(IA32_X2APIC_EOI, 0)

        cpu.on_interrupt = handler
        yield Sti()
        yield Tdcall(rax=_ACCEPT, rcx=RAM)
        yield Write(RAM, self.secrets[0])
        while True:
            # To the hypervisor and back, so that a scene begins with a fresh TDH.VP.ENTER.
            yield Tdcall(rax=0, rcx=ghci.BASIC_MASK, r10=0, r11=_GET_INFO, r12=0, r13=0, r14=0, r15=0)
            for register, value in zip(_KEEPERS, self.secrets, strict=True):
                cpu.gpr[register] = value
            for _ in range(10):
                yield Pause(10_000)
            self.kept.append([cpu.gpr[n] for n in _KEEPERS] == self.secrets)

    # ------------------------------------------------------------------ in the hypervisor
    def enter(self) -> list[Record]:
        """TDH.VP.ENTER; what was recorded until it returned.  Memory is given on demand."""
        stage, cpu = self.stage, self.stage.cpu
        while True:
            start = len(stage.recorder.records)
            cpu.gpr[RCX] = self.vcpu.tdvpr
            rax = cpu.call_once(0)
            if rax != ExitReason.EPT_VIOLATION:
                return stage.recorder.records[start:]
            violation = EptViolation(cpu.gpr[RCX], cpu.gpr[RDX], cpu.gpr[R8])
            self.td.private.resolve(cpu, violation.gpa, violation.accept_level)

    def answer(self) -> None:
        """Answer the guest's TDVMCALL: there is nothing beyond the base set."""
        self.stage.cpu.gpr[10:15] = [ghci.SUCCESS, 0, 0, 0, 0]


def _pick(records: list[Record], *kinds: Kind) -> list[Record]:
    return [record for record in records if record.kind in kinds]


def interrupt(seed: bytes) -> Iterator[Step]:
    """Play the scene."""
    with Stage(seed) as stage:
        play, cpu = _Play(stage), stage.cpu
        play.enter()
        play.answer()
        # The first half: the host's timer.
        cpu.host.arm_timer(stage.machine.tsc() + _TIMER, TIMER_VECTOR)
        run = play.enter()
        yield from _thrown_out(stage, play, run)
        # The exit has acknowledged the one that R9 names.
        taken_by_host = 1 << (cpu.gpr[R9] & 0xFF) | cpu.take_interrupts()
        yield Step(
            "The hypervisor takes its interrupt",
            "It was the hypervisor's own: a timer. What the guest was doing when it came stays in the TDVPS.",
            facts=(("vectors", _vectors(taken_by_host)),),
        )
        # The second half: an interrupt for the guest.
        play.vcpu.post(VECTOR)
        play.vcpu.deliver(cpu)
        descriptor = stage.hypervisor.host.memory.read(play.vcpu.pid, 64)
        request = int.from_bytes(descriptor[:32], "little")
        yield Step(
            "The hypervisor posts an interrupt to the guest",
            "The posted-interrupt descriptor is the hypervisor's memory: it sets the vector's bit there, and "
            "sends the notification vector to the processor. Beside an NMI this is all that it can inject.",
            facts=(
                ("descriptor", f"HPA {play.vcpu.pid:#x}, request bits {_vectors(request)}"),
                ("ON", str(descriptor[32] & 1)),
                ("notification vector", f"{descriptor[34]:#x}"),
            ),
        )
        yield from _posted(play.enter())
        kept, taken = all(play.kept) and bool(play.kept), play.taken
        yield Step(
            "The guest has noticed nothing of the first, and has taken the second",
            "All that it had in its registers is still there.",
            facts=(
                ("registers", "as the guest left them" if kept else "changed"),
                ("interrupts taken", ", ".join(hex(vector) for vector in taken) or "none"),
            ),
            failed=not kept or taken != [VECTOR],
            data={"taken": taken, "kept": kept},
        )
        play.td.teardown()


def _vectors(mask: int) -> str:
    return ", ".join(hex(vector) for vector in range(256) if mask >> vector & 1) or "none"


def _thrown_out(stage: Stage, play: _Play, run: list[Record]) -> Iterator[Step]:
    call, ret = run[0], run[-1]
    yield recorded(
        "The hypervisor enters the vCPU, with its own timer running",
        "Every interrupt of the machine is the hypervisor's, also while the guest runs.",
        call,
    )
    inside = _pick(run, Kind.ENTRY, Kind.EXIT)
    yield recorded(
        "The module enters the guest, and the guest computes",
        "Secrets are in its registers when the interrupt comes.",
        *inside[:-1],
    )
    yield recorded(
        "The interrupt comes: a VM exit to the module",
        "Not to the hypervisor: the module saves every register into the TDVPS first.",
        inside[-1],
    )
    assert ret.guest is not None
    empty = not any(ret.gpr[n] for n in range(1, 16) if n != R9)
    yield recorded(
        "The SEAMCALL returns: an asynchronous TD exit",
        "The guest has not asked for anything, so nothing is passed: the module zeroes the registers. R9 has "
        "the hypervisor's own vector, which the VM exit has acknowledged at the local APIC.",
        ret,
        tables=(registers(ret.guest, ret.gpr), look(stage, play.td, RAM)),
        failed=not empty or ret.gpr[R9] != INTERRUPTION_VALID | TIMER_VECTOR,
    )


def _posted(run: list[Record]) -> Iterator[Step]:
    yield recorded(
        "The hypervisor enters again",
        "After an asynchronous exit it has nothing to say: the module ignores what is in the registers.",
        run[0],
        *_pick(run, Kind.ENTRY)[:1],
    )
    yield recorded(
        "The processor looks into the descriptor",
        "The notification arrives in the guest and causes no exit: the vector moves from the descriptor into "
        "the virtual APIC page, which is in the TDVPS.",
        *_pick(run, Kind.POSTED),
    )
    yield recorded(
        "The guest takes the interrupt",
        "Through its own interrupt table, when RFLAGS.IF allows it. Its EOI stays in the virtual APIC, too.",
        *_pick(run, Kind.DELIVERED),
    )
    yield recorded(
        "The guest goes on, until it has a request of its own",
        "From the notification to here there was no VM exit.",
        *_pick(run, Kind.EXIT, Kind.SEAMRET)[-2:],
        facts=(("VM exits on the way", str(len(_pick(run, Kind.EXIT)) - 1)),),
    )
