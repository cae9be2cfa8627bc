"""The machine: its processors, and the uncore that they share."""

from __future__ import annotations

from swtdx.machine.cpu.topology import Topology
from swtdx.machine.memory import PhysicalMemory
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.uncore import MachineConfig, Uncore

__all__ = ["Machine", "MachineConfig"]


class Machine(Uncore):
    """See the module's docstring.  ``close`` frees everything.

    Raises:
        ValueError: no such number of packages and processors, or no such processor model.
    """

    def __init__(self, config: MachineConfig, memory: PhysicalMemory) -> None:
        count = Topology(config.packages, config.processors_per_package).processors
        self.processors: list[LogicalProcessor] = []
        super().__init__(config, memory, self.processors)
        #: Memory that the BIOS gives to software: (base, size) in bytes.
        self.usable: list[tuple[int, int]] = list(memory.populated)
        self.processors += (
            LogicalProcessor(self, index, index // config.processors_per_package) for index in range(count)
        )

    def close(self) -> None:
        """Stop the engine and free the memory.  Idempotent."""
        self.stop_engine()
        self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
