"""TDG.*: the guest's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from swtdx.arch import status as s
from swtdx.arch.control_structs import TDCS
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaves import GUEST_LEAVES
from swtdx.arch.td_config import SHARED_BIT_48
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import VECTOR_VE
from swtdx.machine.engine.scripted import GuestFault, Hlt, Tdcall
from swtdx.proof.conformance.registry import Action, Defect, add, provokes
from swtdx.proof.conformance.stages import FIRST, HUGE, PENDING
from swtdx.proof.conformance.world import World

_STAGE: Final = "running"


def _call(version: int = 0, rax: int = 0, **operands: int) -> Action:
    def action(world: World) -> None:
        world.tdcall(version=version, rax=rax, **operands)

    return action


def _of_rax(operands: dict[str, Any]) -> int:
    """What of a call's RAX is not the leaf's number."""
    return int(operands.get("rax", 0) | operands.get("version", 0) << 16)


def _case(leaf: str, value: int, what: str, details: int | str = 0, **operands: Any) -> None:
    outputs = operands.pop("outputs", True)
    bits = operands.pop("bits", {})
    defect = None
    if set(operands) <= {"rax", "version"} | GOOD.get(leaf, {}).keys() and (rax := _of_rax(operands)):
        defect = Defect(rax=rax)
    elif (good := GOOD.get(leaf)) is not None and not operands.get("version"):
        changes = {
            name: given for name, given in operands.items() if name != "rax" and good.get(name) != given
        }
        defect = Defect(changes, rax=operands.get("rax", 0), bits=bits)
    add(leaf, value, what, _call(**operands), details=details, stage=_STAGE, outputs=outputs, defect=defect)


#: Operands with which each leaf succeeds at once.
GOOD: Final[dict[str, dict[str, int]]] = {
    "TDG.VP.VMCALL": {"rcx": 0},
    "TDG.VP.INFO": {},
    "TDG.MR.RTMR.EXTEND": {"rcx": FIRST, "rdx": 3},
    "TDG.MR.REPORT": {"rcx": FIRST, "rdx": FIRST + 0x400, "r8": 0},
    "TDG.VP.CPUIDVE.SET": {"rcx": 3},
    "TDG.MEM.PAGE.ACCEPT": {"rcx": PENDING},
    "TDG.VM.RD": {"rcx": 0, "rdx": 0x1110000300000000},
    "TDG.VM.WR": {"rcx": 0, "rdx": 0x9110000300000010, "r8": 1, "r9": 1},
    "TDG.VP.RD": {"rcx": 0, "rdx": 0xA020000200000002},
    "TDG.VP.WR": {"rcx": 0, "rdx": 0xA020000000000007, "r8": 1, "r9": 0xFF},
    "TDG.SYS.RD": {"rdx": 0x0800000100000004},
    "TDG.SYS.RDALL": {"rdx": FIRST, "r8": MASK64},
}
for _leaf, _operands in GOOD.items():
    if _leaf != "TDG.VP.VMCALL":
        _case(_leaf, s.TDX_SUCCESS, "all as it should be", **_operands)
for _row in GUEST_LEAVES.values():
    if not BASE_MODULE.serves(_row):
        _case(_row.name, s.TDX_OPERAND_INVALID, "not in this module", "RAX")
        continue
    _operands = GOOD.get(_row.name, {})
    for _bit in (24, 32, 63):
        _case(
            _row.name, s.TDX_OPERAND_INVALID, f"reserved bit {_bit} of RAX", "RAX", rax=1 << _bit, **_operands
        )
    for _version in (2, 255) if _row.max_version else (1, 255):
        _case(
            _row.name, s.TDX_OPERAND_INVALID, f"version {_version}", "RAX", version=_version,
            outputs=False, **_operands,
        )  # fmt: skip


# ------------------------------------------------------------------ TDG.VP.*
@provokes("TDG.VP.VMCALL", s.TDX_SUCCESS, "to the hypervisor and back", stage=_STAGE)
def _vmcall(world: World) -> None:
    seen: list[Any] = []

    def program(_cpu: Any) -> Any:
        seen.append((yield Tdcall(rax=0, rcx=0xFC00, r10=1, r11=2, r12=3, r13=4, r14=5, r15=6)))
        yield Tdcall(rax=0, rcx=0)

    world.guest(program)
    host = world.enter()
    assert host[10:] == [1, 2, 3, 4, 5, 6], f"the hypervisor sees {host[10:]}"
    world.call("TDH.VP.ENTER", rcx=world.td.tdvpr, r10=11, r11=12, r12=13, r13=14, r14=15, r15=16)
    (after,) = seen
    assert list(after[10:]) == [11, 12, 13, 14, 15, 16], f"the guest sees {list(after[10:])}"
    assert after.rcx == 0xFC00, f"RCX is {after.rcx:#x}"
    world.provoked(after.rax)


for _what, _mask in (
    ("RAX", 1),
    ("RCX", 2),
    ("RSP", 1 << 4),
    ("RBP, with NO_RBP_MOD", 1 << 5),
    ("bit 32", 1 << 32),
):
    _case("TDG.VP.VMCALL", s.TDX_OPERAND_INVALID, f"a mask with {_what}", "RCX", rcx=_mask | 0xFC00)

_case("TDG.VP.CPUIDVE.SET", s.TDX_OPERAND_INVALID, "bit 2", "RCX", rcx=4)
_case("TDG.VP.VEINFO.GET", s.TDX_NO_VALID_VE_INFO, "no #VE")


@provokes("TDG.VP.VEINFO.GET", s.TDX_SUCCESS, "after HLT", stage=_STAGE)
def _veinfo(world: World) -> None:
    def program(_cpu: Any) -> Any:
        try:
            yield Hlt()
        except GuestFault as fault:
            if fault.vector != VECTOR_VE:
                raise
        return (yield Tdcall(rax=3))

    after = world.run_guest(program)
    assert after.rcx == 12, f"RCX is {after.rcx}, not the exit reason of HLT"
    world.provoked(after.rax)


# ------------------------------------------------------------------ TDG.MR.*
for _leaf, _register, _alignment in (
    ("TDG.MR.RTMR.EXTEND", "rcx", 64),
    ("TDG.MR.VERIFYREPORT", "rcx", 256),
    ("TDG.SYS.RDALL", "rdx", 4096),
):
    _good = GOOD.get(_leaf, {"rcx": FIRST})
    for _what, _gpa in (
        (f"not aligned to {_alignment}", FIRST + _alignment // 2),
        ("shared", SHARED_BIT_48 | FIRST),
        ("beyond the GPA width", 1 << 48),
    ):
        _case(_leaf, s.TDX_OPERAND_INVALID, _what, _register.upper(), **(_good | {_register: _gpa}))
_case("TDG.MR.RTMR.EXTEND", s.TDX_OPERAND_INVALID, "a fifth register", "RDX", rcx=FIRST, rdx=4)
_case(
    "TDG.MR.RTMR.EXTEND", s.TDX_OPERAND_INVALID, "a fifth register, and first of all shared data",
    "RCX", rcx=SHARED_BIT_48 | FIRST, rdx=4,
)  # fmt: skip
for _register, _what, _gpa in (
    ("rcx", "not aligned to 1024", FIRST + 512),
    ("rcx", "beyond the GPA width", 1 << 48),
    ("rdx", "not aligned to 64", FIRST + 32),
    ("rdx", "beyond the GPA width", 1 << 48),
    ("r8", "a subtype", 1),
):
    _case(
        "TDG.MR.REPORT", s.TDX_OPERAND_INVALID, f"{_register.upper()}: {_what}", _register.upper(),
        **(GOOD["TDG.MR.REPORT"] | {_register: _gpa}),
    )  # fmt: skip


def _rtmr_locked(leaf: str) -> None:
    def action(world: World) -> None:
        with world.locked(world.tdcs_field(TDCS.rtmr_lock)):
            world.tdcall(**GOOD[leaf])

    add(leaf, s.TDX_OPERAND_BUSY, "another VCPU holds the RTMRs", action, details="RTMR", stage=_STAGE)


_rtmr_locked("TDG.MR.RTMR.EXTEND")
_rtmr_locked("TDG.MR.REPORT")


def _verify(change: Callable[[bytes], bytes]) -> Action:
    """TDG.MR.VERIFYREPORT of a report of this machine, after a change."""

    def action(world: World) -> None:
        def program(_cpu: Any) -> Any:
            yield Tdcall(rax=4, rcx=FIRST, rdx=FIRST + 0x400, r8=0)
            view = world.private_view(world.td.pages[FIRST], world.td.hkid)
            view[:256] = change(bytes(view[:256]))
            return (yield Tdcall(rax=22, rcx=FIRST))

        world.provoked(world.run_guest(program).rax)

    return action


add("TDG.MR.VERIFYREPORT", s.TDX_SUCCESS, "a report of this machine", _verify(lambda r: r), stage=_STAGE)
add(
    "TDG.MR.VERIFYREPORT", s.TDX_INVALID_REPORTMACSTRUCT, "one bit of REPORTDATA",
    _verify(lambda r: r[:128] + bytes([r[128] ^ 1]) + r[129:]), stage=_STAGE,
)  # fmt: skip
add(
    "TDG.MR.VERIFYREPORT", s.TDX_INVALID_CPUSVN, "a CPUSVN that the part has not",
    _verify(lambda r: r[:16] + b"\xff" * 16 + r[32:]), stage=_STAGE,
)  # fmt: skip

# ------------------------------------------------------------------ TDG.MEM.PAGE.ACCEPT
_ACCEPT: Final = "TDG.MEM.PAGE.ACCEPT"
for _what, _gpa in (
    ("level 2", PENDING | 2),
    ("bit 3", PENDING | 8),
    ("bit 52", PENDING | 1 << 52),
    ("shared", PENDING | SHARED_BIT_48),
    ("not aligned to its level", PENDING | 1),
):
    _case(_ACCEPT, s.TDX_OPERAND_INVALID, _what, "RCX", rcx=_gpa, bits={"rcx": _gpa ^ PENDING})
_case(_ACCEPT, s.TDX_SUCCESS, "2 MiB", rcx=HUGE | 1)
_case(_ACCEPT, s.TDX_PAGE_ALREADY_ACCEPTED, "there from the start", rcx=FIRST)
_case(_ACCEPT, s.TDX_PAGE_SIZE_MISMATCH, "2 MiB of small pages", 1, rcx=0 | 1)


@provokes(_ACCEPT, s.TDX_PAGE_ALREADY_ACCEPTED, "part of an accepted 2-MiB page", details=1, stage=_STAGE)
def _part(world: World) -> None:
    def program(_cpu: Any) -> Any:
        yield Tdcall(rax=6, rcx=HUGE | 1)
        return (yield Tdcall(rax=6, rcx=HUGE + 0x3000))

    world.provoked(world.run_guest(program).rax)


@provokes(_ACCEPT, s.TDX_OPERAND_BUSY, "the host holds the entry", details="RCX", stage=_STAGE)
def _entry_held(world: World) -> None:
    with world.locked_entry(world.td.tdr, PENDING, 0):
        world.tdcall(rcx=PENDING)


# ------------------------------------------------------------------ metadata
_FIRST: Final = s.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT
_NO_FIELD: Final = 0x3F00000300000000
for _leaf in ("TDG.VM.RD", "TDG.VM.WR", "TDG.VP.RD", "TDG.VP.WR"):
    _case(_leaf, s.TDX_OPERAND_INVALID, "another VM", "RCX", **(GOOD[_leaf] | {"rcx": 1}))
for _leaf in ("TDG.VM.RD", "TDG.VM.WR", "TDG.VP.RD", "TDG.VP.WR", "TDG.SYS.RD"):
    _good = GOOD[_leaf]
    _case(_leaf, s.TDX_METADATA_FIELD_ID_INCORRECT, "no such field", **(_good | {"rdx": _NO_FIELD}))
    _case(
        _leaf,
        s.TDX_METADATA_FIELD_ID_INCORRECT,
        "a reserved bit",
        **(_good | {"rdx": _good["rdx"] | 1 << 55}),
    )
_case("TDG.SYS.RDALL", s.TDX_METADATA_FIELD_ID_INCORRECT, "no such field", rdx=FIRST, r8=_NO_FIELD)
_case("TDG.VM.RD", _FIRST, "version 1, field id -1", version=1, rcx=0, rdx=MASK64)
_case("TDG.VP.RD", _FIRST, "field id -1", rcx=0, rdx=MASK64)
_case("TDG.SYS.RD", _FIRST, "field id -1", rdx=MASK64)
_case("TDG.VM.RD", s.TDX_METADATA_FIELD_NOT_READABLE, "the HKID", rcx=0, rdx=0x8110000100000001)
_case("TDG.VP.RD", s.TDX_METADATA_FIELD_NOT_READABLE, "LAST_TD_EXIT", rcx=0, rdx=0xA02000000000000F)
_case("TDG.SYS.RD", s.TDX_METADATA_FIELD_NOT_READABLE, "NUM_CMRS", rdx=0x9000000100000000)
_case(
    "TDG.VM.WR",
    s.TDX_METADATA_FIELD_NOT_WRITABLE,
    "ATTRIBUTES",
    rcx=0,
    rdx=0x1110000300000000,
    r8=0,
    r9=MASK64,
)
_case(
    "TDG.VP.WR",
    s.TDX_METADATA_FIELD_NOT_WRITABLE,
    "VCPU_INDEX",
    rcx=0,
    rdx=0xA020000200000002,
    r8=0,
    r9=MASK64,
)
_case(
    "TDG.VM.WR", s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "a bit that is not to be written",
    rcx=0, rdx=0x1110000300000017, r8=1 << 63, r9=MASK64,
)  # fmt: skip
_case(
    "TDG.VM.WR", s.TDX_METADATA_FIELD_VALUE_NOT_VALID, "PENDING_VE_DISABLE without FLEXIBLE_PENDING_VE",
    rcx=0, rdx=0x1110000300000017, r8=0, r9=1,
)  # fmt: skip
