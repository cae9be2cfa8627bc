"""State that the logical processors of one package share: package-scope MSRs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine


class Package:
    """One package."""

    def __init__(self, number: int) -> None:
        self.number = number
        #: Values of package-scope MSRs that were written, by address.
        self.msrs: dict[int, int] = {}


_PACKAGES: Final[WeakKeyDictionary[Machine, dict[int, Package]]] = WeakKeyDictionary()


def package_of(machine: Machine, number: int) -> Package:
    """Package ``number`` of ``machine``; all its processors get the same object."""
    packages = _PACKAGES.setdefault(machine, {})
    if number not in packages:
        packages[number] = Package(number)
    return packages[number]
