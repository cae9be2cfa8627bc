"""Checks come in the order of the tables, and each has its case."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import GUEST, HOST
from swtdx.arch.leaves import BY_NAME
from swtdx.cli.abi import abi
from swtdx.proof.conformance import suite
from swtdx.proof.conformance.checks import WITHOUT, by_check, checks
from swtdx.proof.conformance.pairs import run_pairs, uncased

LEAVES = [leaf.name for leaf in BY_NAME.values() if leaf.side in (HOST, GUEST) and BASE_MODULE.serves(leaf)]
#: So many pairs of a leaf may all be such as cannot be provoked at once.
_FEW = 5
#: The guest's cases of these leaves need preparations of their own, so that no two go together.
_NOT_AT_ONCE = {"TDG.SERVTD.RD", "TDG.SERVTD.WR", "TDG.MR.VERIFYREPORT", "TDG.MEM.PAGE.ATTR.WR"}


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
