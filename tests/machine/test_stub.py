"""The engine's stub: what is committed is what its source says, and both sides agree on addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from swtdx.machine.engine.qemu import layout, process

STUB = Path(process.__file__).with_name("stub.S")
BINARY = STUB.with_suffix(".bin")


def test_the_binary_is_the_assembled_source(tmp_path: Path) -> None:
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("binutils (as, ld) is not installed")
    subprocess.run(["as", "--64", "-o", tmp_path / "stub.o", STUB], check=True)
    linker = ["ld", "-m", "elf_x86_64", "-Ttext=0xF0000", "--oformat", "binary"]
    subprocess.run([*linker, "-o", tmp_path / "stub.img", tmp_path / "stub.o"], check=True)
    image = (tmp_path / "stub.img").read_bytes()
    assert process.compact_stub(image) == BINARY.read_bytes(), "assemble it again: make stub"
    assert process.stub_image() == image


def test_both_sides_declare_the_same_numbers() -> None:
    declared = dict(re.findall(r"^\s*\.equ\s+(\w+),\s*(0x[0-9A-Fa-f]+|\d+)", STUB.read_text(), re.MULTILINE))
    shared = [name for name in declared if hasattr(layout, name)]
    assert len(shared) > 30
    for name in shared:
        assert int(declared[name], 0) == getattr(layout, name), name
