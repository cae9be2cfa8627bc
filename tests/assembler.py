"""Assembling little guests for tests, with binutils."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def assemble(source: str, bits: int, origin: int = 0) -> bytes:
    """Machine code of Intel-syntax ``source`` (``bits``: 16, 32 or 64) for load address ``origin``.

    The test is skipped where binutils is not installed.
    """
    if not (shutil.which("as") and shutil.which("ld")):
        # Some files assemble while they are collected.
        pytest.skip("binutils (as, ld) is not installed", allow_module_level=True)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "a.s").write_text(f".intel_syntax noprefix\n.code{bits}\n.globl _start\n_start:\n{source}\n")
        subprocess.run(["as", "--64", "-o", work / "a.o", work / "a.s"], check=True)
        subprocess.run(
            [
                "ld",
                "-m",
                "elf_x86_64",
                f"-Ttext={origin:#x}",
                "--oformat",
                "binary",
                "-o",
                work / "a.bin",
                work / "a.o",
            ],
            check=True,
        )
        return (work / "a.bin").read_bytes()
