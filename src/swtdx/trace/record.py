"""What a probe takes down at the boundary: registers as they are, nothing interpreted."""

from __future__ import annotations

import enum
from dataclasses import dataclass

#: RAX..R15, x86 order.
Registers = tuple[int, ...]


class Kind(enum.StrEnum):
    """Where the boundary was crossed."""

    SEAMCALL = "SEAMCALL"
    SEAMRET = "SEAMRET"
    ENTRY = "VM entry"
    EXIT = "VM exit"
    #: The processor has made an EPT violation a #VE in the guest, without a VM exit.
    CONVERTED = "#VE"
    #: The processor has looked into the vCPU's posted-interrupt descriptor, without a VM exit.
    POSTED = "posted interrupts"
    #: The guest has taken an external interrupt out of its virtual APIC, without a VM exit.
    DELIVERED = "virtual interrupt"


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """The exit-information fields of a VM exit (:class:`swtdx.machine.vmx.exit.VmExit`)."""

    reason: int
    qualification: int
    gpa: int
    gla: int | None
    length: int
    intr_info: int
    idt_info: int
    #: Where the guest was.
    rip: int
    #: The processor's TSC at the exit.
    tsc: int


@dataclass(frozen=True, slots=True)
class Record:
    """One crossing.

    ``gpr`` are the hypervisor's registers for SEAMCALL and SEAMRET, else the guest's.  ``tdvpr`` is the
    HPA of the vCPU's root page where the crossing is a vCPU's, else None.

    * SEAMCALL: ``mask`` is the register mask of the vCPU's last TDVMCALL if that is how it left last.
    * SEAMRET: ``before`` are the registers at the SEAMCALL, ``guest`` the guest's at its last VM exit
      (after TDH.VP.ENTER), ``answered`` is False for VMfailInvalid.
    * VM entry: ``event`` is what is injected (VM-entry interruption information, 0 for nothing),
      ``error`` its error code, ``before`` the guest's registers at its last VM exit, ``exit`` that exit.
    * VM exit: ``exit``.
    * #VE: ``exit`` is the EPT violation that it was.
    * posted interrupts, virtual interrupt: ``vectors``.
    """

    number: int
    kind: Kind
    lp: int
    gpr: Registers
    tdvpr: int | None = None
    mask: int | None = None
    before: Registers | None = None
    guest: Registers | None = None
    answered: bool = True
    rip: int = 0
    event: int = 0
    error: int = 0
    exit: ExitInfo | None = None
    vectors: tuple[int, ...] = ()
