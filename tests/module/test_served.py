"""Which leaves a module serves, and that a leaf without a handler is found when the module is loaded."""

from __future__ import annotations

from unittest import mock

import pytest

from swtdx.arch.features import BASE_MODULE
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.module.register import guest_leaf, host_leaf
from swtdx.module.served import Handlers
from swtdx.proof.conformance.world import World


def test_a_handler_serves_the_leaf_that_it_is_registered_for() -> None:
    made = Handlers[int](GUEST_BY_NAME)
    for name, leaf in GUEST_BY_NAME.items():
        made(name)(lambda _call, number=leaf.number: int(number))  # type: ignore[misc]
    assert made.names == frozenset(GUEST_BY_NAME)
    table = made.table(BASE_MODULE)
    assert table
    assert {number: served.handler(0) for number, served in table.items()} == {
        number: number for number in table
    }
    assert 0 not in table, "TDG.VP.VMCALL is the dispatcher's"
    with pytest.raises(ValueError, match="two handlers"):
        made("TDG.VP.INFO")(int)
    with pytest.raises(ValueError, match="not declared"):
        made("TDG.VP.NOTHING")


@pytest.mark.parametrize(("side", "leaf"), [(host_leaf, "TDH.MNG.CREATE"), (guest_leaf, "TDG.VP.INFO")])
def test_a_module_with_a_leaf_that_nothing_handles_is_not_loaded(side: Handlers[object], leaf: str) -> None:
    others = {name: handler for name, handler in side._handlers.items() if name != leaf}
    with (
        mock.patch.object(side, "_handlers", others),
        mock.patch.object(side, "_table", side._build),
        pytest.raises(RuntimeError, match=f"{leaf} .* has no handler"),
    ):
        World()
