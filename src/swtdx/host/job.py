"""One host from its kernel to its end, with a command in it or without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from swtdx.guests.exec_protocol import ExecStream, default_token
from swtdx.guests.kernel import KernelImage
from swtdx.host.lines import Sink
from swtdx.host.machine import CMDLINE, HostConfig, HostEnd, HostMachine
from swtdx.platform import Platform


@dataclass(frozen=True, slots=True)
class HostJob:
    """What to boot: ``append`` is added to the command line; ``command`` is what the initrd runs."""

    kernel: KernelImage
    initrd: bytes
    append: str = ""
    command: str | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class HostResult:
    """How it ended, and the command's status, if it has ended."""

    end: HostEnd
    status: int | None


def run_host(
    config: HostConfig,
    job: HostJob,
    *,
    console: Sink,
    output: Sink,
    watched: Callable[[Platform], AbstractContextManager[None]] | None = None,
    started: Callable[[HostMachine], None] | None = None,
) -> HostResult:
    """Boot it and wait until it has ended.

    Args:
        console: takes the console's bytes; ``output`` those of the command.
        watched: is entered while the host runs (a trace).
        started: is told of the machine before it runs.

    Raises:
        FirmwareError, EngineError, HostError: it could not be started, or QEMU failed.
    """
    stream = ExecStream(default_token(job.command or ""))

    def second(data: bytes) -> None:
        part = stream.feed(data)
        if part:
            output(part)

    with HostMachine(config, (console, second)) as machine:
        if started is not None:
            started(machine)
        with nullcontext() if watched is None else watched(machine.platform):
            cmdline = f"{CMDLINE} {job.append}".strip()
            end = machine.run(job.kernel, job.initrd, cmdline, job.timeout)
        machine.lines.close()
        rest = stream.finish()
        if rest:
            output(rest)
    return HostResult(end, stream.status)
