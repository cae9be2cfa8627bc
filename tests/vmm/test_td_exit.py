"""A hook sees each TD exit first, and what it answers is what the guest gets."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from swtdx.arch import ghci
from swtdx.vmm.result import EndReason
from swtdx.vmm.td_exit import TdExit
from tests.vmm.support import POWER_OFF, R10, R11, Setup, call

Guest = Generator[tuple[Any, ...], Any, None]


def reader(got: list[tuple[int, int]]) -> Any:
    def guest() -> Guest:
        for _ in range(2):
            after = yield call(ghci.IO, 1, 0, 0x3FD)
            got.append((after[R10], after[R11]))
        yield POWER_OFF

    return guest


def with_hook(hook: Any, program: Any) -> Setup:
    setup = Setup(program)
    for worker in setup.runner.workers:
        worker.hook = hook
    return setup


def test_who_only_looks_changes_nothing() -> None:
    plain: list[tuple[int, int]] = []
    assert Setup(reader(plain)).runner.run(5).reason is EndReason.POWER_OFF
    seen: list[str] = []
    looked: list[tuple[int, int]] = []
    setup = with_hook(lambda exit: seen.append(str(exit)), reader(looked))
    result = setup.runner.run(5)
    assert result.reason is EndReason.POWER_OFF
    assert looked == plain
    reads = [one for one in seen if "R14=0x3fd" in one]
    assert reads == ["vCPU 0: TDVMCALL Instruction.IO R12=0x1 R13=0x0 R14=0x3fd R15=0x0"] * 2
    # Nothing is lost from the statistics.
    assert result.stats.exits["TDVMCALL"] == sum("TDVMCALL" in one for one in seen) == 3


def test_an_answer_in_the_hypervisors_place() -> None:
    def lie(exit: TdExit) -> None:
        if exit.port == 0x3FD:
            assert exit.is_read
            exit.answer(r11=0x5A)

    got: list[tuple[int, int]] = []
    setup = with_hook(lie, reader(got))
    assert setup.runner.run(5).reason is EndReason.POWER_OFF
    assert got == [(0, 0x5A)] * 2
    assert setup.io.server.counts["Instruction.IO"] == 1  # switching off


def test_the_hypervisors_answer_changed() -> None:
    honest: list[int] = []

    def worse(exit: TdExit) -> None:
        exit.serve()
        honest.append(exit["r11"])
        exit["R11"] ^= 0xFF
        exit.serve()  # once is enough

    got: list[tuple[int, int]] = []
    setup = with_hook(worse, reader(got))
    assert setup.runner.run(5).reason is EndReason.POWER_OFF
    assert [value for _, value in got] == [value ^ 0xFF for value in honest[:2]]


def test_a_hook_can_end_the_run_and_the_run_can_go_on_no_more() -> None:
    got: list[tuple[int, int]] = []
    setup = with_hook(lambda exit: exit.stop("enough"), reader(got))
    result = setup.runner.run(5)
    assert (result.reason, result.detail) == (EndReason.STOPPED, "enough")
    assert got == []


def test_what_a_hook_raises_comes_out() -> None:
    def wrong(exit: TdExit) -> None:
        assert exit.port != 0x3FD, "as a test's assertion"

    with pytest.raises(AssertionError, match="as a test's"):
        with_hook(wrong, reader([])).runner.run(5)


def test_what_is_no_tdvmcall_has_no_answer() -> None:
    exit = TdExit(0, [1] + [0] * 15, lambda: True, lambda _why: None)
    assert exit.reason == "external interrupt"
    assert exit.tdvmcall is None
    assert exit.operands == {}
    with pytest.raises(ValueError, match="external interrupt is no TDVMCALL"):
        exit.answer()
    with pytest.raises(ValueError, match="no general-purpose register"):
        exit["R16"] = 1


def test_an_ept_violation_says_where() -> None:
    exit = TdExit(3, [48, 2, 1, 0, 0, 0, 0, 0, 0x1234000] + [0] * 7, lambda: True, lambda _why: None)
    assert str(exit) == "vCPU 3: EPT violation at GPA 0x1234000"


def test_calls_that_no_table_has() -> None:
    vendor = TdExit(0, [77] + [0] * 9 + [5] + [0] * 5, lambda: True, lambda _why: None)
    assert vendor.tdvmcall == "vendor"
    unknown = TdExit(0, [77] + [0] * 10 + [0x99] + [0] * 4, lambda: True, lambda _why: None)
    assert unknown.tdvmcall == "unknown"
