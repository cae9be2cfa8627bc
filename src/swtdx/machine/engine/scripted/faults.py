"""What goes wrong in a scripted guest: what the guest may catch, and what its author got wrong."""

from __future__ import annotations

from typing import Final

_NAMES: Final = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip


class GuestFault(Exception):
    """An exception that the processor delivers to the guest, raised where the script yielded.

    ``vector`` is its number; ``error_code`` is None for exceptions without one.  A script that catches
    it goes on behind the instruction; one that does not ends in a triple fault.
    """

    def __init__(self, vector: int, error_code: int | None = None) -> None:
        self.vector = vector
        self.error_code = error_code
        name = _NAMES.get(vector, f"exception {vector}")
        super().__init__(name if error_code is None else f"{name}({error_code:#x})")


class ScriptError(Exception):
    """The script asks for something that is no instruction; raised where it yielded."""
