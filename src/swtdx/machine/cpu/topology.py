"""How x2APIC ids divide into package and processor number.

One logical processor a core (hyper-threading off).  The width of the field below the package number is
what CPUID leaves 0xB and 0x1F report; it is at least 1 bit, because the TDX Module finds the scope of
WBINVD by comparing that width with the sharing of the last-level cache (``tdh_sys_init.c``).
Source: Intel SDM volume 3, section 10.9 ("Programming considerations for hardware multi-threading").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: The TDX Module knows at most this many packages (structures.md §1) ...
MAX_PACKAGES: Final = 8
#: ... and the P-SEAMLDR at most this many x2APIC ids (pseamldr_data.h, MAX_NUM_OF_LPS).
MAX_APIC_IDS: Final = 1024


@dataclass(frozen=True, slots=True)
class Topology:
    """``packages`` times ``per_package`` logical processors.

    Raises:
        ValueError: a number is out of range.
    """

    packages: int
    per_package: int

    def __post_init__(self) -> None:
        if not 1 <= self.packages <= MAX_PACKAGES:
            raise ValueError(f"a machine has 1 to {MAX_PACKAGES} packages, not {self.packages}")
        if self.per_package < 1 or self.packages << self.package_shift > MAX_APIC_IDS:
            raise ValueError(
                f"{self.packages} packages of {self.per_package} processors need x2APIC ids beyond "
                f"{MAX_APIC_IDS - 1}; the loader knows no more"
            )

    @property
    def package_shift(self) -> int:
        """Bits of an x2APIC id below the package number."""
        return max(1, (self.per_package - 1).bit_length())

    @property
    def ids_per_package(self) -> int:
        """x2APIC ids reserved for each package."""
        return 1 << self.package_shift

    @property
    def processors(self) -> int:
        """Logical processors in all."""
        return self.packages * self.per_package

    def apic_id(self, index: int) -> int:
        """x2APIC id of the machine's ``index``-th logical processor."""
        package, core = divmod(index, self.per_package)
        return package << self.package_shift | core
