"""All of simulated memory at one moment, to see afterwards what a call has changed.

A line's content is the frame's if the cache holds it or it waits to be written back, and is in DRAM
otherwise.  A call that changes nothing may still bring lines into the cache; those had left it, and come
back with what DRAM says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import PAGE
from swtdx.machine.memory.pages import FILLED

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine

_WORDS: Final = 512
Array = npt.NDArray[Any]


class Change(NamedTuple):
    """Eight bytes that are not what they were.  ``hpa`` is their address."""

    hpa: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.hpa:#x}: {self.before:#018x} became {self.after:#018x}"


@dataclass(frozen=True, slots=True)
class _State:
    pages: Array
    frames: Array
    masks: dict[str, Array]


class MemorySnapshot:
    """The contents of every page that was ever used."""

    def __init__(self, machine: Machine) -> None:
        self._memory = machine.memory
        self._frames = np.frombuffer(machine.memory.frames, "<u8").reshape(-1, _WORDS)
        self._before = self._take()

    def _take(self) -> _State:
        table = self._memory.pages
        found = [first + np.flatnonzero(table.flags[first:end] & FILLED) for first, end in table.touched()]
        pages = np.concatenate(found) if found else np.zeros(0, np.int64)
        masks = {name: getattr(table, name)[pages].copy() for name in ("tags", "valids", "dirties", "pends")}
        return _State(pages, self._frames[pages], masks)

    def changes(self) -> list[Change]:
        """What has changed since."""
        before, after = self._before, self._take()
        if np.array_equal(before.pages, after.pages) and all(
            np.array_equal(before.masks[name], after.masks[name]) for name in before.masks
        ):
            different = np.argwhere(before.frames != after.frames).tolist()
            return [self._change(before, after, row, row, word) for row, word in different]
        return self._slowly(before, after)

    def _change(self, before: _State, after: _State, old: int, new: int, word: int) -> Change:
        at = int(after.pages[new]) * PAGE + int(word) * 8
        return Change(at, int(before.frames[old, word]), int(after.frames[new, word]))

    def _slowly(self, before: _State, after: _State) -> list[Change]:
        """Some page came into the cache or left it: compare line by line what had a content here."""
        found: list[Change] = []
        rows = {int(page): row for row, page in enumerate(before.pages)}
        for new, number in enumerate(after.pages.tolist()):
            old = rows.get(number)
            if old is None:
                # It had no content of its own: zeros, and they must still be zeros.
                found += [
                    Change(number * PAGE + int(word) * 8, 0, int(after.frames[new, word]))
                    for word in np.flatnonzero(after.frames[new])
                ]
                continue
            known = int(before.masks["valids"][old] | before.masks["pends"][old])
            now = int(after.masks["valids"][new] | after.masks["pends"][new])
            for word in np.flatnonzero(before.frames[old] != after.frames[new]):
                if (known & now) >> (int(word) // 8) & 1:
                    found.append(self._change(before, after, old, new, int(word)))
        return found
