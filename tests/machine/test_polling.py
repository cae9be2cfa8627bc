"""How long the stub and we poll for each other, on hosts with cores to spare and without."""

from __future__ import annotations

import pytest

from swtdx.machine.engine.qemu.cores import Cores
from swtdx.machine.engine.qemu.port import Port


@pytest.mark.parametrize("side", ["stub_polls", "most_spins"])
def test_polling_follows_the_host(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = Port.__new__(Port)
    port.locks_code = True
    scarce = False
    cores = 4
    monkeypatch.setattr(Cores, "scarce", lambda _: scarce)
    monkeypatch.setattr(Cores, "count", staticmethod(lambda: cores))

    def polls(guests: int, awake: int | None = None) -> int:
        port.guests = guests
        port.awake = guests if awake is None else awake
        port.look()
        return int(getattr(port, side))

    spare = polls(1)
    assert polls(3) == spare, "three guests and we have a core each"
    assert polls(4) < spare
    assert polls(4, awake=3) == spare, "one of them waits for an interrupt, and needs no core"
    assert port.crowded, "but it may come any time, so a guest that only waits gives way"
    port.others(4)
    assert getattr(port, side) < spare, "it has come"
    cores = 1
    assert polls(1) == spare, "it is for the load to say whether one guest and we have one core"
    cores = 4
    scarce = True
    assert polls(1) < spare
    scarce = False
    assert polls(1) == spare, "it is looked at again"
