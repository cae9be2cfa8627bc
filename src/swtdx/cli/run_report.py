"""How ``swtdx run`` tells that a run has ended: exit status, a report for people, one for programs.

====  =====================================================================================
 0    the guest switched off or restarted, or the user left (Ctrl-A x)
 n    with ``--exec``: the command's own exit status
 2    wrong use (a bad option)
124   ``--timeout`` is over
125   nothing ran: an unusable kernel, no QEMU, a machine that cannot be built
126   the guest did not end in order: panic, triple fault, no progress, a TD stopped by the module, or
      switched off before the command of ``--exec`` had ended
128+n ended by signal n (130 is Ctrl-C)
141   nobody reads the output any more
====  =====================================================================================

124 to 126 are those of timeout(1) and of container tools.  A command that ends with one of them is told
apart by ``--json``: only there ``command_status`` is set.
"""

from __future__ import annotations

import signal
from dataclasses import asdict
from typing import Any, Final

from swtdx.vmm.result import EndReason, RunResult

OK: Final = 0
TIMED_OUT: Final = 124
NOT_STARTED: Final = 125
ABNORMAL: Final = 126
_SIGNALLED: Final = 128
_CLOSED: Final = 141

#: What to try after each kind of end.
_ADVICE: Final = {
    EndReason.TIMEOUT: "Give more time with --timeout.",
    EndReason.DEVICE_ACCESS: (
        "A TD reaches devices at shared addresses, by #VE and TDVMCALL (MMIO), and its APIC as an x2APIC."
    ),
    EndReason.BAD_ACCESS: "Perhaps the guest needs more memory: see --memory.",
    EndReason.TRIPLE_FAULT: "The kernel's first messages may help: --append 'earlyprintk=serial loglevel=7'.",
    EndReason.FATAL_ERROR: "For the kernel's own messages: --append loglevel=7.",
    EndReason.ERROR: "This is a mistake in swtdx, or something that it does not model.",
}


def exit_status(result: RunResult, *, command: bool) -> int:
    """The exit status of ``swtdx run``; ``command`` says that a command was to be run."""
    if result.exit_status is not None:
        return result.exit_status
    if result.reason is EndReason.STOPPED:
        if result.detail in signal.Signals.__members__:
            return _SIGNALLED + signal.Signals[result.detail].value
        if "output was closed" in result.detail:
            return _CLOSED
        return OK
    if result.reason is EndReason.TIMEOUT:
        return TIMED_OUT
    return OK if result.orderly and not command else ABNORMAL


def complaint(result: RunResult, *, command: bool) -> str | None:
    """What to tell people about an end that they did not want; None if there is nothing to tell."""
    if result.exit_status is not None or result.reason is EndReason.STOPPED:
        return None
    if result.orderly:
        return f"{result.reason.value} before the command had ended" if command else None
    advice = _ADVICE.get(result.reason)
    return f"{result}\n{advice}" if advice else str(result)


def document(result: RunResult, status: int, about: dict[str, Any]) -> dict[str, Any]:
    """The summary for programs: ``about`` the run, how it ended, and what it took.

    Counts are since the TD was built; times in seconds.
    """
    return {
        **about,
        "end": {
            "reason": result.reason.name.lower().replace("_", "-"),
            "text": result.reason.value,
            "detail": result.detail,
            "orderly": result.orderly,
            "command_status": result.exit_status,
            "exit_status": status,
        },
        **asdict(result.stats),
    }
