"""State that the logical processors of one package share: package-scope MSRs."""

from __future__ import annotations


class Package:
    """One package."""

    def __init__(self, number: int) -> None:
        self.number = number
        #: Values of package-scope MSRs that were written, by address.
        self.msrs: dict[int, int] = {}
