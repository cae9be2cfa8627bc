"""Shared worlds: making one costs a few milliseconds, and none of the tests changes one."""

from __future__ import annotations

import fcntl

import pytest

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.world import World
from tests.attestation.javascript import Judge


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


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Judge:
    """The verifier in JavaScript, installed once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with (shared / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Judge.install(shared / "npm")
