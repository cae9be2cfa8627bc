"""One SEAMCALL in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.machine.processor import LogicalProcessor
    from swtdx.module.entry import TdxModule


class HostCall:
    """What a host-side leaf's handler gets.

    ``inputs`` are the 16 registers as the host set them; ``gpr`` is the register file that goes back
    to the host, in which the dispatcher has already zeroed the leaf's output registers.
    """

    __slots__ = ("gpr", "inputs", "keep_outputs", "lp", "module", "version")

    def __init__(self, module: TdxModule, lp: LogicalProcessor, inputs: list[int], version: int) -> None:
        self.module = module
        self.lp = lp
        self.gpr = lp.gpr
        self.inputs = inputs
        self.version = version
        #: The handler has set output registers that stay even if the leaf fails later.
        self.keep_outputs = False
