"""The local APIC against the Intel SDM, volume 3, chapter 11 (sections in brackets)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from swtdx.vmm.apic import LocalApic

MSR = 0x800
ID, VERSION, LDR, SVR, ESR, ICR = (MSR + at for at in (0x02, 0x03, 0x0D, 0x0F, 0x28, 0x30))
LVT_TIMER, LVT_LINT0, LVT_ERROR = MSR + 0x32, MSR + 0x35, MSR + 0x37
INITIAL, CURRENT, DIVIDE, SELF_IPI = MSR + 0x38, MSR + 0x39, MSR + 0x3E, MSR + 0x3F
ENABLE = 0x1FF
MASKED = 1 << 16
PERIODIC, DEADLINE = 1 << 17, 2 << 17
#: Machine TSC ticks in a tick of the 25 MHz crystal clock.
TICK = 100
#: Divide configuration register [11.5.4, figure 11-10]: bits 3, 1, 0.
DIVISORS = {0b0000: 2, 0b0001: 4, 0b0010: 8, 0b0011: 16, 0b1000: 32, 0b1001: 64, 0b1010: 128, 0b1011: 1}


class Cpu:
    """A vCPU that notes what is sent to it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.vectors: list[int] = []
        self.nmis = 0

    def post(self, vector: int) -> None:
        self.vectors.append(vector)

    def post_nmi(self) -> None:
        self.nmis += 1


class Time:
    """The machine's time; the guest's TSC is ``offset`` ahead."""

    tsc_hz = 25e6 * TICK
    offset = 1 << 40

    def __init__(self) -> None:
        self.ticks = 1_000_000

    def now(self) -> int:
        return self.ticks

    def host_deadline(self, guest_tsc: int) -> int:
        return max(guest_tsc - self.offset, self.ticks)


def make(
    index: int = 0,
    others: Callable[[], list[Cpu]] = list,
    changed: Callable[[], None] = lambda: None,
) -> tuple[LocalApic, Cpu, Time]:
    cpu, time = Cpu(index), Time()
    apic = LocalApic(cpu, time, others, changed)  # type: ignore[arg-type]
    assert apic.write(SVR, ENABLE)
    return apic, cpu, time


# ------------------------------------------------------------------ registers
def test_reset_values() -> None:
    """[11.4.7.1]: LVT entries masked, SVR 0xFF; [11.12.10.1]: the logical id made of the id."""
    apic = LocalApic(Cpu(0x25), Time(), list)
    assert apic.read(ID) == 0x25
    assert apic.read(SVR) == 0xFF
    assert apic.read(LDR) == 0x2_0020
    for entry in (0x2F, *range(0x32, 0x38)):
        assert apic.read(MSR + entry) == MASKED
    version = apic.read(VERSION)
    assert version is not None
    assert 0x10 <= version & 0xFF <= 0x15  # an integrated APIC
    assert version >> 16 & 0xFF == 5  # entries up to LVT error; CMCI is not counted
    assert (apic.read(ICR), apic.read(ESR), apic.read(INITIAL), apic.read(CURRENT)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        (ID, 1),  # read-only
        (VERSION, 1),
        (LDR, 1),
        (CURRENT, 1),
        (ESR, 1),  # [11.12.1.2]: only 0 may be written
        (MSR + 0x0E, 0),  # DFR does not exist in x2APIC mode
        (MSR + 0x31, 0),  # nor the upper half of the ICR
        (MSR, 0),
        (SVR, 1 << 32 | ENABLE),  # bits 63:32 of any register but the ICR
        (DIVIDE, 4),
        (LVT_TIMER, 3 << 17),
        (LVT_TIMER, 1 << 8),
        (LVT_LINT0, 1 << 11),
        (SVR, 1 << 13),
        (ICR, 1 << 13),
        (ICR, 1 << 16),
        (ICR, 1 << 20),
    ],
)
def test_general_protection(msr: int, value: int) -> None:
    """[11.12.1]: reserved bits and read-only registers; nothing changes."""
    apic, cpu, _ = make()
    before = [apic.read(MSR + at) for at in range(0x100)]
    assert not apic.write(msr, value)
    assert [apic.read(MSR + at) for at in range(0x100)] == before
    assert not cpu.vectors


@pytest.mark.parametrize("msr", [SELF_IPI, MSR + 0x31, MSR, MSR + 0xFF])
def test_write_only_or_missing(msr: int) -> None:
    apic, _, _ = make()
    assert apic.read(msr) is None


def test_software_disabled() -> None:
    """[11.4.7.2]: the mask bits of all LVT entries are set, and stay set until it is enabled."""
    apic, cpu, time = make()
    apic.write(LVT_TIMER, 0x40)
    apic.write(INITIAL, 1000)
    apic.write(SVR, 0xFF)
    assert apic.read(LVT_TIMER) == MASKED | 0x40
    apic.write(LVT_TIMER, 0x41)
    assert apic.read(LVT_TIMER) == MASKED | 0x41
    time.ticks += 10_000_000
    assert apic.fire(time.ticks)
    assert not cpu.vectors
    apic.write(SVR, ENABLE)
    assert apic.read(LVT_TIMER) == MASKED | 0x41


# ------------------------------------------------------------------ timer
@pytest.mark.parametrize(("code", "divisor"), DIVISORS.items())
def test_one_shot(code: int, divisor: int) -> None:
    changes: list[int | None] = []
    apic, cpu, time = make(changed=lambda: changes.append(apic.deadline))
    apic.write(DIVIDE, code)
    apic.write(LVT_TIMER, 0x40)
    apic.write(INITIAL, 1000)
    start = time.ticks
    time.ticks += 400 * divisor * TICK
    assert apic.read(CURRENT) == 600
    assert apic.read(INITIAL) == 1000
    time.ticks = start + 1000 * divisor * TICK - 1
    assert not apic.fire(time.ticks)
    time.ticks += 1
    assert apic.fire(time.ticks)
    assert cpu.vectors == [0x40]
    assert not apic.fire(time.ticks + 1 << 50)
    assert apic.read(CURRENT) == 0
    assert changes == [start + 1000 * divisor * TICK, None]


def test_periodic_catches_up() -> None:
    """Periods that nobody was there for are one interrupt, and the phase stays."""
    apic, cpu, time = make()
    apic.write(DIVIDE, 0b1011)
    apic.write(LVT_TIMER, PERIODIC | 0x41)
    apic.write(INITIAL, 10_000)
    start, period = time.ticks, 10_000 * TICK
    for late, expected in ((0, 2), (17, 3), (3 * period + 5, 7)):
        time.ticks = (apic.deadline or 0) + late
        assert apic.fire(time.ticks)
        assert apic.deadline == start + expected * period
    assert cpu.vectors == [0x41] * 3
    apic.write(INITIAL, 0)
    assert apic.deadline is None


def test_a_period_of_nothing_is_slowed_down() -> None:
    """KVM's ``min_timer_period_us``: 200 us at least, however it is asked for."""
    for divide, setup in (
        (0b1011, [(LVT_TIMER, PERIODIC | 0x41), (INITIAL, 1)]),
        (0b1011, [(INITIAL, 1), (LVT_TIMER, PERIODIC | 0x41)]),
        (0b1010, [(LVT_TIMER, PERIODIC | 0x41), (INITIAL, 1), (DIVIDE, 0b1011)]),
    ):
        apic, cpu, time = make()
        apic.write(DIVIDE, divide)
        for msr, value in setup:
            assert apic.write(msr, value)
        for _ in range(100):
            time.ticks += int(200e-6 * time.tsc_hz / 4)
            apic.fire(time.ticks)
        assert 20 <= len(cpu.vectors) <= 27


def test_masked_timer_runs_and_is_silent() -> None:
    apic, cpu, time = make()
    apic.write(LVT_TIMER, MASKED | 0x40)
    apic.write(INITIAL, 1000)
    time.ticks += 1000 * 2 * TICK
    assert apic.fire(time.ticks)
    assert not cpu.vectors


def test_divide_change_keeps_the_count() -> None:
    """As KVM's apic_update_divisor: the count goes on at the new speed."""
    apic, _, time = make()
    apic.write(DIVIDE, 0b0000)  # 2
    apic.write(LVT_TIMER, PERIODIC | 0x40)
    apic.write(INITIAL, 10_000)
    time.ticks += 4_000 * 2 * TICK
    apic.write(DIVIDE, 0b0011)  # 16
    assert apic.read(CURRENT) == 6_000
    time.ticks += 1_000 * 16 * TICK
    assert apic.read(CURRENT) == 5_000
    time.ticks += 5_000 * 16 * TICK
    assert apic.fire(time.ticks)
    assert apic.deadline == time.ticks + 10_000 * 16 * TICK


def test_deadline_mode() -> None:
    """[11.5.4.1]."""
    apic, cpu, time = make()
    apic.write_deadline(time.offset + time.ticks + 5)
    assert apic.deadline is None  # not in that mode: ignored
    assert apic.write(LVT_TIMER, DEADLINE | 0x42)
    when = time.offset + time.ticks + 5000
    apic.write_deadline(when)
    assert apic.read_deadline() == when
    assert apic.read(CURRENT) == 0
    assert apic.write(INITIAL, 77)  # ignored in this mode
    assert apic.read(INITIAL) == 0
    assert not apic.fire(time.ticks + 4999)
    assert apic.fire(time.ticks + 5000)
    assert cpu.vectors == [0x42]
    assert apic.read_deadline() == 0
    apic.write_deadline(5)  # in the past: fires at once
    assert apic.fire(time.ticks)
    apic.write_deadline(when)
    apic.write_deadline(0)
    assert apic.deadline is None
    apic.write_deadline(when)
    apic.write(LVT_TIMER, 0x42)  # a transition disarms
    assert apic.deadline is None


class Countdown:
    """The timer as a counter that goes down a step at a time [11.5.4]."""

    def __init__(self) -> None:
        self.initial = self.current = self.phase = 0
        self.divisor, self.periodic = 2, False

    def wait(self, ticks: int) -> bool:
        fired = False
        for _ in range(ticks):
            if not self.current:
                break
            self.phase += 1
            if self.phase == self.divisor:
                self.phase = 0
                self.current -= 1
                if not self.current:
                    fired = True
                    self.current = self.initial if self.periodic else 0
        return fired


COUNTS = some.one_of(some.just(0), some.integers(5_000, 6_000))


@settings(max_examples=40, deadline=None)
@given(
    code=some.sampled_from([0b1011, 0b0000, 0b0001]),
    steps=some.lists(
        some.one_of(
            some.tuples(some.just("initial"), COUNTS),
            some.tuples(some.just("wait"), some.integers(0, 12_000)),
            some.tuples(some.just("periodic"), some.booleans()),
        ),
        max_size=8,
    ),
)
def test_timer_against_a_counter(code: int, steps: list[tuple[str, int]]) -> None:
    apic, _, time = make()
    model = Countdown()
    apic.write(DIVIDE, code)
    model.divisor = DIVISORS[code]
    apic.write(LVT_TIMER, 0x40)
    for what, value in steps:
        if what == "initial":
            apic.write(INITIAL, value)
            model.initial = model.current = value
            model.phase = 0
        elif what == "periodic":
            apic.write(LVT_TIMER, (PERIODIC if value else 0) | 0x40)
            model.periodic = bool(value)
        else:
            time.ticks += value * TICK
            assert apic.fire(time.ticks) == model.wait(value)
            # The counter shows the count that is being counted down, the registers the whole ones left.
            shown = apic.read(CURRENT)
            assert shown is not None
            assert model.current - shown in ((0,) if not model.phase else (1,))


# ------------------------------------------------------------------ interrupts between vCPUs
def command(
    vector: int = 0x50, *, mode: int = 0, logical: int = 0, shorthand: int = 0, destination: int = 0
) -> int:
    """[11.6.1, figure 11-28]."""
    return vector | mode << 8 | logical << 11 | 1 << 14 | shorthand << 18 | destination << 32


@pytest.mark.parametrize(
    ("value", "receivers"),
    [
        (command(destination=2), [2]),
        (command(destination=17), [17]),
        (command(destination=99), []),
        (command(destination=0xFFFFFFFF), list(range(20))),
        (command(shorthand=1), [1]),
        (command(shorthand=2), list(range(20))),
        (command(shorthand=3), [n for n in range(20) if n != 1]),
        (command(shorthand=3, destination=1), [n for n in range(20) if n != 1]),
        # [11.12.10.1]: cluster in bits 31:16, members in bits 15:0.
        (command(logical=1, destination=0x0000_0005), [0, 2]),
        (command(logical=1, destination=0x0001_0009), [16, 19]),
        (command(logical=1, destination=0x0002_0001), []),
        (command(logical=1, destination=0), []),
        (command(logical=1, destination=0xFFFFFFFF), list(range(20))),
        (command(mode=5, shorthand=2), []),  # INIT and start-up do not exist in a TD
        (command(mode=6, shorthand=3), []),
        (command(mode=2, shorthand=2), []),
    ],
)
def test_destinations(value: int, receivers: list[int]) -> None:
    cpus = [Cpu(index) for index in range(20)]
    apic = LocalApic(cpus[1], Time(), lambda: cpus)  # type: ignore[arg-type, return-value]
    assert apic.write(ICR, value)
    assert [cpu.index for cpu in cpus if cpu.vectors] == receivers
    assert all(cpu.vectors in ([], [0x50]) for cpu in cpus)
    assert apic.read(ICR) == value


def test_lowest_priority_goes_to_one_of_those_asked() -> None:
    cpus = [Cpu(index) for index in range(8)]
    apic = LocalApic(cpus[0], Time(), lambda: cpus)  # type: ignore[arg-type, return-value]
    assert apic.write(ICR, command(mode=1, logical=1, destination=0b1100_0000))
    assert sum(len(cpu.vectors) for cpu in cpus) == 1
    assert cpus[6].vectors or cpus[7].vectors


def test_nmi() -> None:
    cpus = [Cpu(index) for index in range(3)]
    apic = LocalApic(cpus[0], Time(), lambda: cpus)  # type: ignore[arg-type, return-value]
    assert apic.write(ICR, command(0, mode=4, shorthand=3))
    assert [cpu.nmis for cpu in cpus] == [0, 1, 1]
    assert not any(cpu.vectors for cpu in cpus)


@pytest.mark.parametrize("send", [(ICR, command(5, shorthand=2)), (ICR, command(15, mode=1)), (SELF_IPI, 9)])
def test_illegal_vectors(send: tuple[int, int]) -> None:
    """[11.5.3]: vectors 0 to 15: nothing is sent, ESR bit 5, and the error interrupt if it is enabled."""
    apic, cpu, _ = make(0, list)
    assert apic.write(LVT_ERROR, 0xFE)
    assert apic.write(*send)
    assert cpu.vectors == [0xFE]
    assert apic.read(ESR) == 0  # until it is written
    assert apic.write(ESR, 0)
    assert apic.read(ESR) == 1 << 5
    assert apic.write(ESR, 0)
    assert apic.read(ESR) == 0


def test_self_ipi() -> None:
    apic, cpu, _ = make()
    assert apic.write(SELF_IPI, 0x60)
    assert cpu.vectors == [0x60]


@settings(max_examples=120, deadline=None)
@given(
    some.lists(
        some.tuples(
            some.booleans(),
            some.one_of(some.integers(0x800, 0x8FF), some.integers(0, 2**64 - 1)),
            some.one_of(some.integers(0, 2**64 - 1), some.integers(0, 0x3FFFF)),
            some.integers(0, 1 << 40),
        ),
        max_size=30,
    )
)
def test_any_access_is_answered(accesses: list[tuple[bool, int, int, int]]) -> None:
    """Whatever a guest does, it gets a value or a #GP, and the timer never asks for more than its share."""
    apic, cpu, time = make()
    for is_write, msr, value, ticks in accesses:
        if is_write:
            assert apic.write(msr, value) in (True, False)
            apic.write_deadline(value)
        else:
            read = apic.read(msr)
            assert read is None or 0 <= read < 1 << 64
        time.ticks += ticks
        apic.fire(time.ticks)
        count = len(cpu.vectors)
        for _ in range(4):
            apic.fire(time.ticks)
        assert len(cpu.vectors) <= count + 1
