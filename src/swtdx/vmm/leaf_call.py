"""A SEAMCALL leaf as a Python function, made from the leaf's declaration in the ABI tables.

The tables say which registers a leaf takes and of what kind each operand is; from that follows the
function that puts them there.  A TD is built by tens of thousands of calls, so there is a function for each
number of operands instead of a loop over them.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from swtdx.arch import regs
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.leaf import Kind, Leaf
from swtdx.arch.leaves import VERSION_SHIFT
from swtdx.arch.units import MASK64
from swtdx.vmm.processor import Processor

#: Gets the status and the register file after the call.
Answer = Callable[[int, list[int]], Any]


def operands_of(leaf: Leaf, version: int = 0) -> tuple[list[int], dict[int, int]]:
    """The registers that the operands of the leaf's function go to, in order, and what fixed values go where.

    Fixed are numbers that are always the same, and "no page" for L2 VMs, as the hypervisor builds none.
    Operands of versions after ``version`` are left out.
    """
    registers, fixed = [], {}
    for operand in leaf.inputs:
        register = regs.number(operand.register)
        if operand.since > version:
            continue
        if operand.kind is Kind.NUMBER:
            fixed[register] = operand.detail
        elif operand.kind is Kind.L2_PAGE:
            fixed[register] = MASK64
        else:
            registers.append(register)
    return registers, fixed


def _answer(outputs: tuple[int, ...]) -> Answer:
    """The status alone, or a tuple of it and the registers ``outputs``."""
    if not outputs:
        return lambda status, g: status
    if len(outputs) == 1:
        return lambda status, g: (status, g[outputs[0]])
    fetch = itemgetter(*outputs)
    return lambda status, g: (status, *fetch(g))


def _function(number: int, registers: list[int], answer: Answer) -> Callable[..., Any]:
    """The function of leaf ``number`` for the operands in ``registers``."""
    r1, r2, r3, r4 = (*registers, 0, 0, 0, 0)[:4]

    def call0(cpu: Processor) -> Any:
        return answer(cpu.call(number), cpu.gpr)

    def call1(cpu: Processor, a: int) -> Any:
        g = cpu.gpr
        g[r1] = a
        return answer(cpu.call(number), g)

    def call2(cpu: Processor, a: int, b: int) -> Any:
        g = cpu.gpr
        g[r1], g[r2] = a, b
        return answer(cpu.call(number), g)

    def call3(cpu: Processor, a: int, b: int, c: int) -> Any:
        g = cpu.gpr
        g[r1], g[r2], g[r3] = a, b, c
        return answer(cpu.call(number), g)

    def call4(cpu: Processor, a: int, b: int, c: int, d: int) -> Any:
        g = cpu.gpr
        g[r1], g[r2], g[r3], g[r4] = a, b, c, d
        return answer(cpu.call(number), g)

    return (call0, call1, call2, call3, call4)[len(registers)]


def _with_fixed(inner: Callable[..., Any], fixed: dict[int, int]) -> Callable[..., Any]:
    def call(cpu: Processor, *operands: int) -> Any:
        for register, value in fixed.items():
            cpu.gpr[register] = value
        return inner(cpu, *operands)

    return call


def _with_level(inner: Callable[..., Any]) -> Callable[..., Any]:
    def call(cpu: Processor, gpa: int, level: int, *operands: int) -> Any:
        return inner(cpu, gpa | level, *operands)

    return call


def leaf_call(name: str, *outputs: str, version: int = 0) -> Any:
    """The function of host leaf ``name``: operands in, status out, and then the registers ``outputs``.

    It calls ``version`` of the leaf.  It takes the processor and the operands in the order of the table, but
    no fixed ones (:func:`operands_of`); RCX of a leaf that works at several levels is two of them, GPA and
    level.  It executes SEAMCALL under the retry policy of :meth:`.processor.Processor.call`, and returns the
    status, or a tuple that begins with it.

    Raises:
        KeyError: there is no such leaf.
        ValueError: the leaf's table names no such output, or no such version.
    """
    leaf = HOST_BY_NAME[name]
    for output in outputs:
        if output not in {each.register for each in leaf.outputs}:
            raise ValueError(f"{name} has no output {output}")
    if version not in leaf.versions:
        raise ValueError(f"{name} has no version {version}")
    registers, fixed = operands_of(leaf, version)
    answer = _answer(tuple(regs.number(each) for each in outputs))
    made = _function(leaf.number | version << VERSION_SHIFT, registers, answer)
    if fixed:
        made = _with_fixed(made, fixed)
    if leaf.inputs and leaf.inputs[0].levels != (0, 0):
        made = _with_level(made)
    made.__name__ = name.lower().replace(".", "_")
    made.__doc__ = f"{name}: {leaf.summary}."
    return made
