"""From an exception to one line on standard error and an exit status.

The rooms' error classes are known here by name: importing them would load half of swtdx to say that a file
is missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Final

import click

#: Wrong use or unusable input.
UNUSABLE: Final = 2
#: A mistake of ours (EX_SOFTWARE of sysexits.h).
INTERNAL: Final = 70
#: 128 + SIGINT and 128 + SIGPIPE, as a shell reports them.
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

#: What goes wrong with an output that is open already: no space, quota or size limit, a device's error.
_OUTPUT: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


#: Classes whose message is written for the user.
EXPECTED: Final = frozenset(
    {
        "swtdx.attestation.errors.AttestationError",
        "swtdx.cli.inputs.Unusable",
        "swtdx.devices.board.BoardError",
        "swtdx.devices.smbios.SmbiosError",
        "swtdx.firmware.errors.FirmwareError",
        "swtdx.guests.errors.GuestError",
        "swtdx.host.errors.HostError",
        "swtdx.machine.engine.protocol.EngineError",
        "swtdx.machine.memory.addresses.AddressError",
        "swtdx.machine.snapshot.SnapshotError",
        "swtdx.vmm.errors.VmmError",
    }
)


def is_expected(error: BaseException) -> bool:
    """Whether ``error`` tells the user what is wrong with what was given."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in EXPECTED for kind in type(error).__mro__)


def explanation(error: BaseException) -> str | None:
    """What an error says to the user; None if it is a mistake of swtdx's own."""
    if is_expected(error):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "there is not enough memory for that on this computer, or `ulimit -v` does not allow it"
    if isinstance(error, OSError):
        if error.errno == errno.EFBIG:
            return "a file would be larger than `ulimit -f` allows; the guest's memory counts as one"
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}"
    return None


def complain(message: str) -> None:
    """One message on standard error."""
    click.echo(f"swtdx: {message}", err=True)


def _forget_output() -> None:
    """Python would try to flush standard output again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: Exception) -> int:
    """Say what went wrong; the exit status."""
    if isinstance(error, BrokenPipeError):
        _forget_output()
        return BROKEN_PIPE
    if isinstance(error, click.UsageError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        complain(error.format_message())
        return error.exit_code
    if isinstance(error, OSError) and not error.filename and error.errno in _OUTPUT:
        _forget_output()
        complain(f"the output cannot be written: {error.strerror}")
        return UNUSABLE
    words = explanation(error)
    if words is not None:
        complain(words)
        return UNUSABLE
    if isinstance(error, ImportError):
        complain(f"this installation of swtdx is incomplete: {error}")
        return INTERNAL
    complain(
        f"internal error: {type(error).__name__}: {error}\n"
        "This is a mistake in swtdx. Run the command again with SWTDX_TRACEBACK=1 to see where it happened."
    )
    return INTERNAL
