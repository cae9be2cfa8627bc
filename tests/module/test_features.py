"""What a module offers is a value: two modules with different ones serve the same machine side by side."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.arch import status
from swtdx.arch.features import BASE_MODULE, NO_RBP_MOD, SERVICE_TD, TD_MIGRATION, ModuleFeatures
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.leaf import BASE, MIGRATION, RESERVED
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import R8, RAX
from swtdx.arch.td_config import ATTR_MIGRATABLE, CONFIG_NO_RBP_MOD
from swtdx.module.entry import TdxModule
from swtdx.module.register import host_leaf
from swtdx.proof.conformance.stages import bring_up
from swtdx.proof.conformance.world import World

UNKNOWN = status.TDX_OPERAND_INVALID | OperandId.RAX
STREAM_CREATE = "TDH.MIG.STREAM.CREATE"


def _value(world: World, name: str, lp: int) -> int:
    return world.ok("TDH.SYS.RD", lp=lp, rdx=by_name(Context.SYS, name).id)[R8]


def _beside(world: World, features: ModuleFeatures) -> None:
    """Processor 1 enters another module, over the same part of the SEAM range."""
    state = world.machine.seam.module.state
    other = TdxModule(world.machine, (state.sysinfo.base, 0), features)
    world.machine.seam.gates[1] = other


def test_a_module_without_a_feature_stands_beside_the_base_one() -> None:
    with World() as world:
        bring_up(world, "ready")
        less = ModuleFeatures("a module of before NO_RBP_MOD", bits=BASE_MODULE.bits & ~NO_RBP_MOD)
        _beside(world, less)
        assert _value(world, "TDX_FEATURES0", 0) ^ _value(world, "TDX_FEATURES0", 1) == NO_RBP_MOD
        flags = [_value(world, "CONFIG_FLAGS_FIXED0", lp) for lp in (0, 1)]
        assert flags[0] & ~flags[1] == CONFIG_NO_RBP_MOD
        assert not flags[1] & ~flags[0]


def test_a_module_with_migration_stands_beside_the_base_one(monkeypatch: pytest.MonkeyPatch) -> None:
    served = []

    def handler(call: Any) -> int:
        served.append(call.leaf.name)
        return status.TDX_SUCCESS

    more = ModuleFeatures("a module with migration", offers=frozenset({BASE, MIGRATION}))
    with World() as world:
        bring_up(world, "ready")
        with pytest.raises(RuntimeError, match="belongs to a module with migration"):
            _beside(world, more)
        for leaf in HOST_BY_NAME.values():
            if leaf.support == MIGRATION:
                monkeypatch.setitem(host_leaf._handlers, leaf.name, handler)
        _beside(world, more)
        assert world.call(STREAM_CREATE, lp=0)[RAX] == UNKNOWN
        assert world.call(STREAM_CREATE, lp=1)[RAX] == status.TDX_SUCCESS
        assert served == [STREAM_CREATE]
        assert _value(world, "TDX_FEATURES0", 1) & TD_MIGRATION
        assert not _value(world, "TDX_FEATURES0", 1) & SERVICE_TD
        fixed0 = [_value(world, "ATTRIBUTES_FIXED0", lp) for lp in (0, 1)]
        assert fixed0[0] ^ fixed0[1] == ATTR_MIGRATABLE


def test_no_module_offers_what_is_reserved() -> None:
    with pytest.raises(ValueError, match="no module offers reserved"):
        ModuleFeatures("a dream", offers=frozenset({BASE, RESERVED}))


def test_a_handler_belongs_to_a_declared_leaf_and_has_it_alone() -> None:
    with pytest.raises(ValueError, match=r"TDH\.MNG\.DREAM is not declared"):
        host_leaf("TDH.MNG.DREAM")
    with pytest.raises(ValueError, match=r"TDH\.MNG\.RD has two handlers"):
        host_leaf("TDH.MNG.RD")(lambda call: status.TDX_SUCCESS)


def test_a_handler_that_asks_for_what_its_leaf_does_not_declare_hears_of_it() -> None:
    with pytest.raises(AttributeError, match="sept_states"):
        _ = host_leaf.table(BASE_MODULE)[HOST_BY_NAME["TDH.MNG.RD"].number].sept_states
