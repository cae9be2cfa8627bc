"""What a fuzz run did, and how it failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaves import GUEST_LEAVES, HOST_LEAVES
from swtdx.proof.conformance.registry import status_text, statuses

__all__ = ["FuzzFailure", "FuzzReport", "coverage"]


class FuzzFailure(Exception):
    """A call did what no call may do.

    ``number`` is its place in the run (from 1): the same seed and side make it again.
    """

    def __init__(self, what: str, seed: int, side: str, number: int, call: str) -> None:
        self.what, self.seed, self.side, self.number, self.call = what, seed, side, number, call
        super().__init__(
            f"call {number}: {what}\n  {call}\n"
            f"  again: swtdx fuzz --seed {seed} --side {side} --calls {number}"
        )


@dataclass(slots=True)
class FuzzReport:
    """Counts of one run."""

    seed: int
    side: str
    calls: int = 0
    seamcalls: int = 0
    tdcalls: int = 0
    instructions: int = 0
    entries: int = 0
    nested: int = 0
    machines: int = 0
    machine_checks: int = 0
    checks: int = 0
    tds: int = 0
    seconds: float = 0.0
    #: (leaf, status without details) -> how often.
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        reached, declared_count = coverage(self)
        return {
            "seed": self.seed,
            "side": self.side,
            "calls": self.calls,
            "seamcalls": self.seamcalls,
            "tdcalls": self.tdcalls,
            "guest_instructions": self.instructions,
            "td_entries": self.entries,
            "seamcalls_while_a_guest_ran": self.nested,
            "machines": self.machines,
            "machine_checks": self.machine_checks,
            "invariant_checks": self.checks,
            "tds_created": self.tds,
            "seconds": round(self.seconds, 1),
            "statuses_reached": reached,
            "statuses_declared": declared_count,
            "statuses": {
                f"{leaf} {status_text(value)}": count
                for (leaf, value), count in sorted(self.statuses.items())
            },
            "exit_reasons": {str(reason): count for reason, count in sorted(self.exits.items())},
        }


def coverage(report: FuzzReport) -> tuple[int, int]:
    """How many (leaf, declared status) pairs were reached, of how many; leaves not implemented excepted."""
    names = [
        leaf.name for leaf in (*HOST_LEAVES.values(), *GUEST_LEAVES.values()) if BASE_MODULE.serves(leaf)
    ]
    wanted = {(name, value) for name in names for value in statuses(name)}
    got = set()
    for name, value in report.statuses:
        if (name, value) in wanted:
            got.add((name, value))
        elif (name, value & ~0xFFFF_FFFF) in wanted:
            got.add((name, value & ~0xFFFF_FFFF))
    return len(got), len(wanted)
