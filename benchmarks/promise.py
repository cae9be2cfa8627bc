"""A promise of an issue, and what was measured of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Promise:
    """``measured`` is to be at least ``promised``, or at most that if ``at_most``; both in ``unit``."""

    issue: int
    what: str
    measured: float
    promised: float
    unit: str = ""
    at_most: bool = False

    @property
    def kept(self) -> bool:
        """Whether it holds."""
        return self.measured <= self.promised if self.at_most else self.measured >= self.promised

    def figures(self) -> dict[str, Any]:
        """All of it in plain data."""
        return asdict(self) | {"kept": self.kept}


def figure(value: float, unit: str) -> str:
    """``value`` in three digits or more, with its unit."""
    if unit == "%":
        return f"{value:.0%}"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()
