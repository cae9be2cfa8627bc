"""Shared worlds: making one costs a few milliseconds, and none of the tests changes one."""

from __future__ import annotations

import pytest

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.world import World


@pytest.fixture(scope="session")
def world() -> World:
    """The ordinary world."""
    return World()


@pytest.fixture(scope="session")
def now(world: World) -> int:
    """Its instant, in Unix seconds."""
    return int(world.now.timestamp())


@pytest.fixture(scope="session")
def collateral(world: World) -> Collateral:
    """Its collateral."""
    return world.collateral()


@pytest.fixture(scope="session")
def root(world: World) -> bytes:
    """Its root certificate, DER."""
    return world.pki.root.der
