"""``make`` sets up a checkout wherever it lies, and says what a machine lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fetching import cannot_fetch

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("Makefile", "pyproject.toml", "README.md", "LICENSE", "src")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "TDX für Anfänger"
    folder.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout, env=kept | {"LC_ALL": "C"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.network
def test_a_folder_with_spaces_and_letters_that_are_not_ascii(checkout: Path) -> None:
    done = make(checkout, f"PYTHON={sys.executable}", ".venv/.swtdx")
    if done.returncode and ("Could not find a version" in done.stderr or "connection" in done.stderr.lower()):
        cannot_fetch(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    env = {"LC_ALL": "C", "PATH": os.environ["PATH"], "HOME": str(checkout)}
    told = subprocess.run(
        [checkout / ".venv/bin/swtdx", "explain", "0xC000010000000000"],
        env=env, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout.startswith("TDX_OPERAND_INVALID"), told.stderr
    assert told.stderr == ""


def test_a_python_without_venv_is_told_and_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    """As Debian's is: venv can be imported, ensurepip cannot."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*|*venv*) exit 1;; esac\nexec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        done = make(checkout, f"PYTHON={python}", ".venv/.swtdx")
        assert done.returncode == 2
        assert "apt-get install python3-venv" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (checkout / ".venv").exists()
