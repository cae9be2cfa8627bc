"""The programs in docs/demo.md run, and say what the document says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
TRACE, ATTACK = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(TRACE, "demo.md", "exec"), {"__name__": "trace"})
    lines = capsys.readouterr().out.splitlines()
    assert "SEAMCALL: TDH.VP.ENTER" in lines[0]
    assert any("TDVMCALL: Instruction.IO" in line for line in lines)


def test_the_attack(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(ATTACK, "demo.md", "exec"), {"__name__": "attack"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "TDH.MEM.PAGE.AUG of the victim's page -> TDX_PAGE_METADATA_INCORRECT | R8"
    assert lines[1].endswith("-> zeros")
    assert lines[2].strip() == "refused"
