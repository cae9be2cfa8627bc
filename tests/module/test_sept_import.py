"""Secure EPT entries of a TD that is being imported."""

from __future__ import annotations

from swtdx.arch.control_structs import TDCS
from swtdx.proof.conformance.stages import FIRST, block, bring_up, track
from swtdx.proof.conformance.world import World

SUPPRESS_VE = 1 << 63
RIGHTS, POST_IMPORT = 7, 8


def test_a_page_removed_while_a_td_is_imported_is_remembered() -> None:
    """REMOVED, not FREE: it may not be imported again (base ABI: TDH.MEM.PAGE.REMOVE, Secure EPT states).

    No TD of this module gets into such a state by itself.
    """
    entries = []
    for op_state in (None, POST_IMPORT):
        with bring_up(World(), "running") as world:
            block(world, world.td, FIRST)
            track(world, world.td)
            place = world.tdcs_field(TDCS.op_state)
            with world.poked(place, place.read(4) if op_state is None else op_state, TDCS.op_state.size):
                world.ok("TDH.MEM.PAGE.REMOVE", rcx=FIRST, rdx=world.td.tdr)
            entries.append(world.probe.sept_entry(world.td.tdr, FIRST, 0).read(8))
    free, removed = entries
    assert (free & RIGHTS, removed & RIGHTS) == (0, 0)
    assert free & SUPPRESS_VE
    assert removed & SUPPRESS_VE
    # Bits that make up the state; FREE is TDB | TDBW | TDEX (0x80E0...).
    assert free == 0x80E0_0000_0000_0000
    assert removed != free
