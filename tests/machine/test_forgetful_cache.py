"""Another processor may flush this one's translation cache at any time, also while an exit is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import TO_LONG_MODE, Guest, build_machine, long_mode_tables

pytestmark = pytest.mark.qemu


class Forgetful:
    """A translation cache that has always just been flushed when the microcode asks it."""

    def __init__(self, space: Any) -> None:
        self._space = space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    def lookup(self, _gpa: int) -> None:
        """Nothing is there any more."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


@pytest.mark.parametrize(
    ("instruction", "expected", "length"),
    [
        (".byte 0x66,0x0f,0x01,0xcc", reason.TDCALL, 4),
        ("mov rax, cr8; mov cr8, rax; .byte 0x66,0x0f,0x01,0xcc", reason.TDCALL, 4),
        (".byte 0x3e, 0x0f, 0xa2", reason.CPUID, 3),
        ("out 0x70, al", reason.IO, 2),
    ],
)
def test_instructions_are_what_they_are(
    machine: Machine, instruction: str, expected: int, length: int
) -> None:
    guest = Guest(machine, TO_LONG_MODE + "mov rbx, 1; cpuid;" + instruction)
    long_mode_tables(guest)
    assert guest.run().reason == reason.CPUID
    guest.skip()
    key = guest.vmcs.address_key
    assert key is not None
    guest.lp.spaces[key] = guest.vmcs.space = Forgetful(guest.vmcs.space)
    try:
        out = guest.run()
    finally:
        guest.lp.spaces[key] = guest.vmcs.space = guest.vmcs.space._space
    assert (out.reason, out.length) == (expected, length)
    if expected == reason.IO:
        assert out.qualification & 1 << 6, "an immediate port"
