"""Host leaves that our module does not have: they are answered like numbers that no leaf has."""

from __future__ import annotations

from swtdx.arch import status as s
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaves import HOST_LEAVES
from swtdx.proof.conformance.registry import add
from swtdx.proof.conformance.world import World


def _ask(world: World) -> None:
    world.provoke()


for _leaf in HOST_LEAVES.values():
    if not BASE_MODULE.serves(_leaf):
        add(
            _leaf.name, s.TDX_OPERAND_INVALID, "not in this module", _ask,
            details="RAX", stage="ready", reusable=True,
        )  # fmt: skip
