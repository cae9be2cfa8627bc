"""A TDCALL that ends in a TD exit on its way is executed again, with the operands that it had."""

from __future__ import annotations

from typing import Any

from swtdx.arch import status
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.regs import R8, RAX
from swtdx.machine.engine.scripted import Read, Script, Tdcall
from swtdx.proof.conformance.stages import FIRST, block, bring_up, track
from swtdx.proof.conformance.world import World

_EPT_VIOLATION, _TDCALL = 48, 77
_RDALL = BY_NAME["TDG.SYS.RDALL"].number
#: A field in the middle of the list: what comes before it shall not be in the guest's page.
_START = by_name(Context.SYS, "TDX_FEATURES0").id


def test_a_list_of_metadata_goes_on_where_the_guest_said_after_an_ept_violation() -> None:
    with World() as world:
        bring_up(world, "running")
        seen: list[Any] = []

        def program(_cpu: Script) -> Any:
            after = yield Tdcall(rax=_RDALL, rdx=FIRST, r8=_START)
            seen.extend((after[RAX], after[R8], (yield Read(FIRST + 8, 8))))
            yield Tdcall(rax=0, rcx=0)

        world.guest(program)
        block(world, world.td, FIRST)
        track(world, world.td)
        assert world.enter()[RAX] & 0xFFFF_FFFF == _EPT_VIOLATION
        world.ok("TDH.MEM.RANGE.UNBLOCK", rcx=FIRST, rdx=world.td.tdr)
        assert world.enter()[RAX] == _TDCALL
        code, following, header = seen
        assert (code, following) == (status.TDX_SUCCESS, (1 << 64) - 1)
        # The list's first sequence begins at the field asked for: class and field code of its header.
        assert header >> 56 & 0x3F == _START >> 56 & 0x3F
        assert header & 0xFFFFFF == _START & 0xFFFFFF
