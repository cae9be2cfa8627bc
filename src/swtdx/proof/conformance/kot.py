"""Cases around keys: the key ownership table, PCONFIG's key table, and entropy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from swtdx.arch import status as s
from swtdx.machine.memory import ProgramResult
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.world import World


def busy_kot(good: Good) -> None:
    """Another processor uses the key ownership table."""
    good.held(
        s.TDX_OPERAND_BUSY,
        "the key ownership table is in use",
        lambda world, _: world.locked(world.probe.kot_lock),
        "KOT",
    )


@contextlib.contextmanager
def pconfig_answers(world: World, result: ProgramResult) -> Iterator[None]:
    """The processor's PCONFIG ends like this for a while."""

    def answer(*_: Any, **__: Any) -> ProgramResult:
        return result

    with mock.patch.object(world.machine.memory.keys, "pconfig", answer):
        yield


def busy_key_table(good: Good) -> None:
    """Another processor of the package programs a key."""
    good.held(
        s.TDX_OPERAND_BUSY,
        "PCONFIG: the key table is in use",
        lambda world, _: pconfig_answers(world, ProgramResult.DEVICE_BUSY),
        "KET",
    )


def no_entropy_for_keys(good: Good) -> None:
    """PCONFIG finds no entropy."""
    good.held(
        s.TDX_KEY_GENERATION_FAILED,
        "PCONFIG: no entropy",
        lambda world, _: pconfig_answers(world, ProgramResult.ENTROPY_ERROR),
    )
