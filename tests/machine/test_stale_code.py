"""QEMU runs what memory holds, not what a frame once held, however it came there."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM
from swtdx.machine.vmx import exit as reason
from tests.assembler import assemble
from tests.machine.guests import CODE, EPT, GUEST, HKID, Guest, build_machine

pytestmark = pytest.mark.qemu

#: A page of code, and where else its frame may be.
PAGE, FRAME, OTHER = 0x5000, GUEST + 0x5000, GUEST + 0x6000


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def returns(value: int) -> bytes:
    return assemble(f"mov ebx, {value}; hlt", 32, PAGE).ljust(64, b"\xf4")


def put(guest: Guest, hpa: int, data: bytes) -> None:
    """As TDH.MEM.PAGE.RELOCATE stores: behind the engine's back."""
    guest.memory.direct_store(hpa | HKID << 46, data, SEAM)


def points_to(guest: Guest, hpa: int) -> None:
    struct.pack_into("<Q", guest.page(EPT + 0x3000), (PAGE >> 12) * 8, hpa | 0xF7)
    for space in guest.lp.spaces.values():
        space.flush()


def later(guest: Guest) -> None:
    guest.memory.wbinvd()
    put(guest, FRAME, returns(3))


def there_and_back(guest: Guest) -> None:
    put(guest, OTHER, returns(2))
    points_to(guest, OTHER)
    call(guest, 2)
    put(guest, FRAME, returns(3))
    points_to(guest, FRAME)


def call(guest: Guest, expected: int) -> None:
    guest.vmcs.context.rip = CODE
    assert guest.run().reason == reason.HLT
    assert guest.vmcs.context.gpr[3] == expected


@pytest.mark.parametrize(
    "change",
    [
        there_and_back,
        lambda guest: put(guest, FRAME, returns(3)),
        later,
        lambda guest: guest.write(PAGE, returns(3)),
        lambda guest: guest.write(PAGE + 1, b"\3"),
        lambda guest: (guest.memory.wbinvd(), guest.memory.write(FRAME | HKID << 46, returns(3), SEAM)),
    ],
    ids=["another frame and back", "a direct store", "out of the cache", "SEAM", "one byte", "later"],
)
def test_what_is_stored_is_what_runs(machine: Machine, change: Callable[[Guest], object]) -> None:
    guest = Guest(machine, f"mov eax, {PAGE}; jmp eax")
    put(guest, FRAME, returns(1))
    call(guest, 1)
    change(guest)
    call(guest, 3)


def test_what_has_not_changed_is_not_looked_at_again(machine: Machine) -> None:
    guest = Guest(machine, f"mov eax, {PAGE}; jmp eax")
    put(guest, FRAME, returns(1))
    call(guest, 1)
    asked: list[tuple[int, int]] = []
    real = machine.engine.rewrite
    machine.engine.rewrite = lambda *frames: (asked.append(frames), real(*frames))  # type: ignore[assignment,func-returns-value]
    try:
        guest.memory.wbinvd()
        call(guest, 1)
    finally:
        machine.engine.rewrite = real  # type: ignore[method-assign]
    assert asked == []
