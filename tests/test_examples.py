"""The wheel in a fresh environment: what it brings, and the examples that people build upon it."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from tools.try_examples import EXAMPLES, build_wheel, environment, names, run

from tests.fetching import cannot_fetch

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_wheel(tmp_path_factory.mktemp("wheel"))
    except subprocess.CalledProcessError as error:
        cannot_fetch(f"what builds a wheel: {error}")


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return environment(tmp_path_factory.mktemp("venv"), wheel, "pytest")
    except subprocess.CalledProcessError as error:
        cannot_fetch(f"what the wheel needs: {error}")


def swtdx(binaries: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, without any compiler or assembler on its way, outside the checkout."""
    env = {"HOME": os.environ["HOME"], "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], "PATH": str(binaries)}
    return subprocess.run(
        [binaries / "swtdx", *arguments], cwd="/", env=env, capture_output=True, text=True, check=False
    )


def test_all_that_is_not_python_is_in_the_wheel(wheel: Path) -> None:
    root = EXAMPLES.parent / "src"
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    assert files - inside == set()


def test_commands_of_a_plain_installation(binaries: Path) -> None:
    assert swtdx(binaries, "--version").stdout.startswith("swtdx, version ")
    assert "TDX_OPERAND_INVALID" in swtdx(binaries, "explain", "0xC000010000000000").stdout
    assert "#VE" in swtdx(binaries, "demo", "mmio").stdout
    missing = swtdx(binaries, "run", "--tiny")
    assert missing.returncode == 125
    assert "qemu-system-x86_64 is not installed" in missing.stderr


@pytest.mark.boot
@pytest.mark.parametrize("name", names())
def test_example(name: str, binaries: Path, tmp_path: Path) -> None:
    assert run(binaries, name, tmp_path, "--tdx-require") == 0
