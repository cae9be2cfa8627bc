"""SEAM: the mode, the range, and who may be entered.

Nothing runs in SEAM that was not installed here by the loader chain (``swtdx.firmware``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.machine.processor import LogicalProcessor

#: Code that SEAMCALL enters: it works on the processor's registers and returns by SEAMRET.
Entry = Callable[["LogicalProcessor"], None]


class Seam:
    """SEAM state of the whole machine."""

    def __init__(self) -> None:
        #: Whether SEAMRR is configured and valid (MCHECK has run).
        self.enabled = False
        self.p_seamldr_entry: Entry | None = None
        #: Held while a processor executes SEAM code, released while it runs a guest.
        self.lock = threading.Lock()
        self._module: Entry | None = None
        self._module_ready: set[int] = set()

    def module_entry(self, lp: int) -> Entry | None:
        """The TDX Module's entry point on logical processor ``lp``, None when it is not loaded."""
        return self._module if lp in self._module_ready else None

    def install_module(self, entry: Entry, processors: int) -> None:
        """The SEAM VMCSs of all processors now point to ``entry``."""
        self._module = entry
        self._module_ready = set(range(processors))

    def remove_module(self) -> None:
        """SEAM_READY is cleared: SEAMCALLs to the module fail."""
        self._module = None
        self._module_ready = set()
