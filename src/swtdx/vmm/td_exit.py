"""A TD exit for those who want to look at it, or to answer it otherwise than the hypervisor would.

A hook is called with each exit before the hypervisor handles it, on the thread that runs the vCPU, which
stands still meanwhile.  What the hook leaves alone is handled as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import ghci, regs
from swtdx.arch import status as st
from swtdx.arch.exits import ExitReason
from swtdx.arch.leaf import Input
from swtdx.arch.regs import R8, R10, R11, RAX, RCX, RDX
from swtdx.vmm.exits import EptViolation, cause

_TDCALL: Final = int(ExitReason.TDCALL)
_EPT_VIOLATION: Final = int(ExitReason.EPT_VIOLATION)

#: Told of a TD exit; what it returns is not looked at.
Hook = Callable[["TdExit"], object]


class TdExit:
    """One return of TDH.VP.ENTER, as the hypervisor gets it.

    ``exit["R12"]`` is a register after the SEAMCALL, and can be assigned: what the registers hold when the
    hook returns goes into the guest at the next entry, as far as the module lets it (after a TDVMCALL, those
    that the guest's mask selects).

    :attr:`vcpu` is the vCPU's index.  A hook that calls neither :meth:`serve` nor :meth:`answer` nor
    :meth:`stop` has only looked.
    """

    __slots__ = ("_gpr", "_serve", "_stop", "goes_on", "handled", "vcpu")

    def __init__(
        self, vcpu: int, gpr: list[int], serve: Callable[[], bool], stop: Callable[[str], None]
    ) -> None:
        self.vcpu = vcpu
        self._gpr = gpr
        self._serve = serve
        self._stop = stop
        #: Whether the exit has been handled.
        self.handled = False
        #: Whether the vCPU is entered again at once.
        self.goes_on = True

    def __getitem__(self, register: str) -> int:
        """A general-purpose register by name, in any case.

        Raises:
            ValueError: there is no such register.
        """
        return self._gpr[regs.number(register)]

    def __setitem__(self, register: str, value: int) -> None:
        """Change a register; 64 bits of ``value`` count."""
        self._gpr[regs.number(register)] = value & (1 << 64) - 1

    @property
    def registers(self) -> tuple[int, ...]:
        """RAX to R15 as they are now, x86 order."""
        return tuple(self._gpr)

    # ------------------------------------------------------------------ what it is
    @property
    def status(self) -> int:
        """RAX: completion status in the upper half, VM exit reason in the lower."""
        return self._gpr[RAX]

    @property
    def reason(self) -> str:
        """The VM exit reason in words, or the name of the status where there was no VM exit."""
        status = self.status
        return st.name_of(status) if st.is_error(status) else cause(status & 0xFFFF)

    @property
    def tdvmcall(self) -> str | None:
        """The sub-function's name by the GHCI (``"MapGPA"``); None if it is no TDVMCALL.

        ``"vendor"`` is a call of a hypervisor's own interface, ``"unknown"`` an undefined number.
        """
        if self.status != _TDCALL:
            return None
        if self._gpr[R10]:
            return "vendor"
        call = ghci.CALLS.get(self._gpr[R11])
        return "unknown" if call is None else call.name

    @property
    def violation(self) -> EptViolation | None:
        """The EPT violation, if that is what it is."""
        if self.status & 0xFFFF != _EPT_VIOLATION or self.status >> 32:
            return None
        return EptViolation(self._gpr[RCX], self._gpr[RDX], self._gpr[R8])

    @property
    def port(self) -> int | None:
        """The I/O port that the guest asks for, if it does (IN and OUT)."""
        return self["R14"] if self.tdvmcall == "Instruction.IO" else None

    @property
    def mmio(self) -> int | None:
        """The GPA, with the shared bit, of the device's register that the guest asks for, if it does."""
        return self["R14"] if self.tdvmcall == "#VE.RequestMMIO" else None

    @property
    def is_read(self) -> bool:
        """Whether the guest reads a port or a device's register."""
        return (self.port is not None or self.mmio is not None) and self["R13"] == 0

    @property
    def operands(self) -> dict[str, int]:
        """A TDVMCALL's declared operands, by register."""
        if self.tdvmcall is None or self._gpr[R10]:
            return {}
        call = ghci.CALLS.get(self._gpr[R11])
        return {} if call is None else {one.register: self[one.register] for one in _registers(call.inputs)}

    def __str__(self) -> str:
        name = self.tdvmcall
        if name is not None:
            operands = "".join(f" {register}={value:#x}" for register, value in self.operands.items())
            return f"vCPU {self.vcpu}: TDVMCALL {name}{operands}"
        violation = self.violation
        where = "" if violation is None else f" at GPA {violation.gpa:#x}"
        return f"vCPU {self.vcpu}: {self.reason}{where}"

    # ------------------------------------------------------------------ what becomes of it
    def serve(self) -> None:
        """Have the hypervisor handle it now, so that its answer can be seen, or changed.  Once only."""
        if not self.handled:
            self.handled = True
            self.goes_on = self._serve()

    def answer(self, status: int = ghci.SUCCESS, **registers: int) -> None:
        """Answer a TDVMCALL in the hypervisor's place: R10 and other registers by name; it hears nothing.

        Raises:
            ValueError: it is no TDVMCALL, or there is no such register.
        """
        if self.tdvmcall is None and not self.handled:
            raise ValueError(f"{self.reason} is no TDVMCALL, and has no answer")
        self.handled = True
        self["R10"] = status
        for register, value in registers.items():
            self[register] = value

    def stop(self, why: str = "a hook ended the run") -> None:
        """End the TD's run: its vCPUs are not entered any more."""
        self.handled = True
        self.goes_on = False
        self._stop(why)


def _registers(inputs: tuple[Input, ...]) -> list[Input]:
    return [one for one in inputs if one.register.lower() in regs.NAMES]
