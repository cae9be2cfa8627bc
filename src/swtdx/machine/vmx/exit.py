"""What a VM exit tells the software that did the VM entry.

Source: Intel SDM volume 3, chapter 28 (VM exits) and appendix C (basic exit reasons).
"""

from __future__ import annotations

from typing import Final

EXCEPTION_OR_NMI: Final = 0
EXTERNAL_INTERRUPT: Final = 1
TRIPLE_FAULT: Final = 2
TASK_SWITCH: Final = 9
CPUID: Final = 10
GETSEC: Final = 11
HLT: Final = 12
INVD: Final = 13
RDPMC: Final = 15
RDTSC: Final = 16
RSM: Final = 17
VMCALL: Final = 18
CR_ACCESS: Final = 28
IO: Final = 30
RDMSR: Final = 31
WRMSR: Final = 32
INVALID_GUEST_STATE: Final = 33
MWAIT: Final = 36
MONITOR: Final = 39
EPT_VIOLATION: Final = 48
EPT_MISCONFIGURATION: Final = 49
WBINVD: Final = 54
XSETBV: Final = 55
PCONFIG: Final = 65
SEAMCALL: Final = 76
TDCALL: Final = 77

#: Interruption information of a machine check: vector 18, hardware exception, valid.
MACHINE_CHECK_INFO: Final = 0x80000312


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
