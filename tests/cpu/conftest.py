"""Machines as they come out of reset, and one with SEAM enabled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from swtdx.firmware import mcheck
from swtdx.firmware.bios import Bios, BiosConfig
from swtdx.machine.machine import Machine, MachineConfig
from swtdx.machine.memory import AddressMap, PhysicalMemory
from swtdx.machine.processor import LogicalProcessor

MIB = 1 << 20
Make = Callable[..., Machine]


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(packages=1, cpus=2, seed=b"...", model=..., boot=...)``: a machine after reset."""
    made: list[Machine] = []

    def build(
        packages: int = 1, cpus: int = 2, memory: int = 128 * MIB, seed: bytes = bytes(16), **options: object
    ) -> Machine:
        config = MachineConfig(packages, cpus, memory, seed, "scripted", dict(options))
        made.append(Machine(config, PhysicalMemory([(0, memory)], bytes(32), AddressMap.without_tme())))
        return made[-1]

    yield build
    for machine in made:
        machine.close()


@pytest.fixture
def machine(make: Make) -> Machine:
    """Two packages of two processors after reset."""
    return make(2, 2)


@pytest.fixture
def lp(machine: Machine) -> LogicalProcessor:
    """The bootstrap processor."""
    return machine.processors[0]


@pytest.fixture
def enabled(machine: Machine) -> Machine:
    """After BIOS and MCHECK: 32 shared and 32 private KeyIDs, SEAMRR at 64 MiB, nothing loaded."""
    plan = Bios(machine, BiosConfig()).run()
    assert plan.seamrr == (64 * MIB, 32 * MIB)
    mcheck.run(machine, plan.cmrs)
    return machine
