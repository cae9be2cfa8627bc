"""Shell completion, and man pages made of the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools.man_pages import write

from swtdx.cli.main import COMMANDS, main

COMMAND = f'#!/bin/sh\nexec {sys.executable} -m swtdx.cli.main "$@"\n'


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([program, "-n", script], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("swtdx ver", {"verify"}),
        ("swtdx guest f", {"fetch", "firmware"}),
        ("swtdx run --merge", {"--merge-stderr"}),
        ("swtdx completion z", {"zsh"}),
    ],
)
def test_bash_completes(
    words: str, expected: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "swtdx").write_text(COMMAND)
    (tmp_path / "swtdx").chmod(0o755)
    line = words.split(" ")
    text = f"""
        source {tmp_path}/script
        COMP_WORDS=({" ".join(line)}); COMP_CWORD={len(line) - 1}
        _swtdx_completion swtdx
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == expected, done.stderr


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'fish', 'zsh'" in capsys.readouterr().err


def test_man_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    pages = {page.name: page.read_text() for page in write(tmp_path)}
    for name in COMMANDS:
        page = pages[f"swtdx-{name}.1"]
        assert '"1970-01-01"' in page
        assert COMMANDS[name].help.rstrip(".") in page
    assert r"\fB\-\-merge\-stderr\fP" in pages["swtdx-run.1"]
    assert ".nf\nswtdx explain 0xC000010000000001" in pages["swtdx-explain.1"]
    man = shutil.which("man")
    if man is not None:
        for path in tmp_path.glob("*.1"):
            shown = subprocess.run(
                [man, "--warnings", "-l", path], capture_output=True, text=True, check=True,
                env=os.environ | {"MANWIDTH": "300"},
            )  # fmt: skip
            assert shown.stderr == "", path.name
