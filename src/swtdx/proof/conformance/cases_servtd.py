"""TDG.SERVTD.*, TDG.MEM.PAGE.ATTR.*, TDG.VP.INV*, in a module without service TDs and L2 VMs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDCS, TDR
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.sept_bits import HPA
from swtdx.arch.td_config import SHARED_BIT_48
from swtdx.machine.engine.scripted import Tdcall
from swtdx.proof.conformance.registry import Action, Defect, add, provokes
from swtdx.proof.conformance.stages import FIRST, HUGE, PENDING
from swtdx.proof.conformance.world import World

_STAGE: Final = "running"


_RD, _WR = "TDG.MEM.PAGE.ATTR.RD", "TDG.MEM.PAGE.ATTR.WR"
#: Operands with which these succeed.
_GOOD: Final[dict[str, dict[str, int]]] = {_RD: {"rcx": FIRST}, _WR: {"rcx": FIRST, "rdx": 0, "r8": 0}}


def _call(**operands: int) -> Action:
    return lambda world: (world.tdcall(**operands), None)[1]


def _case(leaf: str, value: int, what: str, details: int | str = 0, **operands: int) -> None:
    good = _GOOD.get(leaf, {})
    changes = {name: given for name, given in operands.items() if good.get(name) != given}
    defect = Defect(changes) if good and changes else None
    add(leaf, value, what, _call(**operands), details=details, stage=_STAGE, defect=defect)


# ------------------------------------------------------------------ L2 VMs: there are none
_case("TDG.VP.INVEPT", s.TDX_SUCCESS, "no VM", rcx=0)
for _bits in (1, 2, 1 << 4, 1 << 63):
    _case("TDG.VP.INVEPT", s.TDX_OPERAND_INVALID, f"VMs {_bits:#x}", "RCX", rcx=_bits)
for _vm in range(4):
    _case("TDG.VP.INVVPID", s.TDX_OPERAND_INVALID, f"VM {_vm}", "RCX", rcx=_vm << 52, rdx=0)

_case(_RD, s.TDX_SUCCESS, "a page", rcx=FIRST)
_case(_WR, s.TDX_SUCCESS, "nothing, of a page", rcx=FIRST, rdx=0, r8=0)
for _what, _gpa in (("shared", SHARED_BIT_48 | FIRST), ("beyond the GPA width", 1 << 48)):
    _case(_RD, s.TDX_OPERAND_INVALID, _what, "RCX", rcx=_gpa)
for _what, _gpa in (("shared", SHARED_BIT_48 | FIRST), ("level 3", 3), ("bit 3", FIRST | 8)):
    _case(_WR, s.TDX_OPERAND_INVALID, _what, "RCX", rcx=_gpa, rdx=0, r8=0)
for _vm in range(4):
    _bit = 1 << 16 * _vm
    _case(_WR, s.TDX_OPERAND_INVALID, f"attributes for VM {_vm}", "RDX", rcx=FIRST, rdx=_bit, r8=0)
    _case(_WR, s.TDX_OPERAND_INVALID, f"a mask for VM {_vm}", "R8", rcx=FIRST, rdx=0, r8=_bit)
_case(_WR, s.TDX_PAGE_SIZE_MISMATCH, "2 MiB of small pages", 1, rcx=0 | 1, rdx=0, r8=0)


def _entry_held(world: World, operands: dict[str, int]) -> AbstractContextManager[None]:
    return world.locked_entry(world.td.tdr, operands["rcx"] & HPA, operands["rcx"] & 7)


def _held(leaf: str) -> None:
    def action(world: World) -> None:
        with _entry_held(world, _GOOD[leaf]):
            world.tdcall(**_GOOD[leaf])

    add(
        leaf, s.TDX_OPERAND_BUSY, "the host holds the entry", action, details="RCX", stage=_STAGE,
        defect=Defect(hold=_entry_held),
    )  # fmt: skip


_held(_RD)
_held(_WR)


@provokes(_RD, s.TDX_SUCCESS, "a pending page and a 2-MiB page", stage=_STAGE)
def _kinds(world: World) -> None:
    def program(_cpu: Any) -> Any:
        pending = yield Tdcall(rax=23, rcx=PENDING)
        yield Tdcall(rax=6, rcx=HUGE | 1)
        large = yield Tdcall(rax=23, rcx=HUGE + 0x5000)
        return pending, large

    pending, large = world.run_guest(program)
    assert pending.rcx == PENDING | 1 << 62, f"RCX of the pending page is {pending.rcx:#x}"
    assert large.rcx == HUGE | 1, f"RCX of the 2-MiB page is {large.rcx:#x}"
    world.provoked(large.rax)


# ------------------------------------------------------------------ service TDs: none is bound
def _handle(world: World, tdr: int, slot: int = 0) -> int:
    """A binding handle as TDH.SERVTD.BIND would have made it (seamcall.md §4)."""
    uuid = TDR.td_uuid.get(world.probe.tdr(world.td.tdr))
    return (tdr | slot) + int.from_bytes(uuid[:8], "little") & (1 << 64) - 1


def _uuid(world: World) -> dict[str, int]:
    """The target's UUID in R10..R13; the TD is its own target."""
    uuid = TDR.td_uuid.get(world.probe.tdr(world.td.tdr))
    return {f"r{10 + n}": int.from_bytes(uuid[8 * n : 8 * n + 8], "little") for n in range(4)}


for _leaf in ("TDG.SERVTD.RD", "TDG.SERVTD.WR"):

    def _slot(world: World) -> None:
        world.tdcall(rcx=_handle(world, world.td.tdr, 1), **_uuid(world))

    def _mismatch(world: World) -> None:
        world.tdcall(rcx=_handle(world, world.td.tdr), r10=1, r11=2, r12=3, r13=4)

    def _updated(world: World) -> None:
        # A TD that was never imported has no UUID from before: zeros.
        world.tdcall(rcx=_handle(world, world.td.tdr), r10=0, r11=0, r12=0, r13=0)

    def _bindings(world: World) -> None:
        handle, uuid = _handle(world, world.td.tdr), _uuid(world)
        with world.locked(world.tdcs_field(TDCS.servtd_bindings_lock)):
            world.tdcall(rcx=handle, **uuid)

    def _op_state(world: World, number: int = BY_NAME[_leaf].number) -> None:
        handle, uuid = _handle(world, world.td.tdr), _uuid(world)

        def program(_cpu: Any) -> Any:
            with world.locked(world.tdcs_field(TDCS.op_state_lock)):
                return (yield Tdcall(rax=number, rcx=handle, rdx=0, **uuid))

        world.provoked(world.run_guest(program).rax)

    def _tdr(world: World, number: int = BY_NAME[_leaf].number) -> None:
        handle, uuid = _handle(world, world.td.tdr), _uuid(world)

        def program(_cpu: Any) -> Any:
            with world.locked_page(world.td.tdr):
                return (yield Tdcall(rax=number, rcx=handle, rdx=0, **uuid))

        world.provoked(world.run_guest(program).rax)

    add(_leaf, s.TDX_OPERAND_BUSY, "the target's TDR is locked", _tdr, details="TDR", stage=_STAGE)
    add(_leaf, s.TDX_OPERAND_INVALID, "a second slot", _slot, details="RCX", stage=_STAGE)
    add(_leaf, s.TDX_TARGET_UUID_MISMATCH, "another UUID", _mismatch, stage=_STAGE)
    add(_leaf, s.TDX_TARGET_UUID_UPDATED, "the UUID before import", _updated, stage=_STAGE, outputs=False)
    add(
        _leaf, s.TDX_OPERAND_BUSY, "the bindings are locked", _bindings,
        details="SERVTD_BINDINGS", stage=_STAGE,
    )  # fmt: skip
    add(_leaf, s.TDX_OPERAND_BUSY, "the op_state lock is taken", _op_state, details="OP_STATE", stage=_STAGE)


@provokes("TDH.VP.ENTER", s.TDX_CROSS_TD_TRAP, "a service TD asks a TD that is not bound", stage=_STAGE)
def _trap(world: World) -> None:
    def program(_cpu: Any) -> Any:
        yield Tdcall(rax=18, rcx=_handle(world, world.td.tdr), rdx=0, **_uuid(world))

    after = world.exits(program)
    assert after[2] == s.TDX_SERVTD_NOT_BOUND, f"RDX is {after[2]:#x}, not SERVTD_NOT_BOUND"
    assert after[8] == world.td.tdr, f"R8 is {after[8]:#x}, not the target's TDR"
