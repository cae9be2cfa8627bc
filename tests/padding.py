"""Comparing assembled code whatever its assembler fills gaps with.

A ``.balign`` in code makes NOPs, and which ones is the assembler's choice: those of
binutils 2.47 are not those of 2.40.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import Final

#: A run of whole NOPs, of one byte and of several (SDM volume 2, NOP; any number of operand-size prefixes).
NOPS: Final = re.compile(
    rb"(?:\x66*\x90|\x66*\x2e?\x0f\x1f(?:\x00|\x40\x00|\x44\x00\x00|\x80\x00{4}|\x84\x00{5}))*", re.DOTALL
)

_BALIGN: Final = re.compile(r"\.balign\s+\w+(?=\s*(?:#.*)?$)")

#: Two fill bytes, to see where the gaps are.  Not 0x90, of which the assembler makes longer NOPs.
_FILLS: Final = (0xCC, 0xF4)


def filled(source: str, fill: int) -> str:
    """``source`` with bytes ``fill`` in each gap that ``.balign`` makes, except in @nobits sections."""
    lines, nobits = [], False
    for line in source.splitlines(keepends=True):
        if line.lstrip().startswith(".section"):
            nobits = "@nobits" in line
        lines.append(line if nobits else _BALIGN.sub(lambda found: f"{found[0]}, {fill:#x}", line))
    return "".join(lines)


def assert_same_code(committed: bytes, assemble: Callable[[int], bytes]) -> None:
    """``committed`` is what ``assemble`` makes for any fill byte, but has whole NOPs in the gaps."""
    one, other = (assemble(fill) for fill in _FILLS)
    assert len(one) == len(other) == len(committed)
    differs = [index for index in range(len(one)) if one[index] != other[index]]
    masked = bytearray(committed)
    # Numbers that follow each other: their distance to a counter is the same.
    for _, group in groupby(enumerate(differs), key=lambda item: item[1] - item[0]):
        gap = [index for _, index in group]
        padding = committed[gap[0] : gap[-1] + 1]
        assert NOPS.fullmatch(padding), f"no NOPs at {gap[0]:#x}: {padding.hex(' ')}"
        for index in gap:
            masked[index] = _FILLS[0]
    first = next((index for index in range(len(one)) if one[index] != masked[index]), None)
    assert first is None, f"other bytes at {first:#x}; assemble it again"
