"""The stage: a machine with the scripted engine, the module, the hypervisor, and a probe on the boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Self

from swtdx.arch.units import PAGE
from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import Script
from swtdx.machine.machine import MachineConfig
from swtdx.machine.random import derive
from swtdx.platform import Platform, PlatformConfig
from swtdx.scenes.model import Step
from swtdx.trace.decode import decode
from swtdx.trace.event import HYPERVISOR
from swtdx.trace.probe import Tracer
from swtdx.trace.record import Record
from swtdx.trace.recorder import Recorder
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.run import Runner
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

CODE: Final = 0x10_0000
RAM: Final = 0x400_0000
RAM_END: Final = RAM + (4 << 20)


class Stage:
    """See the module's docstring.  ``close`` frees it; also a context manager."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        machine = MachineConfig(engine="scripted", processors_per_package=1, seed=seed)
        self.platform = Platform.boot(PlatformConfig(machine=machine))
        self.machine = self.platform.machine
        self.hypervisor = Hypervisor(self.platform.host)
        self.cpu = self.hypervisor.processors[0]
        self.recorder = Recorder()
        self._tracer = Tracer(self.machine, self.recorder)
        self._tracer.attach()

    @property
    def engine(self) -> Any:
        """The scripted engine."""
        return self.machine.engine

    def word(self, label: str, size: int = 8) -> int:
        """A random number of ``size`` bytes, the same for the same seed, with its top bit set."""
        value = int.from_bytes(derive(self.seed, label, size), "little")
        return value | 1 << 8 * size - 1

    def td(self, program: Callable[[Script], Any]) -> Td:
        """A TD of one vCPU that runs ``program``."""
        self.engine.add_program(program)
        page = InitialPage(CODE, derive(self.seed, "code", PAGE))
        return Td.build(self.hypervisor, TdConfig(), [page], ram=[(RAM, RAM_END)])

    def board(self, td: Td, mmio: Iterable[tuple[int, int]] = ()) -> MachineIo:
        """Devices for ``td``; ``mmio`` as in :class:`MachineIo`."""
        config = BoardConfig(apic_ids=(0,), console=False, serial=False)
        return MachineIo(td, config, console_out=lambda _data: None, mmio=mmio)

    def runner(self, io: MachineIo) -> Runner:
        """The run loop of a TD with these devices."""
        return io.runner([self.cpu])

    def close(self) -> None:
        """Switch the machine off."""
        self._tracer.detach()
        self.platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recorded(title: str, text: str, *records: Record, **more: Any) -> Step:
    """A step out of what was recorded; it says when the hypervisor had no part in it."""
    events = tuple(event for record in records for event in decode(record))
    facts = tuple(more.pop("facts", ()))
    if events and not any(HYPERVISOR in (event.source, event.target) for event in events):
        facts += (("the hypervisor", "sees nothing of this: its processor is inside the SEAMCALL"),)
    return Step(title, text, events, facts, **more)
