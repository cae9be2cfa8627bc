"""What a VM exit tells the software that did the VM entry.

Source: Intel SDM volume 3, chapter 28 (VM exits) and appendix C (basic exit reasons).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.exits import ENTRY_FAILURE, INTERRUPTION_VALID, TYPE_HARDWARE_EXCEPTION, TYPE_NMI, ExitReason
from swtdx.arch.x86 import VECTOR_MC, VECTOR_NMI

# The exit reasons that a guest here can have, as plain numbers: they are compared on every exit.
EXCEPTION_OR_NMI: Final = ExitReason.EXCEPTION_OR_NMI.value
EXTERNAL_INTERRUPT: Final = ExitReason.EXTERNAL_INTERRUPT.value
TRIPLE_FAULT: Final = ExitReason.TRIPLE_FAULT.value
TASK_SWITCH: Final = ExitReason.TASK_SWITCH.value
CPUID: Final = ExitReason.CPUID.value
GETSEC: Final = ExitReason.GETSEC.value
HLT: Final = ExitReason.HLT.value
INVD: Final = ExitReason.INVD.value
RDPMC: Final = ExitReason.RDPMC.value
RDTSC: Final = ExitReason.RDTSC.value
RSM: Final = ExitReason.RSM.value
VMCALL: Final = ExitReason.VMCALL.value
CR_ACCESS: Final = ExitReason.CR_ACCESS.value
DR_ACCESS: Final = ExitReason.DR_ACCESS.value
IO: Final = ExitReason.IO_INSTRUCTION.value
RDMSR: Final = ExitReason.RDMSR.value
WRMSR: Final = ExitReason.WRMSR.value
#: The guest's state cannot be loaded: VM entry fails.
INVALID_GUEST_STATE: Final = ExitReason.ENTRY_FAILURE_GUEST_STATE.value | ENTRY_FAILURE
MWAIT: Final = ExitReason.MWAIT.value
MONITOR: Final = ExitReason.MONITOR.value
EPT_VIOLATION: Final = ExitReason.EPT_VIOLATION.value
EPT_MISCONFIGURATION: Final = ExitReason.EPT_MISCONFIGURATION.value
WBINVD: Final = ExitReason.WBINVD.value
XSETBV: Final = ExitReason.XSETBV.value
PCONFIG: Final = ExitReason.PCONFIG.value
SEAMCALL: Final = ExitReason.SEAMCALL.value
TDCALL: Final = ExitReason.TDCALL.value

#: Interruption information of an NMI: vector 2, NMI, valid.
NMI_INFO: Final = INTERRUPTION_VALID | TYPE_NMI << 8 | VECTOR_NMI
#: Interruption information of a machine check: vector 18, hardware exception, valid.
MACHINE_CHECK_INFO: Final = INTERRUPTION_VALID | TYPE_HARDWARE_EXCEPTION << 8 | VECTOR_MC


class VmExit:
    """The exit-information fields.  One object a logical processor, overwritten by each exit."""

    __slots__ = (
        "gla", "gpa", "idt_error", "idt_info", "instruction_info", "intr_error", "intr_info",
        "length", "qualification", "reason",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Basic exit reason (bits 15:0) and flags.
        self.reason = 0
        self.qualification = 0
        #: Guest-physical address of an EPT violation or misconfiguration.
        self.gpa = 0
        #: Guest-linear address, None where it is not valid.
        self.gla: int | None = None
        #: Instruction length in bytes.
        self.length = 0
        self.instruction_info = 0
        #: VM-exit interruption information and error code.
        self.intr_info = 0
        self.intr_error = 0
        #: IDT-vectoring information: what was being delivered when the exit happened.
        self.idt_info = 0
        self.idt_error = 0

    def set(self, reason: int, qualification: int = 0, length: int = 0) -> VmExit:
        """Start a new exit: everything else is cleared."""
        self.reason = reason
        self.qualification = qualification
        self.length = length
        self.gpa = 0
        self.gla = None
        self.instruction_info = 0
        self.intr_info = 0
        self.intr_error = 0
        self.idt_info = 0
        self.idt_error = 0
        return self
