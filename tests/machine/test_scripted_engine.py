"""The scripted engine: programs and their vCPUs, memory, faults, interrupts, and its own time."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.engine.protocol import EngineError
from swtdx.machine.engine.scripted import (
    Cli,
    Cpuid,
    Fetch,
    GuestFault,
    Hlt,
    In,
    Operation,
    Pause,
    Program,
    Rdmsr,
    Rdtsc,
    Read,
    Script,
    ScriptError,
    SetCpl,
    Sti,
    Tdcall,
    TripleFault,
    Undefined,
    Write,
    Wrmsr,
    Xsetbv,
    read_bytes,
    write_bytes,
)
from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import EPT, GUEST, HKID, MSR_BITMAP, VMCS, BareGuest, build_machine

Running = Iterator[Operation]
UD, GP, VE = 6, 13, 20


@pytest.fixture
def machine() -> Iterator[Machine]:
    with build_machine("scripted") as built:
        yield built


def add(machine: Machine, program: Callable[[Script], Any], **options: Any) -> Script:
    script: Script = machine.engine.add_program(program, **options)  # type: ignore[attr-defined]
    return script


# ---------------------------------------------------------------- programs
def test_results_come_from_whoever_handled_the_exit(machine: Machine) -> None:
    def program(cpu: Script) -> Any:
        leaf = yield Cpuid(0x21, 3)
        port = yield In(0x71, 2)
        msr = yield Rdmsr(0x1B)
        after = yield Tdcall(rax=1, r9=7)
        return leaf, port, msr, after.rax, after.r8, after.r9, after[9]

    script = add(machine, program)
    guest = BareGuest(machine)
    gpr = guest.vmcs.context.gpr
    answers: dict[int, dict[int, int]] = {
        reason.CPUID: {0: 1, 3: 2, 1: 3, 2: 4},
        reason.IO: {0: 0x5555_1234},
        reason.RDMSR: {0: 0xFEE0_0D00, 2: 9},
        reason.TDCALL: {0: 0, 8: 0x1122},
    }
    seen = []
    while (out := guest.run()).reason != reason.TRIPLE_FAULT:
        seen.append((out.reason, gpr[0]))
        for number, value in answers[out.reason].items():
            gpr[number] = value
        guest.skip()
    assert [why for why, _ in seen] == [reason.CPUID, reason.IO, reason.RDMSR, reason.TDCALL]
    assert seen[0][1] == 0x21
    assert seen[3][1] == 1
    assert script.result() == ((1, 2, 3, 4), 0x1234, 9 << 32 | 0xFEE0_0D00, 0, 0x1122, 7, 7)


def test_an_instruction_that_was_not_done_is_executed_again(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        yield Cpuid(5)
        yield Hlt()

    add(machine, program)
    guest = BareGuest(machine)
    assert [guest.run().reason for _ in range(3)] == [reason.CPUID] * 3
    guest.skip()
    assert guest.run().reason == reason.HLT


def test_a_program_follows_its_vcpu_to_another_processor(machine: Machine) -> None:
    def program(cpu: Script) -> Any:
        secret = random.Random(1).getrandbits(64)
        first = cpu.context
        yield Cpuid(0)
        yield Write(0x5000, secret)
        assert cpu.context is not first, "VMCLEAR ended the first context"
        return (yield Read(0x5000)) == secret

    script = add(machine, program)
    guest = BareGuest(machine)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    guest.vmx.clear(VMCS | HKID << 46)
    other = machine.processors[1].vmx
    other.load(VMCS | HKID << 46)
    assert other.enter().reason == reason.TRIPLE_FAULT
    other.clear(VMCS | HKID << 46)
    assert script.result() is True


def test_programs_are_chosen_by_rcx_or_in_turn(machine: Machine) -> None:
    def program(number: int) -> Program:
        def run(cpu: Script) -> Any:
            yield Undefined(b"\x0f\x01\xc1", rax=number)

        return run

    add(machine, program(1))
    add(machine, program(2), rcx=0x1234)
    add(machine, program(3))
    ran = []
    for rcx in (0x1234, 0x1234, 0):
        guest = BareGuest(machine)
        guest.vmcs.context.gpr[1] = rcx
        assert guest.run().reason == reason.VMCALL
        ran.append(guest.vmcs.context.gpr[0])
    assert ran == [2, 1, 3]
    guest = BareGuest(machine)
    guest.vmcs.context.gpr[1] = 0x77
    with pytest.raises(EngineError, match=r"no program for the vCPU with RCX=0x77.*add_program"):
        guest.run()


def test_a_long_program_stays_at_its_code_addresses(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        for number in range(3000):
            yield Write(0x5000, number)
        yield Hlt()

    script = add(machine, program)
    guest = BareGuest(machine)
    assert guest.run().reason == reason.HLT
    assert script.base <= guest.vmcs.context.rip < script.base + 0x1000
    assert guest.read(0x5000, 8) == struct.pack("<Q", 2999)


def test_what_ends_a_program_is_kept(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        value = yield Read(0x5000)
        assert value == 1, "the guest's own check"

    script = add(machine, program)
    with pytest.raises(RuntimeError, match="never ran"):
        script.result()
    guest = BareGuest(machine)
    assert guest.run().reason == reason.TRIPLE_FAULT
    assert guest.run().reason == reason.TRIPLE_FAULT, "it stays dead"
    with pytest.raises(AssertionError, match="the guest's own check"):
        script.result()


def test_mistakes_are_raised_where_they_were_made(machine: Machine) -> None:
    mistakes: list[Any] = [Read(0x5000, 3), Write(1 << 64, 0), In(0x100, immediate=True), SetCpl(4), 17]

    def program(_cpu: Script) -> Any:
        messages = []
        for mistake in mistakes:
            with pytest.raises(ScriptError) as caught:
                yield mistake
            messages.append(str(caught.value))
        return messages

    script = add(machine, program)
    assert BareGuest(machine).run().reason == reason.TRIPLE_FAULT
    assert len(script.result()) == len(mistakes)


def test_32_bit_code_reaches_what_32_bit_code_can(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        yield Write(0x5000, 0x11223344, 4)
        for access in (Read(0x5000, 8), Read(1 << 32, 4)):
            with pytest.raises(ScriptError, match="32-bit code"):
                yield access

    script = add(machine, program, bits=32)
    guest = BareGuest(machine)
    assert guest.run().reason == reason.TRIPLE_FAULT
    assert script.result() is None
    assert not guest.vmcs.context.long_mode
    assert guest.read(0x5000, 4) == bytes.fromhex("44332211")


# ---------------------------------------------------------------- memory
def test_accesses_against_a_plain_array(machine: Machine) -> None:
    """Random accesses, across pages too, against a bytearray; then every byte of the frames."""
    chance = random.Random(20260101)
    model = bytearray(3 * 4096)

    def program(_cpu: Script) -> Any:
        for _ in range(2000):
            size = chance.choice((1, 2, 4, 8))
            at = chance.choice((chance.randrange(len(model) - 8), 4096 * chance.randrange(1, 3) - 3))
            if chance.random() < 0.5:
                value = chance.getrandbits(8 * size)
                model[at : at + size] = value.to_bytes(size, "little")
                yield Write(0x5000 + at, value, size)
            else:
                got = yield Read(0x5000 + at, size)
                assert got == int.from_bytes(model[at : at + size], "little")
        data = yield from read_bytes(0x5003, 4999)
        assert data == model[3:5002]
        model[5:4200] = chance.randbytes(4195)
        yield from write_bytes(0x5005, bytes(model[5:4200]))

    script = add(machine, program)
    guest = BareGuest(machine)
    assert guest.run().reason == reason.TRIPLE_FAULT
    assert script.result() is None
    assert guest.read(0x5000, len(model)) == model


def test_translations_stay_until_flushed_and_go_with_their_frames(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        while True:
            yield Read(0x5000)
            yield Cpuid(0)

    add(machine, program)
    guest = BareGuest(machine)

    def step() -> int:
        out = guest.run()
        if out.reason == reason.CPUID:
            guest.skip()
        return out.reason

    assert step() == reason.CPUID
    struct.pack_into("<Q", guest.page(EPT + 0x3000), 5 * 8, 1 << 63)
    assert step() == reason.CPUID, "the stale translation goes on working"
    # Another frame leaves the cache: nothing happens to this one.
    machine.memory.write(GUEST + 0x6000 | (HKID + 1) << 46, bytes(64), SEAM)
    assert step() == reason.CPUID
    machine.memory.write(GUEST + 0x5000 | (HKID + 1) << 46, bytes(64), SEAM)
    assert step() == reason.EPT_VIOLATION


def test_an_execute_only_page_is_neither_read_nor_written(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        yield Fetch(0x5000)
        yield Read(0x5000)

    add(machine, program)
    guest = BareGuest(machine)
    guest.entry(0x5000, GUEST + 0x5000 | 0xF4)
    out = guest.run()
    # SDM table 28-7: a read, of a page that may be executed; the access itself, not the walk.
    assert (out.reason, out.qualification & ~0x80) == (reason.EPT_VIOLATION, 0x121)


def test_shared_memory_is_that_of_the_hypervisor(machine: Machine) -> None:
    """Bit 47 selects the shared EPT, in every instruction that names an address."""
    shared_ept = 0x30000
    for level in range(3):
        entry = shared_ept + (level + 1) * 0x1000 | 7
        # The shared bit takes part in the walk: it selects the upper half of the root.
        index = 0 if level else 256
        machine.memory.write(shared_ept + level * 0x1000 + 8 * index, struct.pack("<Q", entry))
    machine.memory.write(shared_ept + 0x3000, struct.pack("<Q", 0x40000 | 0x37))
    machine.memory.write(0x40000, struct.pack("<Q", 0x1234))

    def program(_cpu: Script) -> Any:
        value = yield Read(1 << 47)
        yield Write(1 << 47 | 8, value + 1)

    add(machine, program)
    guest = BareGuest(machine)
    guest.vmcs.write(f.SHARED_EPTP, shared_ept | 3 << 3 | 6)
    guest.run()
    assert machine.memory.read(0x40008, 8) == struct.pack("<Q", 0x1235)


# ---------------------------------------------------------------- faults
def test_a_fault_is_caught_and_the_program_goes_on(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        caught = []
        in_ring_0: list[Operation] = [Undefined(), Undefined(b"\x0f\x01\xd9"), Xsetbv(7), Wrmsr(0xBD, 1)]
        for operation in in_ring_0:
            try:
                yield operation
            except GuestFault as fault:
                caught.append((fault.vector, fault.error_code))
        yield SetCpl(3)
        in_ring_3: list[Operation] = [Hlt(), Tdcall(rax=0), Cli(), In(0x71), Rdmsr(0x1B)]
        for operation in in_ring_3:
            try:
                yield operation
            except GuestFault as fault:
                caught.append((fault.vector, fault.error_code))
        yield SetCpl(0)
        yield Hlt()
        return caught

    script = add(machine, program)
    guest = BareGuest(machine)
    bitmap = guest.page(MSR_BITMAP)
    bitmap[2048 + 0xBD // 8] &= ~(1 << 0xBD % 8) & 0xFF
    guest.vmcs.write(f.MSR_BITMAP, MSR_BITMAP)
    assert guest.run().reason == reason.HLT
    guest.skip()
    assert guest.run().reason == reason.TRIPLE_FAULT
    # UD2; VMMCALL, which Intel does not have; XSETBV with CR4.OSXSAVE clear; a read-only MSR; ring 3.
    assert script.result() == [(UD, None)] * 3 + [(GP, 0)] * 6


def test_an_injected_event_is_raised_at_the_instruction(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        try:
            yield Tdcall(rax=99)
        except GuestFault as fault:
            vector = fault.vector
        yield Cpuid(0)
        return vector

    script = add(machine, program)
    guest = BareGuest(machine)
    assert guest.run().reason == reason.TDCALL
    where = guest.vmcs.context.rip
    guest.vmcs.write(f.ENTRY_INTERRUPTION_INFO, 1 << 31 | 3 << 8 | VE)
    assert guest.run().reason == reason.CPUID
    assert guest.vmcs.context.rip == where + 4, "the instruction was given up"
    guest.skip()
    guest.run()
    assert script.result() == VE


def test_an_exception_in_the_bitmap_exits(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        yield SetCpl(3)
        yield Hlt()

    add(machine, program)
    guest = BareGuest(machine)
    guest.vmcs.write(f.EXCEPTION_BITMAP, 1 << GP)
    out = guest.run()
    assert (out.reason, out.intr_info, out.intr_error) == (0, 1 << 31 | 1 << 11 | 3 << 8 | GP, 0)


def test_triple_fault(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        yield TripleFault()

    add(machine, program)
    assert BareGuest(machine).run().reason == reason.TRIPLE_FAULT


# ---------------------------------------------------------------- interrupts and time
def post(guest: BareGuest, vector: int) -> None:
    """Post ``vector``; the EOI register is native."""
    bitmap = guest.page(MSR_BITMAP)
    bitmap[2048 + 0x80B // 8] &= ~(1 << 0x80B % 8) & 0xFF
    guest.vmcs.write(f.MSR_BITMAP, MSR_BITMAP)
    descriptor = 0x30000
    guest.memory.write(descriptor, (1 << vector | 1 << 256).to_bytes(64, "little"))
    guest.vmcs.write(f.PIN_BASED_CONTROLS, 1 << 7)
    guest.vmcs.write(f.POSTED_INTERRUPT_DESCRIPTOR, descriptor)
    guest.vmcs.write(f.POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xF2)
    guest.lp.interrupt(0xF2)


def test_a_posted_interrupt_runs_its_handler(machine: Machine) -> None:
    order: list[str] = []

    def program(cpu: Script) -> Any:
        def handler(vector: int) -> Any:
            order.append(f"handler {vector:#x}")
            yield Wrmsr(0x80B, 0)
            yield Cpuid(0x1234)

        cpu.on_interrupt = handler
        yield Write(0x5000, 0x4321)
        order.append("interrupts on")
        yield Sti()
        order.append("in the shadow")
        yield Write(0x5008, 0x4321)
        order.append("after the handler")
        value = yield Hlt()
        return value, cpu.gpr[0], cpu.interrupts

    script = add(machine, program)
    guest = BareGuest(machine)
    post(guest, 0x51)
    assert guest.run().reason == reason.CPUID
    assert not guest.vmcs.context.rflags & 1 << 9, "interrupts are off in the handler"
    guest.vmcs.context.gpr[0] = 0xDEAD
    guest.skip()
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.rflags & 1 << 9
    assert guest.vmcs.read(f.GUEST_INTERRUPT_STATUS) == 0, "nothing requested, nothing in service"
    guest.skip()
    guest.run()
    assert script.result() == (None, 0x4321, [0x51])
    assert order == ["interrupts on", "in the shadow", "handler 0x51", "after the handler"]


def test_a_timer_stops_the_guest_at_its_very_cycle(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        start = yield Rdtsc()
        yield Pause(5_000_000)
        end = yield Rdtsc()
        return end - start

    script = add(machine, program)
    guest = BareGuest(machine)
    deadline = machine.tsc() + 1_000_000
    guest.lp.arm_timer(deadline, 0xEC)
    out = guest.run()
    assert (out.reason, guest.lp.pending) == (reason.EXTERNAL_INTERRUPT, {0xEC})
    assert guest.lp.last_exit_tsc == deadline
    guest.lp.acknowledge(0xEC)
    assert guest.run().reason == reason.TRIPLE_FAULT
    assert 5_000_000 <= script.result() < 5_010_000, "the pause was interrupted, not shortened"


def test_a_kick_from_another_thread_stops_an_endless_loop(machine: Machine) -> None:
    running = threading.Event()

    def program(_cpu: Script) -> Any:
        while True:
            yield Pause()
            running.set()

    add(machine, program)
    guest = BareGuest(machine)

    def interrupt() -> None:
        running.wait(10)
        guest.lp.interrupt(0x40)

    # The TDX Module says so around its VM entries.
    guest.lp.in_guest = True

    other = threading.Thread(target=interrupt)
    other.start()
    assert guest.run().reason == reason.EXTERNAL_INTERRUPT
    other.join()


def test_a_halted_processor_lets_virtual_time_jump(machine: Machine) -> None:
    """An hour of sleep; with real time this test would not end."""
    machine.start_engine()
    lp = machine.processors[0]
    deadline = machine.tsc() + 3600 * int(machine.tsc_hz)
    lp.arm_timer(deadline, 0x20)
    lp.halt()
    assert lp.pending == {0x20}
    assert deadline <= machine.tsc() < deadline + 10_000
    assert lp.timer_deadline is None


def test_a_processor_that_works_is_not_overtaken_by_one_that_sleeps(machine: Machine) -> None:
    """Processor 1 sleeps for 10 virtual ms while processor 0 computes for 4 in small steps."""

    def program(_cpu: Script) -> Any:
        yield Cpuid(0)
        for _ in range(400):
            yield Pause(20_000)
        yield Hlt()

    add(machine, program)
    guest = BareGuest(machine)
    start = machine.tsc()
    assert guest.run().reason == reason.CPUID, "from here on processor 0 is in use"
    guest.skip()
    limit = start + int(machine.tsc_hz / 100)
    machine.processors[1].arm_timer(limit, 0x20)
    sleeper = threading.Thread(target=machine.processors[1].halt)
    sleeper.start()
    assert guest.run().reason == reason.HLT
    assert machine.tsc() < limit
    sleeper.join()
    assert machine.tsc() >= limit


def test_the_guest_tsc_is_scaled_and_offset(machine: Machine) -> None:
    def program(_cpu: Script) -> Any:
        return (yield Rdtsc())

    script = add(machine, program)
    guest = BareGuest(machine)
    guest.vmcs.write(f.TSC_MULTIPLIER, 1 << 47)
    guest.vmcs.write(f.TSC_OFFSET, 1 << 50)
    before = machine.tsc() // 2 + (1 << 50)
    guest.run()
    assert before <= script.result() <= machine.tsc() // 2 + (1 << 50)


def test_two_runs_are_the_same_to_the_cycle() -> None:
    def program(cpu: Script) -> Any:
        stamps = [(yield Rdtsc())]
        for _ in range(5):
            yield Write(0x5000, 1)
            yield Cpuid(1)
            yield Pause(123_456)
            stamps.append((yield Rdtsc()))
        return stamps

    traces = []
    for _ in range(2):
        with build_machine("scripted") as machine:
            script = add(machine, program)
            guest = BareGuest(machine)
            guest.lp.arm_timer(200_000, 0x20)
            trace = []
            while (out := guest.run()).reason != reason.TRIPLE_FAULT:
                trace.append((out.reason, guest.lp.last_exit_tsc))
                guest.lp.pending.clear()
                if out.reason == reason.CPUID:
                    guest.skip()
            traces.append((trace, script.result()))
    assert traces[0] == traces[1]
    assert len(traces[0][0]) == 6


def test_nothing_of_qemu_is_imported() -> None:
    code = (
        "import sys; from tests.machine.guests import BareGuest, build_machine\n"
        "from swtdx.machine.engine.scripted import Hlt\n"
        "machine = build_machine('scripted')\n"
        "def program(cpu):\n    yield Hlt()\n"
        "machine.engine.add_program(program)\n"
        "assert BareGuest(machine).run().reason == 12\n"
        "assert not [name for name in sys.modules if 'qemu' in name]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
