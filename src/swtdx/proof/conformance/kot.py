"""Cases around keys: the key ownership table, PCONFIG's key table, and entropy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from swtdx.arch import status as s
from swtdx.machine.memory import ProgramResult
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.registry import add
from swtdx.proof.conformance.world import World


def busy_kot(good: Good) -> None:
    """Another processor uses the key ownership table."""

    def action(world: World) -> None:
        operands = good.operands(world)
        with world.locked(world.probe.kot_lock):
            world.provoke(version=good.version, **operands)

    add(
        good.leaf, s.TDX_OPERAND_BUSY, "the key ownership table is in use", action,
        details="KOT", stage=good.stage, reusable=True,
    )  # fmt: skip


@contextlib.contextmanager
def pconfig_answers(world: World, result: ProgramResult) -> Iterator[None]:
    """The processor's PCONFIG ends like this for a while."""

    def answer(*_: Any, **__: Any) -> ProgramResult:
        return result

    with mock.patch.object(world.machine.memory.keys, "pconfig", answer):
        yield


def busy_key_table(good: Good) -> None:
    """Another processor of the package programs a key."""

    def action(world: World) -> None:
        operands = good.operands(world)
        with pconfig_answers(world, ProgramResult.DEVICE_BUSY):
            world.provoke(version=good.version, **operands)

    add(
        good.leaf, s.TDX_OPERAND_BUSY, "PCONFIG: the key table is in use", action,
        details="KET", stage=good.stage, reusable=True,
    )  # fmt: skip


def no_entropy_for_keys(good: Good) -> None:
    """PCONFIG finds no entropy."""

    def action(world: World) -> None:
        operands = good.operands(world)
        with pconfig_answers(world, ProgramResult.ENTROPY_ERROR):
            world.provoke(version=good.version, **operands)

    add(
        good.leaf, s.TDX_KEY_GENERATION_FAILED, "PCONFIG: no entropy", action,
        stage=good.stage, reusable=True,
    )  # fmt: skip
