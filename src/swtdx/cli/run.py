"""``swtdx run``: boots a kernel as a TD.  See :mod:`swtdx.cli.run_report` for the exit statuses."""

from __future__ import annotations

import gc
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swtdx.cli.deadline import Deadline
from swtdx.cli.device_options import device_options
from swtdx.cli.failures import complain
from swtdx.cli.gdb_options import GdbWishes, gdb_options
from swtdx.cli.nothing_run import nothing_run
from swtdx.cli.outputs import OutputFile, Outputs
from swtdx.cli.quote_service import ToldQuotes
from swtdx.cli.run_report import complaint, document, exit_status
from swtdx.cli.seeds import Seed
from swtdx.cli.sizes import Size
from swtdx.cli.starting import Starting
from swtdx.cli.td_options import TdWishes, td_options
from swtdx.cli.warm_options import WarmWishes, warm_options
from swtdx.guests.added import Addition
from swtdx.guests.choice import TINY, Boot, Wishes, choose
from swtdx.guests.errors import GuestError
from swtdx.guests.initramfs import Demo, Exec, Job, Serve, Shell

if TYPE_CHECKING:
    import socket

    from swtdx.arch.features import ModuleFeatures
    from swtdx.cli.saving import Saving
    from swtdx.guests.tdvf_boot import TdvfImage
    from swtdx.vmm.command_io import CommandIo
    from swtdx.vmm.console import Console
    from swtdx.vmm.firmware_boot import FirmwareBoot
    from swtdx.vmm.launch import Launch
    from swtdx.vmm.peripherals.config import Peripherals
    from swtdx.vmm.result import RunResult

#: How much of a silent guest's messages is shown when it ends badly.
LAST_LINES: Final = 12


class Added(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``SRC[:DST]`` of --add."""

    name = "src[:dst]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Addition:
        """What to add, and where."""
        if isinstance(value, Addition):
            return value
        try:
            return Addition.parse(str(value))
        except GuestError as error:
            self.fail(str(error), param, ctx)


class Brought(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``PATH:FILE`` of --get."""

    name = "path:file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """A path in the guest, and a file of ours."""
        if isinstance(value, tuple):
            return value
        path, colon, file = str(value).partition(":")
        if not path or not colon or not file:
            self.fail(f"{value!r}: give a path in the guest, a colon, and a file here", param, ctx)
        return path, file


class Part(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A model of processor, by name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name."""
        # Only now: this takes the tables of what processors have.
        from swtdx.machine.cpu.model import find_model

        try:
            return find_model(str(value)).name
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Module(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """What the TDX module offers, by name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ModuleFeatures:
        """The features."""
        from swtdx.arch.features import MODULES, ModuleFeatures

        if isinstance(value, ModuleFeatures):
            return value
        if value not in MODULES:
            self.fail(f"there is no module {value!r}: choose one of {', '.join(sorted(MODULES))}", param, ctx)
        return MODULES[value]


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; names as in :func:`run`."""

    firmware: Path | None
    kernel: Path | None
    initrd: Path | None
    append: str
    cmdline: str | None
    version: str | None
    tiny: bool
    force: bool
    memory: int
    vcpus: int
    cpus: int | None
    model: str | None
    module: ModuleFeatures | None
    command: str | None
    demo: bool
    added: tuple[Addition, ...]
    brought: tuple[tuple[str, str], ...]
    merge_stderr: bool
    no_stdin: bool
    timeout: float | None
    restart: bool
    seed: bytes
    debug: bool
    td: TdWishes
    warm: WarmWishes
    gdb: GdbWishes
    peripherals: Peripherals
    qgs: str | None
    json_file: str | None
    serial_file: str | None
    log_file: str | None
    firmware_log: str | None
    trace: str | None
    verbose: bool


@click.command()
@click.option(
    "--firmware",
    type=click.Path(path_type=Path),
    help="Start with a TDVF image, as QEMU's -bios does; it starts the kernel.",
)
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
@click.option(
    "--model", type=Part(), help="Its processors: sierra-forest (default), sapphire-rapids, emerald-rapids."
)
@click.option("--module", type=Module(), help="What the TDX module offers: all (base), or as Intel's 1.5.01.")
@click.option("--exec", "command", metavar="CMD", help="Run CMD by sh -c; print its output, exit as it does.")
@click.option("--demo", is_flag=True, help="Show what a TD is and switch off, also on a terminal.")
@click.option(
    "--add", "added", type=Added(), multiple=True, help="Put a file or folder into the guest [in /root]."
)
@click.option(
    "--get", "brought", type=Brought(), multiple=True, help="With --exec: bring a file out afterwards."
)
@click.option("--merge-stderr", is_flag=True, help="With --exec: CMD's standard error to standard output.")
@click.option("-n", "--no-stdin", is_flag=True, help="With --exec: CMD gets no input from here.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after, whatever happens.",
)
@click.option("--restart", is_flag=True, help="When the guest restarts, go on with a new TD [end, status 0].")
@click.option("--seed", type=Seed(), default="swtdx", show_default=True, help="The machine's identity: keys.")
@click.option("--debug", is_flag=True, help="A debug TD (ATTRIBUTES.DEBUG), into which the host can look.")
@td_options
@device_options
@warm_options
@gdb_options
@click.option("--qgs", metavar="ADDRESS", help="Quotes from this service: unix:PATH or vsock:CID[:PORT].")
@click.option("--json", "json_file", metavar="FILE", help="Write a summary for programs; - is stdout.")
@click.option("--serial", "serial_file", metavar="FILE", help="The guest's serial port goes to FILE.")
@click.option("--log", "log_file", metavar="FILE", help="With --exec: the kernel's messages go to FILE.")
@click.option(
    "--firmware-log", metavar="FILE", help="What the firmware prints at its debug port (0x402) goes to FILE."
)
@click.option(
    "--trace", metavar="FILE", help="Write every SEAMCALL, VM exit, TDCALL ... as JSON lines (slow)."
)
@click.option("-v", "--verbose", is_flag=True, help="Say what boots, and what it took.")
def run(**given: Any) -> None:
    """Boot a Linux kernel, unmodified, as a trust domain.

    On a terminal: to a shell (Ctrl-A x leaves). Otherwise: show what a TD is, and switch off. With --exec:
    run one command with the standard input given here (unless that is a terminal), print its output and
    exit with its status. With --firmware and --disk and no word on a kernel: what is on the disk.

    Exit status: 0, or the command's; 2 wrong use, 124 --timeout is over, 125 nothing was run, 126 the guest
    did not end in an orderly way.
    """
    options = Options(**given)
    _check_options(options)
    given = {name: getattr(options, name) for name in Options.__slots__}
    options.warm.check(given)
    options.gdb.check(given)
    started = time.perf_counter()
    with nothing_run(), Outputs() as outputs:
        status = _run(options, outputs, started)
    raise click.exceptions.Exit(status)


def _check_options(options: Options) -> None:
    """Refuse combinations that mean nothing."""
    command = options.command is not None
    if options.initrd is not None and options.kernel is None:
        raise click.UsageError("--initrd goes with --kernel")
    if options.initrd is not None and options.demo:
        raise click.UsageError("--demo needs swtdx's own initramfs: leave out --initrd")
    if options.initrd is not None and options.added and not command:
        raise click.UsageError("--add goes with swtdx's own initramfs, or with --exec")
    if sum((options.kernel is not None, options.version is not None, options.tiny)) > 1:
        raise click.UsageError("--kernel, --guest and --tiny exclude each other")
    if options.tiny and (command or options.demo or options.added):
        raise click.UsageError(
            "the tiny guest runs no commands and has no files: leave out --exec, --demo and --add"
        )
    if command and options.demo:
        raise click.UsageError("--exec and --demo exclude each other")
    if options.firmware is not None and options.tiny:
        raise click.UsageError("the tiny guest is started without firmware: leave out --firmware or --tiny")
    if options.firmware_log is not None and options.firmware is None:
        raise click.UsageError("--firmware-log goes with --firmware")
    if options.log_file is not None and not command:
        raise click.UsageError("--log goes with --exec; without it the kernel's messages are on the console")
    for name, wanted in (
        ("--get", bool(options.brought)),
        ("--merge-stderr", options.merge_stderr),
        ("--no-stdin", options.no_stdin),
    ):
        if wanted and not command:
            raise click.UsageError(f"{name} goes with --exec")


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where what comes of a run goes."""

    messages: _Messages
    serial: Callable[[bytes], None] | None
    firmware_log: Callable[[bytes], None] | None
    trace: Callable[[bytes], None] | None
    summary: OutputFile | None
    brought: list[Callable[[bytes], None]]

    @classmethod
    def of(cls, options: Options, outputs: Outputs) -> _Ends:
        """As the user wants them; opened, so that a mistake costs no time."""
        return cls(
            _Messages(outputs.writer(options.log_file, "the log")),
            outputs.writer(options.serial_file, "the serial port's output"),
            outputs.writer(options.firmware_log, "the firmware's log"),
            outputs.writer(options.trace, "the trace"),
            None if options.json_file in (None, "-") else outputs.open(options.json_file, "the summary"),
            [
                outputs.writer(file, f"{path} of the guest", empty=False) or _nowhere
                for path, file in options.brought
            ],
        )


def _run(options: Options, outputs: Outputs, started: float) -> int:
    """Everything; the exit status.

    Raises:
        TimeIsOver: before the guest ran.
        Exception: nothing was run; see :func:`swtdx.cli.failures.explanation`.
    """
    deadline = Deadline(options.timeout)
    job = _job(options)
    ends = _Ends.of(options, outputs)
    if options.warm.source is not None:
        result, about = _go_on(options.warm.source, options, ends, deadline)
    else:
        result, about = _boot(options, job, ends, deadline)
    command = about["command"] is not None
    status = exit_status(result, command=command)
    _report(result, status, ends.messages.last_words if command else b"", command, options.verbose)
    status = _report_missing(result, status, options)
    if options.json_file is not None:
        about["total_seconds"] = round(time.perf_counter() - started, 4)
        text = json.dumps(document(result, status, about), indent=2) + "\n"
        if ends.summary is None:
            click.echo(text, nl=False)
        else:
            ends.summary.write(text.encode())
    return status or int(outputs.failed)


def _boot(options: Options, job: Job, ends: _Ends, deadline: Deadline) -> tuple[RunResult, dict[str, Any]]:
    """Boot a TD: how it ended, and what it was."""
    wishes = Wishes(
        options.kernel, options.initrd, options.version, options.cmdline, options.append, options.force,
        options.added, options.peripherals.kinds, tuple(share.tag for share in options.peripherals.shares),
    )  # fmt: skip
    warm = options.warm
    kept = warm.keep and isinstance(job, Exec) and _can_be_kept(options)
    # A guest that is to be saved waits for requests.
    serves = kept or (warm.target is not None and warm.at is None and warm.when is None)
    booted: Job = Serve() if serves else job
    with deadline.watched("the kernel was being fetched or read"):
        firmware = _firmware(options.firmware)
        boot = TINY if options.tiny else _disk(options)
        boot = boot or choose(wishes, booted, os.environ.get("TERM", ""), complain)
    target = warm.target
    if kept:
        target, gone_on = _kept(options, boot, ends, deadline)
        if gone_on is not None:
            return gone_on
    if options.verbose:
        if firmware is not None:
            complain(f"firmware {options.firmware}, MRTD {firmware.measure().digest().hex()}")
        complain(f"booting {boot.label}" + (f" with {boot.cmdline!r}" if boot.cmdline else ""))
    with Starting(boot.label) as starting:
        command = _command_io(options, booted, starting, ends.brought)
        saving = None
        if target is not None:
            from swtdx.cli.saving import Saving

            first = options.command if serves and not kept else None
            token = job.marker_token if isinstance(booted, Exec) and isinstance(job, Exec) else ""
            saving = Saving(target, warm, boot.label, boot.cmdline, options.memory, first, token)
        # Until the guest runs next to nothing is thrown away, and looking for it would cost 20 ms.
        gc.disable()
        try:
            result, quotes = _launch(
                _Started(boot, firmware, ends.firmware_log),
                booted, options, command, ends, deadline, starting, saving,
            )  # fmt: skip
        finally:
            gc.enable()
    if kept and target is not None and target.exists():
        return _go_on(target, options, ends, deadline)
    about = _about(options, boot.label, boot.cmdline) | {"quotes": quotes}
    if serves:
        # What the user wanted to know of the command has been said, unless it failed.
        about["command"] = None
    return result, about


def _can_be_kept(options: Options) -> bool:
    """Whether --warm has a snapshot for such a run; if not, it is told why."""
    for name, given in (
        ("--firmware", options.firmware is not None),
        ("a device of its own", options.peripherals != type(options.peripherals)()),
        ("--restart", options.restart),
        ("--gdb", options.gdb.address is not None),
    ):
        if given:
            if options.warm.asked or options.verbose:
                complain(f"a cold boot: with {name} no snapshot is kept")
            return False
    return True


def _kept(
    options: Options, boot: Boot, ends: _Ends, deadline: Deadline
) -> tuple[Path, tuple[RunResult, dict[str, Any]] | None]:
    """--warm: where the snapshot is; and the run, if there is one already that can be used."""
    from swtdx.cli.saving import cached, snapshot_key, tidy
    from swtdx.machine.snapshot import SnapshotError

    kernel = b"" if boot.kernel is None else boot.kernel.data
    key = snapshot_key(
        kernel, boot.initrd, boot.cmdline, options.memory, options.vcpus, options.cpus, options.model,
        options.module, options.seed, options.debug, options.td,
    )  # fmt: skip
    path = cached(key)
    if path.exists():
        try:
            result = _go_on(path, options, ends, deadline)
        except SnapshotError as error:
            complain(f"{error}\nSo this is a cold boot, and a new snapshot.")
        else:
            tidy(path)
            return path, result
    elif options.verbose:
        complain(f"a cold boot, which leaves a snapshot for the next time: {path}")
    return path, None


def _go_on(path: Path, options: Options, ends: _Ends, deadline: Deadline) -> tuple[RunResult, dict[str, Any]]:
    """Go on with a saved TD: how it ended, and what it was."""
    from swtdx.cli.going_on import GoingOn, check
    from swtdx.warm import SavedTd

    gc.disable()
    try:
        with SavedTd(path) as saved:
            about = saved.about
            check(about, path, options.command)
            if options.verbose:
                age = time.time() - about.saved_at
                complain(f"warm: going on with {about.label} out of {path}, saved {age:.0f} s ago")
            with Starting(about.label, "going on with {} in a trust domain ...") as starting:
                token = about.token or (None if options.command is None else "warm")
                io = None if token is None else _streams(options, token, starting, ends.brought)
                going_on = GoingOn(
                    saved, options.command, io, tuple(path for path, _ in options.brought),
                    ends.messages.take, ends.serial, ends.trace, options.qgs,
                )  # fmt: skip
                shell = isinstance(_job(options), Shell)
                result, quotes = going_on.run(
                    lambda: _console(Shell() if shell else Demo(), starting), deadline
                )
    finally:
        gc.enable()
    known = _about(options, about.label, about.cmdline)
    known |= {"snapshot": str(path), "quotes": quotes, "memory": about.memory, "vcpus": about.vcpus}
    if about.token:
        known["command"] = "the command that was saved at work"
    return result, known


def _disk(options: Options) -> Boot | None:
    """What the firmware finds on the disk, where nothing is said of a kernel or of what to do in the guest.

    As with QEMU: firmware that is given no kernel looks for one itself.
    """
    kernel = (options.kernel, options.version, options.cmdline, options.append or None)
    job = (options.command, options.demo or None, options.added or None)
    disks = options.peripherals.disks
    if options.firmware is None or not disks or any(word is not None for word in (*kernel, *job)):
        return None
    return Boot(None, b"", "", f"the disk {disks[0].path.name}")


def _firmware(path: Path | None) -> TdvfImage | None:
    """The firmware that the user gave, checked."""
    if path is None:
        return None
    from swtdx.guests.tdvf_boot import load_firmware

    return load_firmware(path)


def _nowhere(_data: bytes) -> None:
    """Takes what nobody wants."""


def _about(options: Options, label: str, cmdline: str) -> dict[str, Any]:
    return {
        "firmware": None if options.firmware is None else str(options.firmware),
        "kernel": label,
        "cmdline": cmdline,
        "memory": options.memory,
        "vcpus": options.vcpus,
        "seed": options.seed.decode("utf-8", "backslashreplace"),
        "debug": options.debug,
        "command": options.command,
    }


def _job(options: Options) -> Job:
    if options.command is not None:
        return Exec(options.command, get=tuple(path for path, _ in options.brought))
    interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return Shell() if interactive and not options.demo else Demo()


def _command_io(
    options: Options, job: Job, starting: Starting, brought: list[Callable[[bytes], None]]
) -> CommandIo | None:
    """Where the command's streams lead; None if there is none."""
    return _streams(options, job.marker_token, starting, brought) if isinstance(job, Exec) else None


def _streams(
    options: Options, token: str, starting: Starting, brought: list[Callable[[bytes], None]]
) -> CommandIo:
    """A command's streams, which lead here."""
    from swtdx.vmm.command_io import CommandIo, to_descriptor

    return CommandIo(
        token,
        starting.before(to_descriptor(1)),
        None if options.merge_stderr else starting.before(to_descriptor(2)),
        None if options.no_stdin else _input(),
        brought,
    )


def _input() -> int | None:
    """Standard input, if it is worth reading: a terminal is not, and neither is /dev/null."""
    try:
        about = os.fstat(0)
        if os.isatty(0) or (stat.S_ISCHR(about.st_mode) and about.st_rdev == os.stat(os.devnull).st_rdev):
            return None
    except OSError:
        return None
    return 0


@dataclass(frozen=True, slots=True)
class _Started:
    """What is started: a kernel, perhaps by firmware."""

    boot: Boot
    firmware: TdvfImage | None
    firmware_log: Callable[[bytes], None] | None

    def by_firmware(self, memory: int) -> FirmwareBoot | None:
        """How, if by firmware."""
        if self.firmware is None:
            return None
        from swtdx.vmm.firmware_boot import FirmwareBoot

        boot = self.boot
        return FirmwareBoot(
            self.firmware, memory, boot.kernel, boot.initrd, boot.cmdline, log=self.firmware_log
        )


def _launch(
    started: _Started,
    job: Job,
    options: Options,
    command: CommandIo | None,
    ends: _Ends,
    deadline: Deadline,
    starting: Starting,
    saving: Saving | None,
) -> tuple[RunResult, dict[str, Any]]:
    """Run the TD: how it ended, and how its quote service did."""
    from swtdx.cli.tracing import tracing
    from swtdx.platform import Platform, platform_config
    from swtdx.quoting import Quoting
    from swtdx.vmm.peripherals.attach import attach

    def told(message: str) -> None:
        starting.erase()
        complain(message)

    config = platform_config(
        options.memory, options.vcpus, options.cpus, options.seed, options.model, options.module
    )
    debugged = None
    if options.gdb.address is not None:
        from swtdx.gdb.serve import listen

        debugged = listen(options.gdb.address)
        if options.gdb.wait:
            told(f"waiting for GDB at {options.gdb.address}: target remote {options.gdb.address}")
    building = deadline.watched("the TD was being built")
    with (
        Platform.boot(config) as platform,
        tracing(platform, ends.trace),
        attach(options.peripherals) as attached,
    ):
        quotes = ToldQuotes(Quoting(platform, options.qgs), options.qgs, told)
        # Imported only now: QEMU comes up meanwhile.
        from swtdx.vmm.launch import Launch, LaunchConfig
        from swtdx.vmm.result import EndReason
        from swtdx.vmm.td_params import TdConfig

        firmware = started.by_firmware(options.memory)
        launch_config = LaunchConfig(
            kernel=started.boot.kernel,
            initrd=started.boot.initrd,
            cmdline=started.boot.cmdline,
            memory=options.memory,
            boot=firmware,
            peripherals=attached,
            must_boot=firmware is not None,
            td=TdConfig(
                vcpus=options.vcpus,
                rbp_mod=firmware is not None and firmware.passes_rbp,
                **options.td.settings(debug=options.debug),
            ),
            command=command,
            log=ends.messages.take if command is not None else None,
            serial=ends.serial,
            ports=() if saving is None else saving.ports,
            quote_service=quotes,
            teardown=options.restart,
        )
        console = _console(job, starting)
        if saving is not None:
            console = saving.listening(console)
        with building:
            launch = Launch(platform.host, launch_config, console)
        # What there is now stays to the end: collections need not look at it while the guest runs.
        gc.freeze()
        gc.enable()
        try:
            if saving is not None:
                result = launch.finish(saving.run(platform, launch, deadline))
                result.exit_status = saving.failed
                return result, quotes.document()
            if debugged is not None:
                return launch.finish(_under_gdb(launch, debugged, options, deadline)), quotes.document()
            result = launch.finish(launch.run(deadline.left()))
            while options.restart and result.reason is EndReason.RESTART and result.exit_status is None:
                # A TD cannot be reset: as on real hosts another one takes its place.
                told("the guest restarts: it is a new TD now")
                launch = Launch(launch.hypervisor, launch_config, console)
                result = launch.finish(launch.run(deadline.left()))
            return result, quotes.document()
        except BaseException:
            launch.close()
            raise


def _under_gdb(launch: Launch, server: socket.socket, options: Options, deadline: Deadline) -> RunResult:
    """Run the TD with GDB looking on, if it comes."""
    from swtdx.cli.debugging import Monitor
    from swtdx.gdb.serve import Debugging

    debugging = Debugging(launch, server, Monitor(launch))
    return debugging.run(deadline.left, wait=options.gdb.wait)


def _console(job: Job, starting: Starting) -> Console:
    from swtdx.vmm.console import Stream, user_console

    # Only a shell wants every key; Ctrl-C ends the others.
    return starting.console(user_console() if isinstance(job, Shell) else Stream())


class _Messages:
    """The kernel's messages beside a command's output; keeps the last of them."""

    def __init__(self, file: Callable[[bytes], None] | None) -> None:
        self._file = file
        self._tail = bytearray()

    def take(self, data: bytes) -> None:
        """More of them."""
        self._tail += data
        del self._tail[:-4096]
        if self._file is not None:
            self._file(data)

    @property
    def last_words(self) -> bytes:
        """The last lines."""
        return b"\n".join(self._tail.replace(b"\r", b"").splitlines()[-LAST_LINES:])


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


def _report_missing(result: RunResult, status: int, options: Options) -> int:
    """Tell of files that did not come; the exit status, which is not 0 then."""
    for number, why in sorted(result.missing_files.items()):
        complain(f"{options.brought[number][0]} was not brought out of the guest: {why}")
    return status or int(bool(result.missing_files))


def _printable(data: bytes) -> str:
    """A terminal must not be at a guest's mercy."""
    text = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)
