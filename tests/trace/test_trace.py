"""A trace against what others know of the same run: the hypervisor's statistics, the guest, the machine."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.arch import ghci
from swtdx.arch.regs import NAMES
from swtdx.machine.engine.scripted import Cpuid, GuestFault, Pause, Rdmsr, Read, Script, Sti, Tdcall, Write
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.vmx.unit import VmxUnit
from swtdx.trace.decode import decode
from swtdx.trace.jsonlines import JsonLines
from swtdx.trace.probe import Tracer
from swtdx.trace.record import Kind
from swtdx.trace.recorder import Recorder
from swtdx.trace.text import timeline
from swtdx.vmm.exits import cause
from swtdx.vmm.result import EndReason

from .support import ACCEPT, MMIO, RAM, SHARED, Bench, power_off, vmcall


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.platform.close()


class Busy:
    """A guest that does a bit of everything, and counts what it did."""

    def __init__(self) -> None:
        self.tdcalls: Counter[int] = Counter()
        self.faults: Counter[int] = Counter()
        self.seen: dict[str, Any] = {}

    def __call__(self, _cpu: Script) -> Any:
        for page in range(3):
            after = yield from self._tdcall(rax=ACCEPT, rcx=RAM + (page << 12))
            assert after.rax == 0
        yield Write(RAM, 0x1234)
        self.seen["cpuid"] = yield Cpuid(0x21)
        for gpa in (MMIO, MMIO + 8):
            try:
                yield Read(SHARED | gpa, 4)
            except GuestFault as fault:
                self.faults[fault.vector] += 1
                info = yield from self._tdcall(rax=3)
                self.seen["gpa"] = info.r9
                after = yield from self._vmcall(ghci.MMIO, 4, 0, info.r9, 0)
                self.seen["mmio"] = after.r11
        try:
            yield Cpuid(0x4FFFFFFF)
        except GuestFault as fault:
            self.faults[fault.vector] += 1
            yield from self._tdcall(rax=3)
        try:
            yield Rdmsr(0xC0010015)
        except GuestFault as fault:
            self.faults[fault.vector] += 1
            yield from self._tdcall(rax=3)
        yield from self._tdcall(rax=200)  # no such leaf
        self.tdcalls[0] += 1
        yield from power_off()

    def _tdcall(self, **registers: int) -> Any:
        after = yield Tdcall(**registers)
        self.tdcalls[registers["rax"]] += 1
        return after

    def _vmcall(self, function: int, *args: int) -> Any:
        after = yield from vmcall(function, *args)
        self.tdcalls[0] += 1
        return after


def traced(bench: Bench, *guests: Any, timeout: float | None = 60) -> tuple[Recorder, Any]:
    recorder = Recorder()
    with Tracer(bench.machine, recorder):
        result = bench.run(*guests, timeout=timeout)
    assert result.reason is EndReason.POWER_OFF, result
    return recorder, result


def names(recorder: Recorder, kind: str) -> Counter[str]:
    return Counter(event.name for event in recorder.events() if event.kind == kind)


def test_counts_are_those_of_the_hypervisor_and_of_the_guest(bench: Bench) -> None:
    guest = Busy()
    recorder, result = traced(bench, guest)
    stats = result.stats
    assert names(recorder, "SEAMCALL") == stats.seamcalls
    assert names(recorder, "SEAMRET") == stats.seamcalls
    assert names(recorder, "TDVMCALL") == stats.tdvmcalls
    exits = Counter(
        record.gpr[0] for record in recorder.records if record.kind is Kind.SEAMRET and record.tdvpr
    )
    assert {cause(reason): count for reason, count in exits.items()} == stats.exits
    # The guest's side: every TDCALL that it completed returned once; of the last, which switched off, it
    # did not see the end.
    returns = Counter(
        record.before[0]
        for record in recorder.records
        for event in decode(record)
        if event.kind == "TDCALL return" and record.before is not None
    )
    assert returns == guest.tdcalls
    injected = names(recorder, "injection")
    assert injected == {"#VE": guest.faults[20]} | ({"#GP": guest.faults[13]} if guest.faults[13] else {})
    assert guest.faults[20] >= 3
    kinds = recorder.counts()
    assert kinds["VM entry"] == kinds["VM exit"]
    # The engine also stops for translations that the processor fills by itself.
    assert kinds["VM exit"] <= bench.machine.processors[0].runs


def test_a_tdcall_that_is_tried_again_returns_once(bench: Bench) -> None:
    """TDG.MEM.PAGE.ACCEPT of a page that is not there leaves the TD and is executed again."""
    recorder, result = traced(bench, Busy())
    assert result.stats.exits["EPT violation"] == 3
    accepts = [e for e in recorder.events() if e.name == "TDG.MEM.PAGE.ACCEPT"]
    assert [e.kind for e in accepts] == ["TDCALL", "TDCALL", "TDCALL return"] * 3


def test_registers_are_those_that_the_hypervisor_sees(bench: Bench) -> None:
    """The hypervisor's own hook sees the same registers before and after each SEAMCALL."""
    recorder = Recorder()
    hook: list[tuple[list[int], list[int]]] = []

    def guest(_cpu: Script) -> Any:
        assert bench.hypervisor is not None
        bench.hypervisor.set_trace(lambda _index, before, after: hook.append((before, after)))
        hook.clear()
        start.append(len(recorder.records))
        yield from vmcall(ghci.GET_TD_VMCALL_INFO, 1)
        yield from power_off()

    start: list[int] = []
    with Tracer(bench.machine, recorder):
        bench.run(guest)
    # The SEAMCALL under way when the hook was set is seen by the hook as a whole.
    records = recorder.records[start[0] :]
    after = [list(record.gpr) for record in records if record.kind is Kind.SEAMRET]
    before = [list(record.before or ()) for record in records if record.kind is Kind.SEAMRET]
    assert len(hook) == len(after) >= 3
    assert [pair[1] for pair in hook] == after
    assert [pair[0] for pair in hook] == before


def test_hidden_registers_are_those_that_were_not_passed(bench: Bench) -> None:
    secrets = {name: 0x5EC0_0000_0000_0000 + n for n, name in enumerate(("rbx", "rsi", "rdi", "r8", "r9"))}

    def guest(cpu: Script) -> Any:
        for name, value in secrets.items():
            cpu.gpr[NAMES.index(name)] = value
        yield from vmcall(ghci.GET_TD_VMCALL_INFO, 1)
        yield from power_off()

    recorder, _ = traced(bench, guest)
    call = next(e for e in recorder.events() if e.kind == "SEAMRET" and e.facts.get("reason") == "TDCALL")
    hidden = set(call.facts["hidden"].split(", "))
    assert {name.upper() for name in secrets} <= hidden
    assert not hidden & {"R10", "R11", "R12", "R13", "R14", "R15"}
    # And the secrets are in no register of the hypervisor's, at any time.
    for record in recorder.records:
        if record.kind in (Kind.SEAMCALL, Kind.SEAMRET):
            assert not set(secrets.values()) & set(record.gpr)


def test_interrupts_that_cause_no_exit(bench: Bench) -> None:
    taken: list[int] = []

    def guest(cpu: Script) -> Any:
        cpu.on_interrupt = taken.append
        yield Sti()
        yield from vmcall(ghci.WRMSR, 0x80F, 0x1FF)
        yield from vmcall(ghci.WRMSR, 0x832, 0x51)
        yield from vmcall(ghci.WRMSR, 0x83E, 0b1011)
        yield from vmcall(ghci.WRMSR, 0x838, 1000)
        while not taken:
            yield Pause(100_000)
        yield from power_off()

    recorder, _ = traced(bench, guest)
    posted = [r.vectors for r in recorder.records if r.kind is Kind.POSTED and r.vectors]
    delivered = [r.vectors[0] for r in recorder.records if r.kind is Kind.DELIVERED]
    assert delivered == taken == [0x51]
    assert posted == [(0x51,)]


def test_several_processors() -> None:
    bench = Bench(2)
    try:

        def spin(_cpu: Script) -> Any:
            while True:
                yield Pause(100_000)

        recorder, result = traced(bench, Busy(), spin, timeout=None)
        assert names(recorder, "SEAMCALL") == result.stats.seamcalls
        assert names(recorder, "TDVMCALL") == result.stats.tdvmcalls
        assert {record.lp for record in recorder.records} == {0, 1}
        numbers = [record.number for record in recorder.records]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    finally:
        bench.platform.close()


def test_nothing_stays_behind(bench: Bench) -> None:
    lps = bench.machine.processors
    before = [(set(vars(lp)), set(vars(lp.vmx))) for lp in lps]
    recorder = Recorder()
    tracer = Tracer(bench.machine, recorder)
    tracer.attach()
    assert all(lp.observer is not None for lp in lps)
    tracer.detach()
    tracer.detach()
    assert all(lp.observer is None for lp in lps)
    assert [(set(vars(lp)), set(vars(lp.vmx))) for lp in lps] == before
    assert lps[0].seamcall.__func__ is LogicalProcessor.seamcall
    assert lps[0].vmx.enter.__func__ is VmxUnit.enter
    bench.run(Busy())
    assert recorder.records == []


def test_several_look_at_the_same_processor(bench: Bench) -> None:
    """Each sees everything while it is attached, and leaves the others alone when it goes."""
    first, second, third = Recorder(), Recorder(), Recorder()
    tracers = [Tracer(bench.machine, recorder) for recorder in (first, second, third)]
    for tracer in tracers:
        tracer.attach()
    tracers[1].detach()
    bench.run(Busy())
    assert first.records == third.records
    assert first.records
    assert second.records == []
    tracers[0].detach()
    tracers[2].detach()
    assert all(lp.observer is None for lp in bench.machine.processors)


def test_a_probe_changes_nothing() -> None:
    """In the engine with virtual time: the same run, to the cycle."""
    clocks = []
    for with_probe in (False, True):
        bench = Bench()
        guest = Busy()
        if with_probe:
            with Tracer(bench.machine, Recorder()):
                result = bench.run(guest)
        else:
            result = bench.run(guest)
        clocks.append((bench.machine.processors[0].last_exit_tsc, guest.seen, result.stats.seamcalls))
        bench.platform.close()
    assert clocks[0] == clocks[1]


def test_json_lines_and_text(bench: Bench) -> None:
    out = io.StringIO()
    recorder = Recorder()
    lines = JsonLines(out)

    def both(record: Any) -> None:
        recorder(record)
        lines(record)

    with Tracer(bench.machine, both):
        bench.run(Busy())
    objects = [json.loads(line) for line in out.getvalue().splitlines()]
    events = list(recorder.events())
    assert len(objects) == len(events)
    for shown, event in zip(objects, events, strict=True):
        assert (shown["n"], shown["event"], shown["what"]) == (event.number, event.kind, event.title)
        registers = {name: int(each["value"], 16) for name, each in shown.get("registers", {}).items()}
        assert registers == {value.register: value.value for value in event.values}
    text = list(timeline(events))
    assert max(map(len, text)) <= 100
    assert (
        sum("SEAMCALL: TDH.VP.ENTER" in line for line in text) == names(recorder, "SEAMCALL")["TDH.VP.ENTER"]
    )


def test_a_processor_without_a_module_answers_nobody(bench: Bench) -> None:
    recorder = Recorder()
    lp = bench.machine.processors[0]
    bench.platform.host.processors[0].vmxon()
    bench.machine.seam.remove_module()
    with Tracer(bench.machine, recorder):
        lp.gpr[0] = 33
        lp.seamcall()
    assert lp.cf
    call, ret = recorder.events()
    assert call.name == "TDH.SYS.INIT"
    assert "VMfailInvalid" in ret.title
