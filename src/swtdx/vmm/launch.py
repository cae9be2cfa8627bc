"""Starting a TD and running it: everything from an initialised machine to the end of the run.

``launch(host, LaunchConfig(kernel, initrd, "console=hvc0"))`` is what ``swtdx run`` does.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from swtdx.arch.guest_map import GUEST_MAP
from swtdx.devices.board import BoardConfig, describe_board
from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.ports import PortConfig as PortConfig
from swtdx.devices.virtio.ports import VirtioPorts
from swtdx.guests.direct_boot import DirectBoot
from swtdx.guests.kernel import KernelImage
from swtdx.machine.host import Host
from swtdx.vmm.boot import Boot, DirectKernel, TinyGuest, build
from swtdx.vmm.command_io import CommandIo, CommandStreams
from swtdx.vmm.console import Console, Stream
from swtdx.vmm.control import RunControl
from swtdx.vmm.errors import VmmError
from swtdx.vmm.firmware_words import FirmwareWords
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.peripherals.attach import Attached
from swtdx.vmm.processor import Processor
from swtdx.vmm.quote import QuoteService
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.saved_board import get_board, put_board
from swtdx.vmm.td import Td
from swtdx.vmm.td_params import TdConfig

#: How much of the console's end is kept to explain how a run ended.
_TAIL: Final = 16384
_PANIC: Final = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
#: How a run ends after a panic, depending on the kernel's panic= and reboot= options.
_AFTER_PANIC: Final = (EndReason.RESTART, EndReason.HALTED, EndReason.TRIPLE_FAULT, EndReason.TIMEOUT)


@dataclass(slots=True)
class LaunchConfig:
    """What to boot, and how.

    Args:
        kernel: a bzImage, or None for the tiny guest that swtdx carries with it.
        initrd: initial RAM disk; may be empty.
        cmdline: the kernel's command line.
        memory: bytes of RAM.
        td: what the TD is besides; its ``vcpus`` are how many it gets.
        timeout: seconds that the guest may run, None for no limit.
        command: where the streams of the command lead that the initrd runs
            (:mod:`swtdx.guests.exec_channels`); its exit status goes into the result.  What the guest
            prints besides then goes to ``log`` instead of the console.
        log: what the guest prints besides a command's output; nowhere by default.
        serial: what goes to the serial port; to the console by default.
        ports: more channels to the guest: virtio console ports, announced behind a command's.
        quote_service: answers GetQuote.
        preaugment: give the guest all its private memory before it starts, which saves a TD exit for each
            2 MiB; otherwise it comes on demand.
        boot: how the TD is started instead; ``kernel``, ``initrd``, ``cmdline`` and ``memory`` are then not
            looked at.
        peripherals: disks, networks and what else it gets (:func:`swtdx.vmm.peripherals.attach.attach`); they
            stay open at the end.
        must_boot: end the run when firmware says on the serial port that it has found nothing to boot.
        keys_to_serial: what the user types goes to the serial port, not to hvc0.
        teardown: give all pages and the key back at the end; a machine that is thrown away then does not
            need that.
    """

    kernel: bytes | KernelImage | None
    initrd: bytes = b""
    cmdline: str = "console=hvc0"
    memory: int = 512 << 20
    td: TdConfig = field(default_factory=TdConfig)
    timeout: float | None = None
    command: CommandIo | None = None
    log: Callable[[bytes], None] | None = None
    serial: Callable[[bytes], None] | None = None
    ports: tuple[PortConfig, ...] = ()
    quote_service: QuoteService | None = None
    preaugment: bool = True
    teardown: bool = True
    boot: Boot | None = None
    peripherals: Attached | None = None
    must_boot: bool = False
    keys_to_serial: bool = False

    def direct(self) -> DirectKernel | TinyGuest:
        """How ``kernel`` is started."""
        if self.kernel is None:
            return TinyGuest()
        return DirectKernel(self.kernel, self.initrd, self.cmdline, self.memory)


class _Output:
    """What the guest prints, on its way to the user."""

    def __init__(self, config: LaunchConfig, console: Console, control: RunControl) -> None:
        self._console = console
        self._control = control
        self._log = config.log
        self._ports = config.ports
        self._tail = bytearray()
        self.command = (
            None if config.command is None else CommandStreams(config.command, self._pass_on, self._broken)
        )

    @property
    def channels(self) -> tuple[PortConfig, ...]:
        """The ports that a command's streams need, and the others."""
        return (() if self.command is None else self.command.ports()) + self._ports

    def _broken(self, why: str) -> None:
        self._control.end(EndReason.STOPPED, why)

    def write(self, data: bytes) -> None:
        """What the guest prints on its console."""
        self._tail += data
        del self._tail[:-_TAIL]
        if self.command is None:
            self._show(data)
        else:
            self.command.console(data)

    def _pass_on(self, log: bytes) -> None:
        if self._log is not None:
            self._log(log)

    def _show(self, data: bytes) -> None:
        try:
            self._console.write(data)
        except OSError as error:
            self._broken(f"the console's output was closed ({error.strerror})")

    def finish(self) -> int | None:
        """The run is over; the command's exit status, if there was one."""
        return None if self.command is None else self.command.finish()

    def panic(self) -> str | None:
        """The kernel's last words, if it panicked."""
        found = _PANIC.search(self._tail)
        return None if found is None else found[1].decode("utf-8", "replace").strip()


class _Keys:
    """The guest's side of the console (:class:`swtdx.vmm.console.Guest`)."""

    def __init__(self, io: MachineIo, *, to_serial: bool) -> None:
        self._console = io.board.console
        self._serial = io.board.serial if to_serial else None
        self._control = io.control

    def send(self, data: bytes) -> None:
        target = self._serial or self._console
        if target is not None:
            target.send(data)

    def resize(self, columns: int, rows: int) -> None:
        if self._console is not None:
            self._console.resize(columns, rows)

    def leave(self, why: str) -> None:
        self._control.end(EndReason.STOPPED, why)


def launch(host: Host | Hypervisor, config: LaunchConfig, console: Console | None = None) -> RunResult:
    """Boot ``config.kernel`` as a TD and run it to its end.

    Args:
        host: the machine, or a hypervisor that has initialised its TDX module already.
        console: the user's end of the guest's console; standard output by default.

    Raises:
        GuestError: the kernel, the initrd or the sizes do not fit together.
        ConfigError: this platform cannot make such a TD.
        VmmError: the TD cannot be built; nothing of it is left.
    """
    launched = Launch(host, config, console)
    try:
        result = launched.run(config.timeout)
    except BaseException:
        launched.close()
        raise
    return launched.finish(result)


class Launch:
    """:func:`launch` in steps, for those who want to do something to the TD between two runs.

    Made, the TD is built and its devices are there; :meth:`run` may be called again after it came back
    with TIMEOUT or PAUSED; :meth:`finish`, or at least :meth:`close`, comes last.  Arguments and errors are
    those of :func:`launch`; ``processors`` says where the vCPUs run, all of the hypervisor's by default.

    ``saved`` is what :meth:`save_state` wrote: the TD is then on ``host`` already, with its hypervisor's
    memory, and goes on.  Of ``config`` only what leads to the outside counts.
    """

    def __init__(
        self,
        host: Host | Hypervisor,
        config: LaunchConfig,
        console: Console | None = None,
        processors: list[Processor] | None = None,
        saved: In | None = None,
    ) -> None:
        self.config = config
        self._console = Stream() if console is None else console
        self._phases: dict[str, float] = {}
        with _phase(self._phases, "module"):
            if isinstance(host, Hypervisor):
                self.hypervisor = host
            else:
                self.hypervisor = Hypervisor(host) if saved is None else Hypervisor.restored(host, saved)
        control = RunControl()
        self._output = _Output(config, self._console, control)
        with _phase(self._phases, "build"):
            self.td, self._board = self._build(processors) if saved is None else self._restore(saved)
            try:
                self.io = MachineIo(
                    self.td,
                    self._board,
                    control,
                    console_out=self._output.write,
                    serial_out=self._serial(control),
                    quote_service=config.quote_service,
                    # A saved TD's tables have them.
                    mmio=GUEST_MAP.devices() if saved is None else (),
                )
                if saved is not None:
                    self.io.load_state(saved)
                self.runner = self.io.runner(processors or self.hypervisor.processors)
            except BaseException:
                self.close()
                raise

    def _build(self, processors: list[Processor] | None) -> tuple[Td, BoardConfig]:
        """A new TD, and its board."""
        config = self.config
        start = config.boot or config.direct()
        board = start.board(config.td)
        board = replace(
            board,
            console_size=self._console.size,
            channels=self._output.channels,
            more=board.more + (() if config.peripherals is None else config.peripherals.parts),
        )
        plan = start.plan(config.td, describe_board(board))
        return build(self.hypervisor, config.td, plan, processors, preaugment=config.preaugment), board

    def _restore(self, saved: In) -> tuple[Td, BoardConfig]:
        """The saved TD, and its board."""
        td = Td.restored(self.hypervisor, saved)
        outputs = {port.name: port.output for port in self._output.channels}
        more = () if self.config.peripherals is None else self.config.peripherals.parts
        return td, get_board(saved, outputs, more)

    def save_state(self, out: Out) -> None:
        """Write down the hypervisor, the TD and its devices, between two runs.

        Raises:
            VmmError: something is under way that cannot be saved.
            BoardError: a device does not say how it is saved.
        """
        self.hypervisor.save_state(out)
        self.td.save_state(out)
        put_board(out, self._board)
        self.io.save_state(out)

    def _serial(self, control: RunControl) -> Callable[[bytes], None] | None:
        """Where the serial port's output goes."""
        if not self.config.must_boot:
            return self.config.serial
        output = self.config.serial or self._output.write
        return FirmwareWords(output, lambda why: control.end(EndReason.NOT_BOOTED, why)).write

    def run(self, timeout: float | None = None) -> RunResult:
        """Run the TD for ``timeout`` seconds at most (None: no limit)."""
        with contextlib.ExitStack() as during:
            during.enter_context(_phase(self._phases, "run"))
            during.enter_context(self._console.attached(_Keys(self.io, to_serial=self.config.keys_to_serial)))
            if self._output.command is not None:
                device = self.io.board.console
                ports = device if isinstance(device, VirtioPorts) else None
                during.enter_context(self._output.command.attached(ports))
            return self.runner.run(timeout)

    def close(self) -> str:
        """Take the TD down if the configuration wants that; what went wrong, in words."""
        return _tear_down(self.td, self.config, self._phases)

    def finish(self, result: RunResult) -> RunResult:
        """:meth:`close`, and ``result`` completed by what is known of the whole launch."""
        left = self.close()
        if left:
            result.detail = f"{result.detail}; {left}".lstrip("; ")
        result.exit_status = self._output.finish()
        if self._output.command is not None:
            result.missing_files = self._output.command.missing_files()
        result.stats.phases = self._phases
        panic = self._output.panic()
        if panic is not None and result.reason in _AFTER_PANIC:
            result.reason, result.detail = EndReason.FATAL_ERROR, f"kernel panic: {panic}"
        for device, failure in self.io.board.failures.items():
            result.detail = f"{result.detail}; {device} stopped: {failure}".lstrip("; ")
        return result


def plan(config: LaunchConfig) -> DirectBoot:
    """What :func:`launch` would build of ``config.kernel``, without a machine: its measurements are known.

    Raises:
        GuestError: the kernel, the initrd or the sizes do not fit together.
        ConfigError: the memory is not made of pages.
    """
    start = config.direct()
    return start.plan(config.td, describe_board(start.board(config.td)))


def _tear_down(td: Td, config: LaunchConfig, phases: dict[str, float]) -> str:
    """Give everything back, if that is wanted; what went wrong, in words, for how the run ended is worth
    more."""
    if config.teardown:
        with _phase(phases, "teardown"):
            try:
                td.teardown()
            except VmmError as error:
                return f"its teardown failed: {error}"
    return ""


@contextlib.contextmanager
def _phase(phases: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        phases[name] = round(phases.get(name, 0.0) + time.perf_counter() - started, 4)
