"""Random sequences of SEAMCALLs from two processors, with right and wrong operands, on the real module.

After every call (:class:`tests.module.room.Room`): the structures in memory agree with each other, a
refusal has changed nothing, the registers are what the leaf's table says, and a finalised MRTD is as it
was.  The guests write down what they know of their memory, and find it again.  Whatever state a run ends
in, tearing down gives every page back.

``SWTDX_HYPOTHESIS=nightly`` tries much more.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaves import BY_NAME, HOST_LEAVES
from swtdx.arch.regs import R8, RAX, RCX, RDX
from swtdx.arch.sept_bits import LEVEL_BYTES
from swtdx.arch.states import NO_LP, OpState
from swtdx.arch.units import LARGE_PAGE as LARGE
from swtdx.machine.engine.scripted import Cpuid, GuestFault, Hlt, Read, Script, Tdcall, Write
from swtdx.proof.fuzz import plans
from swtdx.proof.fuzz.operands import Call, make_call
from swtdx.proof.fuzz.situation import LARGES, SMALL_GPAS, runnable
from tests.module.room import LEFT_BEHIND, Room

# Many rounds of what other tests do once.
pytestmark = pytest.mark.no_cover

NIGHTLY = os.environ.get("SWTDX_HYPOTHESIS") == "nightly"
EPT_VIOLATION, TDCALL_EXIT = 48, 77
ACCEPT, VEINFO, RTMR_EXTEND, REPORT, VM_RD = 6, 3, 2, 4, 7
GPAS = (*SMALL_GPAS[:4], LARGE, LARGE + 0x1000, LARGE + 0x1FF000)
#: Leaves worth calling at random; TDH.VP.ENTER has rules of its own.
LEAVES = [
    leaf.name
    for leaf in HOST_LEAVES.values()
    if BASE_MODULE.serves(leaf) and leaf.number and not leaf.name.startswith("TDH.SYS")
]

_ROOM: list[Room] = []


def room() -> Room:
    """The machine; another one after a run that failed and left it in pieces."""
    if not _ROOM:
        _ROOM.append(Room())
    return _ROOM[0]


class Guest:
    """What the vCPUs of one TD do and know.  ``memory`` is what must be at a GPA, 8 bytes each."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.work: dict[int, list[Any]] = {}
        self.during: Any = None

    def program(self, tdvpr: int) -> Any:
        def run(_cpu: Script) -> Any:
            while True:
                work = self.work.setdefault(tdvpr, [])
                try:
                    if work:
                        yield from self.do(work.pop(0))
                    else:
                        yield Tdcall(rax=0, rcx=0)
                except GuestFault as fault:
                    if fault.vector == 20:
                        yield Tdcall(rax=VEINFO)

        return run

    def do(self, work: tuple[Any, ...]) -> Any:
        kind, gpa, value = work
        if kind == "write":
            yield Write(gpa, value)
            self.memory[gpa] = value
        elif kind == "read":
            found = yield Read(gpa)
            assert found == self.memory.get(gpa, found), (
                f"{gpa:#x} holds {found:#x}, not {self.memory[gpa]:#x}"
            )
        elif kind == "accept":
            level = value % 2
            base = gpa & -LEVEL_BYTES[level]
            after = yield Tdcall(rax=ACCEPT, rcx=base | level)
            if after.rax == 0:
                self.forget(base, level)
                self.memory[gpa] = 0
        elif kind == "extend":
            yield Tdcall(rax=RTMR_EXTEND, rcx=gpa, rdx=value % 5)
        elif kind == "report":
            yield Tdcall(rax=REPORT, rcx=gpa & -1024, rdx=gpa & -64, r8=0)
            base = gpa & -1024
            for at in [at for at in self.memory if base <= at < base + 1024]:
                del self.memory[at]
        elif kind == "metadata":
            yield Tdcall(rax=VM_RD, rcx=0, rdx=value, r8=0)
        elif kind == "cpuid":
            yield Cpuid(value % 0x30)
        elif kind == "hlt":
            yield Hlt()
        elif kind == "host" and self.during is not None:
            during, self.during = self.during, None
            during()
        else:
            yield Tdcall(rax=0, rcx=value & 0xFFEC, r10=gpa, r11=value)

    def forget(self, gpa: int, level: int) -> None:
        """Nothing is known of this range any more."""
        end = gpa + LEVEL_BYTES[level]
        for at in [at for at in self.memory if gpa <= at < end]:
            del self.memory[at]


#: Operands come from a generator with such a seed: faster than drawing each, and better spread.
CALLS = some.tuples(
    some.sampled_from(LEAVES), some.integers(0, 2**32 - 1), some.sampled_from([0, 0, 3, 8, 30])
)
WORK = some.tuples(
    some.sampled_from(
        ["accept", "accept", "write", "write", "read", "read", "extend", "report", "metadata", "cpuid", "hlt",
         "vmcall"]
    ),
    some.sampled_from(GPAS),
    some.integers(0, 2**64 - 1),
)  # fmt: skip


class Module(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.room = room()
        self.situation = self.room.situation
        self.guests: dict[int, Guest] = {}
        engine: Any = self.room.world.machine.engine
        engine.program_for = self._program_for
        self.engine = engine
        self.scripts: list[Script] = []
        self.entering = (0, 0)

    # ------------------------------------------------------------------ the parts
    def _program_for(self, _context: Any) -> Script:
        tdr, tdvpr = self.entering
        script: Script = self.engine.script(self.guests[tdr].program(tdvpr))
        self.scripts.append(script)
        return script

    def call(self, call: Call) -> list[int]:
        """A call, and what the guests must know of it."""
        before = {td.tdr: td for td in self.situation.tds}
        after = self.room.seamcall(call)
        for script in self.scripts:
            if script.error is not None and not isinstance(script.error, GuestFault):
                raise script.error
        leaf, value = call.leaf, after[RAX]
        if leaf is None or value:
            return after
        tdr = call.gpr[RDX] & -4096
        guest = self.guests.get(tdr)
        if leaf.name == "TDH.MNG.CREATE":
            self.guests[call.gpr[RCX]] = Guest()
        elif guest is not None and leaf.name == "TDH.MEM.PAGE.REMOVE":
            guest.forget(call.gpr[RCX] & 0x000FFFFFFFFFF000, call.gpr[RCX] & 7)
        elif guest is not None and leaf.name in ("TDH.MEM.RD", "TDH.MEM.WR"):
            gpa = call.gpr[RCX]
            assert before[tdr].attributes & 1, "the host read a TD that cannot be debugged"
            assert after[R8] == guest.memory.get(gpa, after[R8]), (
                f"MEM.RD/WR of {gpa:#x} found {after[R8]:#x}"
            )
            if leaf.name == "TDH.MEM.WR":
                guest.memory[gpa] = call.gpr[R8]
        return after

    def enter(self, tdr: int, tdvpr: int, lp: int, work: list[Any]) -> list[int]:
        """TDH.VP.ENTER of a vCPU that will do some work first."""
        self.entering = (tdr, tdvpr)
        queue = self.guests[tdr].work.setdefault(tdvpr, [])
        queue[:] = work
        call = Call(lp)
        call.gpr[RCX] = tdvpr
        after = self.call(call)
        if after[RAX] == TDCALL_EXIT and not any(kind == "vmcall" for kind, *_ in work):
            assert not queue, "it left before its work was done"
        return after

    # ------------------------------------------------------------------ rules
    @initialize(tds=some.integers(0, 2), steps=some.integers(0, 60))
    def start(self, tds: int, steps: int) -> None:
        """Some TDs, brought up some way."""
        for _ in range(tds):
            self.another()
            td = self.situation.tds[-1]
            for _ in range(steps):
                step = plans.build(self.situation, self.situation.picture.tds[td.tdr])
                if step is None:
                    break
                self.call(step)

    @rule()
    def another(self) -> None:
        """TDH.MNG.CREATE."""
        step = plans.create(self.situation)
        if step is not None:
            assert self.call(step)[RAX] == 0, step

    @precondition(lambda self: self.situation.tds)
    @rule(which=some.integers(0, 2), lp=some.integers(0, 1), count=some.sampled_from([1, 1, 2, 8, 30]))
    def onward(self, which: int, lp: int, count: int) -> None:
        """The next steps towards a TD that runs: each must be accepted."""
        td = self.situation.tds[which % len(self.situation.tds)]
        for _ in range(count):
            step = plans.build(self.situation, self.situation.picture.tds[td.tdr], lp)
            if step is None:
                return
            assert self.call(step)[RAX] == 0, step

    @precondition(lambda self: any(td.op_state == 0 for td in self.situation.tds))
    @rule(wrong=some.integers(0, 6))
    def wrong_parameters(self, wrong: int) -> None:
        """TDH.MNG.INIT with TD_PARAMS that it refuses."""
        td = next(td for td in self.situation.tds if td.op_state == 0)
        call = Call(0)
        call.gpr[RAX], call.gpr[RCX] = BY_NAME["TDH.MNG.INIT"].number, td.tdr
        call.gpr[RDX] = self.situation.bad_params[wrong]
        assert self.call(call)[RAX]

    @precondition(lambda self: self.situation.tds)
    @rule(which=some.integers(0, 2), count=some.integers(1, 5))
    def large_page(self, which: int, count: int) -> None:
        """Steps of a large page through block, track, split, merge."""
        td = self.situation.tds[which % len(self.situation.tds)]
        for _ in range(count):
            step = plans.promotion(self.situation, self.situation.picture.tds[td.tdr])
            if step is None or not runnable(td):
                return
            self.call(step)

    @precondition(lambda self: self.situation.tds)
    @rule(which=some.integers(0, 2), count=some.sampled_from([1, 1, 2, 50]))
    def downward(self, which: int, count: int) -> None:
        """The next steps towards a TD's end: each must be accepted."""
        tdr = self.situation.tds[which % len(self.situation.tds)].tdr
        self.take_down(tdr, count)

    def take_down(self, tdr: int, count: int) -> None:
        for _ in range(count):
            td = self.situation.picture.tds.get(tdr)
            if td is None:
                return
            step = plans.retire(self.situation, td)
            assert step is not None
            assert self.call(step)[RAX] == 0, step
            if step.leaf is not None and step.leaf.name == "TDH.MNG.KEY.FREEID" and count > 100:
                self.room.reclaim_small(tdr)

    @precondition(lambda self: self.situation.tds)
    @rule(
        which=some.integers(0, 2),
        gpa=some.sampled_from(
            [(0x1000, 0), (0x2000, 0), (0x3000, 0), (LARGE, 1), (LARGE, 0), (0, 1), (0, 2)]
        ),
        name=some.sampled_from(plans.ENDINGS),
        count=some.integers(1, 3),
    )
    def page_goes(self, which: int, gpa: tuple[int, int], name: str, count: int) -> None:
        """Steps of an entry through block and track to its removal, relocation or back."""
        tdr = self.situation.tds[which % len(self.situation.tds)].tdr
        for _ in range(count):
            step = plans.ending(self.situation, self.situation.picture.tds[tdr], *gpa, name)
            if step is not None:
                self.call(step)

    @rule(calls=some.lists(CALLS, min_size=1, max_size=12))
    def any_calls(self, calls: list[tuple[str, int, int]]) -> None:
        """Any leaves, with operands that fit or do not."""
        for each in calls:
            self.call(self._any(*each))

    def _any(self, leaf: str, seed: int, wrong: int) -> Call:
        return make_call(self.situation, random.Random(seed).randrange, BY_NAME[leaf], wrong_of=wrong)

    @precondition(lambda self: any(runnable(td) and td.num_vcpus for td in self.situation.tds))
    @rule(which=some.integers(0, 7), lp=some.integers(0, 1), work=some.lists(WORK, max_size=4))
    def run(self, which: int, lp: int, work: list[Any]) -> None:
        """Enter a vCPU, rather on the processor that holds it."""
        found = [
            (td.tdr, vcpu)
            for td in self.situation.tds
            if runnable(td)
            for vcpu in td.vcpus
        ]  # fmt: skip
        tdr, vcpu = found[which % len(found)]
        on = vcpu.holder if vcpu.holder != NO_LP and which < 6 else lp
        self.enter(tdr, vcpu.tdvpr, on, work)

    @precondition(lambda self: any(runnable(td) and td.num_vcpus for td in self.situation.tds))
    @rule(calls=some.lists(CALLS, min_size=1, max_size=6))
    def calls_while_it_runs(self, calls: list[tuple[str, int, int]]) -> None:
        """A SEAMCALL on one processor while the other runs a guest and holds its locks."""
        td = next(td for td in self.situation.tds if runnable(td) and td.num_vcpus)
        vcpu = td.vcpus[0]
        on = vcpu.holder if vcpu.holder != NO_LP else 0
        guest = self.guests[td.tdr]

        def during() -> None:
            for each in calls:
                call = self._any(*each)
                call.lp = 1 - on
                self.call(call)

        guest.during = during
        self.enter(td.tdr, vcpu.tdvpr, on, [("host", 0, 0)])
        guest.during = None

    @rule(page=some.integers(0, 200), large=some.booleans())
    def look_at_it(self, page: int, large: bool) -> None:
        """The hypervisor reads a page: a TD's is zeros to it."""
        owned = self.situation.owned
        if not owned:
            return
        hpa = LARGES[page % len(LARGES)] if large else owned[page % len(owned)]
        content = self.room.world.memory.read(hpa, 4096)
        if hpa in self.situation.picture.pages:
            kind = self.situation.picture.pages[hpa].kind
            if any(content):
                # A page that was given with TDH.MEM.PAGE.AUG is not touched before the guest accepts it.
                assert self.pending(hpa), f"the hypervisor sees a page of type {kind}"
                assert content.rstrip(bytes(1)) == LEFT_BEHIND, "and what it sees there is its own"
        self.room.look()

    def pending(self, hpa: int) -> bool:
        """Whether a page waits for its TD to accept it."""
        return any(
            each.hpa == hpa and each.state is not None and each.state.pending
            for td in self.situation.tds
            for each in td.mappings
        )

    # ------------------------------------------------------------------ the end
    def teardown(self) -> None:
        """Everything comes back, whatever state it is in."""
        try:
            for tdr in list(self.situation.picture.tds):
                self.take_down(tdr, 2000)
            self.room.empty()
        except BaseException:
            _ROOM.clear()
            raise


PROFILE = settings(
    max_examples=400 if NIGHTLY else 12,
    stateful_step_count=150 if NIGHTLY else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not NIGHTLY,
    print_blob=True,
    phases=[Phase.generate] if os.environ.get("SWTDX_NOSHRINK") else list(Phase),
)


@pytest.fixture(autouse=True)
def _machine() -> Iterator[None]:
    yield
    for each in _ROOM:
        each.world.close()
    _ROOM.clear()


def test_any_sequence_of_calls() -> None:
    run_state_machine_as_test(Module, settings=PROFILE)


@pytest.mark.parametrize("until", [OpState.INITIALIZED, OpState.RUNNABLE])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_plan_keeps_off_a_blocked_tree(until: OpState, level: int) -> None:
    """Found by other seeds: a TD that is half built, with a table above its next pages blocked."""
    state = Module()
    state.start(tds=1, steps=0)
    while state.situation.tds[0].op_state != until or state.situation.tds[0].mapping(0, 1) is None:
        state.onward(which=0, lp=0, count=1)
    state.page_goes(count=1, gpa=(0, level), name="TDH.MEM.RANGE.UNBLOCK", which=0)
    blocked = state.situation.tds[0].mapping(0, level)
    assert blocked is not None
    assert blocked.state is not None
    assert blocked.state.blocked
    state.onward(which=0, lp=1, count=30)
    state.teardown()


def test_the_hypervisor_sees_its_own_in_pages_that_were_not_accepted() -> None:
    """Found by other seeds: a page that was written when it came back, and then given to another TD."""
    for _ in range(2):
        state = Module()
        state.start(tds=2, steps=60)
        for page in range(len(state.situation.owned)):
            state.look_at_it(page=page, large=False)
        state.teardown()
