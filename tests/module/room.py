"""The real module on a scripted machine, with everything checked after every SEAMCALL."""

from __future__ import annotations

from typing import Any, Final

from swtdx.arch import status
from swtdx.arch.regs import RAX, RCX
from swtdx.arch.states import PageType
from swtdx.proof.conformance.registry import status_text
from swtdx.proof.conformance.stages import bring_up
from swtdx.proof.conformance.world import PAMT_1G, PAMT_4K, World
from swtdx.proof.fuzz import judge
from swtdx.proof.fuzz.operands import Call
from swtdx.proof.fuzz.refusals import unlawful
from swtdx.proof.fuzz.situation import POOL, Situation
from swtdx.proof.invariants import MemorySnapshot, check

RECLAIM: Final = 28
#: What the hypervisor writes into pages that it has back.
LEFT_BEHIND: Final = b"the hypervisor's"
PAMTS: Final = ((PAMT_4K, PAMT_1G + 0x1000),)


class Room:
    """One machine, used for many runs: each must leave it as it found it."""

    def __init__(self) -> None:
        self.world = bring_up(World(), "ready")
        self.situation = Situation(self.world)
        self.seen: dict[tuple[str, str], int] = {}
        #: MRTD of each TD that was finalised, by TDR.
        self.mrtd: dict[int, bytes] = {}
        self.depth = 0

    def seamcall(self, call: Call) -> list[int]:
        """Make a call and check everything that must be true of any call; the registers after it."""
        leaf = call.leaf
        name = leaf.name if leaf else "none"
        processor = self.world.platform.host.processors[call.lp]
        before = self.situation.picture
        snapshot = MemorySnapshot(self.world.machine)
        runs = self.world.machine.engine.runs  # type: ignore[attr-defined]
        saved = list(processor.gpr)
        processor.gpr[:] = call.gpr
        self.depth += 1
        answered = processor.seamcall()
        self.depth -= 1
        after = list(processor.gpr)
        processor.gpr[:] = saved
        assert answered, f"{call}: VMfailInvalid"
        assert not self.world.machine.machine_checks, self.world.machine.machine_checks
        value = after[RAX]
        self.seen[name, status_text(value & status.CODE_MASK)] = (
            self.seen.get((name, status_text(value & status.CODE_MASK)), 0) + 1
        )
        wrong = judge.host(call.gpr, after)
        assert not wrong, f"{call} gave {status_text(value)}: {'; '.join(wrong)}"
        entered = name == "TDH.VP.ENTER" and self.world.machine.engine.runs != runs  # type: ignore[attr-defined]
        if status.is_error(value) and not entered:
            changes = unlawful(name, before, snapshot.changes(), PAMTS)
            assert not changes, (
                f"{call} was refused with {status_text(value)} and changed {[str(each) for each in changes]}"
            )
        self.look()
        return after

    def reclaim_small(self, tdr: int) -> None:
        """Reclaim a TD's small private pages, checking at the end only: there may be many of them."""
        small = [page.hpa for page in self.situation.picture.of_kind(PageType.REG) if page.owner == tdr]
        processor = self.world.platform.host.processors[0]
        for hpa in small:
            processor.gpr[RAX], processor.gpr[RCX] = RECLAIM, hpa
            processor.seamcall()
            assert processor.gpr[RAX] == 0, f"{hpa:#x} does not come back: {status_text(processor.gpr[RAX])}"
        self.look()

    def look(self) -> None:
        """Check the invariants, and that what was measured stays."""
        picture = check(self.world.machine)
        self.situation.look(picture)
        for td in picture.tds.values():
            if not td.keyed or td.op_state is None:
                continue
            if td.op_state < 2:
                self.mrtd.pop(td.tdr, None)
            else:
                assert self.mrtd.setdefault(td.tdr, td.mrtd) == td.mrtd, f"MRTD of {td.tdr:#x} changed"

    # ------------------------------------------------------------------ the end of a run
    def empty(self) -> None:
        """Every page is the hypervisor's again, and can be used as such."""
        self.look()
        assert not self.situation.picture.pages, [str(page) for page in self.situation.picture.pages.values()]
        assert not any(key.state not in (0, 3) for key in self.situation.picture.keys.values())
        memory = self.world.memory
        for hpa in POOL[:: len(POOL) // 8]:
            memory.clear(hpa, 4096)
            memory.write(hpa, LEFT_BEHIND)
            assert memory.read(hpa, len(LEFT_BEHIND)) == LEFT_BEHIND
        self.mrtd.clear()
        engine: Any = self.world.machine.engine
        engine._queue.clear()
        for lp in self.world.platform.host.processors:
            for vector in lp.pending:
                lp.acknowledge(vector)
            lp.arm_timer(None, 0)
