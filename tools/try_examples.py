"""Install swtdx from a built wheel into a fresh environment, and run the examples outside the checkout.

``python -m tools.try_examples [EXAMPLE ...]``; the exit status is 0 if all pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "examples"
#: What the wheel is built of.
_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "src")


def names() -> list[str]:
    """The examples that have tests."""
    return sorted({path.parent.name for path in EXAMPLES.glob("*/test_*.py")})


def build_wheel(folder: Path) -> Path:
    """A wheel of the checkout, in ``folder``; nothing is left in the checkout.

    Raises:
        subprocess.CalledProcessError: it cannot be built.
    """
    copy = folder / "sources"
    copy.mkdir()
    for name in _SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(copy)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("swtdx-*.whl")
    return wheel


def environment(folder: Path, wheel: Path, *more: str) -> Path:
    """A fresh environment in ``folder`` with ``wheel``, its extra ``attestation``, and ``more``; its ``bin``.

    Raises:
        subprocess.CalledProcessError: something cannot be installed.
    """
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{wheel}[attestation]", *more], check=True)
    return folder / "bin"


def run(binaries: Path, name: str, place: Path, *arguments: str) -> int:
    """pytest's exit status for an example, in a copy of it in ``place``."""
    copy = place / name
    shutil.copytree(EXAMPLES / name, copy)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    env["PATH"] = f"{binaries}:{env['PATH']}"
    command = [str(binaries / "python"), "-m", "pytest", "-q", "-W", "error", *arguments]
    return subprocess.run(command, cwd=copy, env=env, check=False).returncode


def main() -> int:
    """All of it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"one of {', '.join(names())}")
    wanted = parser.parse_args().examples or names()
    with tempfile.TemporaryDirectory(prefix="swtdx-examples-") as temporary:
        folder = Path(temporary)
        binaries = environment(folder / "venv", build_wheel(folder), "pytest")
        failed = [name for name in wanted if run(binaries, name, folder, "--tdx-require")]
    for name in wanted:
        print(f"{name}: {'failed' if name in failed else 'passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
