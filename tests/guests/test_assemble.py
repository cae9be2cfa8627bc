"""The committed programs are what their sources say."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from swtdx.guests.assemble import PROGRAMS, Program, assemble, binutils_missing, committed
from swtdx.guests.errors import GuestError
from tests.padding import assert_same_code, filled


@pytest.mark.skipif(binutils_missing() is not None, reason="needs binutils")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_reassembling_gives_the_committed_bytes(program: Program, tmp_path: Path) -> None:
    package = Path(str(resources.files("swtdx.guests")))
    folder = (package / program.source).parent

    def with_fill(fill: int) -> bytes:
        for path in (*folder.glob("*.S"), *folder.glob("*.inc")):
            (tmp_path / path.name).write_text(filled(path.read_text(), fill))
        source = tmp_path / Path(program.source).name
        return assemble(replace(program, source=str(source)))

    assert_same_code(committed(program.name), with_fill)
    # The plain source differs from that in nothing but its gaps.
    assert len(assemble(program)) == len(committed(program.name))


def test_a_changed_instruction_and_a_gap_of_other_bytes_are_seen() -> None:
    def code(fill: int) -> bytes:
        return bytes((0xF4, fill, fill, fill, 0xC3))

    assert_same_code(bytes.fromhex("f4 0f1f00 c3"), code)
    assert_same_code(bytes.fromhex("f4 6690 90 c3"), code)
    for wrong in ("fa 0f1f00 c3", "f4 0f1f00 c2", "f4 0f1f40 c3", "f4 000000 c3", "f4 0f1f00 c3 00"):
        with pytest.raises(AssertionError):
            assert_same_code(bytes.fromhex(wrong), code)


@pytest.mark.parametrize("name", ["shim", "tiny"])
def test_images_end_with_the_reset_vector(name: str) -> None:
    image = committed(name)
    assert len(image) % 4096 == 0
    assert image[-16] == 0xE9, "16 bytes below 4 GiB lies a jump"


def test_there_is_no_other_program() -> None:
    with pytest.raises(GuestError, match="called 'grub'"):
        committed("grub")


def test_errors_of_the_assembler_are_shown(tmp_path: object) -> None:
    if binutils_missing():
        pytest.skip("needs binutils")
    with pytest.raises(GuestError, match="as failed"):
        assemble(Program("x", "shim/shim.ld", "shim/shim.ld", "x"))
