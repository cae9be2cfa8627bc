"""A machine with a probe, and guests to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swtdx.arch import ghci
from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import Script, Tdcall
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import RunResult
from swtdx.vmm.run import Runner
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

PAGE = 4096
CODE, RAM, RAM_END = 0x100000, 0x4000000, 0x4800000
SHARED = 1 << 47
MMIO = 0xB0000000
ACCEPT, VMCALL = 6, 0


def vmcall(function: int, *args: int) -> Any:
    """A TDVMCALL with R12 and up; the registers after it."""
    registers = {f"r{12 + n}": value for n, value in enumerate(args)}
    return (yield Tdcall(rax=VMCALL, rcx=ghci.BASIC_MASK, r10=0, r11=function, **registers))


def power_off() -> Any:
    yield from vmcall(ghci.IO, 1, 1, 0x605, 0x20)


class Bench:
    """A platform with the scripted engine; :meth:`run` runs programs as a TD."""

    def __init__(self, processors: int = 1) -> None:
        config = MachineConfig(engine="scripted", processors_per_package=processors)
        self.platform = Platform.boot(PlatformConfig(machine=config))
        self.machine: Any = self.platform.machine
        self.hypervisor: Hypervisor | None = None
        self.td: Td | None = None
        self.runner: Runner | None = None

    def run(self, *programs: Callable[[Script], Any], timeout: float | None = 60) -> RunResult:
        """Initialise the module, build a TD of one vCPU for each program, and run it to its end."""

        def start(cpu: Script) -> Any:
            yield from programs[cpu.gpr[6]](cpu)

        scripts = [self.machine.engine.add_program(start) for _ in programs]
        self.hypervisor = Hypervisor(self.platform.host)
        page = InitialPage(CODE, b"code".ljust(PAGE, b"."))
        config = TdConfig(vcpus=len(programs))
        self.td = Td.build(self.hypervisor, config, [page], ram=[(RAM, RAM_END)])
        board = BoardConfig(apic_ids=tuple(range(len(programs))), console=False, serial=False)
        io = MachineIo(self.td, board, console_out=lambda _data: None, mmio=[(MMIO, PAGE)])
        self.runner = io.runner(self.hypervisor.processors)
        result = self.runner.run(timeout)
        for script in scripts:
            if script.error is not None:
                raise script.error
        return result
