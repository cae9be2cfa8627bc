"""``swtdx host``: boots Linux as the hypervisor's operating system, in VMX root operation."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swtdx.arch.units import MIB
from swtdx.cli.deadline import Deadline
from swtdx.cli.failures import complain
from swtdx.cli.nothing_run import nothing_run
from swtdx.cli.outputs import Outputs
from swtdx.cli.run import LAST_LINES, Added
from swtdx.cli.run_report import ABNORMAL, TIMED_OUT
from swtdx.cli.seeds import Seed
from swtdx.cli.sizes import Size
from swtdx.cli.tracing import tracing

if TYPE_CHECKING:
    from swtdx.guests.added import Addition
    from swtdx.guests.kernel import KernelImage
    from swtdx.host.initramfs import HostModule
    from swtdx.host.job import HostResult
    from swtdx.host.kernel import HostKernel
    from swtdx.host.machine import HostMachine

#: Memory that a machine has at least and at most: the engine's QEMU puts more than that elsewhere.
_LEAST: Final = 256 * MIB
_MOST: Final = 2048 * MIB


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; names as in :func:`host`."""

    kernel: Path | None
    initrd: Path | None
    append: str
    memory: int
    cpus: int
    command: str | None
    added: tuple[Addition, ...]
    timeout: float | None
    seed: bytes
    json_file: str | None
    log_file: str | None
    trace: str | None
    verbose: bool


@click.group(invoke_without_command=True)
@click.option("--kernel", type=click.Path(path_type=Path), help="A bzImage [that of `swtdx host prepare`].")
@click.option("--initrd", type=click.Path(path_type=Path), help="An initrd of your own [swtdx's own].")
@click.option("--append", default="", metavar="TEXT", help="Add this to the kernel command line.")
@click.option("--memory", type=Size(), default="1G", show_default=True, help="The machine's memory.")
@click.option("--cpus", type=click.IntRange(1, 16), default=1, show_default=True, help="Its processors.")
@click.option("--exec", "command", metavar="CMD", help="Run CMD by sh -c; print its output, exit as it does.")
@click.option(
    "--add", "added", type=Added(), multiple=True, help="Put a file or folder into the host [in /root]."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="End after that time."
)
@click.option("--seed", type=Seed(), default="swtdx", show_default=True, help="The machine's identity: keys.")
@click.option("--json", "json_file", metavar="FILE", help="Write a summary for programs; - is stdout.")
@click.option("--log", "log_file", metavar="FILE", help="With --exec: the console goes to FILE.")
@click.option("--trace", metavar="FILE", help="Write every SEAMCALL, VM exit ... as JSON lines (slow).")
@click.option("-v", "--verbose", is_flag=True, help="Say what boots, and what it took.")
@click.pass_context
def host(context: click.Context, /, **given: Any) -> None:
    """Boot Linux, unmodified, as the operating system of the simulated machine.

    It runs in VMX root operation: its VMXON and SEAMCALL instructions reach the machine's TDX Module. With
    --exec: run one command in swtdx's own initramfs, print its output and exit with its status. Without: the
    console, and a shell on it.

    Exit status: 0, or the command's; 2 wrong use, 124 --timeout is over, 125 nothing was run, 126 the host
    did not end in an orderly way.
    """
    if context.invoked_subcommand is not None:
        return
    options = Options(**given)
    if options.initrd is not None and options.command is not None:
        raise click.UsageError("--exec needs swtdx's own initramfs: leave out --initrd")
    if options.initrd is not None and options.added:
        raise click.UsageError("--add goes with swtdx's own initramfs: leave out --initrd")
    if options.log_file is not None and options.command is None:
        raise click.UsageError("--log goes with --exec; without it the console is on standard output")
    if not _LEAST <= options.memory <= _MOST:
        raise click.UsageError(f"--memory: a host has {_LEAST // MIB} MiB to {_MOST // MIB} MiB")
    started = time.perf_counter()
    with nothing_run(), Outputs() as outputs:
        status = _run(options, outputs, started)
    raise click.exceptions.Exit(status)


@host.command("prepare")
@click.option("--suite", metavar="NAME", help="Source of this release, such as sid [the system's own].")
@click.option("--again", is_flag=True, help="Build even if the cache has one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def host_prepare(suite: str | None, again: bool, as_json: bool) -> None:
    """Build a kernel that can be a TDX host, once: some minutes.

    It comes from the distribution's source package of Linux (6.16 or later), with a small configuration, and
    is kept in the cache by the hash of both.
    """
    from swtdx.guests.progress import Bar
    from swtdx.host.kernel import prepare_kernel

    with Bar() as bar:
        kernel = prepare_kernel(suite, progress=bar, again=again)
    if as_json:
        about = {"version": kernel.version, "source": kernel.entry.details["source"]}
        click.echo(json.dumps(about | {"image": str(kernel.image)}, indent=2))
    else:
        click.echo(f"Linux {kernel.version} as a TDX host: {kernel.image}")


class _Console:
    """Passes the console on, or keeps its last lines."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self.last = b""

    def __call__(self, data: bytes) -> None:
        self.last = (self.last + data)[-4096:]
        if self._write is not None:
            self._write(data)


def _stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _run(options: Options, outputs: Outputs, started: float) -> int:
    """Everything; the exit status."""
    from swtdx.guests.kernel import load_kernel
    from swtdx.host.job import HostJob, run_host
    from swtdx.host.machine import HostConfig

    deadline = Deadline(options.timeout)
    trace = outputs.writer(options.trace, "the trace")
    summary = None if options.json_file in (None, "-") else outputs.open(options.json_file, "the summary")
    log = outputs.writer(options.log_file, "the console")
    with deadline.watched("the kernel was being read"):
        if options.kernel is not None:
            kernel, modules = load_kernel(options.kernel), []
        else:
            prepared = _prepared()
            kernel, modules = prepared.load(), prepared.modules()
        initrd = _initrd(options, modules)
    if options.verbose:
        complain(f"booting {kernel.release or kernel.name} on {options.cpus} processors")
    result = run_host(
        HostConfig(options.memory, options.cpus, options.seed),
        HostJob(kernel, initrd, options.append, options.command, deadline.left()),
        console=(console := _Console(_stdout if options.command is None else log)),
        output=_stdout,
        watched=lambda platform: tracing(platform, trace),
        started=_connect_terminal,
    )
    status = _status(result, options)
    _report(result, options, console.last if options.command is not None else b"")
    if options.json_file is not None:
        text = json.dumps(_document(result, status, options, kernel, started), indent=2) + "\n"
        if summary is None:
            click.echo(text, nl=False)
        else:
            summary.write(text.encode())
    return status or int(outputs.failed)


def _connect_terminal(machine: HostMachine) -> None:
    """Standard input to the host's console; on a terminal a line at a time."""
    import threading

    def forward() -> None:
        while data := os.read(0, 4096):
            machine.lines.send(0, data)

    if sys.stdin is not None and sys.stdin.isatty():
        threading.Thread(target=forward, name="swtdx terminal", daemon=True).start()


def _prepared() -> HostKernel:
    """The kernel that was built by ``swtdx host prepare``."""
    from swtdx.host.errors import HostError
    from swtdx.host.kernel import cached_kernel

    found = cached_kernel()
    if found is None:
        raise HostError(
            "no kernel for a host has been built yet: run `swtdx host prepare` (some minutes, once), or give"
            " one: --kernel FILE"
        )
    return found


def _initrd(options: Options, modules: Sequence[HostModule]) -> bytes:
    from swtdx.guests.added import entries
    from swtdx.guests.host import find_busybox
    from swtdx.host.initramfs import host_archive

    if options.initrd is not None:
        return options.initrd.read_bytes()
    return host_archive(find_busybox(), modules, options.command, entries(options.added))


def _status(result: HostResult, options: Options) -> int:
    if result.status is not None:
        return result.status
    if result.end.why == "timeout":
        return TIMED_OUT
    orderly = result.end.why in ("power off", "reset")
    return 0 if orderly and options.command is None else ABNORMAL


def _report(result: HostResult, options: Options, last: bytes) -> None:
    """Say how it ended, if that was not as it should be, or if the user wants to know."""
    end = result.end
    if result.status is None and options.command is not None:
        complain(f"the host ended ({end.why}) before the command had")
    elif end.why not in ("power off", "reset"):
        complain(f"the host did not end in order: {end.why}")
    elif not options.verbose:
        return
    if last and (result.status is None or end.why not in ("power off", "reset")):
        lines = last.decode(errors="replace").splitlines()[-LAST_LINES:]
        click.echo("\n".join(f"  {line}" for line in lines), err=True)
    if options.verbose:
        stops = ", ".join(f"{count} {name}" for name, count in end.stops.most_common())
        complain(f"{end.why} after {end.seconds:.2f} s; stops of the host's code: {stops}")


def _document(
    result: HostResult, status: int, options: Options, kernel: KernelImage, started: float
) -> dict[str, Any]:
    """The summary for programs; times in seconds."""
    return {
        "kernel": kernel.release or kernel.name,
        "memory_bytes": options.memory,
        "processors": options.cpus,
        "end": result.end.why.replace(" ", "-"),
        "exit_status": status,
        "command_status": result.status,
        "seconds": {"host": round(result.end.seconds, 3), "all": round(time.perf_counter() - started, 3)},
        "stops": {name.lower(): count for name, count in result.end.stops.most_common()},
    }
