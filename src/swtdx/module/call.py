"""One SEAMCALL in progress."""

from __future__ import annotations

from swtdx.machine.processor import LogicalProcessor
from swtdx.module.served import Served
from swtdx.module.state import ModuleState


class HostCall:
    """What a host-side leaf's handler gets.

    ``inputs`` are the 16 registers as the host set them; ``gpr`` is the register file that goes back
    to the host, in which the dispatcher has already zeroed the leaf's output registers.  ``leaf`` is
    what is declared of the leaf: the states that allow it, and so on.
    """

    __slots__ = ("gpr", "inputs", "keep_outputs", "leaf", "lp", "module", "version")

    def __init__(
        self, module: ModuleState, lp: LogicalProcessor, leaf: Served, inputs: list[int], version: int
    ) -> None:
        self.leaf = leaf
        self.module = module
        self.lp = lp
        self.gpr = lp.gpr
        self.inputs = inputs
        self.version = version
        #: The handler has set output registers that stay even if the leaf fails later.
        self.keep_outputs = False
