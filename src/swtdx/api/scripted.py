"""TDs whose guests are Python generators."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import swtdx.script as script
from swtdx.api.td import Td, TdEnded
from swtdx.arch.units import PAGE
from swtdx.devices.board import BoardConfig
from swtdx.machine.random import derive
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.td import InitialPage
from swtdx.vmm.td import Td as InnerTd
from swtdx.vmm.td_params import TdConfig

if TYPE_CHECKING:
    from swtdx.api.platform import Platform

CODE: Final = 0x10_0000


class Device(Protocol):
    """What answers at MMIO addresses; a plain class with these two methods will do."""

    def read(self, offset: int, size: int) -> int:
        """The register at ``offset``, ``size`` bytes wide."""

    def write(self, offset: int, size: int, value: int) -> None:
        """A write to it."""


class ScriptedTd(Td):
    """A TD with a vCPU for each program.  See ``platform.scripted``."""

    def __init__(
        self,
        platform: Platform,
        programs: tuple[script.Program, ...],
        *,
        debug: bool = False,
        attributes: int = 0,
        devices: Mapping[int, Device] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not programs:
            raise ValueError("a scripted TD needs a program for each of its vCPUs: give at least one")
        engine = platform.scripted_engine()
        #: What the programs have returned, by vCPU.
        self._returned: dict[int, Any] = {}
        self._scripts = [
            engine.add_program(self._to_its_end(number, program)) for number, program in enumerate(programs)
        ]
        inner = platform.hypervisor.internals
        settings = TdConfig(vcpus=len(programs), attributes=attributes | int(debug), **dict(config or {}))
        page = InitialPage(CODE, derive(platform.seed, "code of a scripted TD", PAGE))
        td = InnerTd.build(
            inner, settings, [page], ram=[(script.RAM, script.RAM + script.RAM_BYTES)], name="scripted TD"
        )
        try:
            places = dict(devices or {})
            board = BoardConfig(apic_ids=tuple(range(len(programs))), console=False)
            io = MachineIo(
                td, board,
                console_out=self._print, serial_out=self._print,
                quote_service=platform.quote_service,
                mmio=[(gpa, PAGE) for gpa in places],
            )  # fmt: skip
            for gpa, device in places.items():
                io.board.mmio.register(gpa, PAGE, device, name=f"the device at {gpa:#x}")
            runner = io.runner(inner.processors)
        except BaseException:
            td.teardown()
            raise
        super().__init__(platform, td, io, runner)

    def _print(self, data: bytes) -> None:
        self._console += data

    def _to_its_end(self, number: int, program: script.Program) -> script.Program:
        """``program``, and then the last of them switches the TD off; the others wait for that."""

        def whole(cpu: script.Script) -> script.Running:
            self._returned[number] = yield from program(cpu)
            if len(self._returned) == len(self._scripts):
                yield from script.power_off()
            else:
                yield from script.vmcall("Instruction.HLT", 1)

        return whole

    def run(self, timeout: float | None = 60.0) -> RunResult:
        """Run the programs to their ends, for ``timeout`` seconds (of ours, not of the guest's time) at most.

        The TD switches off when the last program has returned.  After a timeout it can be called again.

        Raises:
            TdEnded: the TD has ended before, or was closed.
            Exception: what a program raised, or a hook: an assertion in a guest is one in the test.
        """
        self._need_open()
        if self.result is not None and self.result.reason is not EndReason.TIMEOUT:
            raise TdEnded(f"the TD has ended: {self.result}", self.result)
        clock = threading.Timer(timeout or 0, self._runner.stop, (EndReason.TIMEOUT, f"after {timeout} s"))
        if timeout is not None:
            clock.start()
        try:
            self.result = self._runner.run()
        finally:
            clock.cancel()
        for one in self._scripts:
            if one.error is not None:
                raise one.error
        return self.result

    @property
    def results(self) -> list[Any]:
        """What the programs returned, in their order.

        Raises:
            RuntimeError: one has not ended, or never ran.
        """
        waiting = [str(number) for number in range(len(self._scripts)) if number not in self._returned]
        if waiting:
            raise RuntimeError(f"the programs of these vCPUs have not returned: {', '.join(waiting)}")
        return [self._returned[number] for number in range(len(self._scripts))]
