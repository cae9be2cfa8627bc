"""How a leaf ends early."""

from __future__ import annotations


class LeafFailed(Exception):
    """The leaf ends with ``status``; ``rcx`` and ``rdx`` carry extended error information."""

    __slots__ = ("rcx", "rdx", "status")

    def __init__(self, status: int, rcx: int = 0, rdx: int = 0) -> None:
        self.status = status
        self.rcx = rcx
        self.rdx = rdx


class TdExit(Exception):
    """A guest-side flow ends in a TD exit: the vCPU leaves to the hypervisor.

    ``case`` is the status in RAX[63:32]; ``reason`` goes to RAX[31:0].
    """

    __slots__ = ("case", "extended", "gpa", "intr_info", "qualification", "reason")

    def __init__(
        self,
        case: int,
        reason: int,
        qualification: int = 0,
        extended: int = 0,
        gpa: int = 0,
        intr_info: int = 0,
    ) -> None:
        self.case = case
        self.reason = reason
        self.qualification = qualification
        self.extended = extended
        self.gpa = gpa
        self.intr_info = intr_info


class RetryTdcall(Exception):
    """A TDCALL was interrupted: nothing is returned, RIP stays, the guest executes it again."""
