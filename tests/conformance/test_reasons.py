"""The reasons why nothing provokes a check are true: each is looked into, not only said."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import swtdx.module
from swtdx.arch import status as s
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import GUEST, HOST
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.metadata import TABLES, Context
from swtdx.arch.metadata_field import NULL_ID
from swtdx.arch.regs import R8, RAX
from swtdx.machine import seamops
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.proof.conformance import suite
from swtdx.proof.conformance.checks import WITHOUT, by_check
from swtdx.proof.conformance.pairs import uncased
from swtdx.proof.conformance.stages import bring_up, create, make_td, td_params
from swtdx.proof.conformance.world import World


def never_given(*names: str) -> None:
    """No file of the module names the status."""
    sources = [path.read_text() for path in Path(swtdx.module.__file__).parent.rglob("*.py")]
    assert len(sources) > 40
    for name in names:
        assert not any(name in source for source in sources), name


def unserved(support: str) -> None:
    """The module serves no leaf of a feature."""
    leaves = [leaf for leaf in BY_NAME.values() if leaf.support == support]
    assert leaves
    assert not any(BASE_MODULE.serves(leaf) for leaf in leaves)


def no_l2_vms() -> None:
    """TDH.MNG.INIT refuses a TD with one."""
    with bring_up(World(), "tdcs") as world:
        params = world.buffer(td_params(world, num_l2_vms=1))
        after = world.call("TDH.MNG.INIT", rcx=world.td.tdr, rdx=params)
        assert after[RAX] & s.CODE_MASK == s.TDX_OPERAND_INVALID


def no_vcpu_without_tdcs() -> None:
    """TDH.VP.CREATE refuses it."""
    with bring_up(World(), "ready") as world:
        td = make_td(world, "keyed")
        after = world.call("TDH.VP.CREATE", rcx=world.page(), rdx=td.tdr)
        assert after[RAX] & s.CODE_MASK == s.TDX_TDCS_NOT_ALLOCATED


def one_at_a_time() -> None:
    """While a processor executes module code, another cannot begin to."""
    with bring_up(World(), "ready") as world:
        seam = world.machine.seam
        free: list[bool] = []

        def look() -> None:
            taken = seam.lock.acquire(blocking=False)
            free.append(taken)
            if taken:
                seam.lock.release()

        gate = seam.gates[0]

        def watched(lp: object) -> None:
            other = threading.Thread(target=look)
            other.start()
            other.join()
            gate(lp)

        seam.gates[0] = watched
        create(world)
        assert free == [False]


def alike() -> None:
    """What SEAMOPS can do is no processor's own."""
    assert not inspect.signature(seamops.capabilities).parameters


def no_tsx() -> None:
    with bring_up(World(), "ready") as world:
        assert not world.lps[0].cpuid(7)[1] & (1 << 4 | 1 << 11)


def eight_packages() -> None:
    with pytest.raises(Exception, match="package"):
        Platform.boot(PlatformConfig(machine=MachineConfig(engine="scripted", packages=9)))


def all_readable() -> None:
    """Fields of the module, by its host."""
    assert all(field.masks.host_read for field in TABLES[Context.SYS])


def fits_in_a_page() -> None:
    """One call gives the whole list, and no next field."""
    with bring_up(World(), "ready") as world:
        after = world.ok("TDH.SYS.RDALL", rdx=world.buffer(), r8=NULL_ID)
        assert (after[RAX], after[R8]) == (0, NULL_ID)


#: What looks into each reason.
LOOKS: dict[str, Callable[[], None]] = {
    "the machine's random number generator never runs dry": lambda: never_given("RND_NO_ENTROPY"),
    "our module does not break a long call off for a pending interrupt": lambda: never_given(
        "INTERRUPTED_RESUMABLE", "INTERRUPTED_RESTARTABLE"
    ),
    "a TD of ours has no L2 VMs, whose pages these are": no_l2_vms,
    "a TD of ours has no L2 VMs": no_l2_vms,
    "only a TD that migrates has present leaves that the leaf does not take": lambda: unserved("migration"),
    "a VCPU exists only in a TD whose TDCS is complete": no_vcpu_without_tdcs,
    "one processor at a time executes module code, so nobody writes meanwhile": one_at_a_time,
    "the modelled platform cannot be made like this": alike,
    "the modelled processors have no TSX": no_tsx,
    "a machine of more than 8 packages is refused by MCHECK": eight_packages,
    "TD-preserving updates are not supported": lambda: unserved(BY_NAME["TDH.SYS.UPDATE"].support),
    "the host may read every field of the module": all_readable,
    "the whole list fits in a page": fits_in_a_page,
    "no service TD is bound, so that the call ends before it, or with CROSS_TD_TRAP": lambda: unserved(
        BY_NAME["TDH.SERVTD.BIND"].support
    ),
    "no model of a disabled local APIC": lambda: never_given(
        "TdExit(st.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE"
    ),
}
#: Reasons that only the code shows: what fields may hold, and what the processor's parts can do.
SAID = {
    "no VCPU field must be written whole",
    "no field that the guest may write must be written whole",
    "the guest may write no field that has bad values",
    "the one field of a TD that its host may write is written whole",
    "what ATTRIBUTES and XFAM may be here always goes together",
    "the modelled processors can",
}


def reasons() -> set[str]:
    """Every reason that ``swtdx abi`` can print for a check that no case provokes."""
    found = set()
    for leaf in BY_NAME.values():
        if leaf.side in (HOST, GUEST) and BASE_MODULE.serves(leaf):
            for check, cases in by_check(leaf.name, suite.select([leaf.name])).items():
                if not cases:
                    found.add(uncased(leaf.name, check))
    return found


def test_every_reason_is_known() -> None:
    assert reasons() == LOOKS.keys() | SAID
    assert set(WITHOUT.values()) <= LOOKS.keys() | SAID


@pytest.mark.parametrize("reason", LOOKS)
def test_a_reason_is_true(reason: str) -> None:
    LOOKS[reason]()
