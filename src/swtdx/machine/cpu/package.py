"""State that the logical processors of one package share: package-scope MSRs."""

from __future__ import annotations

from swtdx.machine.cpu.msr_table import MSRS
from swtdx.machine.snapshot import SectionReader, SectionWriter


def save_msrs(values: dict[int, int], out: SectionWriter) -> None:
    """Write registers down: their addresses and values."""
    out.u32(len(values))
    for index in sorted(values):
        out.u32(index)
        out.u64(values[index])


def load_msrs(values: dict[int, int], section: SectionReader) -> None:
    """Make ``values`` what :func:`save_msrs` wrote.

    Raises:
        SnapshotError: there is no such register.
    """
    values.clear()
    for _ in range(section.u32()):
        index = section.u32()
        if index not in MSRS:
            raise section.fail(f"there is no MSR {index:#x}")
        values[index] = section.u64()


class Package:
    """One package."""

    def __init__(self, number: int) -> None:
        self.number = number
        #: Values of package-scope MSRs that were written, by address.
        self.msrs: dict[int, int] = {}

    def save_state(self, out: SectionWriter) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        save_msrs(self.msrs, out)

    def load_state(self, section: SectionReader) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        load_msrs(self.msrs, section)
