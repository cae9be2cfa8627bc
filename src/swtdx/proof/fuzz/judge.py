"""Whether what a leaf answered is what its declaration allows."""

from __future__ import annotations

from functools import cache
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import Leaf
from swtdx.arch.leaves import GUEST_LEAVES, HOST_LEAVES
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RAX
from swtdx.proof.conformance.registers import wrong_registers
from swtdx.proof.conformance.registry import declared, status_text

#: Registers of TDH.VP.ENTER and TDG.VP.VMCALL belong to the other side.
_PASSES: Final = frozenset({"TDH.VP.ENTER", "TDG.VP.VMCALL"})
#: (leaf, status) after which outputs carry more than the table's ``on_error`` says.
_TELLS: Final = frozenset(
    {
        ("TDH.PHYMEM.PAGE.RECLAIM", st.TDX_OPERAND_INVALID | OperandId.RCX),
        ("TDH.PHYMEM.PAGE.RECLAIM", st.TDX_LIFECYCLE_STATE_INCORRECT),
        ("TDH.PHYMEM.PAGE.RECLAIM", st.TDX_TD_ASSOCIATED_PAGES_EXIST),
        ("TDH.PHYMEM.PAGE.RECLAIM", st.TDX_OPERAND_BUSY | OperandId.TDR),
        ("TDH.MNG.INIT", st.TDX_OPERAND_INVALID | OperandId.CPUID_CONFIG),
        ("TDH.SYS.RDALL", st.TDX_METADATA_LIST_OVERFLOW),
        ("TDG.SYS.RDALL", st.TDX_METADATA_LIST_OVERFLOW),
    }
)
_UNKNOWN: Final = st.TDX_OPERAND_INVALID | OperandId.RAX
_STATES: Final = frozenset({_UNKNOWN, st.TDX_SYS_NOT_READY, st.TDX_SYS_SHUTDOWN})


@cache
def _allowed(leaf: str, code: int, details: int) -> bool:
    return declared(leaf, code | details)


def _is_declared(leaf: Leaf, value: int) -> bool:
    details = value & st.DETAILS_MASK
    # Exit reasons and MSR numbers are many, and all alike here.
    return _allowed(leaf.name, value & st.CODE_MASK, details if details < 256 else 256)


def host(before: list[int], after: list[int]) -> list[str]:
    """What is wrong with the registers after a SEAMCALL."""
    return _judge(HOST_LEAVES.get(before[RAX] & 0xFFFF), before, after, _STATES)


def guest(before: list[int], after: list[int]) -> list[str]:
    """What is wrong with the registers after a TDCALL."""
    return _judge(GUEST_LEAVES.get(before[RAX] & 0xFFFF), before, after, frozenset({_UNKNOWN}))


def _judge(leaf: Leaf | None, before: list[int], after: list[int], unknown: frozenset[int]) -> list[str]:
    value = after[RAX]
    if leaf is None or not BASE_MODULE.serves(leaf):
        wrong = [] if value in unknown else [f"a leaf that there is not answered {status_text(value)}"]
        changed = [n for n in range(1, 16) if before[n] != after[n] and n != 4]
        return wrong + ([f"registers {changed} changed"] if changed else [])
    found = []
    if not _is_declared(leaf, value):
        found.append(f"{leaf.name} does not declare {status_text(value)}")
    if leaf.name in _PASSES:
        return found
    version = min(before[RAX] >> 16 & 0xFF, leaf.max_version)
    outputs = (leaf.name, value) not in _TELLS
    return found + wrong_registers(leaf, version, before, after, outputs=outputs)
