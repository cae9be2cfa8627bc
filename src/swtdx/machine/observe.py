"""Where something outside the machine looks at a logical processor: traces, live views, debuggers.

A processor tells its observer (``lp.observer``; several are one that passes everything on) what crosses the
boundary of SEAM, at the moment when it does; while it has none this costs one comparison.  The model is
Trio's ``Instrument``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.vmcs import Vmcs


class Observer:
    """Sees one logical processor; a subclass overrides what it wants to hear of.

    Every method is called on the thread that executes the processor, before which the processor stands
    still: it may look at everything, must change nothing, and must not raise.
    """

    def before_seamcall(self) -> None:
        """SEAMCALL is about to be executed; the operands are in the processor's ``gpr``."""

    def after_seamcall(self) -> None:
        """SEAMCALL is done, with its results in ``gpr`` and ``cf``; not told when it has faulted."""

    def before_entry(self, vmcs: Vmcs) -> None:
        """VM entry with ``vmcs``: its context has the guest's registers, its controls what is injected."""

    def after_exit(self, vmcs: Vmcs, exit: VmExit) -> None:
        """VM exit, with the guest's registers in the context of ``vmcs``; ``exit`` is reused."""

    def converted(self, vmcs: Vmcs, gpa: int, qualification: int) -> None:
        """An EPT violation at ``gpa`` has become a #VE, without a VM exit."""

    def posted(self, vmcs: Vmcs, vectors: Sequence[int]) -> None:
        """Posted interrupts were taken over into the virtual APIC: ``vectors``, in ascending order."""

    def delivered(self, vmcs: Vmcs, vector: int) -> None:
        """The guest has taken the virtual interrupt ``vector``."""


class Observed(Protocol):
    """What can be observed: a logical processor."""

    observer: Observer | None


class _Several(Observer):
    """More than one observer, told in the order in which they came."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def before_seamcall(self) -> None:
        for one in self.observers:
            one.before_seamcall()

    def after_seamcall(self) -> None:
        for one in self.observers:
            one.after_seamcall()

    def before_entry(self, vmcs: Vmcs) -> None:
        for one in self.observers:
            one.before_entry(vmcs)

    def after_exit(self, vmcs: Vmcs, exit: VmExit) -> None:
        for one in self.observers:
            one.after_exit(vmcs, exit)

    def converted(self, vmcs: Vmcs, gpa: int, qualification: int) -> None:
        for one in self.observers:
            one.converted(vmcs, gpa, qualification)

    def posted(self, vmcs: Vmcs, vectors: Sequence[int]) -> None:
        for one in self.observers:
            one.posted(vmcs, vectors)

    def delivered(self, vmcs: Vmcs, vector: int) -> None:
        for one in self.observers:
            one.delivered(vmcs, vector)


def _observers(lp: Observed) -> tuple[Observer, ...]:
    present = lp.observer
    if isinstance(present, _Several):
        return present.observers
    return () if present is None else (present,)


def _set(lp: Observed, observers: tuple[Observer, ...]) -> None:
    lp.observer = _Several(observers) if len(observers) > 1 else next(iter(observers), None)


def attach(lp: Observed, observer: Observer) -> None:
    """From now on ``observer`` sees ``lp``, besides those that do already."""
    _set(lp, (*_observers(lp), observer))


def detach(lp: Observed, observer: Observer) -> None:
    """``observer`` sees ``lp`` no longer.  Nothing happens if it did not."""
    _set(lp, tuple(one for one in _observers(lp) if one is not observer))
