"""One thing that an attacker tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that the attacker tried.

    ``answer`` is what it got: a status by name, a fault, or words.  ``status`` is RAX where a SEAMCALL
    answered.  ``refused`` says whether the attacker got nothing out of it.
    """

    what: str
    answer: str
    refused: bool
    status: int | None = None
    #: The operands of a SEAMCALL, by register.
    operands: tuple[tuple[str, int], ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        shown: dict[str, Any] = {"attempt": self.what, "answer": self.answer, "refused": self.refused}
        if self.status is not None:
            shown["status"] = f"{self.status:#018x}"
        if self.operands:
            shown["operands"] = {register: hex(value) for register, value in self.operands}
        return shown
