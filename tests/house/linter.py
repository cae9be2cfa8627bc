"""import-linter with the contracts of ``pyproject.toml``, on a copy of the source with faults in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
SOURCE = TOP / "src" / "swtdx"

_EDGE = re.compile(r"^- +(swtdx[\w.]*) -> (swtdx[\w.]*) \(l\.", re.MULTILINE)
_LAYERS = re.compile(r"^(swtdx[\w.]*) is not allowed to import (swtdx[\w.]*):$", re.MULTILINE)


def contracts() -> list[dict[str, Any]]:
    """The contracts of ``pyproject.toml``."""
    content = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = content["tool"]["importlinter"]["contracts"]
    return found


class House:
    """A copy of ``src/swtdx`` below ``folder``, to plant faults in."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "src" / "swtdx"
        shutil.copytree(SOURCE, self.source, ignore=shutil.ignore_patterns("__pycache__"))

    def plant(self, module: str, text: str) -> None:
        """Add ``text`` to ``module``, which is created if it is not there."""
        path = self.source.parent.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def lint(self, kind: str | None = None) -> Report:
        """What import-linter says, by all contracts or by those of one type."""
        chosen = [] if kind is None else [c["id"] for c in contracts() if c["type"] == kind]
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"),
                *("--config", str(TOP / "pyproject.toml"), "--no-cache"),
                *(word for contract in chosen for word in ("--contract", contract)),
            ],
            cwd=TOP,  # for tests.house.dynamic
            # Wide, so that no line is broken.
            env=os.environ | {"PYTHONPATH": str(self.source.parent), "COLUMNS": "1000", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Report(done.returncode, done.stdout + done.stderr)


class Report:
    """The outcome of a run: its ``status``, and its ``text``."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text

    @property
    def edges(self) -> set[tuple[str, str]]:
        """(importer, imported) of every line that names one; of a chain of imports the first."""
        return set(_EDGE.findall(self.text))

    @property
    def against_layers(self) -> set[tuple[str, str]]:
        """(upper, lower) rooms of the layers contract: by its order the first must not import the second."""
        return set(_LAYERS.findall(self.text))
