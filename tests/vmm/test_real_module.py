"""The hypervisor on the real TDX module: scripted guests, no fakes.

What a guest cannot be made to do here (a module that refuses, a busy lock) is in the other files, on
:mod:`tests.vmm.fake_module`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from swtdx.arch import ghci
from swtdx.arch.td_config import ATTR_DEBUG
from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import (
    Cli,
    Fetch,
    GuestFault,
    Pause,
    Rdtsc,
    Read,
    Script,
    Sti,
    Tdcall,
    TripleFault,
    Write,
    Wrmsr,
    read_bytes,
)
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.errors import SeamcallError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.seamcalls import tdh_mng_rd, tdh_vp_rd
from swtdx.vmm.sysinfo import read_all_fields, read_field
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

SHARED = 1 << 47
MIB, PAGE, BLOCK = 1 << 20, 4096, 2 << 20
CODE = 0x100000
RAM, RAM_END = 2 * MIB, 16 * MIB
HLT, IO, WRMSR = 12, 30, 32
ACCEPT, VMCALL = 6, 0
TDCX_PA, TDVPS_PAGE_PA = 0x8010000300000010, 0xA020000300000010
NMI, VMCALL_INFO = 2, 0x10000
ALREADY, MISMATCH = 0x00000B0A, 0xC0000B0B


class Place:
    """A TD on the machine, its scripts, and its runner."""

    def __init__(self, machine: Any, hypervisor: Hypervisor, programs: list[Any], **config: Any) -> None:
        self.hypervisor = hypervisor

        def start(cpu: Script) -> Any:
            yield from programs[cpu.gpr[6]](cpu)  # ESI is the vCPU's index

        #: In no order: a script goes to the vCPU that runs first.
        self.scripts: list[Script] = [machine.engine.add_program(start) for _ in programs]
        config.setdefault("vcpus", len(programs))
        page = InitialPage(CODE, b"measured".ljust(PAGE, b"."))
        self.td = Td.build(hypervisor, TdConfig(**config), [page], ram=[(RAM, RAM_END)])
        self.printed = bytearray()
        board = BoardConfig(apic_ids=tuple(range(config["vcpus"])))
        self.io = MachineIo(self.td, board, console_out=self.printed.extend)
        self.runner = self.io.runner(hypervisor.processors)

    def run(self, timeout: float | None = 600) -> RunResult:
        return self.runner.run(timeout)

    def results(self) -> list[Any]:
        """What the programs returned; raises what they raised."""
        return [script.result() for script in self.scripts]


class Machine:
    def __init__(self, processors: int) -> None:
        config = MachineConfig(engine="scripted", processors_per_package=processors)
        self.platform = Platform.boot(PlatformConfig(machine=config))
        self.hypervisor = Hypervisor(self.platform.host)
        self.places: list[Place] = []

    def td(self, *programs: Callable[[Script], Any], **config: Any) -> Place:
        place = Place(self.platform.machine, self.hypervisor, list(programs), **config)
        self.places.append(place)
        return place

    def finish(self) -> None:
        """Every page and every key must come back."""
        for place in self.places:
            place.td.teardown()
        self.places.clear()
        # The program of a vCPU that had no time to begin must not go to the next TD's.
        self.platform.machine.engine._queue.clear()  # type: ignore[attr-defined]
        assert self.hypervisor.allocator.used == 0


@pytest.fixture(scope="module")
def one() -> Iterator[Machine]:
    machine = Machine(1)
    yield machine
    machine.platform.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Machine]:
    machine = Machine(2)
    yield machine
    machine.platform.close()


@pytest.fixture
def machine(one: Machine) -> Iterator[Machine]:
    yield one
    one.finish()


@pytest.fixture
def smp(two: Machine) -> Iterator[Machine]:
    yield two
    two.finish()


# ------------------------------------------------------------------ what guests do
def call(function: int, *args: int, mask: int = 0xFC00) -> Any:
    """A TDVMCALL; the registers after it."""
    registers = {f"r{12 + n}": value for n, value in enumerate(args)}
    return (yield Tdcall(rax=VMCALL, rcx=mask, r10=0, r11=function, **registers))


def accept(gpa: int, level: int = 0) -> Any:
    """TDG.MEM.PAGE.ACCEPT; the upper half of its status."""
    return (yield Tdcall(rax=ACCEPT, rcx=gpa | level)).rax >> 32


def power_off() -> Any:
    yield from call(IO, 1, 1, 0x605, 0x20)
    while True:
        yield Pause(100_000)


def map_gpa(start: int, size: int) -> Any:
    """As Linux: again from R11 on RETRY."""
    end = start + size
    while True:
        after = yield from call(ghci.MAP_GPA, start, end - start)
        if after.r10 != ghci.RETRY:
            return after.r10
        assert start < after.r11 < end
        start = after.r11


def take_interrupts(cpu: Script) -> None:
    """Have every interrupt acknowledged with an EOI."""

    def handler(_vector: int) -> Any:
        yield Wrmsr(0x80B, 0)

    cpu.on_interrupt = handler


def wait_for_interrupt(cpu: Script, count: int) -> Any:
    """Sleep until ``count`` interrupts have come, as Linux does: HLT with IF=0, which says R12 = 0."""
    yield Cli()
    while len(cpu.interrupts) < count:
        yield from call(HLT, 0)
        yield Sti()
        yield Pause(100)
        yield Cli()
    yield Sti()


def finished(place: Place, timeout: float | None = 600) -> None:
    """Run to the end.  On several processors without a timeout: virtual time would jump to it while one
    of them sleeps and another has not begun."""
    result = place.run(timeout)
    errors = [script.error for script in place.scripts if script.error is not None]
    assert result.reason is EndReason.POWER_OFF, (result, errors)
    assert not errors


# ------------------------------------------------------------------ memory
def test_share_and_take_back(machine: Machine) -> None:
    seen: dict[str, Any] = {}

    def guest(_cpu: Script) -> Any:
        for gpa in range(RAM, RAM + 3 * BLOCK, BLOCK):
            assert (yield from accept(gpa, 1)) == 0
        for gpa in range(RAM, RAM + 3 * BLOCK, MIB):
            yield Write(gpa, gpa)
        # Cuts the first and the last page, takes the second whole.
        start, size = RAM + MIB, 2 * BLOCK
        assert (yield from map_gpa(SHARED | start, size)) == 0
        seen["shared"] = yield from read_bytes(SHARED | start, 64)
        yield Write(SHARED | start, int.from_bytes(b"to host!", "little"))
        seen["dma"] = place.io.dma.read(start, 8)
        place.io.dma.write(start + PAGE, b"to guest")
        seen["from host"] = yield Read(SHARED | start + PAGE)
        seen["kept"] = ((yield Read(RAM)), (yield Read(RAM + 2 * BLOCK + MIB)))
        # Taken back: a page that the host has written to is accepted as zeros.
        assert (yield from map_gpa(start, size)) == 0
        for gpa in (start, start + PAGE):
            assert (yield from accept(gpa)) == 0
            seen[hex(gpa)] = yield Read(gpa)
        assert (yield from accept(RAM + BLOCK, 1)) == 0
        assert (yield from accept(RAM, 1)) in (MISMATCH, ALREADY)
        yield from power_off()

    place = machine.td(guest)
    finished(place)
    assert seen == {
        "shared": bytes(64),
        "dma": b"to host!",
        "from host": int.from_bytes(b"to guest", "little"),
        "kept": (RAM, RAM + 2 * BLOCK + MIB),
        hex(RAM + MIB): 0,
        hex(RAM + MIB + PAGE): 0,
    }
    assert place.io.dma._translate(RAM + MIB) is None


def test_small_pages_of_a_large_pending_one(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        assert (yield from accept(RAM + PAGE)) == 0  # comes as 4 KiB
        assert (yield from accept(RAM + BLOCK + PAGE)) == 0  # was 2 MiB, pending: split for this
        yield Write(RAM + BLOCK + PAGE, 7)
        assert (yield from accept(RAM + BLOCK, 1)) == MISMATCH
        assert (yield from accept(RAM + BLOCK + PAGE)) == ALREADY
        yield from power_off()

    place = machine.td(guest)
    place.td.private.augment(place.td.cpu, RAM + BLOCK, 1)
    finished(place)
    assert place.td.private.counts["demoted"] == 1


def test_splitting_and_merging_keep_the_contents(machine: Machine) -> None:
    steps: list[int] = []

    def guest(_cpu: Script) -> Any:
        assert (yield from accept(RAM, 1)) == 0
        for n in range(0, 512, 37):
            yield Write(RAM + n * PAGE, n)
        for _ in range(3):
            steps.append(1)
            yield Pause(50_000_000)
            for n in range(0, 512, 37):
                assert (yield Read(RAM + n * PAGE)) == n
        yield from power_off()

    place = machine.td(guest)
    cpu, private = place.td.cpu, place.td.private
    assert place.run(0.01).reason is EndReason.TIMEOUT
    private.demote(cpu, [RAM])
    assert place.run(0.02).reason is EndReason.TIMEOUT
    assert private.promote(cpu, RAM)
    assert private.large.keys() == {RAM}
    finished(place)
    assert len(steps) == 3


def test_merging_what_is_not_all_accepted(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        assert (yield from accept(RAM)) == 0
        yield Write(RAM, 5)
        yield Pause(100_000_000)
        assert (yield Read(RAM)) == 5
        assert (yield from accept(RAM + PAGE)) == 0
        yield from power_off()

    place = machine.td(guest)
    private, cpu = place.td.private, place.td.cpu
    private.augment(cpu, RAM, 1)
    private.demote(cpu, [RAM])
    assert place.run(0.02).reason is EndReason.TIMEOUT
    assert not private.promote(cpu, RAM)
    finished(place)


def test_drain_and_drop_table(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        assert (yield from accept(RAM)) == 0
        yield Write(RAM, 0x5EC12E7)
        assert (yield from map_gpa(SHARED | RAM, BLOCK)) == 0
        yield Pause(100_000_000)
        assert (yield Read(SHARED | RAM)) == 0
        yield from power_off()

    place = machine.td(guest)
    assert place.run(0.02).reason is EndReason.TIMEOUT
    used = machine.hypervisor.allocator.used
    assert place.td.private.drain(place.td.cpu) == PAGE
    assert machine.hypervisor.allocator.used == used - PAGE
    assert place.td.private.drop_table(place.td.cpu, RAM)
    finished(place)


def test_a_machine_of_many_tds(machine: Machine) -> None:
    """More than there are HKIDs, one after the other; then as many as there are, at once."""

    def guest(_cpu: Script) -> Any:
        assert (yield from accept(RAM)) == 0
        assert (yield Read(RAM)) == 0
        yield Write(RAM, 1)
        yield from power_off()

    for _ in range(3):
        finished(machine.td(guest))
        machine.finish()
    places = [machine.td(guest) for _ in range(4)]
    assert len({place.td.hkid for place in places}) == 4
    for place in places:
        finished(place)


# ------------------------------------------------------------------ ends
def test_private_memory_that_is_not_there(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        yield Read(RAM_END)

    result = machine.td(guest).run()
    assert result.reason is EndReason.BAD_ACCESS
    assert f"read at private GPA {RAM_END:#x}" in result.detail


@pytest.mark.parametrize(
    ("gpa", "name"),
    [
        (0xFEE00020, "the local APIC"),
        (0xFEC00000, "the I/O APIC"),
        (0xE0000000, "PCI configuration space (ECAM)"),
        (0xC0001000, "the PCI window"),
        (0xFFFFFFF0, "firmware"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_a_private_access_to_a_device_is_told_as_that(
    machine: Machine, gpa: int, name: str, debug: bool
) -> None:
    def guest(_cpu: Script) -> Any:
        yield Read(gpa)

    result = machine.td(guest, attributes=ATTR_DEBUG if debug else 0).run()
    assert result.reason is EndReason.DEVICE_ACCESS
    assert f"read at private GPA {gpa & -0x1000:#x}" in result.detail
    assert result.detail.endswith(name)
    # Only of a debug TD may the host know where it is.
    assert ("by the instruction at 0x" in result.detail) is debug


def test_memory_that_was_not_accepted(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        yield Write(RAM + 0x123 * 8, 5)

    result = machine.td(guest).run()
    assert result.reason is EndReason.BAD_ACCESS
    assert "which it has not accepted" in result.detail


def test_code_in_shared_memory(machine: Machine) -> None:
    """A fetch from a shared page: refused by the shared EPT, for ever; the run does not go on for ever."""

    def guest(_cpu: Script) -> Any:
        assert (yield from map_gpa(SHARED | RAM, PAGE)) == 0
        yield Fetch(SHARED | RAM)

    result = machine.td(guest).run(5)
    assert result.reason in (EndReason.STUCK, EndReason.TRIPLE_FAULT, EndReason.TD_FATAL), result


def test_triple_fault(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        yield TripleFault()

    assert machine.td(guest).run().reason is EndReason.TRIPLE_FAULT


def test_timeout_and_on_again(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        start = yield Rdtsc()
        while (yield Rdtsc()) - start < 5_000_000_000:
            yield Pause(1_000_000)
        yield from power_off()

    place = machine.td(guest)
    for _ in range(3):
        result = place.run(0.25)
        assert result.reason is EndReason.TIMEOUT, result
    finished(place)


def test_shared_memory_on_demand_and_nothing(machine: Machine) -> None:
    """A shared GPA of RAM is mapped when it is touched; anywhere else the guest gets a #VE, at once."""

    def guest(_cpu: Script) -> Any:
        assert (yield Read(SHARED | RAM + 5 * PAGE)) == 0
        for gpa in (RAM_END, 0xC000_0000, 0xFEC0_0000, 1 << 40, SHARED - PAGE):
            with pytest.raises(GuestFault) as fault:
                yield Read(SHARED | gpa, 4)
            assert fault.value.vector == 20
            info = yield Tdcall(rax=3)
            assert info.r9 & -PAGE == SHARED | gpa
        yield from power_off()

    place = machine.td(guest)
    finished(place)
    assert len(place.td.shared.small) == 1
    assert len(place.td.shared._tables) < 12


# ------------------------------------------------------------------ interrupts
def test_timers(machine: Machine) -> None:
    """Deadline, one-shot and periodic, waking from HLT and interrupting a computation."""

    def guest(cpu: Script) -> Any:
        take_interrupts(cpu)
        yield Sti()
        yield from call(WRMSR, 0x80F, 0x1FF)
        yield from call(WRMSR, 0x832, 2 << 17 | 0x40)
        start = yield Rdtsc()
        yield from call(WRMSR, 0x6E0, start + 5_000_000)
        yield from wait_for_interrupt(cpu, 1)
        assert (yield Rdtsc()) - start >= 5_000_000
        yield from call(WRMSR, 0x6E0, 2**64 - 1)  # never
        yield from call(WRMSR, 0x832, 0x41)
        yield from call(WRMSR, 0x83E, 0b1011)
        yield from call(WRMSR, 0x838, 25_000)  # 1 ms
        while len(cpu.interrupts) < 2:
            yield Pause(100_000)
        yield from call(WRMSR, 0x832, 1 << 17 | 0x42)
        start = yield Rdtsc()
        yield from call(WRMSR, 0x838, 25_000)
        for n in range(3, 8):
            yield from wait_for_interrupt(cpu, n)
        # Five periods of 1 ms, in ticks of 25 MHz made to the frequency of the TSC.
        assert (yield Rdtsc()) - start == pytest.approx(5 * machine.platform.host.tsc_hz / 1000, rel=0.05)
        yield from call(WRMSR, 0x838, 0)
        yield from power_off()

    place = machine.td(guest)
    finished(place)
    assert place.scripts[0].interrupts == [0x40, 0x41, *[0x42] * 5]


def ping_pong(rounds: int) -> tuple[Callable[[Script], Any], Callable[[Script], Any]]:
    def ipi(vector: int, destination: int) -> Any:
        return call(WRMSR, 0x830, destination << 32 | vector)

    def ping(cpu: Script) -> Any:
        take_interrupts(cpu)
        yield Sti()
        for n in range(rounds):
            yield from ipi(0x50, 1)
            yield from wait_for_interrupt(cpu, n + 1)
        assert cpu.interrupts == [0x51] * rounds
        yield from power_off()

    def pong(cpu: Script) -> Any:
        take_interrupts(cpu)
        yield Sti()
        n = 0
        while True:
            n += 1
            yield from wait_for_interrupt(cpu, n)
            yield from ipi(0x51, 0)

    return ping, pong


def test_vcpus_wake_each_other_on_one_processor(machine: Machine) -> None:
    finished(machine.td(*ping_pong(20)))


def test_vcpus_wake_each_other_on_two_processors(smp: Machine) -> None:
    finished(smp.td(*ping_pong(50)), None)


def test_vcpus_that_spin_share_a_processor(machine: Machine) -> None:
    """vCPU 0 waits for what vCPU 1 does, without ever leaving the guest by itself."""

    def waiter(_cpu: Script) -> Any:
        yield from accept(RAM)
        while not (yield Read(RAM)):
            yield Pause(100_000)
        yield from power_off()

    def worker(_cpu: Script) -> Any:
        yield Pause(100_000_000)
        yield Write(RAM, 1)
        while True:
            yield Pause(100_000)

    finished(machine.td(waiter, worker))


def test_vcpus_move_between_processors(smp: Machine) -> None:
    """Five vCPUs on two processors, each with a share of a sum in memory."""
    vcpus = 5
    accepted = threading.Event()

    def program(cpu: Script) -> Any:
        index = cpu.gpr[6]
        if index == 0:
            assert (yield from accept(RAM)) == 0
            accepted.set()
        while not accepted.is_set():
            yield Pause(100_000)
        for n in range(1, 40):
            yield Pause(3_000_000)
            yield Write(RAM + 64 * (index + 1), n)
        if index == 0:
            for other in range(vcpus):
                while (yield Read(RAM + 64 * (other + 1))) != 39:
                    yield Pause(1_000_000)
            yield from power_off()
        yield from call(HLT, 1)

    place = smp.td(*[program] * vcpus)
    finished(place, None)
    assert len(place.td.hypervisor.processors) == 2


def test_memory_is_converted_while_another_vcpu_runs(smp: Machine) -> None:
    stop: list[int] = []

    def converter(_cpu: Script) -> Any:
        for gpa in range(RAM, RAM + 4 * BLOCK, BLOCK):
            assert (yield from accept(gpa, 1)) == 0
            assert (yield from map_gpa(SHARED | gpa, BLOCK)) == 0
            assert (yield from map_gpa(gpa, BLOCK)) == 0
            assert (yield from accept(gpa, 1)) == 0
        stop.append(1)
        yield from power_off()

    def runner(_cpu: Script) -> Any:
        while True:
            yield Pause(100_000)

    place = smp.td(converter, runner)
    finished(place, None)
    assert place.td.private.counts["tracked"] >= 4


def test_stop_from_another_thread(smp: Machine) -> None:
    def spin(_cpu: Script) -> Any:
        while True:
            yield Pause(1_000_000)

    place = smp.td(spin, spin)
    threading.Timer(0.05, lambda: place.runner.stop(EndReason.STOPPED, "enough")).start()
    result = place.run(None)
    assert (result.reason, result.detail) == (EndReason.STOPPED, "enough")


# ------------------------------------------------------------------ looking in
def test_debug_read(machine: Machine) -> None:
    def guest(_cpu: Script) -> Any:
        yield from accept(RAM)
        yield Write(RAM + 3, 0x1122334455667788)
        yield from power_off()

    place = machine.td(guest, attributes=ATTR_DEBUG)
    finished(place)
    assert place.td.debug_read(CODE, 10) == b"measured.."
    assert place.td.debug_read(RAM + 3, 8) == 0x1122334455667788.to_bytes(8, "little")
    place = machine.td(guest)
    finished(place)
    with pytest.raises(SeamcallError, match=r"TDH\.MEM\.RD .*TD_NON_DEBUG"):
        place.td.debug_read(CODE, 8)


def test_sys_rd_and_rdall_agree(machine: Machine) -> None:
    cpu = machine.hypervisor.processors[0]
    page = machine.hypervisor.allocator.page("test")
    try:
        fields = read_all_fields(cpu, machine.hypervisor.host.memory, page)
    finally:
        machine.hypervisor.allocator.free(page)
    assert len(fields) > 50
    assert all(read_field(cpu, field) == value for field, value in fields.items())
    with pytest.raises(SeamcallError, match=r"TDH\.SYS\.RD \(reading field 0x3f00000000000000\)"):
        read_field(cpu, 0x3F00000000000000)
    assert read_field(cpu, 0x3F00000000000000, 17) == 17


def test_what_the_module_refuses_is_said(machine: Machine) -> None:
    """A CPUID bit of a configurable leaf cannot be refused by the module after our own check; a TDR can."""
    place = machine.td(lambda _cpu: power_off())
    finished(place)
    with pytest.raises(SeamcallError, match=r"TDH\.MR\.FINALIZE: OP_STATE_INCORRECT"):
        place.td.finalize()
    with pytest.raises(SeamcallError, match=r"TDH\.MEM\.PAGE\.ADD \(GPA 0x200000\): OP_STATE_INCORRECT"):
        place.td.add_pages([InitialPage(RAM, b"too late")])


# ------------------------------------------------------------------ wild guests
U64 = some.one_of(
    some.sampled_from([0, 1, 2, 4, 8, PAGE, BLOCK, SHARED | RAM, RAM, 2 * SHARED, 0xC0000000, 2**64 - 1]),
    some.integers(0x3F0, 0x1000),
    some.integers(0, 63).map(lambda bit: 1 << bit),
    some.integers(RAM // PAGE, RAM_END // PAGE).map(lambda page: page * PAGE),
    some.integers(RAM // PAGE, RAM_END // PAGE).map(lambda page: SHARED | page * PAGE),
    some.integers(0, 2**64 - 1),
)
NAMES = ("rdx", "rbx", "rsi", "rdi", "r8", "r9", "r12", "r13", "r14", "r15")
ACT = some.one_of(
    some.builds(
        lambda function, r10, registers, mask: Tdcall(
            rax=VMCALL, rcx=mask, r11=function, r10=r10, **registers
        ),
        some.one_of(some.sampled_from(sorted(ghci.CALLS)), U64),
        some.one_of(some.just(0), some.just(0), U64),
        some.dictionaries(some.sampled_from(NAMES), U64),
        some.one_of(some.just(0xFFCC), some.just(0xFC00), U64),
    ),
    some.builds(lambda gpa, level: Tdcall(rax=ACCEPT, rcx=gpa | level), U64, some.integers(0, 2)),
    some.builds(Read, U64.map(lambda gpa: gpa & (2 * SHARED - 1) & -8)),
    some.builds(Pause, some.integers(0, 1 << 32)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(some.lists(ACT, max_size=15), min_size=1, max_size=2))
def test_a_wild_guest_never_breaks_the_hypervisor(one: Machine, programs: list[list[Any]]) -> None:
    def program(acts: list[Any]) -> Callable[[Script], Any]:
        def run(_cpu: Script) -> Any:
            for act in acts:
                try:
                    yield act
                except GuestFault as fault:
                    if fault.vector == 20:
                        yield Tdcall(rax=3)
            yield from power_off()

        return run

    place = one.td(*[program(acts) for acts in programs])
    result = place.run(1000)
    assert result.reason is not EndReason.ERROR, result
    one.finish()


def test_addresses_of_control_pages_carry_the_key_id(machine: Machine) -> None:
    """As Intel's module keeps them (``tdh_mng_addcx.c``, ``tdh_vp_addcx.c``), a debug host reads them."""
    place = machine.td(lambda _cpu: power_off(), attributes=ATTR_DEBUG)
    cpu, td = machine.hypervisor.processors[0], place.td
    assert td.hkid is not None
    vcpu = td.vcpus[0]
    for read, root, first in ((tdh_mng_rd, td.root, TDCX_PA), (tdh_vp_rd, vcpu.tdvpr, TDVPS_PAGE_PA)):
        for index in range(5):
            status, address = read(cpu, root, first + index)
            assert status == 0
            page = address & (1 << machine.hypervisor.host.keyid_shift) - 1
            assert address == page | td.hkid << machine.hypervisor.host.keyid_shift
            assert page % PAGE == 0 < page
    assert tdh_vp_rd(cpu, vcpu.tdvpr, TDVPS_PAGE_PA)[1] & (1 << 46) - 1 == vcpu.tdvpr
    vcpu.flush()


# ------------------------------------------------------------------ NMIs
def test_nmis_between_vcpus_wake_and_are_not_nested(smp: Machine) -> None:
    """An NMI by the x2APIC's ICR wakes a vCPU that sleeps, even with its interrupts off; two at once are one
    while another is handled."""
    depth: list[int] = []
    received: list[list[int]] = []

    def sender(_cpu: Script) -> Any:
        while not received:
            yield Pause(1000)
        for number in range(20):
            yield from call(WRMSR, 0x830, 1 << 32 | 4 << 8)
            while len(received[0]) == number:
                yield Pause(1000)
        yield from call(WRMSR, 0x830, 1 << 32 | 0x40)
        while True:
            yield from call(HLT, 0)

    def receiver(cpu: Script) -> Any:
        def handler(vector: int) -> Any:
            depth.append(1)
            yield from call(VMCALL_INFO)
            assert depth.pop() == 1
            assert not depth, "no NMI comes before the IRET of the last"
            if vector != NMI:
                yield Wrmsr(0x80B, 0)

        cpu.on_interrupt = handler
        received.append(cpu.interrupts)
        yield Cli()
        while cpu.interrupts.count(NMI) < 20:
            yield from call(HLT, 1)  # deaf: only an NMI wakes it
        yield from wait_for_interrupt(cpu, 21)
        yield from power_off()

    finished(smp.td(sender, receiver), timeout=None)
    assert received == [[NMI] * 20 + [0x40]]


def test_the_hosts_nmi_interrupts_a_run_and_is_handled(machine: Machine) -> None:
    """Like KVM: the TD exit says that it was one, and the handler is called; the guest hears nothing."""

    def guest(cpu: Script) -> Any:
        for _number in range(5):
            machine.platform.host.processors[0].nmi()
            yield Pause(10_000)
            yield from call(VMCALL_INFO)
        yield from power_off()
        return cpu.interrupts

    place = machine.td(guest)
    cpu = machine.hypervisor.processors[0]
    before = cpu.nmis
    finished(place)
    assert cpu.nmis == before + 5
    # Between two runs it comes by the IDT.
    machine.platform.host.processors[0].nmi()
    tdh_vp_rd(cpu, place.td.vcpus[0].tdvpr, TDVPS_PAGE_PA)
    assert cpu.nmis == before + 6
