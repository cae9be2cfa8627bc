"""The fuzzer: any call, with any registers and any memory, as host and as guest, on the real module.

Nothing may come out of it but a status that the leaf declares, a TD exit, or a machine check that the run
asked for by writing into a TD's memory; and the module's structures must agree with each other throughout
(:mod:`swtdx.proof.invariants`).  A run is determined by its seed.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from swtdx.arch import regs, sept, status
from swtdx.arch.exits import ExitReason
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaves import BY_NAME, GUEST_LEAVES, HOST_LEAVES, P_SEAMLDR
from swtdx.arch.regs import R8, RAX, RCX, RDX, RSP
from swtdx.arch.states import NO_LP, VcpuState
from swtdx.arch.x86 import VECTOR_PF, VECTOR_VE
from swtdx.machine.engine.scripted import GuestFault, Operation, Script, ScriptError, Tdcall
from swtdx.machine.engine.scripted.script import WINDOW
from swtdx.proof.conformance.stages import STAGES
from swtdx.proof.conformance.world import World
from swtdx.proof.fuzz import guest_ops, hostile, judge, plans
from swtdx.proof.fuzz.operands import Call, make_call
from swtdx.proof.fuzz.report import FuzzFailure, FuzzReport
from swtdx.proof.fuzz.situation import ODD_VALUES, Situation, pick, retired, runnable
from swtdx.proof.invariants import read, violations

SIDES: Final = ("both", "host", "guest")
#: Calls on one machine before the next one is built.
_LIFE: Final = 40_000
_EARLY_STAGES: Final = ("loaded", "initialised", "processors", "configured", "keyed_module", "ready")
_EARLY_CALLS: Final = 60
_EPT_VIOLATION: Final = ExitReason.EPT_VIOLATION.value
_DEPTH: Final = 2
_HELPLESS: Final = 50
#: Registers of TDH.SYS.INFO and RDALL that point to what the module fills.
_BUFFERS: Final = {32: (RCX, R8), 37: (RDX,)}
#: After it there is nothing left to fuzz: a machine has it as its last call, if at all.
_LAST: Final = "TDH.SYS.DISABLE"
_LEAVES: Final = tuple(
    leaf for leaf in HOST_LEAVES.values() if BASE_MODULE.serves(leaf) and leaf.name != _LAST
)
_TD_LEAVES: Final = tuple(leaf for leaf in _LEAVES if not leaf.name.startswith("TDH.SYS") and leaf.number)
_TDCALL_EXIT: Final = ExitReason.TDCALL.value


class Fuzzer:
    """One run.

    Args:
        seed: what determines it.
        side: ``"host"``, ``"guest"`` or ``"both"``: whose calls are random; guests of a host-side run are
            tame, and hosts of a guest-side run make only the calls that guests need.
        check_every: calls between two looks at the invariants.

    Raises:
        ValueError: there is no such side.
    """

    def __init__(self, seed: int, side: str = "both", check_every: int = 500) -> None:
        if side not in SIDES:
            raise ValueError(f"the sides are {', '.join(SIDES)}, not {side!r}")
        self.report = FuzzReport(seed, side)
        self._random = random.Random(seed)
        self._choose = self._random.randrange
        self._check_every = check_every
        self._side = side
        self._limit = 0
        self._last = Call(0)
        self._last_guest: str | None = None
        self._pending: Exception | None = None
        self._world: World | None = None
        self._situation: Situation | None = None
        self._stale = True
        self._depth = 0
        self._budget = 0
        self._mapped: list[int] = []
        self._attacked = False
        self._next_life = 0
        self._next_look = 0
        self._next_check = check_every

    # ------------------------------------------------------------------ the run
    def run(self, calls: int, progress: Callable[[int], None] | None = None) -> FuzzReport:
        """Make ``calls`` calls (SEAMCALLs and TDCALLs together).

        Raises:
            FuzzFailure: one did what it may not do.
        """
        self._limit = calls
        begun = time.monotonic()
        try:
            while not self._done:
                if self._world is None or self.report.calls >= self._next_life:
                    self._new_machine()
                    continue
                self._step()
                if self.report.calls >= self._next_check:
                    self._check()
                    if progress is not None:
                        progress(self.report.calls)
            self._check()
        finally:
            self.report.seconds += time.monotonic() - begun
            self.close()
        return self.report

    def close(self) -> None:
        """Free the machine."""
        if self._world is not None:
            self._world.close()
            self._world = None

    @property
    def _done(self) -> bool:
        return self.report.calls >= self._limit

    def _fail(self, what: str, call: str | None = None) -> FuzzFailure:
        where = call or self._last_guest or str(self._last)
        return FuzzFailure(what, self.report.seed, self._side, self.report.calls, where)

    # ------------------------------------------------------------------ machines
    def _new_machine(self) -> None:
        """Another machine, whose module is brought up between calls that come too early."""
        if self._world is not None:
            self._check()
            if self._side != "guest" and self.report.machines % 2:
                self._disable()
            self.close()
        world = self._world = World()
        self._attacked, self._depth = False, 0
        self._stuck: set[int] = set()
        self._scripts: list[Script] = []
        self.report.machines += 1
        for stage in _EARLY_STAGES:
            STAGES[stage](world)
            if self._side != "guest" and stage != "ready":
                for _ in range(_EARLY_CALLS):
                    if not self._done:
                        self._early_call(world)
        self._situation = Situation(world)
        self._prepare_engine(world)
        self._next_life = self.report.calls + _LIFE
        self._stale, self._next_look = True, 0

    def _disable(self) -> None:
        """The machine's last call; nothing of its TDs is left."""
        assert self._world is not None
        probe = self._world.probe
        if not probe.loaded:
            return
        call = Call(self._choose(2))
        call.gpr[RAX] = BY_NAME[_LAST].number
        if self._seamcall(call)[RAX] and probe.loaded:
            raise self._fail("it refuses, and no guest runs", str(call))
        self._check()

    def _early_call(self, world: World) -> None:
        """A call before the module is ready, which must not bring it any further."""
        choose = self._choose
        leaf = pick(choose, _LEAVES)
        call = Call(choose(len(world.lps)))
        call.gpr[:] = [pick(choose, ODD_VALUES) | 1 for _ in range(16)]
        call.gpr[RAX] = leaf.number | choose(2) << 16
        if leaf.name in ("TDH.SYS.INIT", "TDH.SYS.LP.INIT", "TDH.SYS.KEY.CONFIG", "TDH.SYS.TDMR.INIT"):
            call.gpr[RAX] = 64 + choose(1 << 14)
        self._seamcall(call)

    # ------------------------------------------------------------------ one step
    def _step(self) -> None:
        s = self._look()
        choose = self._choose
        guests = self._side == "guest"
        kind = choose(100)
        if kind < (60 if guests else 30):
            self._enter(s)
        elif guests or kind < 62:
            call = self._plan(s)
            if call is not None:
                self._seamcall(call)
        elif kind < 95:
            self._seamcall(make_call(s, choose, pick(choose, _TD_LEAVES if choose(8) else _LEAVES),
                                     wrong_of=pick(choose, (0, 3, 8, 40))))  # fmt: skip
        elif kind < 98:
            self._seamcall(self._raw())
        else:
            s.look()  # a page that was free a moment ago must not be written to by mistake
            self._attacked |= hostile.act(s, choose)

    def _look(self) -> Situation:
        s = self._situation
        assert s is not None
        if self._stale and self.report.calls >= self._next_look:
            s.look()
            self._stale = False
            self._next_look = self.report.calls + self._choose(12)
        return s

    def _raw(self) -> Call:
        """Sixteen registers of anything."""
        choose = self._choose
        call = Call(choose(2))
        call.gpr[:] = [Situation.odd(choose) for _ in range(16)]
        if choose(2):
            call.gpr[RAX] = choose(80) | choose(3) << 16
        call.gpr[RAX] &= ~P_SEAMLDR
        return call

    def _plan(self, s: Situation) -> Call | None:
        """The next right step of something."""
        choose = self._choose
        if not s.tds or (len(s.tds) < 3 and not choose(30)):
            return plans.create(s)
        td = pick(choose, s.tds)
        if td.fatal or retired(td) or (td.keyed and not choose(400)):
            return plans.retire(s, td)
        if runnable(td) and choose(3):
            each = pick(choose, td.mappings) if td.mappings else None
            if each is not None and choose(2):
                return plans.ending(s, td, each.gpa, each.level, pick(choose, plans.ENDINGS))
            return plans.promotion(s, td)
        return plans.build(s, td, choose(2))

    # ------------------------------------------------------------------ the host's calls
    def _seamcall(self, call: Call) -> list[int]:
        """A SEAMCALL; whatever it may not do is a failure."""
        world, report = self._world, self.report
        assert world is not None
        report.calls += 1
        report.seamcalls += 1
        self._last, self._last_guest = call, None
        processor = world.platform.host.processors[call.lp]
        outer = list(processor.gpr) if self._depth else None
        processor.gpr[:] = call.gpr
        try:
            answered = processor.seamcall()
        except FuzzFailure:
            raise
        except Exception as error:
            raise self._fail(
                f"{type(error).__name__}: {error}\n{traceback.format_exc()}", str(call)
            ) from error
        if self._pending is not None:
            raise self._pending
        for script in self._scripts:
            if script.error is not None and not isinstance(script.error, GuestFault):
                raise self._fail(f"the guest's program: {script.error!r}", str(call)) from script.error
        after = list(processor.gpr)
        if outer is not None:
            processor.gpr[:] = outer
        self._attacked |= self._overwrites(call, after[RAX])
        if not answered:
            self._machine_check(call)
            return after
        for what in judge.host(call.gpr, after):
            raise self._fail(what, str(call))
        leaf = call.leaf
        value = after[RAX]
        name = leaf.name if leaf else "none"
        details = value & 0xFFFF_FFFF if name != "TDH.VP.ENTER" else 0
        report.statuses[name, value & status.CODE_MASK | (details if details < 256 else 0)] += 1
        if value == 0 and name == "TDH.MNG.CREATE":
            report.tds += 1
        self._stale |= not value or name == "TDH.VP.ENTER"
        if name == _LAST and not value:
            self._next_life = report.calls
        return after

    def _overwrites(self, call: Call, value: int) -> bool:
        """Whether the host had the module write, for it and with its KeyID, over what may be a TD's page.

        On hardware, too, a buffer operand is checked for its KeyID and the SEAM range, and for nothing else.
        """
        buffers = _BUFFERS.get(call.gpr[RAX] & 0xFFFF, ())
        if not buffers or value & status.CODE_MASK not in (0, status.TDX_METADATA_LIST_OVERFLOW):
            return False
        mine = self._situation.scratch if self._situation is not None else ()
        return any(call.gpr[register] & -4096 not in mine for register in buffers)

    def _machine_check(self, call: Call) -> None:
        """No answer: only after poison was consumed in SEAM, and then the machine is of no use."""
        assert self._world is not None
        checks = self._world.machine.machine_checks
        if not checks or not self._attacked:
            raise self._fail(f"VMfailInvalid, machine checks: {checks}", str(call))
        self.report.machine_checks += 1
        self._next_life = self.report.calls

    # ------------------------------------------------------------------ guests
    def _enter(self, s: Situation, lp: int | None = None) -> None:
        """TDH.VP.ENTER of some vCPU, with a timer that may go off."""
        choose = self._choose
        found = [
            (td, vcpu)
            for td in s.tds
            if runnable(td)
            for vcpu in td.vcpus
            if vcpu.state == VcpuState.READY or not choose(10)
        ]
        if not found:
            call = self._plan(s)
            if call is not None:
                call.lp = call.lp if lp is None else lp
                self._seamcall(call)
            return
        td, vcpu = pick(choose, found)
        self._mapped = [each.gpa for each in td.mappings[:64] if each.state is sept.MAPPED]
        call = Call(vcpu.holder if vcpu.holder != NO_LP and choose(16) else choose(2))
        if lp is not None:
            call.lp = lp
        assert self._world is not None
        processor = self._world.platform.host.processors[call.lp]
        call.gpr[:] = [Situation.odd(choose) for _ in range(16)]
        call.gpr[RAX], call.gpr[RCX] = 0, vcpu.tdvpr
        if not choose(40):
            call.gpr[RCX] |= 1 << pick(choose, (0, 11, 52, 53, 54, 63))
        if not choose(5):
            processor.arm_timer(self._world.machine.tsc() + choose(20_000), 32 + choose(224))
        self._budget = 1 + choose(24)
        after = self._seamcall(call)
        self.report.entries += 1
        if after[RAX] & status.CODE_MASK == 0:
            self.report.exits[after[RAX] & 0xFFFF] += 1
            if after[RAX] & 0xFFFF == _EPT_VIOLATION:
                self._missed(s, call, after[R8])
        for vector in list(processor.pending):
            processor.acknowledge(vector)
        processor.arm_timer(None, 0)

    def _prepare_engine(self, world: World) -> None:
        """Guests of the engine are ours, and give up accesses that are never served."""
        engine: Any = world.machine.engine
        engine.program_for = self._new_script
        run = engine.run

        def run_or_give_up(lp: int, context: Any, space: Any, deadline: int | None) -> Any:
            script = engine.scripts.get(context.rip & -WINDOW)
            if script is not None and script.base in self._stuck:
                self._stuck.discard(script.base)
                if script.context is context and not script.done:
                    script.fault(GuestFault(VECTOR_PF, 0))
            return run(lp, context, space, deadline)

        engine.run = run_or_give_up

    def _new_script(self, _context: Any) -> Script:
        assert self._world is not None
        engine: Any = self._world.machine.engine
        script: Script = engine.script(self._guest)
        self._scripts = [each for each in self._scripts if not each.done] + [script]
        return script

    def _missed(self, s: Situation, entry: Call, gpa: int) -> None:
        """An EPT violation: the host gives the page, or the guest gives up, or it is tried again."""
        td = next((td for td in s.tds if any(v.tdvpr == entry.gpr[RCX] for v in td.vcpus)), None)
        step = plans.serve(s, td, gpa) if td is not None and self._choose(3) else None
        if step is not None:
            step.lp = entry.lp
            self._seamcall(step)
        elif self._choose(8):
            self._give_up(entry.lp)

    def _give_up(self, lp: int) -> None:
        """The guest that left this processor shall not try the same instruction for ever."""
        assert self._world is not None
        vmcs = self._world.lps[lp].vmx.current
        if vmcs is not None:
            self._stuck.add(vmcs.context.rip & -WINDOW)

    def _guest(self, cpu: Script) -> Iterator[Operation]:
        """A guest's program; it never ends of its own accord."""
        helpless = 0
        while True:
            operation = self._operation()
            try:
                yield from self._perform(cpu, operation)
            except GuestFault as fault:
                if fault.vector == VECTOR_VE and self._choose(8):
                    yield from self._perform(cpu, Tdcall(rax=3))
                # What it does when its budget is spent is to leave, and that faults only outside long mode.
                helpless = helpless + 1 if self._budget < 0 else 0
            except ScriptError:
                helpless += 1  # no such instruction in this mode
            else:
                helpless = 0
            if helpless > _HELPLESS:
                # A host that can write to a debug TD's registers may put the guest into a mode in which there
                # are no instructions at all, or in which TDCALL is #GP: then it ends, in a triple fault.
                return

    def _operation(self) -> Operation:
        choose = self._choose
        self._budget -= 1
        if self._budget < 0 or self._done:
            return Tdcall(rax=0, rcx=0) if choose(2) else guest_ops.vmcall(choose)
        if self._depth < _DEPTH and self._side == "both" and not choose(12):
            self._call_beside()
        if self._side == "host":
            tame = guest_ops.tdcall(choose, self._mapped, GUEST_LEAVES[6])
            return tame if choose(2) else Tdcall(rax=0, rcx=0)
        if choose(3):
            return guest_ops.tdcall(choose, self._mapped)
        return guest_ops.other(choose, self._mapped)

    def _perform(self, cpu: Script, operation: Operation) -> Iterator[Operation]:
        self.report.instructions += 1
        if not isinstance(operation, Tdcall):
            yield operation
            return
        self.report.calls += 1
        self.report.tdcalls += 1
        before = guest_ops.registers_of(operation)
        if RCX not in [regs.number(name) for name in operation.registers]:
            before = []
        after: Any = yield operation
        if before:
            before[RSP] = after[RSP]
            self._judge_guest(operation, before, list(after))

    def _judge_guest(self, operation: Tdcall, before: list[int], after: list[int]) -> None:
        leaf = GUEST_LEAVES.get(before[RAX] & 0xFFFF)
        value = after[RAX]
        if leaf is not None:
            details = value & 0xFFFF_FFFF
            self.report.statuses[leaf.name, value & status.CODE_MASK | (details if details < 256 else 0)] += 1
        if len(operation.registers) < 15:
            return
        for what in judge.guest(before, after):
            self._pending = self._fail(what, f"guest: {operation!r}")
            return

    def _call_beside(self) -> None:
        """SEAMCALLs on the other processor, while this one runs the guest and holds its locks."""
        assert self._world is not None
        busy = [lp.index for lp in self._world.lps if lp.in_guest]
        idle = [lp.index for lp in self._world.lps if not lp.in_guest]
        if not idle or not busy:
            return
        self._depth += 1
        budget = self._budget
        try:
            for _ in range(1 + self._choose(3)):
                s = self._look()
                lp = pick(self._choose, idle)
                self.report.nested += 1
                if not self._choose(4):
                    self._enter(s, lp)
                    continue
                leaf = pick(self._choose, _TD_LEAVES)
                call = make_call(s, self._choose, leaf, wrong_of=pick(self._choose, (0, 8, 40)))
                call.lp = lp
                self._seamcall(call)
        except FuzzFailure as failure:
            # It would be taken for the guest's own end.
            self._pending = self._pending or failure
        finally:
            self._depth -= 1
            self._budget = budget

    # ------------------------------------------------------------------ invariants
    def _check(self) -> None:
        self._next_check = self.report.calls + self._check_every
        world = self._world
        if world is None or not world.probe.loaded or self._depth:
            return
        self.report.checks += 1
        picture = read(world.machine)
        found = violations(picture)
        if picture.poisoned and not self._attacked:
            found.append(f"poisoned pages: {picture.poisoned}")
        if found:
            raise self._fail("after this call: " + "; ".join(found))
