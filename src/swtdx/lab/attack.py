"""What an attack is, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from swtdx.lab.attempt import Attempt
from swtdx.lab.bench import Bench


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack: ``goal`` is what the attacker wants.

    ``limit`` is set for an attack that TDX does not promise to stop, and says why; it counts as none that
    got through.
    """

    family: str
    name: str
    goal: str
    action: Callable[[Bench], None]
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an attack.  ``harm`` is what showed when the victim was asked afterwards."""

    attack: Attack
    attempts: tuple[Attempt, ...]
    harm: str = ""

    @property
    def refused(self) -> bool:
        """Whether the attacker has achieved nothing."""
        return not self.harm and bool(self.attempts) and all(attempt.refused for attempt in self.attempts)

    @property
    def breach(self) -> bool:
        """Whether a promise was broken."""
        return not self.refused and not self.attack.limit

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        shown: dict[str, Any] = {
            "family": self.attack.family,
            "attack": self.attack.name,
            "goal": self.attack.goal,
            "refused": self.refused,
            "attempts": [attempt.plain() for attempt in self.attempts],
        }
        if self.harm:
            shown["harm"] = self.harm
        if self.attack.limit:
            shown["limit"] = self.attack.limit
        return shown


#: Every attack, in the order in which they are declared.
ATTACKS: Final[list[Attack]] = []


def attack(family: str, goal: str, *, limit: str = "") -> Callable[[Callable[[Bench], None]], Attack]:
    """Declare a function to be an attack; its name, with blanks, is the attack's."""

    def declare(action: Callable[[Bench], None]) -> Attack:
        found = Attack(family, action.__name__.replace("_", " "), goal, action, limit)
        ATTACKS.append(found)
        return found

    return declare
