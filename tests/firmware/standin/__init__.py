"""A stand-in for the TDX Module in tests of the loader chain: it counts its calls."""

from __future__ import annotations

from typing import Any

from swtdx.arch.regs import RAX


class StandIn:
    """Constructed and called as the TDX Module is."""

    def __init__(self, machine: Any, seam_range: tuple[int, int]) -> None:
        self.machine = machine
        self.seam_range = seam_range
        self.calls = 0

    def __call__(self, lp: Any) -> None:
        """One SEAMCALL: leaf + 1 comes back in RAX."""
        self.calls += 1
        lp.gpr[RAX] += 1


class Broken:
    """A module that does not start."""

    def __init__(self, machine: Any, seam_range: tuple[int, int]) -> None:
        raise ValueError("broken on purpose")
