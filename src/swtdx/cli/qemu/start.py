"""Running the machine that a line describes."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtdx.cli.deadline import Deadline
from swtdx.cli.failures import complain
from swtdx.cli.outputs import OutputFile
from swtdx.cli.qemu.ends import End, StdioEnd, open_end
from swtdx.cli.qemu.machine import Machine
from swtdx.cli.qemu.monitor import Controls, Monitor
from swtdx.cli.qemu.process import background, pidfile
from swtdx.cli.run_report import complaint, document, exit_status
from swtdx.vmm.console import Console, Guest, Stream

if TYPE_CHECKING:
    from swtdx.guests.kernel import KernelImage
    from swtdx.guests.tdvf_boot import TdvfImage
    from swtdx.vmm.launch import Launch, LaunchConfig
    from swtdx.vmm.result import RunResult


@dataclass(frozen=True, slots=True)
class Own:
    """What `swtdx qemu` is asked for in front of QEMU's options.

    Args:
        verbose: say what of the line is harmless, and what the run took.
        seed: of the machine.
        timeout: seconds.
        quotes: the platform's own enclave answers GetQuote, whatever the line says.
        summary: takes a summary for programs.
    """

    verbose: bool
    seed: bytes
    timeout: float | None
    quotes: bool
    summary: OutputFile | None


def run(machine: Machine, own: Own) -> int:
    """Run it to its end; the exit status, as of `swtdx run`.

    Raises:
        Exception: nothing was run; see :func:`swtdx.cli.failures.explanation`.
    """
    from swtdx.guests.kernel import load_kernel
    from swtdx.guests.tdvf_boot import load_firmware

    started = time.perf_counter()
    image = load_firmware(machine.firmware)
    kernel = None if machine.kernel is None else load_kernel(machine.kernel)
    if own.verbose:
        for note in machine.notes:
            complain(f"harmless: {note}")
        complain(f"firmware {machine.firmware}, MRTD {image.measure().digest().hex()}")
    ready = background() if machine.daemonize else None
    with contextlib.ExitStack() as during:
        during.enter_context(pidfile(machine.pidfile))
        controls = Controls(machine.name, machine.vcpus)
        for channels, qmp in ((machine.qmp, True), (machine.monitors, False)):
            for channel in channels:
                during.callback(Monitor(channel, controls, qmp=qmp).close)
        run_ = _Run(machine, own, controls, during)
        result = run_.all(image, kernel, ready)
    status = exit_status(result, command=False)
    trouble = complaint(result, command=False)
    if trouble is not None:
        complain(trouble)
    if own.verbose:
        complain(f"{result}; exit status {status}")
    if own.summary is not None:
        about: dict[str, Any] = {
            "firmware": str(machine.firmware),
            "kernel": None if machine.kernel is None else str(machine.kernel),
            "cmdline": machine.append,
            "memory": machine.memory,
            "vcpus": machine.vcpus,
            "name": machine.name,
            "harmless": [str(note) for note in machine.notes],
            "total_seconds": round(time.perf_counter() - started, 4),
        }
        own.summary.write((json.dumps(document(result, status, about), indent=2) + "\n").encode())
    return status


class _Run:
    """The TDs of a line, one after the other."""

    def __init__(self, machine: Machine, own: Own, controls: Controls, during: contextlib.ExitStack) -> None:
        self._machine = machine
        self._own = own
        self._controls = controls
        self._during = during

        def opened(end: End) -> End:
            during.callback(end.close)
            return end

        self._serial = opened(open_end(machine.serial))
        self._console = opened(open_end(machine.console))
        self._debug = None if machine.debug is None else opened(open_end(machine.debug))
        self._ports = [(name, opened(open_end(channel))) for name, channel in machine.ports]

    def all(
        self,
        image: TdvfImage,
        kernel: KernelImage | None,
        ready: Any,
    ) -> RunResult:
        """Run until the line's TD has ended for good."""
        from swtdx.cli.quote_service import ToldQuotes
        from swtdx.platform import Platform, platform_config
        from swtdx.quoting import Quoting
        from swtdx.vmm.peripherals.attach import attach
        from swtdx.vmm.result import EndReason

        machine, own, controls = self._machine, self._own, self._controls
        deadline = Deadline(own.timeout)
        config = platform_config(machine.memory, machine.vcpus, None, own.seed, machine.model)
        with Platform.boot(config) as platform, attach(machine.peripherals) as attached:
            service = None
            if own.quotes or machine.quotes is not None:
                address = None if own.quotes else machine.quotes
                service = ToldQuotes(Quoting(platform, address), address)
            launch_config = self._config(image, kernel, attached, service)
            if ready is not None:
                ready()
            if machine.paused:
                while not controls.go.wait(1.0):
                    deadline.left()
            host: Any = platform.host
            while True:
                launch = self._launch(host, launch_config)
                try:
                    controls.status = "running"
                    controls.event("RESUME")
                    result = launch.run(deadline.left())
                except BaseException:
                    launch.close()
                    raise
                result = launch.finish(result)
                restarts = result.reason is EndReason.RESTART and machine.restart
                if not restarts or controls.quit_wanted.is_set():
                    break
                controls.event("RESET", guest=True, reason="guest-reset")
                complain("the guest restarts: it is a new TD now")
                host = launch.hypervisor
            controls.status = "shutdown"
            controls.event("SHUTDOWN", guest=True, reason=_shutdown(result))
            if machine.stay:
                while not controls.quit_wanted.wait(1.0):
                    deadline.left()
            return result

    def _config(
        self, image: TdvfImage, kernel: KernelImage | None, attached: Any, service: Any
    ) -> LaunchConfig:
        from swtdx.vmm.firmware_boot import FirmwareBoot
        from swtdx.vmm.launch import LaunchConfig, PortConfig
        from swtdx.vmm.td_params import TdConfig

        machine = self._machine
        initrd = b"" if machine.initrd is None else _read(machine.initrd)
        boot = FirmwareBoot(
            image, machine.memory, kernel, initrd, machine.append,
            log=None if self._debug is None else self._debug.write,
            files=machine.files,
            console=machine.console is not None,
            smbios=machine.smbios,
        )  # fmt: skip
        return LaunchConfig(
            None,
            memory=machine.memory,
            boot=boot,
            peripherals=attached,
            # On a terminal the firmware's menu and shell can be used.
            must_boot=not _interactive(self._serial),
            td=TdConfig(
                vcpus=machine.vcpus,
                rbp_mod=boot.passes_rbp,
                attributes=machine.attributes,
                pending_ve=machine.pending_ve,
                tsc_hz=machine.tsc_hz,
                mrconfigid=machine.mrconfigid,
                mrowner=machine.mrowner,
                mrownerconfig=machine.mrownerconfig,
            ),
            serial=self._serial.write,
            ports=tuple(PortConfig(name, end.write) for name, end in self._ports),
            keys_to_serial=isinstance(self._serial, StdioEnd),
            quote_service=service,
            teardown=machine.restart,
        )

    def _launch(self, host: Any, config: LaunchConfig) -> Launch:
        from swtdx.vmm.launch import Launch
        from swtdx.vmm.result import EndReason

        terminal = next((each for each in (self._serial, self._console) if isinstance(each, StdioEnd)), None)
        launch = Launch(host, config, _Split(self._console, terminal))
        control, board = launch.io.control, launch.io.board
        self._controls.end = lambda why: control.end(EndReason.STOPPED, why)
        self._controls.reset = lambda: control.end(EndReason.RESTART, "system_reset on a monitor")
        self._serial.send = None if board.serial is None else board.serial.send
        self._console.send = None if board.console is None else board.console.send
        return launch


class _Split:
    """hvc0's output goes to one end, keys come from the terminal."""

    def __init__(self, console: End, terminal: StdioEnd | None) -> None:
        self.write = console.write
        self._user: Console = Stream() if terminal is None else terminal.console
        self._shown = console is terminal

    def attached(self, guest: Guest) -> contextlib.AbstractContextManager[None]:
        """See :class:`swtdx.vmm.console.Console`."""
        return self._user.attached(guest)

    @property
    def size(self) -> tuple[int, int] | None:
        """See :class:`swtdx.vmm.console.Console`."""
        return self._user.size if self._shown else None


def _interactive(end: End) -> bool:
    return isinstance(end, StdioEnd) and not isinstance(end.console, Stream)


def _shutdown(result: RunResult) -> str:
    """QMP's ShutdownCause."""
    from swtdx.vmm.result import EndReason

    causes = {EndReason.POWER_OFF: "guest-shutdown", EndReason.RESTART: "guest-reset",
              EndReason.STOPPED: "host-qmp-quit"}  # fmt: skip
    return causes.get(result.reason, "guest-panic")


def _read(path: Path) -> bytes:
    from swtdx.cli.inputs import read_bytes

    return read_bytes(path, "the initrd", limit=4 << 30)
