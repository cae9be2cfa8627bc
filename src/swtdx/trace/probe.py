"""The probe: it sits on the logical processors and sees what crosses the boundary, from outside.

It is an observer of each processor (:mod:`swtdx.machine.observe`).  The module is not touched at all; that a
TDCALL was served shows in the registers at the next VM entry, as it would on a logic analyser.  The probe
looks at nothing that costs guest time (in the scripted engine a look at the TSC does).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from swtdx.arch import vmcs as f
from swtdx.arch.exits import ExitReason
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import RAX, RCX
from swtdx.arch.x86 import FRAME_MASK
from swtdx.machine.observe import Observer, attach, detach
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.vmcs import Vmcs
from swtdx.trace.record import ExitInfo, Kind, Record, Registers

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine
    from swtdx.machine.processor import LogicalProcessor

#: Takes each record, on the thread of the processor where it was made.
Sink = Callable[[Record], None]

_VP_ENTER: Final = HOST_BY_NAME["TDH.VP.ENTER"].number
_VP_CREATE: Final = HOST_BY_NAME["TDH.VP.CREATE"].number
#: RAX after TDH.VP.ENTER when the guest has made a TDVMCALL: SUCCESS, exit reason TDCALL.
_TDVMCALL: Final = int(ExitReason.TDCALL)


class _Vcpu:
    """What is remembered of a vCPU between two crossings."""

    __slots__ = ("exit", "gpr", "mask")

    def __init__(self) -> None:
        self.gpr: Registers | None = None
        self.exit: ExitInfo | None = None
        self.mask: int | None = None


class Tracer:
    """Records every crossing of the boundary on all processors of ``machine`` while it is attached.

    A context manager; :meth:`attach` and :meth:`detach` may be called between SEAMCALLs only.
    """

    def __init__(self, machine: Machine, sink: Sink) -> None:
        numbers = itertools.count(1)
        vcpus: dict[int, _Vcpu] = {}
        self._probes = [_Probe(lp, sink, numbers, vcpus) for lp in machine.processors]

    def attach(self) -> None:
        """Begin to record."""
        for probe in self._probes:
            attach(probe.lp, probe)

    def detach(self) -> None:
        """Stop recording.  Idempotent."""
        for probe in self._probes:
            detach(probe.lp, probe)

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


class _Probe(Observer):
    """On one processor.  ``vcpus``, by HPA of TDVPR, and ``numbers`` are common to all of a tracer's."""

    def __init__(
        self, lp: LogicalProcessor, sink: Sink, numbers: Iterator[int], vcpus: dict[int, _Vcpu]
    ) -> None:
        self.lp = lp
        self._sink = sink
        self._numbers = numbers
        self._vcpus = vcpus
        #: The registers before the SEAMCALL in progress, and the vCPU that it enters.
        self._before: Registers = ()
        self._tdvpr: int | None = None
        #: The vCPU that was entered last.
        self._entered: int | None = None

    # ------------------------------------------------------------------ SEAMCALL
    def before_seamcall(self) -> None:
        """See :class:`Observer`."""
        before = tuple(self.lp.gpr)
        leaf = before[RAX] & 0xFFFF if not before[RAX] >> 63 else None
        tdvpr = before[RCX] & FRAME_MASK if leaf == _VP_ENTER else None
        if leaf == _VP_CREATE:
            self._vcpus.pop(before[RCX], None)
        vcpu = None if tdvpr is None else self._vcpus.setdefault(tdvpr, _Vcpu())
        self._before, self._tdvpr = before, tdvpr
        self._emit(Kind.SEAMCALL, before, tdvpr=tdvpr, mask=None if vcpu is None else vcpu.mask)
        if tdvpr is not None:
            self._entered = tdvpr

    def after_seamcall(self) -> None:
        """See :class:`Observer`."""
        lp, tdvpr = self.lp, self._tdvpr
        after = tuple(lp.gpr)
        vcpu = None if tdvpr is None else self._vcpus.setdefault(tdvpr, _Vcpu())
        if vcpu is not None and not after[RAX] >> 63:
            vcpu.mask = after[RCX] if after[RAX] == _TDVMCALL else None
        self._emit(
            Kind.SEAMRET,
            after,
            tdvpr=tdvpr,
            before=self._before,
            guest=None if vcpu is None else vcpu.gpr,
            answered=not lp.cf,
        )

    # ------------------------------------------------------------------ VM entry and exit
    def _vcpu(self) -> _Vcpu:
        assert self._entered is not None
        return self._vcpus.setdefault(self._entered, _Vcpu())

    def before_entry(self, vmcs: Vmcs) -> None:
        """See :class:`Observer`."""
        context, controls = vmcs.context, vmcs.controls
        vcpu = self._vcpu()
        info = controls[f.ENTRY_INTERRUPTION_INFO]
        self._emit(
            Kind.ENTRY,
            tuple(context.gpr),
            tdvpr=self._entered,
            before=vcpu.gpr,
            rip=context.rip,
            event=info if info >> 31 & 1 else 0,
            error=controls[f.ENTRY_EXCEPTION_ERROR_CODE] if info >> 11 & 1 else 0,
            exit=vcpu.exit,
        )

    def after_exit(self, vmcs: Vmcs, exit: VmExit) -> None:
        """See :class:`Observer`."""
        context, vcpu = vmcs.context, self._vcpu()
        vcpu.gpr = tuple(context.gpr)
        vcpu.exit = ExitInfo(
            exit.reason,
            exit.qualification,
            exit.gpa,
            exit.gla,
            exit.length,
            exit.intr_info,
            exit.idt_info,
            context.rip,
            self.lp.last_exit_tsc,
        )
        self._emit(Kind.EXIT, vcpu.gpr, tdvpr=self._entered, rip=context.rip, exit=vcpu.exit)

    # ------------------------------------------------------------------ what the processor does by itself
    def converted(self, vmcs: Vmcs, gpa: int, qualification: int) -> None:
        """See :class:`Observer`."""
        rip = vmcs.context.rip
        info = ExitInfo(int(ExitReason.EPT_VIOLATION), qualification, gpa, None, 0, 0, 0, rip, 0)
        self._emit(Kind.CONVERTED, tuple(vmcs.context.gpr), tdvpr=self._entered, rip=rip, exit=info)

    def posted(self, vmcs: Vmcs, vectors: Sequence[int]) -> None:
        """See :class:`Observer`."""
        self._emit(Kind.POSTED, (), tdvpr=self._entered, vectors=tuple(vectors))

    def delivered(self, vmcs: Vmcs, vector: int) -> None:
        """See :class:`Observer`."""
        self._emit(Kind.DELIVERED, (), tdvpr=self._entered, vectors=(vector,))

    def _emit(self, kind: Kind, gpr: Registers, **rest: Any) -> None:
        self._sink(Record(next(self._numbers), kind, self.lp.index, gpr, **rest))
