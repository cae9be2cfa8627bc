"""The probe: it sits on the logical processors and sees what crosses the boundary, from outside.

A processor without a probe is what it always was: attaching puts a method of the instance in front of the
class's, detaching takes it away.  The module is not touched at all; that a TDCALL was served shows in the
registers at the next VM entry, as it would on a logic analyser.  The probe looks at nothing that costs
guest time (in the scripted engine a look at the TSC does).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

from swtdx.arch import vmcs as f
from swtdx.arch.exits import ExitReason
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import RAX, RCX
from swtdx.arch.x86 import FRAME_MASK
from swtdx.machine.memory import Requestor
from swtdx.machine.vmx.exit import VmExit
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
_PIR_BYTES: Final = 32


class _Vcpu:
    """What is remembered of a vCPU between two crossings."""

    __slots__ = ("exit", "gpr", "mask")

    def __init__(self) -> None:
        self.gpr: Registers | None = None
        self.exit: ExitInfo | None = None
        self.mask: int | None = None


class Tracer:
    """Records every crossing of the boundary on all processors of ``machine`` while it is attached.

    A context manager; :meth:`attach` and :meth:`detach` may be called between SEAMCALLs only.  Attach
    after the firmware has run: it replaces parts of the processors.
    """

    def __init__(self, machine: Machine, sink: Sink) -> None:
        self._machine = machine
        self._sink = sink
        self._numbers = itertools.count(1)
        self._vcpus: dict[int, _Vcpu] = {}
        #: The vCPU that each processor is entering, by index of the processor.
        self._entered: dict[int, int] = {}
        self._attached: list[tuple[Any, str]] = []

    # ------------------------------------------------------------------ on and off
    def attach(self) -> None:
        """Begin to record."""
        for lp in self._machine.processors:
            vmx = lp.vmx
            self._wrap(lp, "seamcall", self._seamcall(lp, lp.seamcall))
            self._wrap(vmx, "enter", self._enter(lp, vmx.enter))
            translator = vmx._translator
            self._wrap(translator, "_convert", self._convert(lp, translator._convert))
            self._wrap(vmx, "_process_posted", self._posted(lp, vmx._process_posted))
            self._wrap(vmx, "_delivered", self._delivered(lp, vmx._delivered))

    def _wrap(self, target: Any, name: str, wrapper: Callable[..., Any]) -> None:
        vars(target)[name] = wrapper
        self._attached.append((target, name))

    def detach(self) -> None:
        """Leave the processors as they were.  Idempotent."""
        for target, name in self._attached:
            vars(target).pop(name, None)
        self._attached.clear()

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # ------------------------------------------------------------------ SEAMCALL
    def _seamcall(self, lp: LogicalProcessor, call: Callable[[], None]) -> Callable[[], None]:
        index = lp.index

        def seamcall() -> None:
            before = tuple(lp.gpr)
            leaf = before[RAX] & 0xFFFF if not before[RAX] >> 63 else None
            tdvpr = before[RCX] & FRAME_MASK if leaf == _VP_ENTER else None
            if leaf == _VP_CREATE:
                self._vcpus.pop(before[RCX], None)
            vcpu = None if tdvpr is None else self._vcpus.setdefault(tdvpr, _Vcpu())
            self._emit(Kind.SEAMCALL, index, before, tdvpr=tdvpr, mask=None if vcpu is None else vcpu.mask)
            if tdvpr is not None:
                self._entered[index] = tdvpr
            call()
            after = tuple(lp.gpr)
            if vcpu is not None and not after[RAX] >> 63:
                vcpu.mask = after[RCX] if after[RAX] == _TDVMCALL else None
            self._emit(
                Kind.SEAMRET,
                index,
                after,
                tdvpr=tdvpr,
                before=before,
                guest=None if vcpu is None else vcpu.gpr,
                answered=not lp.cf,
            )

        return seamcall

    # ------------------------------------------------------------------ VM entry and exit
    def _enter(self, lp: LogicalProcessor, call: Callable[[], VmExit]) -> Callable[[], VmExit]:
        index, vmx = lp.index, lp.vmx

        def enter() -> VmExit:
            vmcs = vmx.current
            assert vmcs is not None
            context, controls = vmcs.context, vmcs.controls
            tdvpr = self._entered[index]
            vcpu = self._vcpus.setdefault(tdvpr, _Vcpu())
            info = controls[f.ENTRY_INTERRUPTION_INFO]
            self._emit(
                Kind.ENTRY,
                index,
                tuple(context.gpr),
                tdvpr=tdvpr,
                before=vcpu.gpr,
                rip=context.rip,
                event=info if info >> 31 & 1 else 0,
                error=controls[f.ENTRY_EXCEPTION_ERROR_CODE] if info >> 11 & 1 else 0,
                exit=vcpu.exit,
            )
            out = call()
            vcpu.gpr = tuple(context.gpr)
            vcpu.exit = ExitInfo(
                out.reason,
                out.qualification,
                out.gpa,
                out.gla,
                out.length,
                out.intr_info,
                out.idt_info,
                context.rip,
                lp.last_exit_tsc,
            )
            self._emit(Kind.EXIT, index, vcpu.gpr, tdvpr=tdvpr, rip=context.rip, exit=vcpu.exit)
            return out

        return enter

    # ------------------------------------------------------------------ what the processor does by itself
    def _convert(
        self, lp: LogicalProcessor, call: Callable[[Any, int, int], bool]
    ) -> Callable[[Any, int, int], bool]:
        def convert(vmcs: Any, gpa: int, qualification: int) -> bool:
            converted = call(vmcs, gpa, qualification)
            if converted:
                rip = vmcs.context.rip
                info = ExitInfo(int(ExitReason.EPT_VIOLATION), qualification, gpa, None, 0, 0, 0, rip, 0)
                tdvpr = self._entered.get(lp.index)
                gpr = tuple(vmcs.context.gpr)
                self._emit(Kind.CONVERTED, lp.index, gpr, tdvpr=tdvpr, rip=rip, exit=info)
            return converted

        return convert

    def _posted(self, lp: LogicalProcessor, call: Callable[[Any], None]) -> Callable[[Any], None]:
        memory = self._machine.memory

        def process_posted(vmcs: Any) -> None:
            pa = vmcs.controls[f.POSTED_INTERRUPT_DESCRIPTOR]
            request = int.from_bytes(memory.read(pa, _PIR_BYTES, Requestor.HOST), "little")
            call(vmcs)
            vectors = tuple(number for number in range(256) if request >> number & 1)
            self._emit(Kind.POSTED, lp.index, (), tdvpr=self._entered.get(lp.index), vectors=vectors)

        return process_posted

    def _delivered(self, lp: LogicalProcessor, call: Callable[[Any], None]) -> Callable[[Any], None]:
        def delivered(vmcs: Any) -> None:
            vector = vmcs.context.read(f.GUEST_INTERRUPT_STATUS) & 0xFF
            call(vmcs)
            self._emit(Kind.DELIVERED, lp.index, (), tdvpr=self._entered.get(lp.index), vectors=(vector,))

        return delivered

    def _emit(self, kind: Kind, lp: int, gpr: Registers, **rest: Any) -> None:
        self._sink(Record(next(self._numbers), kind, lp, gpr, **rest))
