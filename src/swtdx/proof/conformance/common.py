"""Cases that many leaves share: what is wrong with RAX, a page operand, a TD, a Secure EPT walk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDCS, TDR
from swtdx.arch.leaf import Kind
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.msrs import IA32_MISC_ENABLE, IA32_TSC_ADJUST, MISC_ENABLE_LIMIT_CPUID
from swtdx.arch.sept_bits import HPA
from swtdx.proof.conformance.registry import Action, Defect, Hold, Mend, Operand, add, declared
from swtdx.proof.conformance.stages import FAR, add_tdcx, give_keys, make_td
from swtdx.proof.conformance.world import Td, World
from swtdx.proof.probe import Place

Operands = dict[str, int]


@dataclass(frozen=True)
class Good:
    """A call that succeeds: a leaf, the stage at which it does, and its operands."""

    leaf: str
    stage: str
    operands: Callable[[World], Operands]
    version: int = 0

    def but(self, at: Mapping[str, Operand] | None = None, **changes: Operand) -> Action:
        """An action that provokes with the same operands except for some.

        Args:
            at: the same as keywords, for registers whose name is computed.
        """
        changes |= at or {}

        def action(world: World) -> None:
            operands = self.operands(world)
            for register, value in changes.items():
                operands[register] = value if isinstance(value, int) else value(world)
            world.provoke(version=self.version, **operands)

        return action

    def refused(
        self,
        value: int,
        what: str,
        details: int | str = 0,
        *,
        reusable: bool = True,
        stage: str | None = None,
        at: Mapping[str, Operand] | None = None,
        bits: Mapping[str, int] | None = None,
        mend: Mend | None = None,
        **changes: Operand,
    ) -> None:
        """A case: the same call with other operands is refused (``at``: see :meth:`but`).

        ``bits`` and ``mend`` are those of its :class:`.registry.Defect`.
        """
        add(
            self.leaf, value, what, self.but(at, **changes),
            details=details, stage=stage or self.stage, reusable=reusable,
            defect=Defect({**(at or {}), **changes}, bits=bits or {}, mend=mend) if stage is None else None,
        )  # fmt: skip

    def held(
        self,
        value: int,
        what: str,
        hold: Hold,
        details: int | str = 0,
        *,
        reusable: bool = True,
        outputs: bool = True,
    ) -> None:
        """A case: the same call is refused while something is wrong with the world."""

        def action(world: World) -> None:
            operands = self.operands(world)
            with hold(world, operands):
                world.provoke(version=self.version, **operands)

        add(
            self.leaf, value, what, action, details=details, stage=self.stage, reusable=reusable,
            outputs=outputs, defect=Defect(hold=hold),
        )  # fmt: skip


def basics(good: Good, *, early: bool = False) -> None:
    """It succeeds; reserved bits and versions of RAX are checked; the module must be ready.

    ``early``: the leaf belongs to the module's initialisation.
    """
    add(good.leaf, s.TDX_SUCCESS, "all as it should be", good.but(), stage=good.stage)
    rax(good.leaf, good.stage, good.operands)
    if not early:
        add(
            good.leaf, s.TDX_SYS_NOT_READY, "before TDH.SYS.CONFIG", lambda world: _nothing(world),
            stage="processors", reusable=True,
        )  # fmt: skip


def _nothing(world: World) -> None:
    world.provoke()


def rax(leaf: str, stage: str, operands: Callable[[World], Operands] = lambda _world: {}) -> None:
    """Reserved bits of RAX, and a version that the leaf has not."""
    for what, bits in (("bit 24", 1 << 24), ("bit 32", 1 << 32), ("bit 62", 1 << 62)):
        add(
            leaf, s.TDX_OPERAND_INVALID, f"reserved {what} of RAX",
            lambda world, bits=bits: world.provoke(rax=bits, **operands(world)),  # type: ignore[misc]
            details="RAX", stage=stage, reusable=True, defect=Defect(rax=bits),
        )  # fmt: skip
    for version in (2, 255):
        add(
            leaf, s.TDX_OPERAND_INVALID, f"version {version}",
            lambda world, version=version: world.provoke(version=version, **operands(world)),  # type: ignore[misc]
            details="RAX", stage=stage, reusable=True, defect=Defect(rax=version << 16),
        )  # fmt: skip


# ------------------------------------------------------------------ the TD's state
def td_state(
    good: Good, register: str, *, lock: bool = True, wrong_stage: str | None = None, flags: int = 0
) -> None:
    """Fatal flag, keys, TDCS pages, op_state and its lock, of a TD that an operand names.

    Args:
        lock: the leaf takes the op_state lock.
        wrong_stage: a stage of another TD whose op_state the leaf does not allow.
        flags: bits of the operand that are not the address's.
    """
    fatal(good)

    def other(stage: str) -> Callable[[World], int]:
        return lambda world: make_td(world, stage).tdr | good.operands(world)[register] & flags

    # The TD of each has what the next one is about wrong with it, too.
    for value, stage, what, mend in (
        (s.TDX_TD_KEYS_NOT_CONFIGURED, "created", "the TD has no keys yet", give_keys),
        (s.TDX_TDCS_NOT_ALLOCATED, "keyed", "the TD has no TDCX pages yet", add_tdcx),
    ):
        if declared(good.leaf, value):
            good.refused(value, what, at={register: other(stage)}, mend=_with_td(register, mend))
    if wrong_stage is not None:
        good.refused(
            s.TDX_OP_STATE_INCORRECT, f"the TD is at stage {wrong_stage}", at={register: other(wrong_stage)}
        )
    if lock:
        op_state_lock(good)


def _with_td(register: str, step: Callable[[World, Td], None]) -> Mend:
    """A step of building the TD whose TDR an operand names."""

    def mend(world: World, operands: Operands) -> None:
        step(world, Td(operands[register] & HPA, 0))

    return mend


def fatal(good: Good) -> None:
    """The TD is marked fatal."""
    good.held(
        s.TDX_TD_FATAL, "the TD is marked fatal",
        lambda world, operands: world.poked(
            Place(world.probe.tdr(world.tdr_of(good.leaf, operands)), TDR.fatal.offset), 1, 1
        ),
    )  # fmt: skip


def op_state_lock(good: Good) -> None:
    """Another processor changes the op_state."""
    good.held(
        s.TDX_OPERAND_BUSY, "the op_state lock is taken",
        lambda world, operands: world.locked(
            world.tdcs_field(TDCS.op_state_lock, world.tdr_of(good.leaf, operands))
        ),
        "OP_STATE",
    )  # fmt: skip


def op_state(good: Good, wrong: int) -> None:
    """The TD is in an op_state that no sequence of base leaves leads to with such operands."""
    good.held(
        s.TDX_OP_STATE_INCORRECT, f"op_state {wrong}",
        lambda world, operands: world.poked(
            world.tdcs_field(TDCS.op_state, world.tdr_of(good.leaf, operands)), wrong, 4
        ),
    )  # fmt: skip


# ------------------------------------------------------------------ Secure EPT
def _entry(leaf: str, operand: int, usual: tuple[int, int]) -> tuple[int, int]:
    """GPA and level of the entry that RCX names."""
    kind = next(each.kind for each in BY_NAME[leaf].inputs if each.register == "RCX")
    return operand & HPA, operand & 7 if kind is Kind.GPA_AND_LEVEL else usual[1]


def sept(
    good: Good, *, tree: bool = True, entry: tuple[int, int] | None = None, walk: int | None = FAR
) -> None:
    """Tree lock, walk, and the lock of the entry (GPA, level)."""
    if tree:
        good.held(
            s.TDX_OPERAND_BUSY, "the Secure EPT tree lock is taken",
            lambda world, operands: world.locked(
            world.tdcs_field(TDCS.secure_ept_lock, world.tdr_of(good.leaf, operands))
        ),
            "SEPT_TREE",
        )  # fmt: skip
    if walk is not None:
        good.refused(
            s.TDX_EPT_WALK_FAILED, "no Secure EPT page leads there", "RCX",
            rcx=lambda world: walk | good.operands(world)["rcx"] & 7,
        )  # fmt: skip
    if entry is not None:
        good.held(
            s.TDX_OPERAND_BUSY, "the guest holds the entry",
            lambda world, operands: world.locked_entry(
                world.tdr_of(good.leaf, operands), *_entry(good.leaf, operands["rcx"], entry)
            ),
            "RCX",
        )  # fmt: skip


# ------------------------------------------------------------------ the processor
def tsc_adjust(good: Good) -> None:
    """IA32_TSC_ADJUST changed since TDH.SYS.INIT."""
    good.held(
        s.TDX_INCONSISTENT_MSR, "IA32_TSC_ADJUST changed",
        lambda world, _: world.msr(IA32_TSC_ADJUST, 0x1000, world.calling), IA32_TSC_ADJUST,
    )  # fmt: skip


def boot_nt4(good: Good) -> None:
    """IA32_MISC_ENABLE limits CPUID."""
    good.held(
        s.TDX_LIMIT_CPUID_MAXVAL_SET, "IA32_MISC_ENABLE[22] is set",
        lambda world, _: world.msr(
            IA32_MISC_ENABLE, world.lps[world.calling].msrs.peek(IA32_MISC_ENABLE) | MISC_ENABLE_LIMIT_CPUID,
            world.calling,
        ),
    )  # fmt: skip
