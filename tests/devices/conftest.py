"""Fixtures: our board, QEMU's, and each of them in turn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.devices.machines import BoardMachine, Machine, QtestMachine

_QEMU = shutil.which("qemu-system-x86_64")


@pytest.fixture
def board() -> BoardMachine:
    return BoardMachine()


def needs_qemu() -> None:
    """Skip where QEMU is missing."""
    if _QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")


@pytest.fixture
def reference() -> Iterator[QtestMachine]:
    """QEMU's devices."""
    needs_qemu()
    machine = QtestMachine()
    yield machine
    machine.close()


@pytest.fixture(params=["ours", pytest.param("qemu", marks=pytest.mark.qemu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Our board and QEMU's, one after the other."""
    chosen: Machine = request.getfixturevalue("board" if request.param == "ours" else "reference")
    return chosen
