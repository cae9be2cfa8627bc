"""How long the stub polls for an answer, on hosts with cores to spare and without."""

from __future__ import annotations

import pytest

from swtdx.machine.engine.qemu.cores import Cores
from swtdx.machine.engine.qemu.port import LOOK_EVERY, Port


def looks(port: Port, wakes: int, number: int = 1) -> int:
    """What the stub polls after so many looks, with ``wakes`` of the stops before each answered too late."""
    for _ in range(number):
        port.wakes = wakes
        port.look()
    return port.stub_polls


def test_polling_follows_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    port = Port.__new__(Port)
    port.wakes = port.resigned = 0
    port.guests = 1
    scarce = False
    monkeypatch.setattr(Cores, "scarce", lambda _: scarce)
    spare = looks(port, LOOK_EVERY, 100)
    scarce = True
    paying = looks(port, 0)
    assert paying < spare
    assert looks(port, 5, 100) == paying, "that few come late by chance"
    in_vain = looks(port, LOOK_EVERY)
    assert in_vain < paying
    assert looks(port, LOOK_EVERY, 5) == in_vain
    assert looks(port, 0, 20) == paying, "it is tried again"
    looks(port, LOOK_EVERY)
    scarce = False
    assert looks(port, LOOK_EVERY) == spare
    scarce = True
    assert looks(port, 0) == paying
