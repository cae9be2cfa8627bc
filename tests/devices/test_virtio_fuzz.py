"""Hostile chains of descriptors, a thousand of them; :mod:`tests.devices.fuzz_virtio` has the long form."""

from __future__ import annotations

import pytest

from swtdx.devices.dma import DmaError
from tests.devices.fuzz_virtio import run

CHAINS = 1500
DEVICES = {f"device {number}" for number in (1, 2, 3, 4, 9, 19, 26)}


@pytest.mark.parametrize("seed", range(2))
def test_hostile_chains(seed: int) -> None:
    counts, grown = run(CHAINS, seed)
    assert counts.keys() == DEVICES | {"stopped"}
    assert sum(counts[name] for name in DEVICES) > CHAINS * 0.9
    assert counts["stopped"] > CHAINS // 100
    assert grown < 32 << 20


def test_the_fuzzer_finds_what_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were memory that is not shared no error of the queue, it would be seen."""
    monkeypatch.setattr("swtdx.devices.virtio.queue.DmaError", ZeroDivisionError)
    with pytest.raises(DmaError):
        run(CHAINS, 0)
