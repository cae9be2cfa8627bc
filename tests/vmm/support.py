"""Shorthands for tests of the hypervisor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swtdx.devices.board import BoardConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.quote import QuoteService
from swtdx.vmm.run import Runner
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.vmm.fake_machine import FakeMachine
from tests.vmm.fake_module import Program

RAM = [(0, 64 << 20)]
SHIM = InitialPage(0xFFFFF000, b"code", measured=True)
#: Register numbers in x86 order.
RDX, RBX, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15


class Setup:
    """A fake machine, its hypervisor, one TD, and a runner with a board."""

    def __init__(
        self,
        *programs: Program,
        machine: FakeMachine | None = None,
        config: TdConfig | None = None,
        ram: Iterable[tuple[int, int]] = RAM,
        quote_service: QuoteService | None = None,
    ) -> None:
        self.machine = machine or FakeMachine()
        self.module = self.machine.module
        self.hypervisor = Hypervisor(self.machine.host)
        self.printed = bytearray()
        self.module.programs = dict(enumerate(programs))
        config = config or TdConfig(vcpus=max(len(programs), 1))
        self.td = Td.build(self.hypervisor, config, [SHIM], ram=ram)
        self.io = MachineIo(
            self.td,
            BoardConfig(apic_ids=tuple(range(config.vcpus))),
            console_out=self.printed.extend,
            quote_service=quote_service,
            mmio=[(0xC0000000, 0x3EC00000)],
        )
        self.runner: Runner = self.io.runner(self.hypervisor.processors)


def call(function: int, *args: int, **registers: int) -> tuple[str, dict[int, int]]:
    """A TDVMCALL: R11 the sub-function, R12.. its arguments."""
    passed = {R10: 0, R11: function}
    passed.update(enumerate(args, R12))
    passed.update({NUMBERS[name]: value for name, value in registers.items()})
    return ("vmcall", passed)


NUMBERS = {"rdx": RDX, "rbx": RBX, "rsi": RSI, "rdi": RDI, "r8": R8, "r9": R9, "r10": R10}
POWER_OFF: tuple[Any, ...] = call(30, 1, 1, 0x605, 0x20)
