"""Every code sample of the documents runs, and prints what the document says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swtdx.api.attesting import CollateralService
from tests.docs.samples import MARKS, ROOT, Sample, pages, samples


def groups() -> list[Any]:
    """The samples of a page that need the same, as one test each: page by page, in order."""
    found = []
    for page in pages():
        by_needs: dict[tuple[str, ...], list[Sample]] = {}
        for sample in samples(page):
            if sample.runs:
                by_needs.setdefault(sample.needs, []).append(sample)
        for needs, those in by_needs.items():
            marks = [getattr(pytest.mark, name) for name in needs]
            name = "-".join((str(page.relative_to(ROOT)), *needs))
            found.append(pytest.param(those, marks=marks, id=name))
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_samples_need_is_something_that_is_known(page: Path) -> None:
    for sample in samples(page):
        if sample.runs:
            assert set(sample.needs) <= set(MARKS), f"{page}:{sample.line}"
        else:
            assert len(sample.needs) > 1, f"{page}:{sample.line} says not why it is not run"


@pytest.mark.parametrize("those", groups())
def test_samples(those: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    names: dict[str, Any] = {"__name__": "sample"}
    for sample in those:
        where = f"{sample.page.relative_to(ROOT)}:{sample.line}"
        if sample.kind == "python":
            # The lines of a traceback are those of the page.
            code = compile("\n" * sample.line + sample.text, where, "exec")
            exec(code, names)
        else:
            console(sample, where, tmp_path)


def prepare(folder: Path) -> None:
    """What a reader has at hand by then: a quote, its collateral, and the root that it verifies under."""
    service = CollateralService()
    (folder / "quote.bin").write_bytes(bytes(service.quote(b"nonce123")))
    (folder / "collateral.json").write_bytes(service.collateral())
    (folder / "root.pem").write_bytes(service.root)


def console(sample: Sample, where: str, folder: Path) -> None:
    """Type the commands, and compare what they print."""
    bins = folder / ".bin"
    bins.mkdir(exist_ok=True)
    command = bins / "swtdx"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m swtdx.cli.main "$@"\n')
    command.chmod(0o755)
    (bins / "python").unlink(missing_ok=True)
    (bins / "python").symlink_to(sys.executable)
    env = os.environ | {"PATH": f"{bins}:{os.environ['PATH']}", "NO_COLOR": "1"}
    for typed, expected in dialogue(sample.text):
        done = subprocess.run(
            ["sh", "-c", typed], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=280
        )
        shown = done.stdout + done.stderr
        pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, shown.strip(), re.DOTALL), f"{where}: $ {typed}\n{shown}"


def dialogue(text: str) -> list[tuple[str, str]]:
    """(what is typed, what it prints) of a console block; ``> `` continues a line that is typed."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
        else:
            assert found, f"a console block begins with a command, not {line!r}"
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found
