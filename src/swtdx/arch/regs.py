"""General-purpose register numbers, in x86 encoding order.

The same numbers are the TDX operand ids 0..15 (status-codes), the bits of a TDVMCALL register mask
and the order of the GPR fields in TDVPS, so they are declared here once.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from typing import Final

RAX: Final = 0
RCX: Final = 1
RDX: Final = 2
RBX: Final = 3
RSP: Final = 4
RBP: Final = 5
RSI: Final = 6
RDI: Final = 7
R8: Final = 8
R9: Final = 9
R10: Final = 10
R11: Final = 11
R12: Final = 12
R13: Final = 13
R14: Final = 14
R15: Final = 15

NAMES: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


def number(name: str) -> int:
    """The number of register ``name`` (any case).

    Raises:
        ValueError: there is no such register.
    """
    try:
        return NAMES.index(name.lower())
    except ValueError:
        raise ValueError(f"no general-purpose register is called {name!r}") from None


def put(gpr: MutableSequence[int], values: Mapping[str, int]) -> None:
    """Write ``values`` into the registers of ``gpr`` (x86 order) that are called so, as :func:`number` does.

    Raises:
        ValueError: there is no such register.
    """
    for name, value in values.items():
        gpr[number(name)] = value
