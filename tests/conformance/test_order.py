"""Checks come in the order of the tables, and each has its case."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDR
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import GUEST, HOST
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.sept_bits import HPA
from swtdx.cli.abi import abi
from swtdx.module import checks as module_checks
from swtdx.module.errors import LeafFailed
from swtdx.module.objects.pamt import Pamt
from swtdx.proof.conformance import suite
from swtdx.proof.conformance.checks import WITHOUT, by_check, checks
from swtdx.proof.conformance.pairs import run_pairs, uncased

LEAVES = [leaf.name for leaf in BY_NAME.values() if leaf.side in (HOST, GUEST) and BASE_MODULE.serves(leaf)]
#: So many pairs of a leaf may all be such as cannot be provoked at once.
_FEW = 5
#: The guest's cases of these leaves need preparations of their own, so that no two go together.
_NOT_AT_ONCE = {"TDG.MR.VERIFYREPORT"}


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_earlier_of_two_checks_answers(leaf: str) -> None:
    pairs = run_pairs([leaf])
    assert len(pairs) == len(checks(leaf)) - 1
    assert any(pair.cases for pair in pairs) or leaf in _NOT_AT_ONCE or len(pairs) < _FEW
    assert [(pair.cases, pair.wrong) for pair in pairs if pair.wrong is not None] == []
    assert all(pair.cases or pair.why for pair in pairs)


def test_every_check_has_a_case_or_a_reason() -> None:
    bare = [
        (leaf, check.text)
        for leaf in LEAVES
        for check, cases in by_check(leaf, suite.select([leaf])).items()
        if not cases and uncased(leaf, check) == "no case of its own"
    ]
    assert bare == []
    for leaf, text in WITHOUT:
        found = by_check(leaf, suite.select([leaf])).items()
        assert [cases for check, cases in found if check.text == text] == [[]]


def test_abi_shows_the_order() -> None:
    result = CliRunner().invoke(abi, ["--order", "TDH.MEM.TRACK"])
    assert result.exit_code == 0
    assert "pairs of neighbours" in result.output
    assert "before the next: answers" in result.output


def test_abi_shows_checks_and_pairs_without_being_asked() -> None:
    result = CliRunner().invoke(abi, ["TDH.MEM.TRACK"])
    assert result.exit_code == 0
    [head, row, *_] = result.output.splitlines()
    names = (*head.split()[:4], "Provoked", "Cases", "Pairs", "At once")
    columns = dict(zip(names, row.split(), strict=False))
    declared = checks("TDH.MEM.TRACK")
    assert int(columns["Checks"]) == int(columns["Provoked"]) == len(declared)
    assert int(columns["Pairs"]) == len(declared) - 1
    assert f"{len(declared)} of {len(declared)} checks have cases of their own" in result.output
    assert "0 cases went wrong" in result.output
    assert "and does not in 0" in result.output


def _wrong(leaf: str) -> list[str]:
    return [pair.first.text for pair in run_pairs([leaf]) if pair.wrong is not None]


def test_an_operand_checked_in_the_wrong_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that looks for a page's TDMR before it looks at the address."""
    right = Pamt.page

    def page(self: Pamt, hpa: int, operand: int, *rest: Any, **more: Any) -> Any:
        self._places_of(hpa & HPA, operand)
        return right(self, hpa, operand, *rest, **more)

    monkeypatch.setattr(Pamt, "page", page)
    assert "a 4-KiB aligned HPA below MAXPA, HKID bits 0" in _wrong("TDH.MEM.TRACK")


def test_a_state_checked_in_the_wrong_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that counts the TDCX pages before it asks for the TD's keys."""
    right = module_checks.map_state

    def map_state(module: Any, td: Any) -> None:
        if not TDR.fatal.get(td.tdr) and TDR.num_tdcx.get(td.tdr) < 6:
            raise LeafFailed(s.TDX_TDCS_NOT_ALLOCATED)
        right(module, td)

    before = {(pair.first.text, bool(pair.cases)) for pair in run_pairs(["TDH.MEM.TRACK"])}
    assert ("life cycle KEYS_CONFIGURED", True) in before
    monkeypatch.setattr(module_checks, "map_state", map_state)
    pairs = {pair.first.text: pair for pair in run_pairs(["TDH.MEM.TRACK"])}
    assert not pairs["life cycle KEYS_CONFIGURED"].cases or pairs["life cycle KEYS_CONFIGURED"].wrong
