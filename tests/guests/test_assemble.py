"""The committed programs are what their sources say."""

from __future__ import annotations

import pytest

from swtdx.guests.assemble import PROGRAMS, Program, assemble, binutils_missing, committed
from swtdx.guests.errors import GuestError


@pytest.mark.skipif(binutils_missing() is not None, reason="needs binutils")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_reassembling_gives_the_committed_bytes(program: Program) -> None:
    assert assemble(program) == committed(program.name)


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
