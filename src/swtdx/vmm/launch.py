"""Booting a kernel directly as a TD: everything from an initialised machine to the end of the run.

``launch(host, LaunchConfig(kernel, initrd, "console=hvc0"))`` is what ``swtdx run`` does.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from swtdx.arch.guest_map import GUEST_MAP
from swtdx.arch.units import PAGE
from swtdx.devices.board import Board, BoardConfig, describe_board
from swtdx.guests.direct_boot import DirectBoot, build_direct_boot, build_tiny_boot
from swtdx.guests.exec_protocol import ExecStream
from swtdx.guests.kernel import KernelImage
from swtdx.guests.memory_map import (
    ACPI_GPA,
    EVENT_LOG_BYTES,
    EVENT_LOG_GPA,
    MAILBOX_GPA,
)
from swtdx.machine.host import Host
from swtdx.vmm.console import Console, Stream
from swtdx.vmm.control import RunControl
from swtdx.vmm.errors import ConfigError, VmmError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.processor import Processor
from swtdx.vmm.quote import QuoteService
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.shared_ept import fill
from swtdx.vmm.td import InitialPage, Td
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
        exec_token: the token of the command that the initrd runs (:mod:`swtdx.guests.exec_protocol`);
            then only that command's output goes to the console, and its exit status into the result.
        log: what the guest prints besides a command's output; nowhere by default.
        serial: what goes to the serial port; to the console by default.
        quote_service: answers GetQuote.
        preaugment: give the guest all its private memory before it starts, which saves a TD exit for each
            2 MiB; otherwise it comes on demand.
        teardown: give all pages and the key back at the end; a machine that is thrown away then does not
            need that.
    """

    kernel: bytes | KernelImage | None
    initrd: bytes = b""
    cmdline: str = "console=hvc0"
    memory: int = 512 << 20
    td: TdConfig = field(default_factory=TdConfig)
    timeout: float | None = None
    exec_token: str | None = None
    log: Callable[[bytes], None] | None = None
    serial: Callable[[bytes], None] | None = None
    quote_service: QuoteService | None = None
    preaugment: bool = True
    teardown: bool = True


class _Output:
    """What the guest prints, on its way to the console."""

    def __init__(self, config: LaunchConfig, console: Console, control: RunControl) -> None:
        self._console = console
        self._control = control
        self._log = config.log
        self._exec = None if config.exec_token is None else ExecStream(config.exec_token)
        self._tail = bytearray()

    def write(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-_TAIL]
        if self._exec is None:
            self._show(data)
            return
        self._show(self._exec.feed(data))
        self._pass_on(self._exec.take_log())

    def _pass_on(self, log: bytes) -> None:
        if log and self._log is not None:
            self._log(log)

    def _show(self, data: bytes) -> None:
        if data:
            try:
                self._console.write(data)
            except OSError as error:
                self._control.end(EndReason.STOPPED, f"the console's output was closed ({error.strerror})")

    def finish(self) -> int | None:
        """The run is over; the command's exit status, if there was one."""
        if self._exec is None:
            return None
        self._show(self._exec.finish())
        self._pass_on(self._exec.take_log())
        return self._exec.status

    def panic(self) -> str | None:
        """The kernel's last words, if it panicked."""
        found = _PANIC.search(self._tail)
        return None if found is None else found[1].decode("utf-8", "replace").strip()


class _Keys:
    """The guest's side of the console (:class:`swtdx.vmm.console.Guest`)."""

    def __init__(self, io: MachineIo) -> None:
        self._console = io.board.console
        self._control = io.control

    def send(self, data: bytes) -> None:
        if self._console is not None:
            self._console.send(data)

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
    with TIMEOUT; :meth:`finish`, or at least :meth:`close`, comes last.  Arguments and errors are those of
    :func:`launch`; ``processors`` says where the vCPUs run, all of the hypervisor's by default.
    """

    def __init__(
        self,
        host: Host | Hypervisor,
        config: LaunchConfig,
        console: Console | None = None,
        processors: list[Processor] | None = None,
    ) -> None:
        self.config = config
        self._console = Stream() if console is None else console
        self._phases: dict[str, float] = {}
        with _phase(self._phases, "module"):
            self.hypervisor = host if isinstance(host, Hypervisor) else Hypervisor(host)
        control = RunControl()
        self._output = _Output(config, self._console, control)
        with _phase(self._phases, "build"):
            self.td = _build(self.hypervisor, config, plan(config), processors)
            try:
                self.io = MachineIo(
                    self.td,
                    _board_config(config, self._console.size),
                    control,
                    console_out=self._output.write,
                    serial_out=config.serial,
                    quote_service=config.quote_service,
                    mmio=GUEST_MAP.devices(),
                )
                self.runner = self.io.runner(processors or self.hypervisor.processors)
            except BaseException:
                self.close()
                raise

    def run(self, timeout: float | None = None) -> RunResult:
        """Run the TD for ``timeout`` seconds at most (None: no limit)."""
        with _phase(self._phases, "run"), self._console.attached(_Keys(self.io)):
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
        result.stats.phases = self._phases
        panic = self._output.panic()
        if panic is not None and result.reason in _AFTER_PANIC:
            result.reason, result.detail = EndReason.FATAL_ERROR, f"kernel panic: {panic}"
        for device, failure in self.io.board.failures.items():
            result.detail = f"{result.detail}; {device} stopped: {failure}".lstrip("; ")
        return result


def plan(config: LaunchConfig) -> DirectBoot:
    """What :func:`launch` would build, without a machine: for those who want to know its measurements.

    Raises:
        GuestError: the kernel, the initrd or the sizes do not fit together.
        ConfigError: the memory is not made of pages.
    """
    return _lay_out(config, describe_board(_board_config(config, None)))


def _board_config(config: LaunchConfig, console_size: tuple[int, int] | None) -> BoardConfig:
    apic_ids = tuple(range(config.td.vcpus))
    # ECAM alone: each access to configuration space by ports would be two, with three VM exits each.
    return BoardConfig(
        apic_ids=apic_ids,
        console_size=console_size,
        ecam=GUEST_MAP.ecam,
        mechanism1=False,
    )


def _lay_out(config: LaunchConfig, board: Board) -> DirectBoot:
    if config.kernel is None:
        return build_tiny_boot()
    if config.memory < PAGE or config.memory % PAGE:
        raise ConfigError(f"a TD's memory is a whole number of 4 KiB pages, not {config.memory} bytes")
    acpi = board.acpi(
        ACPI_GPA,
        ccel=(EVENT_LOG_GPA, EVENT_LOG_BYTES),
        wakeup_mailbox=MAILBOX_GPA if config.td.vcpus > 1 else None,
    )
    return build_direct_boot(
        config.kernel, config.initrd, config.cmdline, config.memory, config.td.gpaw, acpi
    )


def _build(
    hypervisor: Hypervisor, config: LaunchConfig, boot: DirectBoot, processors: list[Processor] | None
) -> Td:
    ram = [(part.base, part.end) for part in boot.ram]
    td = Td.build(
        hypervisor,
        config.td,
        [InitialPage(page.gpa, page.data, page.measured) for page in boot.pages],
        ram=ram,
        entry_value=boot.vp_init_rdx,
        processors=processors,
    )
    try:
        shared_bit = config.td.shared_bit
        blobs = [(blob.gpa & ~shared_bit, blob.data) for blob in boot.shared]
        for gpa, data in blobs:
            td.shared.map(gpa, (len(data) + PAGE - 1) & -PAGE)
        fill(hypervisor.host.memory, td.shared.translate, blobs)
        if config.preaugment:
            with td.cpu.borrowed():
                for start, end in ram:
                    td.private.augment_range(td.cpu, start, end)
    except BaseException:
        td.teardown()
        raise
    return td


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
