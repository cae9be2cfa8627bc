"""The engine's stub: what is committed is what its source says, and both sides agree on addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from swtdx.machine.engine.qemu import layout, process
from tests.padding import assert_same_code, filled

STUB = Path(process.__file__).with_name("stub.S")
#: What is committed, and what the source is assembled with.
VARIANTS = {"stub.bin": (), "root_stub.bin": ("--defsym", "ROOT=1")}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_binary_is_the_assembled_source(tmp_path: Path, name: str) -> None:
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("binutils (as, ld) is not installed")

    def image(fill: int) -> bytes:
        source, linked = tmp_path / "stub.S", tmp_path / "stub.img"
        source.write_text(filled(STUB.read_text(), fill))
        subprocess.run(["as", "--64", *VARIANTS[name], "-o", tmp_path / "stub.o", source], check=True)
        linker = ["ld", "-m", "elf_x86_64", "-Ttext=0xF0000", "--oformat", "binary"]
        subprocess.run([*linker, "-o", linked, tmp_path / "stub.o"], check=True)
        return linked.read_bytes()

    committed = process.stub_image(name)
    assert_same_code(committed, image)
    assert process.compact_stub(committed) == STUB.with_name(name).read_bytes()


def test_both_sides_declare_the_same_numbers() -> None:
    declared = dict(re.findall(r"^\s*\.equ\s+(\w+),\s*(0x[0-9A-Fa-f]+|\d+)", STUB.read_text(), re.MULTILINE))
    shared = [name for name in declared if hasattr(layout, name)]
    assert len(shared) > 30
    for name in shared:
        assert int(declared[name], 0) == getattr(layout, name), name
