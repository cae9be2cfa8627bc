"""The TDX Module's door: where SEAMCALL enters it."""

from __future__ import annotations

from swtdx.arch.features import BASE_MODULE, MODULES, ModuleFeatures
from swtdx.machine.memory import MachineCheck
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.uncore import Uncore
from swtdx.module.host.dispatch import dispatch
from swtdx.module.register import guest_leaf, host_leaf
from swtdx.module.state import ModuleState


class TdxModule:
    """The loaded module: one object a machine, which the P-SEAMLDR makes and SEAMCALL calls.

    ``seam_range`` is (base, bytes) of its part of the SEAM range, ``features`` what it offers: a name in
    :data:`~swtdx.arch.features.MODULES`, as the image's manifest has it, or any value.

    Raises:
        RuntimeError: it offers a leaf that has no handler.
        KeyError: no features have that name.
    """

    def __init__(
        self, machine: Uncore, seam_range: tuple[int, int], features: ModuleFeatures | str = BASE_MODULE
    ) -> None:
        if isinstance(features, str):
            features = MODULES[features]
        self.state = ModuleState(machine, seam_range, guest_leaf.table(features), features)
        self._leaves = host_leaf.table(features)

    def __call__(self, lp: LogicalProcessor) -> None:
        """One SEAMCALL on ``lp``, operands and results in its registers."""
        try:
            dispatch(self._leaves, self.state, lp)
        except MachineCheck as broken:
            # Poison consumed in SEAM root mode shuts the module down for good: SEAMCALLs fail from now on.
            lp.machine_check(broken)
            lp.machine.seam.remove_module()
            lp.cf = True
