"""The MSR file of one logical processor: RDMSR and WRMSR outside a TD."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from swtdx.arch.units import MASK64
from swtdx.machine.cpu.core import ProcessorCore
from swtdx.machine.cpu.model import ProcessorModel
from swtdx.machine.cpu.msr_table import MSRS, Msr, Scope
from swtdx.machine.cpu.package import Package, load_msrs, save_msrs
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.snapshot import SectionReader, SectionWriter

#: What reading an MSR gives, and what writing one stores (None: nothing); they may raise #GP.
ReadRule = Callable[["MsrFile", Msr], int]
WriteRule = Callable[["MsrFile", Msr, int], int | None]


class MsrFile:
    """RDMSR, WRMSR, and what only the hardware does (``peek``, ``poke``).

    ``values`` holds thread-scope registers, ``package.msrs`` package-scope ones; registers that were
    never written are in neither and read as their reset value.  The rules say, by the name in a register's
    row, what reading and writing it does besides (:mod:`swtdx.machine.cpu.msr_rules`).
    """

    def __init__(
        self,
        lp: ProcessorCore,
        package: Package,
        model: ProcessorModel,
        read_rules: Mapping[str, ReadRule],
        write_rules: Mapping[str, WriteRule],
    ) -> None:
        self._read_rules = read_rules
        self._write_rules = write_rules
        self.lp = lp
        self.package = package
        self.model = model
        self.values: dict[int, int] = {}
        #: Where registers are of which RDMSR only gives the contents, and what it gives if they were never
        #: written.
        self._plain = {
            index: (self._home(row), row.reset)
            for index, row in MSRS.items()
            if row.readable and row.rule not in read_rules
        }

    def save_state(self, out: SectionWriter) -> None:
        """See :class:`swtdx.machine.saved.Saved`.  The package's registers are the package's."""
        save_msrs(self.values, out)

    def load_state(self, section: SectionReader) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        load_msrs(self.values, section)

    # ------------------------------------------------------------------ what software does
    def read(self, index: int) -> int:
        """RDMSR of ``index``: 64 bits.

        Raises:
            GeneralProtection: the register does not exist, or is write-only.
        """
        plain = self._plain.get(index)
        if plain is not None:
            return plain[0].get(index, plain[1])
        row = MSRS.get(index)
        if row is None:
            raise GeneralProtection(f"RDMSR {index:#x}: this processor has no such MSR")
        if not row.readable:
            raise GeneralProtection(f"RDMSR {row.name} ({index:#x}): write-only")
        if row.rule:
            rule = self._read_rules.get(row.rule)
            if rule is not None:
                return rule(self, row)
        return self.stored(row, row.reset)

    def write(self, index: int, value: int) -> None:
        """WRMSR of a 64-bit ``value`` to ``index``.

        Raises:
            GeneralProtection: the register does not exist, is read-only or locked, a reserved bit
                would change, or the value means nothing.
            ValueError: ``value`` does not fit in 64 bits.
        """
        if not 0 <= value <= MASK64:
            raise ValueError(f"an MSR has 64 bits; {value:#x} does not fit")
        row = MSRS.get(index)
        if row is None:
            raise GeneralProtection(f"WRMSR {index:#x}: this processor has no such MSR")
        rule = self._write_rules.get(row.rule)
        if row.writable == 0 and row.readable:
            raise GeneralProtection(f"WRMSR {row.name} ({index:#x}) = {value:#x}: read-only")
        current = self.read(index) if row.readable and row.writable != MASK64 else 0
        if row.readable and (value ^ current) & ~row.writable & MASK64:
            changed = (value ^ current) & ~row.writable & MASK64
            raise GeneralProtection(
                f"WRMSR {row.name} ({index:#x}) = {value:#x}: reserved or read-only bits {changed:#x}"
            )
        if not row.readable and value & ~row.writable and row.writable:
            raise GeneralProtection(f"WRMSR {row.name} ({index:#x}) = {value:#x}: reserved bits")
        stored = value if rule is None else rule(self, row, value)
        if stored is not None:
            self._home(row)[index] = stored

    # ------------------------------------------------------------------ what hardware does
    def _home(self, row: Msr) -> dict[int, int]:
        return self.values if row.scope is Scope.THREAD else self.package.msrs

    def stored(self, row: Msr, default: int) -> int:
        """What the register holds, or ``default`` if it was never written."""
        return self._home(row).get(row.address, default)

    def peek(self, index: int) -> int:
        """The register's contents without RDMSR's rules.

        Raises:
            KeyError: there is no such MSR.
        """
        row = MSRS[index]
        return self._home(row).get(index, row.reset)

    def poke(self, index: int, value: int) -> None:
        """Set the register as microcode does, past locks and reserved bits.

        Raises:
            KeyError: there is no such MSR.
        """
        self._home(MSRS[index])[index] = value & MASK64

    def machine_tsc(self) -> int:
        """The counter before IA32_TSC_ADJUST."""
        return self.lp.machine.tsc()

    @property
    def in_seam(self) -> bool:
        """Whether the processor executes in SEAM VMX root mode."""
        return self.lp.in_seam

    @property
    def in_acm(self) -> bool:
        """Whether the processor executes an authenticated code module."""
        return self.lp.in_acm
