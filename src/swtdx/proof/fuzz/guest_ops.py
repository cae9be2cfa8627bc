"""What a hostile guest does: any TDCALL with any registers, any instruction that leaves a TD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from swtdx.arch import regs
from swtdx.arch.leaf import Input, Kind, Leaf
from swtdx.arch.leaves import BY_NAME, GUEST_LEAVES
from swtdx.arch.metadata import Context
from swtdx.arch.regs import RAX, RCX, RSP
from swtdx.arch.td_config import SHARED_BIT_48
from swtdx.arch.units import LARGE_PAGE, MASK64, PAGE
from swtdx.machine.engine.scripted import (
    Cpuid,
    Hlt,
    In,
    Invd,
    Monitor,
    MovFromCr,
    MovToCr,
    Mwait,
    Operation,
    Out,
    Pause,
    Rdmsr,
    Rdpmc,
    Rdtsc,
    Rdtscp,
    Read,
    Tdcall,
    TripleFault,
    Undefined,
    Vmcall,
    Wbinvd,
    Write,
    Wrmsr,
    Xsetbv,
)
from swtdx.proof.fuzz.situation import FAR_GPAS, LARGE_GPAS, ODD_VALUES, SMALL_GPAS, Choose, Situation, pick

#: GPAs that a guest uses: its own, unmapped ones, shared ones.
GPAS: Final = (
    *SMALL_GPAS, *SMALL_GPAS, *LARGE_GPAS, LARGE_PAGE + 0x1FF000, *FAR_GPAS,
    SHARED_BIT_48, SHARED_BIT_48 | 0x1000, SHARED_BIT_48 | 0x200000, SHARED_BIT_48 << 1, MASK64 - 7,
)  # fmt: skip
#: MSRs worth asking for: of every kind of policy, and some that do not exist.
MSRS: Final = (
    0x10, 0x1B, 0x3A, 0x3B, 0x48, 0x49, 0x7A, 0x8B, 0xC1, 0xCD, 0xCF, 0xE1, 0xFE, 0x10A, 0x10B, 0x122,
    0x174, 0x175, 0x176, 0x179, 0x17A, 0x186, 0x1A0, 0x1A2, 0x1A6, 0x1C4, 0x1C5, 0x1D9, 0x1FC, 0x200, 0x277,
    0x2FF, 0x309, 0x345, 0x38D, 0x38F, 0x390, 0x3F1, 0x480, 0x48B, 0x491, 0x560, 0x600, 0x6A0, 0x6E0, 0x802,
    0x808, 0x80B, 0x80D, 0x80F, 0x830, 0x832, 0x838, 0x83F, 0xC80, 0xD90, 0xDA0, 0x1400, 0x1B01, 0x4B564D00,
    0x40000000, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102,
    0xC0000103, 0xFFFFFFFF,
)  # fmt: skip
_LEAVES: Final = tuple(leaf for leaf in GUEST_LEAVES.values() if leaf.number)
_ACCEPT: Final = BY_NAME["TDG.MEM.PAGE.ACCEPT"]


Gpas = Sequence[int]


def _some(choose: Choose, mapped: Gpas) -> int:
    """A page's GPA, rather one that the guest has."""
    return pick(choose, mapped) if mapped and choose(4) else pick(choose, GPAS)


def _gpa_and_level(choose: Choose, mapped: Gpas, leaf: Leaf) -> int:
    if leaf is _ACCEPT:
        return pick(
            choose, (*SMALL_GPAS, LARGE_PAGE | 1, LARGE_PAGE | 1, LARGE_PAGE, LARGE_PAGE + 0x1FF000, 1)
        )
    return _some(choose, mapped) & -PAGE


def _operand(choose: Choose, mapped: Gpas, leaf: Leaf, operand: Input) -> int:
    """What an operand of its kind is meant for, mostly."""
    match operand.kind:
        case Kind.GPA | Kind.BUFFER:
            return _some(choose, mapped) & -operand.detail
        case Kind.GPA_AND_LEVEL:
            return _gpa_and_level(choose, mapped, leaf)
        case Kind.FIELD:
            return Situation.field(choose, Context(operand.detail))
        case Kind.MASK:
            return MASK64 if choose(2) else Situation.odd(choose)
        case Kind.COUNT:
            return choose(5)
        case Kind.NUMBER:
            return operand.detail if choose(8) else pick(choose, (choose(300), 1 << 52))
        case _:
            return Situation.odd(choose)


def tdcall(choose: Choose, mapped: Gpas, leaf: Leaf | None = None) -> Tdcall:
    """A TDCALL with all registers given; ``mapped`` are GPAs of pages that the guest has accepted."""
    if leaf is None:
        leaf = _ACCEPT if not choose(4) else pick(choose, _LEAVES)
    g = [0xF111_0000_0000_0F1F + (number << 32) for number in range(16)]
    g[RAX] = leaf.number | choose(leaf.max_version + 1) << 16
    for operand in leaf.inputs:
        g[regs.number(operand.register)] = _operand(choose, mapped, leaf, operand)
    if not choose(3):
        register = choose(16)
        if register != RSP:
            g[register] = Situation.odd(choose) if choose(2) else g[register] ^ 1 << choose(64)
    if not choose(20):
        g[RAX] = choose(64) | choose(3) << 16 | (1 << 16 + choose(48) if not choose(3) else 0)
    return call_of(g)


def call_of(g: list[int]) -> Tdcall:
    """The TDCALL instruction with these registers (RSP stays the guest's)."""
    return Tdcall(**{regs.NAMES[n]: g[n] & MASK64 for n in range(16) if n != RSP})


def vmcall(choose: Choose) -> Tdcall:
    """TDG.VP.VMCALL with any registers selected, XMM registers among them."""
    g = [Situation.odd(choose) for _ in range(16)]
    g[RAX] = 0
    mask = choose(1 << 16) & ~0x33
    g[RCX] = mask | (choose(1 << 16) << 16 if not choose(8) else 0)
    return call_of(g)


def _gpa(choose: Choose, mapped: Gpas) -> int:
    return _some(choose, mapped) + choose(512) * 8 & MASK64


def _cpuid_leaf(choose: Choose) -> int:
    return pick(choose, (choose(0x30), 0x80000000 + choose(9), 0x40000000, choose(1 << 32)))


#: (weight, what makes the operation).
_OTHERS: Final[tuple[tuple[int, Callable[[Choose, Gpas], Operation]], ...]] = (
    (12, lambda choose, mapped: Read(_gpa(choose, mapped), pick(choose, (1, 2, 4, 8)))),
    (12, lambda choose, mapped: Write(_gpa(choose, mapped), choose(256), pick(choose, (1, 2, 4, 8)))),
    (4, lambda choose, mapped: Write(_some(choose, mapped) & -8, choose(1 << 64), 8)),
    (5, lambda choose, mapped: Cpuid(_cpuid_leaf(choose), choose(4))),
    (6, lambda choose, mapped: Rdmsr(pick(choose, MSRS))),
    (6, lambda choose, mapped: Wrmsr(pick(choose, MSRS), Situation.odd(choose))),
    (2, lambda choose, mapped: Rdmsr(choose(1 << 32))),
    (2, lambda choose, mapped: Hlt()),
    (2, lambda choose, mapped: In(choose(1 << 16), pick(choose, (1, 2, 4)))),
    (2, lambda choose, mapped: Out(choose(1 << 16), choose(256), pick(choose, (1, 2, 4)))),
    (2, lambda choose, mapped: MovToCr(pick(choose, (0, 3, 4, 8)), Situation.odd(choose))),
    (1, lambda choose, mapped: MovToCr(pick(choose, (0, 4)), 1 << choose(32))),
    (2, lambda choose, mapped: MovFromCr(pick(choose, (0, 3, 4, 8)))),
    (1, lambda choose, mapped: Xsetbv(pick(choose, ODD_VALUES), choose(2))),
    (1, lambda choose, mapped: Monitor()),
    (1, lambda choose, mapped: Mwait()),
    (1, lambda choose, mapped: Rdpmc(choose(8))),
    (1, lambda choose, mapped: Invd()),
    (1, lambda choose, mapped: Wbinvd()),
    (1, lambda choose, mapped: Rdtsc()),
    (1, lambda choose, mapped: Rdtscp()),
    (1, lambda choose, mapped: Vmcall()),
    (1, lambda choose, mapped: Undefined(b"\x0f\x0b")),
    (2, lambda choose, mapped: Pause(choose(100_000))),
)  # fmt: skip
_WEIGHTED: Final = tuple(make for weight, make in _OTHERS for _ in range(weight))


def other(choose: Choose, mapped: Gpas) -> Operation:
    """An instruction that is no TDCALL; very seldom a triple fault."""
    if not choose(3000):
        return TripleFault()
    return pick(choose, _WEIGHTED)(choose, mapped)


def registers_of(operation: Tdcall) -> list[int]:
    """The registers that a TDCALL made by :func:`call_of` starts with; RSP as 0."""
    return [operation.registers.get(name, 0) for name in regs.NAMES]
