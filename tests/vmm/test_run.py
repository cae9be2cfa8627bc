"""The run loop against the fake module's guests: time, interrupts, sleep, several vCPUs and processors."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from swtdx.arch import status as st
from swtdx.vmm.result import EndReason
from swtdx.vmm.td_params import TdConfig
from tests.vmm.fake_machine import FakeMachine, FakeProcessor
from tests.vmm.support import POWER_OFF, R10, R11, Setup, call

Guest = Generator[tuple[Any, ...], Any, None]
MIB, PAGE = 1 << 20, 4096
HLT, RDMSR, WRMSR, IO = 12, 31, 32, 30
FLUSH, TRACK, VP_ENTER = 18, 38, 0
#: Ticks of the fake machine's TSC in a second.
SECOND = 2_500_000_000


def wrmsr(msr: int, value: int) -> tuple[Any, ...]:
    return call(WRMSR, msr, value)


def apic_timer(vector: int) -> Guest:
    """Enable the APIC, and its timer in TSC-deadline mode."""
    yield wrmsr(0x80F, 0x1FF)
    yield wrmsr(0x832, 2 << 17 | vector)


def ipi(vector: int, destination: int) -> tuple[Any, ...]:
    return wrmsr(0x830, destination << 32 | 1 << 14 | vector)


def spin() -> Guest:
    while True:
        yield "wait", 100_000


# ------------------------------------------------------------------ ends
def test_timeout_of_a_guest_that_spins() -> None:
    setup = Setup(spin)
    before = setup.machine.now
    result = setup.runner.run(timeout=0.5)
    assert result.reason is EndReason.TIMEOUT
    assert not result.orderly
    assert "VM entries" in result.detail
    assert 0.5 * SECOND <= setup.machine.now - before < 0.51 * SECOND
    # It goes on where it was.
    assert setup.runner.run(timeout=0.5).reason is EndReason.TIMEOUT
    assert setup.machine.now - before >= SECOND


def test_timeout_of_a_guest_that_only_calls() -> None:
    def guest() -> Guest:
        while True:
            yield call(IO, 1, 0, 0x3FD)
            setup.machine.now += 10_000

    setup = Setup(guest)
    result = setup.runner.run(timeout=0.05)
    assert result.reason is EndReason.TIMEOUT
    assert result.stats.tdvmcalls["Instruction.IO"] >= 0.05 * SECOND / 10_000


def test_timeout_of_a_guest_that_sleeps() -> None:
    def guest() -> Guest:
        yield call(HLT, 0)

    setup = Setup(guest)
    assert setup.runner.run(timeout=2).reason is EndReason.TIMEOUT
    assert setup.machine.processors[0].halts >= 1


@pytest.mark.parametrize("first", [spin, lambda: (yield call(HLT, 0))])
def test_stop_from_another_thread(first: Callable[[], Guest]) -> None:
    setup = Setup(first)
    threading.Timer(0.05, lambda: setup.runner.stop(EndReason.STOPPED, "Ctrl-A x")).start()
    result = setup.runner.run()
    assert (result.reason, result.detail) == (EndReason.STOPPED, "Ctrl-A x")
    assert result.orderly
    # The first reason counts, and a run that was stopped stays stopped.
    setup.runner.stop(EndReason.ERROR, "later")
    assert setup.runner.run().reason is EndReason.STOPPED


def test_triple_fault() -> None:
    def guest() -> Guest:
        yield ("triple fault",)

    assert Setup(guest).runner.run(1).reason is EndReason.TRIPLE_FAULT


def test_nothing_can_wake_it() -> None:
    """HLT with interrupts disabled is what a kernel ends in after a panic."""

    def guest() -> Guest:
        yield call(HLT, 1)

    result = Setup(guest, guest).runner.run(10)
    assert result.reason is EndReason.HALTED


def test_restart() -> None:
    def guest() -> Guest:
        yield call(IO, 1, 1, 0xCF9, 6)

    assert Setup(guest).runner.run(1).reason is EndReason.RESTART


@pytest.mark.parametrize("gpa", [128 * MIB, 1 << 40])
def test_private_memory_that_the_guest_has_not(gpa: int) -> None:
    def guest() -> Guest:
        yield "private", gpa

    result = Setup(guest).runner.run(1)
    assert result.reason is EndReason.BAD_ACCESS
    assert f"read at private GPA {gpa:#x}" in result.detail


def test_memory_that_was_not_accepted() -> None:
    """With SEPT_VE_DISABLE an access to a pending page leaves the TD: the guest has a bug."""

    def guest() -> Guest:
        yield "private", 0

    result = Setup(guest).runner.run(1)
    assert result.reason is EndReason.BAD_ACCESS
    assert "which it has not accepted" in result.detail


def test_the_same_violation_again_and_again() -> None:
    """A violation with the page in place (a fetch from shared memory, say) does not go on for ever."""

    def guest() -> Guest:
        yield "accept", 0, 1

    setup = Setup(guest)
    td = setup.td
    td.private.augment_range(td.cpu, 0, 2 * MIB)
    # The module (a broken one) keeps reporting the page as missing.
    entries = []
    original = setup.module.leaf_0

    def broken(lp: FakeProcessor, g: list[int]) -> int:
        entries.append(g[1])
        original(lp, g)
        g[1:16] = [0] * 15
        g[8] = 0x1000
        return 48

    setup.module.leaf_0 = broken  # type: ignore[method-assign]
    result = setup.runner.run(10)
    assert result.reason is EndReason.STUCK
    assert "read at private GPA 0x1000" in result.detail
    assert 10 < len(entries) < 1000


@pytest.mark.parametrize(
    ("rax", "reason"),
    [
        (st.TDX_NON_RECOVERABLE_VCPU | 2, EndReason.TRIPLE_FAULT),
        (st.TDX_NON_RECOVERABLE_VCPU | 33, EndReason.TD_FATAL),
        (st.TDX_NON_RECOVERABLE_TD | 2, EndReason.TD_FATAL),
        (st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE, EndReason.MACHINE_CHECK),
        (st.TDX_TD_FATAL, EndReason.TD_FATAL),
        (st.TDX_VCPU_STATE_INCORRECT, EndReason.ERROR),
        (st.with_operand(st.TDX_OPERAND_INVALID, 1), EndReason.ERROR),
        (9, EndReason.ERROR),  # a task switch: nothing a hypervisor could do
        (49, EndReason.ERROR),
    ],
)
def test_entries_that_end_the_run(rax: int, reason: EndReason) -> None:
    setup = Setup(spin)
    setup.module.leaf_0 = lambda lp, g: rax  # type: ignore[method-assign]
    result = setup.runner.run(10)
    assert result.reason is reason
    assert result.detail


@pytest.mark.parametrize("rax", [0, 3, 6, 74, 75])
def test_exits_that_do_not_concern_the_guest(rax: int) -> None:
    """NMI, INIT, SMI, bus lock, notification: the guest goes on."""

    def guest() -> Guest:
        yield POWER_OFF

    setup = Setup(guest)
    original = setup.module.leaf_0
    answers = [rax, rax, rax]
    setup.module.leaf_0 = lambda lp, g: answers.pop() if answers else original(lp, g)  # type: ignore[method-assign]
    assert setup.runner.run(10).reason is EndReason.POWER_OFF


def test_a_call_with_a_bus_lock_is_served() -> None:
    """RAX bit 26: a bus lock was pre-empted in the same exit."""

    def guest() -> Guest:
        regs = yield call(IO, 1, 0, 0x3FD)
        assert regs[R10] == 0
        assert regs[R11] & 0x60 == 0x60
        yield POWER_OFF

    setup = Setup(guest)
    original = setup.module.leaf_0

    def locked(lp: FakeProcessor, g: list[int]) -> int:
        rax = original(lp, g)
        return rax | 1 << 26 if rax == 77 else rax

    setup.module.leaf_0 = locked  # type: ignore[method-assign]
    assert setup.runner.run(10).reason is EndReason.POWER_OFF


def test_a_busy_entry_is_tried_again_with_what_the_guest_is_to_get() -> None:
    def guest() -> Guest:
        regs = yield call(IO, 1, 0, 0x3FD)
        assert regs[R10] == 0
        assert regs[R11] & 0x60 == 0x60
        yield POWER_OFF

    setup = Setup(guest)
    original = setup.module.leaf_0
    count = 0

    def busy(lp: FakeProcessor, g: list[int]) -> int:
        nonlocal count
        count += 1
        if count % 3:
            g[1:16] = [0xBAD] * 15
            return st.with_operand(st.TDX_OPERAND_BUSY, st.OperandId.TDR)
        return original(lp, g)

    setup.module.leaf_0 = busy  # type: ignore[method-assign]
    assert setup.runner.run(10).reason is EndReason.POWER_OFF


def test_an_entry_that_stays_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swtdx.vmm.worker._BUSY_PAUSE", 0)
    setup = Setup(spin)
    setup.module.leaf_0 = lambda lp, g: st.TDX_OPERAND_BUSY  # type: ignore[method-assign]
    result = setup.runner.run(100)
    assert result.reason is EndReason.ERROR
    assert "OPERAND_BUSY" in result.detail


def test_no_module_any_more() -> None:
    setup = Setup(spin)
    setup.module.seamcall = lambda lp: False  # type: ignore[method-assign]
    result = setup.runner.run(10)
    assert result.reason is EndReason.ERROR
    assert "no TDX module is loaded" in result.detail


def test_a_broken_device_ends_the_run_and_is_seen() -> None:
    def guest() -> Guest:
        yield call(HLT, 0)

    setup = Setup(guest)

    def poll() -> None:
        raise RuntimeError("a bug of ours")

    setup.io.board.poll = poll  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug of ours"):
        setup.runner.run(10)
    assert setup.io.control.outcome == (EndReason.ERROR, "RuntimeError: a bug of ours")
    # The processor is free again.
    assert setup.hypervisor.processors[0].mutex.acquire(blocking=False)


# ------------------------------------------------------------------ interrupts
def test_the_timer_wakes_a_halted_guest() -> None:
    seen: list[tuple[list[int], bool]] = []

    def guest() -> Guest:
        yield from apic_timer(0x40)
        for after in (SECOND, 5, 3 * SECOND):
            deadline = setup.td.clock.guest_time(setup.machine.now) + after
            yield wrmsr(0x6E0, deadline)
            yield call(HLT, 0)
            seen.append(((yield ("interrupts",)), setup.td.clock.guest_time(setup.machine.now) >= deadline))
        yield POWER_OFF

    setup = Setup(guest)
    assert setup.runner.run(100).reason is EndReason.POWER_OFF
    assert seen == [([0x40], True)] * 3


def test_the_timer_interrupts_a_guest_that_runs() -> None:
    def guest() -> Guest:
        yield from apic_timer(0x41)
        yield wrmsr(0x6E0, setup.td.clock.guest_time(setup.machine.now) + 10_000_000)
        for _ in range(200):
            yield "wait", 100_000
            taken = yield ("interrupts",)
            if taken:
                assert taken == [0x41]
                break
        else:
            raise AssertionError("no interrupt")
        yield POWER_OFF

    setup = Setup(guest)
    assert setup.runner.run(100).reason is EndReason.POWER_OFF


def test_a_periodic_timer() -> None:
    ticks = []

    def guest() -> Guest:
        yield wrmsr(0x80F, 0x1FF)
        yield wrmsr(0x83E, 0b1011)
        yield wrmsr(0x832, 1 << 17 | 0x42)
        yield wrmsr(0x838, 25_000)  # 1 ms
        for _ in range(5):
            yield call(HLT, 0)
            assert (yield ("interrupts",)) == [0x42]
            ticks.append(setup.machine.now)
        yield POWER_OFF

    setup = Setup(guest)
    assert setup.runner.run(100).reason is EndReason.POWER_OFF
    assert [two - one for one, two in itertools.pairwise(ticks)] == [2_500_000] * 4


def test_an_interrupt_between_test_and_hlt_is_not_lost() -> None:
    """It is in the virtual APIC when the guest calls HLT: the call returns at once."""

    def guest() -> Guest:
        yield wrmsr(0x80F, 0x1FF)
        yield wrmsr(0x83F, 0x50)  # to itself
        yield "wait", 1
        yield call(HLT, 0)
        assert (yield ("interrupts",)) == [0x50]
        yield POWER_OFF

    setup = Setup(guest)
    assert setup.runner.run(5).reason is EndReason.POWER_OFF
    assert setup.machine.processors[0].halts == 0


def test_input_wakes_a_halted_guest() -> None:
    polls = []

    def guest() -> Guest:
        yield call(HLT, 0)
        assert (yield ("interrupts",)) == [0x30]
        yield POWER_OFF

    setup = Setup(guest)

    def poll() -> None:
        polls.append(threading.current_thread())
        if typed.is_set():
            setup.td.vcpus[0].post(0x30)
            typed.clear()

    typed = threading.Event()
    setup.io.board.poll = poll  # type: ignore[method-assign]

    def type_something() -> None:
        typed.set()
        setup.io.control.wake()

    threading.Timer(0.05, type_something).start()
    assert setup.runner.run(None).reason is EndReason.POWER_OFF
    assert set(polls) == {threading.main_thread()}


def test_nmi_wakes_what_no_interrupt_should() -> None:
    def receiver() -> Guest:
        yield call(HLT, 1)
        yield POWER_OFF

    def sender() -> Guest:
        yield wrmsr(0x830, 4 << 8)  # to vCPU 0
        yield call(HLT, 0)

    setup = Setup(receiver, sender)
    assert setup.runner.run(5).reason is EndReason.POWER_OFF
    fake = setup.module.tds[setup.td.root].vcpus
    assert [vcpu.nmis for vcpu in fake] == [1, 0]


def test_a_notification_that_the_hypervisor_takes_is_repeated() -> None:
    """The wake-up interrupt (0xFD) comes before the notification (0xF2): hardware leaves the guest for it."""

    def guest() -> Guest:
        yield "wait", 1
        yield "wait", 1
        assert (yield ("interrupts",)) == [0x60]
        yield POWER_OFF

    setup = Setup(guest)
    vcpu = setup.td.vcpus[0]
    vcpu.post(0x60)
    original = setup.module.leaf_0
    first = True

    def by_priority(lp: FakeProcessor, g: list[int]) -> int:
        nonlocal first
        if first:
            first = False
            assert 0xF2 in lp.waiting
            lp.interrupt(0xFD)
            g[1:16] = [0] * 15
            return 1
        return original(lp, g)

    setup.module.leaf_0 = by_priority  # type: ignore[method-assign]
    assert setup.runner.run(5).reason is EndReason.POWER_OFF


def test_a_vector_that_is_posted_while_others_are_delivered_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device's thread posts between the vCPU's look at what waits and its being through with it."""
    setup = Setup(spin)
    vcpu, cpu = setup.td.vcpus[0], setup.td.cpu
    vcpu.post(0x60)
    real: Any = type(vcpu._memory).write

    def write(self: Any, pa: int, data: bytes) -> None:
        monkeypatch.undo()
        vcpu.post(0x71)
        real(self, pa, data)

    monkeypatch.setattr(type(vcpu._memory), "write", write)
    vcpu.deliver(cpu)
    assert vcpu.has_interrupt
    vcpu.deliver(cpu)
    requests = int.from_bytes(vcpu._memory.read(vcpu.pid, 32), "little")
    assert requests == 1 << 0x60 | 1 << 0x71


@pytest.mark.parametrize("vector", [0, 15, 20, 30, 256, -1])
def test_vectors_that_cannot_be_posted(vector: int) -> None:
    setup = Setup(spin)
    setup.td.vcpus[0].post(vector)
    assert not setup.td.vcpus[0].has_interrupt


# ------------------------------------------------------------------ several vCPUs
def test_two_spinning_vcpus_share_a_processor() -> None:
    turns: list[int] = []

    def guest(index: int) -> Guest:
        for _ in range(2000):
            turns.append(index)
            yield "wait", 100_000  # 40 us: no exit but the time slice's
        yield POWER_OFF

    setup = Setup(lambda: guest(0), lambda: guest(1))
    assert setup.runner.run(100).reason is EndReason.POWER_OFF
    changes = sum(one != two for one, two in itertools.pairwise(turns))
    assert changes >= 10, "a vCPU starved"
    assert abs(turns.count(0) - turns.count(1)) <= 600


def test_vcpus_wake_each_other_on_one_processor() -> None:
    log: list[str] = []

    def ping() -> Guest:
        for n in range(5):
            yield ipi(0x50, 1)
            yield call(HLT, 0)
            assert (yield ("interrupts",)) == [0x51]
            log.append(f"pong {n}")
        yield POWER_OFF

    def pong() -> Guest:
        while True:
            yield call(HLT, 0)
            assert (yield ("interrupts",)) == [0x50]
            log.append("ping")
            yield ipi(0x51, 0)

    setup = Setup(ping, pong)
    assert setup.runner.run(10).reason is EndReason.POWER_OFF
    assert log == [word for n in range(5) for word in ("ping", f"pong {n}")]


def test_vcpus_wake_each_other_on_two_processors() -> None:
    rounds = 30

    def ping() -> Guest:
        for _ in range(rounds):
            yield ipi(0x50, 1)
            while not (taken := (yield ("interrupts",))):
                yield call(HLT, 0)
            assert taken == [0x51]
        yield POWER_OFF

    def pong() -> Guest:
        while True:
            while not (taken := (yield ("interrupts",))):
                yield call(HLT, 0)
            assert taken == [0x50]
            yield ipi(0x51, 0)

    setup = Setup(ping, pong, machine=FakeMachine(per_package=2))
    assert setup.runner.run(None).reason is EndReason.POWER_OFF
    used = {lp.index for lp in setup.machine.processors if lp.halts or lp.waiting}
    assert len(setup.runner.workers) == 2
    assert used
    setup.td.teardown()
    assert setup.hypervisor.allocator.used == 0


def test_a_vcpu_moves_to_a_processor_with_nothing_to_do() -> None:
    """Three vCPUs on two processors: a handed-over vCPU is flushed where it was (TDH.VP.FLUSH)."""
    homes: dict[int, set[int]] = {index: set() for index in range(3)}
    done: list[int] = []

    def busy(index: int) -> Guest:
        for _ in range(1500):  # three time slices
            fake = setup.module.tds[setup.td.root].vcpus[index]
            assert fake.lp is not None
            homes[index].add(fake.lp.index)
            yield "wait", 50_000
            time.sleep(0)
        done.append(index)
        yield POWER_OFF if len(done) == 2 else call(HLT, 0)

    def boss() -> Guest:
        yield call(HLT, 0)

    setup = Setup(lambda: busy(0), boss, lambda: busy(2), machine=FakeMachine(per_package=2))
    assert setup.td.vcpus[0].cpu is setup.td.vcpus[2].cpu  # both start on processor 0
    setup.module.log.clear()
    # Processor 1 has nothing to do as soon as the boss halts.
    assert setup.runner.run(None).reason is EndReason.POWER_OFF
    assert FLUSH in [leaf for leaf, _ in setup.module.log]
    assert 1 in homes[0] | homes[2]
    setup.td.teardown()
    assert setup.hypervisor.allocator.used == 0


def test_memory_is_converted_while_another_vcpu_runs() -> None:
    """The other vCPU is made to leave the guest, or the module would not let go of the page."""

    def converter() -> Guest:
        for gpa in range(0, 8 * MIB, 2 * MIB):
            assert (yield "accept", gpa, 1) == "accepted"
            regs = yield call(0x10001, 1 << 47 | gpa, 2 * MIB)
            assert regs[R10] == 0
            regs = yield call(0x10001, gpa, 2 * MIB)
            assert regs[R10] == 0
            assert (yield "accept", gpa, 1) == "accepted"
        yield POWER_OFF

    def runner() -> Guest:
        while True:
            yield "wait", 1000
            time.sleep(0)

    setup = Setup(converter, runner, machine=FakeMachine(per_package=2))
    result = setup.runner.run(None)
    assert result.reason is EndReason.POWER_OFF, result
    assert result.stats.pages["tracked"] >= 4
    setup.td.teardown()
    assert setup.hypervisor.allocator.used == 0


def test_another_thread_borrows_the_processor() -> None:
    """Reading a field while the guest runs: the run makes room, and goes on with its own registers."""
    done = threading.Event()

    def guest() -> Guest:
        n = 0
        while not done.is_set():
            n += 1
            regs = yield call(IO, 1, 0, 0x3FD)
            assert regs[R10] == 0
            assert regs[R11] & 0x60 == 0x60
            yield "wait", 1000
        yield POWER_OFF

    setup = Setup(guest)
    cpu = setup.hypervisor.processors[0]

    def borrow() -> None:
        for _ in range(50):
            with cpu.borrowed():
                cpu.gpr[:] = [0xBAD] * 16
                time.sleep(0.0005)
        done.set()

    thread = threading.Thread(target=borrow)
    thread.start()
    result = setup.runner.run(None)
    thread.join()
    assert result.reason is EndReason.POWER_OFF


def test_ctrl_c_stops_every_processor() -> None:
    """An exception in the main thread while it waits: no vCPU is left running."""

    def guest() -> Guest:
        while True:
            yield "wait", 1000
            time.sleep(0)

    setup = Setup(guest, guest, machine=FakeMachine(per_package=2))
    interrupter = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        setup.runner.run(None)
    assert not any(
        thread.is_alive() and thread.name.startswith("swtdx processor") for thread in threading.enumerate()
    )
    setup.td.teardown()


def test_statistics() -> None:
    def guest() -> Guest:
        yield "accept", 0, 1
        yield "shared", 0x30_0000
        yield call(HLT, 0)

    setup = Setup(guest, config=TdConfig(vcpus=1))
    stats = setup.runner.run(0.01).stats
    assert stats.exits["EPT violation"] == 2
    assert stats.exits["TDVMCALL"] == 1
    assert stats.tdvmcalls == {"Instruction.HLT": 1}
    assert stats.seamcalls["TDH.VP.ENTER"] == setup.hypervisor.processors[0].counts[VP_ENTER]
    assert stats.seamcalls["TDH.MEM.PAGE.AUG"] == 1
    assert stats.pages["private_2m"] == 1
    assert stats.pages["shared_4k"] == 1
    assert stats.wall_seconds > 0
