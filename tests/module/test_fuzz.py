"""Fuzzing the module; that the fuzzer notices what is wrong, and that the same seed does the same."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
from click.testing import CliRunner

from swtdx.arch import status
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import Kind
from swtdx.cli.fuzz import fuzz
from swtdx.machine.engine.scripted import Hlt, Read
from swtdx.module.objects.td import Td
from swtdx.module.register import host_leaf
from swtdx.proof.conformance.stages import FIRST, bring_up
from swtdx.proof.conformance.world import World
from swtdx.proof.fuzz import Fuzzer, FuzzFailure, operands
from swtdx.proof.invariants import InvariantError, check

# Many rounds of what other tests do once.
pytestmark = pytest.mark.no_cover

NIGHTLY = os.environ.get("SWTDX_HYPOTHESIS") == "nightly"
CALLS = {"both": 12_000, "host": 4_000, "guest": 4_000}


@pytest.mark.parametrize("side", CALLS)
def test_every_call_ends_as_it_may(side: str) -> None:
    report = Fuzzer(20_251_125, side).run(CALLS[side] * (50 if NIGHTLY else 1))
    assert report.calls >= CALLS[side]
    assert report.tds >= 3
    assert report.tdcalls > 500
    assert report.checks >= 8
    successes = {name for name, value in report.statuses if value == 0}
    assert {"TDH.MR.FINALIZE", "TDH.VP.ENTER", "TDH.MEM.PAGE.AUG", "TDG.MEM.PAGE.ACCEPT"} <= successes


def test_the_same_seed_is_the_same_run() -> None:
    first, second = Fuzzer(5).run(3000), Fuzzer(5).run(3000)
    first.seconds = second.seconds = 0
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
    assert Fuzzer(6).run(3000).statuses != first.statuses


def _replace(monkeypatch: pytest.MonkeyPatch, number: int, handler: Any) -> None:
    """Another handler for a SEAMCALL leaf."""
    monkeypatch.setattr(host_leaf.table(BASE_MODULE)[number], "handler", handler)


def test_a_python_exception_is_found_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    good = host_leaf.table(BASE_MODULE)[24].handler

    def sometimes(call: Any) -> int:
        if call.inputs[1] & 0xFFF:
            raise KeyError("planted")
        return good(call)

    _replace(monkeypatch, 24, sometimes)
    with pytest.raises(FuzzFailure, match="planted") as first:
        Fuzzer(1, "host").run(20_000)
    found = first.value
    assert "TDH.PHYMEM.PAGE.RDMD on processor" in found.call
    with pytest.raises(FuzzFailure) as second:
        Fuzzer(found.seed, found.side).run(found.number)
    assert (second.value.number, second.value.call) == (found.number, found.call)


def test_a_status_that_is_not_declared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, 41, lambda _call: status.TDX_TD_FATAL)
    with pytest.raises(FuzzFailure, match=r"WBINVD does not declare TDX_TD_FATAL"):
        Fuzzer(1, "host").run(20_000)


def test_structures_that_contradict_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Td.add_children
    monkeypatch.setattr(Td, "add_children", lambda td, count: good(td, max(count, 0)))
    with pytest.raises(FuzzFailure, match=r"CHLDCNT is \d+, and it owns \d+ pages"):
        Fuzzer(1).run(20_000)


def test_a_page_that_is_taken_without_tracking_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the fuzzer looks at; to stumble on it takes it some 50,000 calls."""
    from swtdx.module.host import mem_page

    def guest(_cpu: Any) -> Any:
        yield Read(FIRST)
        yield Hlt()

    monkeypatch.setattr(mem_page, "check_tracked", lambda *_: None)
    with bring_up(World(), "running") as world:
        world.guest(guest)
        world.enter()
        check(world.machine)
        world.ok("TDH.MEM.RANGE.BLOCK", rcx=FIRST, rdx=world.td.tdr)
        check(world.machine)
        world.ok("TDH.MEM.PAGE.REMOVE", rcx=FIRST, rdx=world.td.tdr)
        with pytest.raises(InvariantError, match=f"still translates {FIRST:#x} of TD .*nothing is there"):
            check(world.machine)


def test_there_are_three_sides() -> None:
    with pytest.raises(ValueError, match="both, host, guest"):
        Fuzzer(1, "inside")


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(fuzz, ["--calls", "1500", "--seed", "3"])
    assert done.exit_code == 0
    assert "1,50" in done.output
    assert "Every call ended as it may." in done.output
    _replace(monkeypatch, 24, lambda _call: 1 // 0)
    wrong = CliRunner().invoke(fuzz, ["--calls", "20000", "--seed", "3", "--json"])
    assert wrong.exit_code == 1
    assert "ZeroDivisionError" in wrong.output
    assert "again: swtdx fuzz --seed 3" in wrong.output


def test_every_kind_of_operand_is_drawn_from_something() -> None:
    assert set(operands.FILLS) == set(Kind)
