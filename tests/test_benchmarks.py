"""``python -m benchmarks``: it finds the benchmarks, believes none that fails, and says what is broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks import __main__ as benchmarks
from benchmarks.promise import Promise, figure


@pytest.mark.parametrize(
    ("measured", "at_most", "kept"),
    [(5, False, True), (4.9, False, False), (5, True, True), (5.1, True, False)],
)
def test_a_promise_is_kept_or_not(measured: float, at_most: bool, kept: bool) -> None:
    promise = Promise(1, "x", measured, 5, "s", at_most)
    assert promise.kept is kept
    assert promise.figures()["kept"] is kept


def test_figures_for_people() -> None:
    assert [figure(0.405, "%"), figure(20000, "/s"), figure(1.234, "MB"), figure(0.95, "")] == [
        "40%", "20,000 /s", "1.23 MB", "0.95"
    ]  # fmt: skip


def test_every_benchmark_is_found_without_importing_it() -> None:
    found = benchmarks.benchmarks()
    assert {"attestation", "measure", "memory_crypto", "seamcalls"} <= set(found)
    assert "promise" not in found
    assert "__main__" not in found


def test_one_that_does_not_run_has_not_kept_its_promise() -> None:
    result = benchmarks.run("nobody")
    assert not result["kept"]
    assert "No module named benchmarks.nobody" in result["error"]


def outcome(monkeypatch: pytest.MonkeyPatch, results: dict[str, dict[str, Any]], *words: str) -> int:
    monkeypatch.setattr(benchmarks, "benchmarks", lambda: list(results))
    monkeypatch.setattr(benchmarks, "run", lambda name: results[name])
    monkeypatch.setattr("sys.argv", ["benchmarks", *words])
    return benchmarks.main()


def test_the_table_and_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"promises": [Promise(4, "calls", 30_000, 20_000, "/s").figures()], "kept": True}
    bad = {"promises": [Promise(3, "memory", 60, 50, "MB", at_most=True).figures()], "kept": False}
    assert outcome(monkeypatch, {"good": good}) == 0
    assert outcome(monkeypatch, {"good": good, "bad": bad}) == 1
    assert outcome(monkeypatch, {"good": good, "bad": bad}, "good") == 0
    assert outcome(monkeypatch, {"gone": {"error": "it is gone", "kept": False}}) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "bad 3 memory at most 50 MB 60 MB broken" in lines
    assert lines.count("good 4 calls at least 20,000 /s 30,000 /s kept") == 3
    assert "gone it is gone failed" in lines
    with pytest.raises(SystemExit, match="2"):
        outcome(monkeypatch, {"good": good}, "better")


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(monkeypatch, {"bad": {"promises": [], "kept": False}}, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "benchmarks": {"bad": {"promises": [], "kept": False}}, "kept": False
    }  # fmt: skip
