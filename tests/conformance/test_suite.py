"""The conformance suite against the module, and the suite's own honesty."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from swtdx.arch import status
from swtdx.arch.leaves import BY_NAME, GUEST_LEAVES, HOST_LEAVES
from swtdx.cli.abi import abi
from swtdx.proof.conformance import reasons, suite
from swtdx.proof.conformance.registers import wrong_registers
from swtdx.proof.conformance.registry import CASES, Case, add, status_text
from swtdx.proof.conformance.runner import Bench, in_order

_NAMES = [case.leaf for case in in_order(CASES.values())]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.mark.parametrize("leaf", sorted(set(_NAMES)))
def test_every_case_of(leaf: str, bench: Bench) -> None:
    outcomes = [bench.run(case) for case in in_order(suite.select([leaf]))]
    wrong = {outcome.case.name: outcome.wrong for outcome in outcomes if outcome.wrong is not None}
    assert not wrong
    (row,) = suite.table(outcomes, [leaf])
    # A status that nothing provokes needs a reason, written down.
    assert {status_text(value) for value, why in row.unreached.items() if not why} == set()


def test_every_leaf_has_a_case_and_a_state() -> None:
    leaves = {leaf.name for leaf in (*HOST_LEAVES.values(), *GUEST_LEAVES.values())}
    assert {case.leaf for case in CASES.values()} == leaves
    rows = suite.table([])
    assert {row.leaf.name for row in rows} == leaves
    assert {row.leaf.name for row in rows if row.state == "missing"} == set()
    reasons.check()


def test_a_wrong_status_is_seen(bench: Bench) -> None:
    def action(world: object) -> None:
        world.provoke(rcx=1)  # type: ignore[attr-defined]

    value = status.TDX_SYS_INIT_NOT_PENDING
    outcome = bench.run(Case("TDH.SYS.INIT", value, "wrong on purpose", "loaded", action, False, True))
    assert outcome.wrong is not None
    assert "TDX_OPERAND_INVALID|RCX" in outcome.wrong


def test_a_case_that_calls_nothing_is_seen(bench: Bench) -> None:
    case = Case("TDH.SYS.INIT", 0, "calls nothing", "loaded", lambda world: None, False, True)
    outcome = bench.run(case)
    assert outcome.wrong is not None
    assert "0 times" in outcome.wrong


def test_undeclared_statuses_and_unknown_leaves_have_no_cases() -> None:
    with pytest.raises(ValueError, match="does not declare"):
        add("TDH.SYS.INIT", status.TDX_HKID_NOT_FREE, "x", lambda world: None, stage="loaded")
    with pytest.raises(ValueError, match="no leaf"):
        add("TDH.SYS.START", 0, "x", lambda world: None, stage="loaded")


def test_registers_are_looked_at() -> None:
    leaf = BY_NAME["TDH.SYS.INFO"]
    before = [leaf.number, *range(0x100, 0x10F)]
    # Outputs RDX and R9 are zeroed on entry (seamcall.md, TDH.SYS.INFO); nothing else changes.
    after = list(before)
    after[0] = status.TDX_SYS_LP_INIT_NOT_DONE
    after[2] = after[9] = 0
    assert wrong_registers(leaf, 0, before, after) == []
    assert "RDX" in wrong_registers(leaf, 0, before, [*after[:2], 5, *after[3:]])[0]
    assert "R8" in wrong_registers(leaf, 0, before, [*after[:8], 5, *after[9:]])[0]
    # What the dispatcher refuses changes RAX alone.
    refused = [status.TDX_SYS_NOT_READY, *before[1:]]
    assert wrong_registers(leaf, 0, before, refused) == []
    assert wrong_registers(leaf, 0, before, [status.TDX_SYS_NOT_READY, *after[1:]])


def test_the_command() -> None:
    result = CliRunner().invoke(abi, ["TDH.MNG.CREATE", "tdh.mig.stream.create"])
    assert result.exit_code == 0, result.output
    assert "TDH.MNG.CREATE" in result.output
    assert "unsupported: migration" in result.output
    assert "0 cases went wrong" in result.output
    result = CliRunner().invoke(abi, ["--json", "TDH.MNG.CREATE"])
    (row,) = json.loads(result.output)
    taken = next(each for each in row["statuses"] if each["status"] == "TDX_HKID_NOT_FREE")
    assert taken["value"] == "0xc000082000000000"
    assert taken["cases"]
    result = CliRunner().invoke(abi, ["--list"])
    assert "TDG.MR.REPORT" in result.output
    result = CliRunner().invoke(abi, ["TDH.MNG.CRATE"])
    assert result.exit_code == 2
    assert "did you mean TDH.MNG.CREATE" in result.output
