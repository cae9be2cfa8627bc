"""What TDH.VP.ENTER says when a TD exits for another reason than a TDVMCALL (tdcall.md §7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.exits import EPT_FETCH, EPT_WRITE, ExitReason, ExtendedQualification
from swtdx.vmm.errors import describe_status
from swtdx.vmm.result import EndReason

#: Exits after which the guest just goes on: something of the host's was due.
HARMLESS: Final = frozenset(
    {
        ExitReason.EXCEPTION_OR_NMI,
        ExitReason.EXTERNAL_INTERRUPT,
        ExitReason.INIT,
        ExitReason.OTHER_SMI,
        ExitReason.BUS_LOCK,
        ExitReason.NOTIFICATION,
    }
)
#: Statuses of TDH.VP.ENTER (upper half) after which the same entry is tried again.
RETRY: Final = frozenset(
    code >> 32
    for code in (
        st.TDX_OPERAND_BUSY,
        st.TDX_HOST_PRIORITY_BUSY_TIMEOUT,
        st.TDX_INTERRUPTED_RESUMABLE,
        st.TDX_INTERRUPTED_RESTARTABLE,
        st.TDX_CROSS_TD_FAULT,
    )
)
#: Exits in words, where the name of the exit reason would not do.
_WORDS: Final = {
    ExitReason.EXCEPTION_OR_NMI: "exception or NMI",
    ExitReason.OTHER_SMI: "SMI",
    ExitReason.EPT_VIOLATION: "EPT violation",
    ExitReason.EPT_MISCONFIGURATION: "EPT misconfiguration",
    ExitReason.TDCALL: "TDVMCALL",
}


def cause(reason: int) -> str:
    """A VM exit reason in words."""
    try:
        known = ExitReason(reason)
    except ValueError:
        return f"VM exit {reason}"
    words = _WORDS.get(known)
    if words is not None:
        return words
    return "INIT" if known is ExitReason.INIT else known.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class EptViolation:
    """Registers of an EPT violation exit: RCX, RDX and R8."""

    qualification: int
    extended: int
    gpa: int

    @property
    def kind(self) -> int:
        """Type of the extended exit qualification."""
        return self.extended & 0xF

    @property
    def accept_level(self) -> int | None:
        """The page size (0: 4 KiB, 1: 2 MiB) that TDG.MEM.PAGE.ACCEPT asked for, if it was that."""
        return self.extended >> 32 & 7 if self.kind == ExtendedQualification.ACCEPT else None

    @property
    def is_fetch(self) -> bool:
        """Whether it was an instruction fetch."""
        return bool(self.qualification & EPT_FETCH)

    def describe(self, shared_bit: int) -> str:
        """For people."""
        half = "shared" if self.gpa & shared_bit else "private"
        what = "fetch" if self.is_fetch else ("write" if self.qualification & EPT_WRITE else "read")
        return f"{what} at {half} GPA {self.gpa & ~shared_bit:#x}"


def end_of(rax: int) -> tuple[EndReason, str]:
    """How the run ends after a status of TDH.VP.ENTER that the guest does not survive."""
    code = st.code_of(rax)
    exit_reason = rax & 0xFFFF
    why = cause(exit_reason)
    if code == st.TDX_NON_RECOVERABLE_VCPU:
        if exit_reason == ExitReason.TRIPLE_FAULT:
            return EndReason.TRIPLE_FAULT, "an exception while a double fault was being delivered"
        return EndReason.TD_FATAL, f"the vCPU was disabled after: {why}"
    if code == st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE:
        return EndReason.MACHINE_CHECK, f"{describe_status(code)} after: {why}"
    if code in (st.TDX_NON_RECOVERABLE_TD, st.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE):
        return EndReason.TD_FATAL, f"{describe_status(code)} after: {why}"
    if code == st.TDX_TD_FATAL:
        return EndReason.TD_FATAL, describe_status(rax)
    if code == st.TDX_SUCCESS:
        return EndReason.ERROR, f"a TD exit that the hypervisor does not know: {why}"
    return EndReason.ERROR, f"TDH.VP.ENTER: {describe_status(rax)}"
