"""``swtdx run``: boots a kernel as a TD.  See :mod:`swtdx.cli.run_report` for the exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swtdx.arch.td_config import ATTR_DEBUG
from swtdx.arch.units import MIB
from swtdx.cli.boot_choice import TINY, Boot, Wishes, choose
from swtdx.cli.failures import complain, is_expected
from swtdx.cli.run_report import NOT_STARTED, complaint, document, exit_status
from swtdx.cli.seeds import Seed
from swtdx.cli.sizes import Size
from swtdx.guests.initramfs import Demo, Exec, Job, Shell

if TYPE_CHECKING:
    from swtdx.platform import PlatformConfig
    from swtdx.vmm.console import Console
    from swtdx.vmm.result import RunResult

#: What the machine has besides the guest's memory: firmware ranges, PAMTs (1/256 of all), Secure EPT and
#: control pages, and pages that the guest turns into shared ones.  It costs only what is touched.
_BESIDES: Final = 256 * MIB
_SMALLEST_MACHINE: Final = 512 * MIB
#: How much of a silent guest's messages is shown when it ends badly.
_LAST_LINES: Final = 12


@click.command()
@click.option("--kernel", type=click.Path(path_type=Path), help="A bzImage of your own, e.g. from /boot.")
@click.option("--initrd", type=click.Path(path_type=Path), help="An initrd of your own, for --kernel.")
@click.option("--append", default="", metavar="TEXT", help="Add this to the kernel command line.")
@click.option("--cmdline", metavar="TEXT", help="Replace the kernel command line by this.")
@click.option("--guest", "version", metavar="VERSION", help="A kernel of `swtdx guest fetch`, e.g. 6.12.")
@click.option("--tiny", is_flag=True, help="Boot the tiny guest that swtdx carries with it.")
@click.option("--force", is_flag=True, help="Boot a kernel that seems to have no TDX guest support.")
@click.option("--memory", type=Size(), default="512M", show_default=True, help="The guest's memory.")
@click.option("--vcpus", type=click.IntRange(1, 64), default=1, show_default=True, help="Virtual CPUs.")
@click.option("--cpus", type=click.IntRange(1, 32), help="The machine's CPUs [default: one a vCPU].")
@click.option("--exec", "command", metavar="CMD", help="Run CMD by sh -c; print its output, exit as it does.")
@click.option("--demo", is_flag=True, help="Show what a TD is and switch off, also on a terminal.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="End after.")
@click.option("--seed", type=Seed(), default="swtdx", show_default=True, help="The machine's identity: keys.")
@click.option("--debug", is_flag=True, help="A debug TD (ATTRIBUTES.DEBUG), into which the host can look.")
@click.option("--qgs", metavar="ADDRESS", help="Quotes from this service: unix:PATH or vsock:CID[:PORT].")
@click.option("--json", "json_file", metavar="FILE", help="Write a summary for programs; - is stdout.")
@click.option("--serial", "serial_file", metavar="FILE", help="The guest's serial port goes to FILE.")
@click.option("--log", "log_file", metavar="FILE", help="With --exec: the kernel's messages go to FILE.")
@click.option(
    "--trace", metavar="FILE", help="Write every SEAMCALL, VM exit, TDCALL ... as JSON lines (slow)."
)
@click.option("-v", "--verbose", is_flag=True, help="Say what boots, and what it took.")
def run(
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    cmdline: str | None,
    version: str | None,
    tiny: bool,
    force: bool,
    memory: int,
    vcpus: int,
    cpus: int | None,
    command: str | None,
    demo: bool,
    timeout: float | None,
    seed: bytes,
    debug: bool,
    qgs: str | None,
    json_file: str | None,
    serial_file: str | None,
    log_file: str | None,
    trace: str | None,
    verbose: bool,
) -> None:
    """Boot a Linux kernel, unmodified, as a trust domain.

    On a terminal: to a shell (Ctrl-A x leaves). Otherwise: show what a TD is, and switch off. With --exec:
    run one command, print its output and exit with its status.

    Exit status: 0, or the command's; 2 wrong use, 124 --timeout is over, 125 nothing was run, 126 the guest
    did not end in order.
    """
    _check_options(kernel, initrd, version, tiny, command, demo, log_file)
    started = time.perf_counter()
    try:
        job = _job(command, demo)
        wishes = Wishes(kernel, initrd, version, cmdline, append, force)
        boot = TINY if tiny else choose(wishes, job, os.environ.get("TERM", ""), complain)
        if verbose:
            complain(f"booting {boot.label}" + (f" with {boot.cmdline!r}" if boot.cmdline else ""))
        with _Files(serial_file, log_file) as files:
            config = platform_config(memory, vcpus, cpus, seed)
            result = _launch(boot, job, config, files, memory, vcpus, debug, timeout, qgs, trace)
    except Exception as error:
        # A traceback, if the user wants one, or if it is a mistake of ours.
        if not is_expected(error) and not isinstance(error, OSError):
            raise
        if os.environ.get("SWTDX_TRACEBACK", "") not in ("", "0"):
            raise
        complain(str(error))
        raise click.exceptions.Exit(NOT_STARTED) from None
    status = exit_status(result, command=command is not None)
    _report(result, status, files.last_words if command is not None else b"", command is not None, verbose)
    if json_file is not None:
        about = {
            "kernel": boot.label,
            "cmdline": boot.cmdline,
            "memory": memory,
            "vcpus": vcpus,
            "seed": seed.decode("utf-8", "backslashreplace"),
            "debug": debug,
            "command": command,
            "total_seconds": round(time.perf_counter() - started, 4),
        }
        _write_json(json_file, document(result, status, about))
    raise click.exceptions.Exit(status)


def _check_options(
    kernel: Path | None,
    initrd: Path | None,
    version: str | None,
    tiny: bool,
    command: str | None,
    demo: bool,
    log_file: str | None,
) -> None:
    """Refuse combinations that mean nothing."""
    if initrd is not None and kernel is None:
        raise click.UsageError("--initrd goes with --kernel")
    if initrd is not None and (command is not None or demo):
        raise click.UsageError("--exec and --demo need swtdx's own initramfs: leave out --initrd")
    if sum((kernel is not None, version is not None, tiny)) > 1:
        raise click.UsageError("--kernel, --guest and --tiny exclude each other")
    if tiny and (command is not None or demo):
        raise click.UsageError("the tiny guest runs no commands: leave out --exec and --demo")
    if command is not None and demo:
        raise click.UsageError("--exec and --demo exclude each other")
    if log_file is not None and command is None:
        raise click.UsageError("--log goes with --exec; without it the kernel's messages are on the console")


def _job(command: str | None, demo: bool) -> Job:
    if command is not None:
        return Exec(command)
    interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return Shell() if interactive and not demo else Demo()


#: What the QEMU engine has at most.  More CPUs than the host's pay off all the same: a vCPU that changes
#: CPU, or waits for one while another spins, costs a boot of three vCPUs a minute.
_MOST_CPUS: Final = 32


def platform_config(memory: int, vcpus: int, cpus: int | None, seed: bytes) -> PlatformConfig:
    """A machine that suits the guest: memory for it and for what it takes, a CPU for each vCPU."""
    from swtdx.machine.machine import MachineConfig
    from swtdx.platform import PlatformConfig

    machine_memory = max(memory + memory // 8 + _BESIDES, _SMALLEST_MACHINE)
    machine = MachineConfig(
        processors_per_package=cpus or min(vcpus, _MOST_CPUS),
        memory_bytes=-(-machine_memory // (2 * MIB)) * 2 * MIB,
        seed=seed,
    )
    return PlatformConfig(machine=machine, start_engine=True)


def _launch(
    boot: Boot,
    job: Job,
    config: PlatformConfig,
    files: _Files,
    memory: int,
    vcpus: int,
    debug: bool,
    timeout: float | None,
    qgs: str | None,
    trace: str | None,
) -> RunResult:
    from swtdx.cli.tracing import tracing
    from swtdx.platform import Platform
    from swtdx.quoting import Quoting

    with Platform.boot(config) as platform, tracing(platform, trace), Quoting(platform, qgs) as quotes:
        # Imported only now: QEMU comes up meanwhile.
        from swtdx.vmm.launch import LaunchConfig, launch
        from swtdx.vmm.td_params import TdConfig

        launch_config = LaunchConfig(
            kernel=boot.kernel,
            initrd=boot.initrd,
            cmdline=boot.cmdline,
            memory=memory,
            td=TdConfig(vcpus=vcpus, attributes=ATTR_DEBUG if debug else 0),
            timeout=timeout,
            exec_token=job.marker_token if isinstance(job, Exec) else None,
            log=files.log if isinstance(job, Exec) else None,
            serial=files.serial,
            quote_service=quotes,
            teardown=False,
        )
        return launch(platform.host, launch_config, _console(job))


def _console(job: Job) -> Console:
    from swtdx.vmm.console import Stream, user_console

    # Only a shell wants every key; Ctrl-C ends the others.
    return user_console() if isinstance(job, Shell) else Stream()


class _Files:
    """Where the guest's other outputs go; also keeps the last of its messages."""

    def __init__(self, serial: str | None, log: str | None) -> None:
        with contextlib.ExitStack() as opened:
            self._serial, self._log = (
                None if path is None else opened.enter_context(open(path, "wb", buffering=0))
                for path in (serial, log)
            )
            self._opened = opened.pop_all()
        self.serial = None if self._serial is None else self._write_serial
        self._tail = bytearray()

    def _write_serial(self, data: bytes) -> None:
        assert self._serial is not None
        self._serial.write(data)

    def log(self, data: bytes) -> None:
        """The kernel's messages beside a command's output."""
        self._tail += data
        del self._tail[:-4096]
        if self._log is not None:
            self._log.write(data)

    @property
    def last_words(self) -> bytes:
        """The last lines of them."""
        return b"\n".join(self._tail.replace(b"\r", b"").splitlines()[-_LAST_LINES:])

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _report(result: RunResult, status: int, last_words: bytes, command: bool, verbose: bool) -> None:
    trouble = complaint(result, command=command)
    if trouble is not None:
        if last_words:
            click.echo(_printable(last_words), err=True)
        complain(trouble)
    if verbose:
        stats = result.stats
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stats.phases.items())
        complain(f"{result}; exit status {status}")
        complain(f"{phases}; {sum(stats.seamcalls.values())} SEAMCALLs, {sum(stats.exits.values())} TD exits")


def _printable(data: bytes) -> str:
    """A terminal must not be at a guest's mercy."""
    text = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)


def _write_json(where: str, summary: dict[str, Any]) -> None:
    text = json.dumps(summary, indent=2) + "\n"
    if where == "-":
        click.echo(text, nl=False)
    else:
        Path(where).write_text(text)
