"""What a leaf's table says of the registers, checked after a call."""

from __future__ import annotations

from typing import Final

from swtdx.arch import regs, status
from swtdx.arch.leaf import LEAF, ONES, SAME, SEPT, ZERO, Leaf
from swtdx.arch.leaves import RAX_RESERVED
from swtdx.arch.operands import OperandId
from swtdx.arch.regs import RAX, RSP
from swtdx.arch.units import MASK64

_DISPATCH: Final = frozenset(
    {
        status.TDX_OPERAND_INVALID | OperandId.RAX,
        status.TDX_SYS_NOT_READY,
        status.TDX_SYS_SHUTDOWN,
    }
)


def wrong_registers(
    leaf: Leaf, version: int, before: list[int], after: list[int], *, outputs: bool = True
) -> list[str]:
    """What is wrong with the registers after a call, in words; empty if nothing is.

    Registers that are no outputs keep their value.  After an error each output holds what the table says;
    what the dispatcher refuses changes RAX alone.

    Args:
        outputs: look at outputs after an error, too.
    """
    value = after[RAX]
    reserved = bool(before[RAX] & RAX_RESERVED)
    refused = reserved or (value in _DISPATCH and not _checks_rax(leaf, value))
    named = {} if refused else {each.register: each for each in leaf.outputs if each.since <= version}
    wrong = []
    for number in range(1, 16):
        name = regs.NAMES[number].upper()
        output = named.get(name)
        if output is None:
            if number != RSP and after[number] != before[number]:
                wrong.append(
                    f"{name} is no output and changed from {before[number]:#x} to {after[number]:#x}"
                )
            continue
        if not status.is_error(value) or not outputs or output.on_error == LEAF:
            continue
        expected = {ZERO: (0,), ONES: (MASK64,), SAME: (before[number],), SEPT: None}[output.on_error]
        if expected is not None and after[number] not in expected:
            wrong.append(f"{name} is {after[number]:#x} after an error, not {expected[0]:#x}")
    return wrong


def _checks_rax(leaf: Leaf, value: int) -> bool:
    """Whether the leaf itself, not the dispatcher, may answer so."""
    return any(outcome.value == value for outcome in leaf.outcomes)
