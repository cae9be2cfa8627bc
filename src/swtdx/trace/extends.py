"""Every TDG.MR.RTMR.EXTEND of a TD as it happens: which register, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self

from swtdx.arch.exits import ExitReason
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.machine.machine import Machine
from swtdx.machine.observe import Observer, attach, detach
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.vmcs import Vmcs

_EXTEND: Final = GUEST_BY_NAME["TDG.MR.RTMR.EXTEND"].number
_VMCALL: Final = GUEST_BY_NAME["TDG.VP.VMCALL"].number
_LEAF: Final = 0xFFFF
_TDCALL: Final = int(ExitReason.TDCALL)


class RtmrExtends:
    """Watches all processors of a machine on which one TD runs.  A context manager.

    Args:
        read: (GPA, bytes) of the TD's private memory; called while its vCPU stands still at the TDCALL.
        extended: told of each extension that succeeded: the RTMR's number and the 48 bytes.
        called: told of each TDCALL for the hypervisor, TDG.VP.VMCALL, before it is made.
    """

    def __init__(
        self,
        machine: Machine,
        read: Callable[[int, int], bytes],
        extended: Callable[[int, bytes], None],
        called: Callable[[], None],
    ) -> None:
        self._probes = [(lp, _Probe(read, extended, called)) for lp in machine.processors]

    def __enter__(self) -> Self:
        for lp, probe in self._probes:
            attach(lp, probe)
        return self

    def __exit__(self, *_: object) -> None:
        for lp, probe in self._probes:
            detach(lp, probe)


class _Probe(Observer):
    """On one processor."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        extended: Callable[[int, bytes], None],
        called: Callable[[], None],
    ) -> None:
        self._read = read
        self._extended = extended
        self._called = called
        self._asked: tuple[int, bytes] | None = None

    def after_exit(self, vmcs: Vmcs, exit: VmExit) -> None:
        """A TDCALL has come: see :class:`Observer`."""
        if exit.reason != _TDCALL:
            return
        gpr = vmcs.context.gpr
        leaf = gpr[RAX] & _LEAF
        if leaf == _EXTEND:
            self._asked = gpr[RDX], self._read(gpr[RCX], 48)
        elif leaf == _VMCALL:
            self._called()

    def before_entry(self, vmcs: Vmcs) -> None:
        """It is done: see :class:`Observer`."""
        asked, self._asked = self._asked, None
        if asked is not None and vmcs.context.gpr[RAX] == 0:
            self._extended(*asked)
