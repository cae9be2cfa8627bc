# ruff: noqa: E501  (a table)
"""The guest-hypervisor communication interface: what a TD may ask of its hypervisor by TDG.VP.VMCALL.

R10 = 0 says that R11 holds one of these sub-functions; any other R10 belongs to a hypervisor's own
interface.  Back come the status in R10 and the outputs; a guest trusts none of them.

Sources: docs/reference/ghci.md, which is cross-checked with edk2 (``IndustryStandard/Tdx.h``), Linux
(``asm/shared/tdx.h``, ``arch/x86/coco/tdx/tdx.c``, ``arch/x86/kvm/vmx/tdx.c``) and QEMU
(``target/i386/kvm/tdx.c``); the order of checks is that of KVM and QEMU.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from swtdx.arch.bits import Bits
from swtdx.arch.exits import ExitReason
from swtdx.arch.leaf import Input, Output

# Sub-functions (R11): instructions have the number of their VM exit reason
CPUID: Final = int(ExitReason.CPUID)
HLT: Final = int(ExitReason.HLT)
IO: Final = int(ExitReason.IO_INSTRUCTION)
RDMSR: Final = int(ExitReason.RDMSR)
WRMSR: Final = int(ExitReason.WRMSR)
MMIO: Final = int(ExitReason.EPT_VIOLATION)
WBINVD: Final = int(ExitReason.WBINVD)
PCONFIG: Final = int(ExitReason.PCONFIG)
GET_TD_VMCALL_INFO: Final = 0x10000
MAP_GPA: Final = 0x10001
GET_QUOTE: Final = 0x10002
REPORT_FATAL_ERROR: Final = 0x10003
SETUP_EVENT_NOTIFY_INTERRUPT: Final = 0x10004
SERVICE: Final = 0x10005

# Statuses (R10)
SUCCESS: Final = 0
RETRY: Final = 1
INVALID_OPERAND: Final = 0x8000000000000000
GPA_INUSE: Final = 0x8000000000000001
ALIGN_ERROR: Final = 0x8000000000000002
SUBFUNC_UNSUPPORTED: Final = 0x8000000000000003
STATUS_NAMES: Final[dict[int, str]] = {
    SUCCESS: "SUCCESS", RETRY: "RETRY", INVALID_OPERAND: "INVALID_OPERAND", GPA_INUSE: "GPA_INUSE",
    ALIGN_ERROR: "ALIGN_ERROR", SUBFUNC_UNSUPPORTED: "SUBFUNC_UNSUPPORTED",
}  # fmt: skip

# Statuses in the header of a GetQuote buffer (Linux, drivers/virt/coco/tdx-guest/tdx-guest.c)
QUOTE_SUCCESS: Final = 0
QUOTE_IN_FLIGHT: Final = 0xFFFFFFFFFFFFFFFF
QUOTE_ERROR: Final = 0x8000000000000000
QUOTE_UNAVAILABLE: Final = 0x8000000000000001
QUOTE_STATUS_NAMES: Final[dict[int, str]] = {
    QUOTE_SUCCESS: "SUCCESS", QUOTE_IN_FLIGHT: "IN_FLIGHT", QUOTE_ERROR: "ERROR",
    QUOTE_UNAVAILABLE: "SERVICE_UNAVAILABLE",
}  # fmt: skip

#: RCX masks that Linux passes: R10..R15, and those with RBX, RDI, RSI, R8, R9, RDX.
BASIC_MASK: Final = 0xFC00
FULL_MASK: Final = 0xFFCC
#: Registers that no mask may select: RAX, RCX, RSP (and RBP where CONFIG_FLAGS has NO_RBP_MOD).
NEVER_PASSED: Final = 1 << 0 | 1 << 1 | 1 << 4

# GetTdVmCallInfo leaf 1, R11: what there is beyond the base set
INFO_GET_QUOTE: Final = 1 << 0
INFO_SETUP_EVENT_NOTIFY_INTERRUPT: Final = 1 << 1
#: ReportFatalError, R12: R13 holds the GPA of a shared page with a longer message.
FATAL_GPA_VALID: Final = 1 << 63
#: ReportFatalError: the registers that hold the message, 8 ASCII bytes each, in this order.
FATAL_MESSAGE: Final = ("R14", "R15", "RBX", "RDI", "RSI", "R8", "R9", "RDX")
#: SetupEventNotifyInterrupt: vectors that a guest may ask for.
LOWEST_EVENT_VECTOR: Final = 32
#: GetQuote: QEMU's limit of a buffer, in bytes.
QUOTE_BUFFER_LIMIT: Final = 128 << 10


class Refusal(NamedTuple):
    """A status in R10 that is no success, and the condition that must hold for it not to come."""

    status: int
    check: str


class Call(NamedTuple):
    """A sub-function of TDG.VP.VMCALL.

    ``base``: every hypervisor has it, without enumeration by GetTdVmCallInfo.  ``supported``: ours
    serves it; the others are answered with SUBFUNC_UNSUPPORTED.  ``verified`` is False where the
    operands are not known from a source that implements them.
    """

    number: int
    name: str
    summary: str
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    base: bool = True
    supported: bool = True
    verified: bool = True


_SIZE_124: Final = Refusal(INVALID_OPERAND, "R12 is 1, 2 or 4")
_DIRECTION: Final = Refusal(INVALID_OPERAND, "R13 is 0 or 1")
_DIRECTION_INPUT: Final = Input("R13", "0 read, 1 write")

#: Every sub-function by its number.
CALLS: Final[dict[int, Call]] = {
    call.number: call
    for call in (
        Call(
            CPUID, "Instruction.CPUID", "the CPUID instruction",
            inputs=(Input("R12", "EAX: leaf"), Input("R13", "ECX: subleaf")),
            outputs=(Output("R12", "EAX"), Output("R13", "EBX"), Output("R14", "ECX"), Output("R15", "EDX")),
        ),
        Call(
            HLT, "Instruction.HLT", "halt until an interrupt comes",
            inputs=(Input("R12", "bit 0: interrupts are blocked (RFLAGS.IF = 0)", (Bits("blocked", 0, 0),)),),
        ),
        Call(
            IO, "Instruction.IO", "IN or OUT",
            inputs=(
                Input("R12", "bytes: 1, 2 or 4"), _DIRECTION_INPUT, Input("R14", "port"),
                Input("R15", "value to write"),
            ),
            outputs=(Output("R11", "value read"),),
            refusals=(_DIRECTION, _SIZE_124, Refusal(INVALID_OPERAND, "the port exists (0 to 0xFFFF)")),
        ),
        Call(
            RDMSR, "Instruction.RDMSR", "the RDMSR instruction",
            inputs=(Input("R12", "MSR"),), outputs=(Output("R11", "its value"),),
            refusals=(Refusal(INVALID_OPERAND, "the hypervisor has the MSR"),),
        ),
        Call(
            WRMSR, "Instruction.WRMSR", "the WRMSR instruction",
            inputs=(Input("R12", "MSR"), Input("R13", "value")),
            refusals=(Refusal(INVALID_OPERAND, "the hypervisor has the MSR, and it takes the value"),),
        ),
        Call(
            MMIO, "#VE.RequestMMIO", "an access to a device's memory",
            inputs=(
                Input("R12", "bytes: 1, 2, 4 or 8"), _DIRECTION_INPUT, Input("R14", "shared GPA"),
                Input("R15", "value to write"),
            ),
            outputs=(Output("R11", "value read"),),
            refusals=(
                Refusal(INVALID_OPERAND, "R12 is 1, 2, 4 or 8"), _DIRECTION,
                Refusal(INVALID_OPERAND, "R14 has the shared bit and is a GPA of the TD"),
            ),
        ),
        Call(
            WBINVD, "Instruction.WBINVD", "write the caches back",
            inputs=(Input("R12", "0 WBINVD, 1 WBNOINVD"),),
            refusals=(Refusal(INVALID_OPERAND, "R12 is 0 or 1"),),
        ),
        Call(PCONFIG, "Instruction.PCONFIG", "configure the platform's keys", supported=False, verified=False),
        Call(
            GET_TD_VMCALL_INFO, "GetTdVmCallInfo", "what the hypervisor offers beyond the base set",
            inputs=(Input("R12", "leaf: 0 or 1"),),
            outputs=(
                Output("R11", "leaf 0: 0; leaf 1: bit 0 GetQuote, bit 1 SetupEventNotifyInterrupt"),
                Output("R12", "0"), Output("R13", "0"), Output("R14", "0"),
            ),
            refusals=(Refusal(INVALID_OPERAND, "R12 is 0 or 1"),),
        ),
        Call(
            MAP_GPA, "MapGPA", "make memory shared, or private",
            inputs=(
                Input("R12", "first GPA; its shared bit says what the range becomes"), Input("R13", "bytes"),
            ),
            outputs=(Output("R11", "GPA that failed, or from which the guest goes on after RETRY"),),
            refusals=(
                Refusal(INVALID_OPERAND, "the range is not empty, lies in the GPA width, and all of it has or all of it lacks the shared bit"),
                Refusal(ALIGN_ERROR, "R12 and R13 are multiples of 4 KiB"),
                Refusal(GPA_INUSE, "nothing else uses the range"),
                Refusal(RETRY, "all of it is done: otherwise the guest calls again, from R11 on"),
            ),
        ),
        Call(
            GET_QUOTE, "GetQuote", "have a TDREPORT turned into a quote, while the guest runs on",
            inputs=(Input("R12", "shared GPA of the buffer"), Input("R13", "bytes of the buffer")),
            refusals=(
                Refusal(INVALID_OPERAND, "R12 has the shared bit"),
                Refusal(ALIGN_ERROR, "R12 and R13 are multiples of 4 KiB"),
                Refusal(INVALID_OPERAND, "1 to 128 KiB of shared memory, version 1, and in_len fits behind the header"),
                Refusal(RETRY, "fewer than 16 requests are in flight"),
            ),
            base=False,
        ),
        Call(
            REPORT_FATAL_ERROR, "ReportFatalError", "the guest gives up; it does not come back",
            inputs=(
                Input("R12", "error code", (Bits("reserved", 15, 0), Bits("gpa_valid", 63, 63))),
                Input("R13", "shared GPA of a page with a longer message"),
                *(Input(register, "8 bytes of the message, ASCII") for register in FATAL_MESSAGE),
            ),
        ),
        Call(
            SETUP_EVENT_NOTIFY_INTERRUPT, "SetupEventNotifyInterrupt",
            "the interrupt that tells this vCPU of events such as a finished quote",
            inputs=(Input("R12", "vector, 32 to 255"),),
            refusals=(Refusal(INVALID_OPERAND, "R12 is 32 to 255"),),
            base=False,
        ),
        Call(
            SERVICE, "Service", "a command to a service of the hypervisor's",
            inputs=(
                Input("R12", "shared GPA of the command"), Input("R13", "shared GPA of the response"),
                Input("R14", "notification vector"), Input("R15", "timeout"),
            ),
            base=False, supported=False, verified=False,
        ),
    )
}  # fmt: skip

#: The same by name, in lower case: ``"mapgpa"``.
CALLS_BY_NAME: Final[dict[str, Call]] = {call.name.lower(): call for call in CALLS.values()}


def status_name(status: int) -> str:
    """The name of a status in R10; hexadecimal if it has none."""
    return STATUS_NAMES.get(status, f"{status:#x}")
