"""A small machine's memory, and the KeyIDs the tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from swtdx.machine.memory import Command, Integrity, PhysicalMemory, ProgramResult

SEED = bytes(range(32))
#: Two TDs, two shared KeyIDs with keys of their own, one that was never programmed.
TD_A, TD_B = 32, 33
SHARED_1, SHARED_2, SHARED_UNPROGRAMMED = 1, 2, 3
SIZE = 16 << 20

Factory = Callable[[Integrity], PhysicalMemory]


def program(memory: PhysicalMemory, keyid: int, *, integrity: bool = False) -> None:
    private = memory.addresses.is_private(keyid)
    algorithm = 2 if integrity or (private and memory.integrity is Integrity.CRYPTOGRAPHIC) else 1
    result = memory.keys.program(keyid, Command.SET_KEY_RANDOM, algorithm, seam=private)
    assert result is ProgramResult.SUCCESS


def build(integrity: Integrity = Integrity.CRYPTOGRAPHIC) -> PhysicalMemory:
    memory = PhysicalMemory([(0, SIZE)], SEED, integrity=integrity)
    for keyid in (TD_A, TD_B, SHARED_1, SHARED_2):
        program(memory, keyid)
    return memory


@pytest.fixture(params=list(Integrity), ids=lambda mode: mode.value)
def memory(request: pytest.FixtureRequest) -> Iterator[PhysicalMemory]:
    """16 MiB, in both integrity modes, with keys programmed for the four KeyIDs above."""
    made = build(request.param)
    yield made
    made.close()


@pytest.fixture
def guarded() -> Iterator[PhysicalMemory]:
    """16 MiB with cryptographic integrity."""
    made = build(Integrity.CRYPTOGRAPHIC)
    yield made
    made.close()
