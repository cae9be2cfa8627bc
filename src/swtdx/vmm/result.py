"""How a run of a TD ended, and what it took."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class EndReason(enum.Enum):
    """Why a run ended."""

    POWER_OFF = "the guest switched off"
    RESTART = "the guest asked for a restart"
    NOT_BOOTED = "the firmware found nothing to boot"
    HALTED = "every vCPU halted with interrupts disabled"
    FATAL_ERROR = "the guest reported a fatal error"
    TRIPLE_FAULT = "the guest triple-faulted"
    TD_FATAL = "the TDX module stopped the TD"
    MACHINE_CHECK = "a machine check: the TD's memory is no longer what it wrote"
    STUCK = "the guest makes no progress"
    BAD_ACCESS = "the guest used memory that it does not have"
    DEVICE_ACCESS = "the guest used a device's address as private memory"
    TIMEOUT = "the time was over"
    STOPPED = "stopped from outside"
    PAUSED = "paused: what it was run for is done"
    ERROR = "the hypervisor cannot go on"


#: Ends that are not the sign of a mistake anywhere.
_ORDERLY = frozenset({EndReason.POWER_OFF, EndReason.RESTART, EndReason.STOPPED})


@dataclass(slots=True)
class RunStats:
    """What a run took.  Counts are since the TD was built; times in seconds."""

    wall_seconds: float = 0.0
    #: TD exits by kind.
    exits: dict[str, int] = field(default_factory=dict)
    #: SEAMCALLs by leaf.
    seamcalls: dict[str, int] = field(default_factory=dict)
    #: TDVMCALLs by sub-function.
    tdvmcalls: dict[str, int] = field(default_factory=dict)
    #: Pages by what was done with them.
    pages: dict[str, int] = field(default_factory=dict)
    #: Wall time of each phase of a launch.
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class RunResult:
    """The end of a run: ``reason``, and in words what led there.

    ``exit_status`` is that of a command that was to run in the guest (0..255), None if there was none or
    it did not end.  ``missing_files`` are those that were to be brought out of the guest and did not come:
    their numbers, and why.
    """

    reason: EndReason
    detail: str = ""
    exit_status: int | None = None
    missing_files: dict[int, str] = field(default_factory=dict)
    stats: RunStats = field(default_factory=RunStats)

    @property
    def orderly(self) -> bool:
        """Whether the guest or the user wanted it so."""
        return self.reason in _ORDERLY

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value
