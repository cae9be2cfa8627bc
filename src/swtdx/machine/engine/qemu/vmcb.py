"""The VMCB, QEMU's (AMD's) control block for nested guests, as far as QEMU's TCG implements it.

Source: AMD64 Architecture Programmer's Manual volume 2, appendix B; QEMU ``target/i386/svm.h``.
"""

from __future__ import annotations

from typing import Final

# Control area
INTERCEPT_CR: Final = 0x000  # u16 reads, u16 writes
INTERCEPT_DR: Final = 0x004
INTERCEPT_EXCEPTIONS: Final = 0x008
INTERCEPT: Final = 0x00C  # u64
IOPM_PA: Final = 0x040
MSRPM_PA: Final = 0x048
TSC_OFFSET: Final = 0x050
ASID: Final = 0x058
TLB_CONTROL: Final = 0x05C
INT_CTL: Final = 0x060
INT_VECTOR: Final = 0x064
INT_STATE: Final = 0x068
EXIT_CODE: Final = 0x070
EXIT_INFO_1: Final = 0x078
EXIT_INFO_2: Final = 0x080
EXIT_INT_INFO: Final = 0x088
EXIT_INT_INFO_ERROR: Final = 0x08C
NESTED_CTL: Final = 0x090
EVENT_INJ: Final = 0x0A8
EVENT_INJ_ERROR: Final = 0x0AC
NESTED_CR3: Final = 0x0B0
LBR_CTL: Final = 0x0B8

# Save area: segments are selector u16, attributes u16, limit u32, base u64
ES: Final = 0x400
CS: Final = 0x410
SS: Final = 0x420
DS: Final = 0x430
FS: Final = 0x440
GS: Final = 0x450
GDTR: Final = 0x460
LDTR: Final = 0x470
IDTR: Final = 0x480
TR: Final = 0x490
CPL: Final = 0x4CB
EFER: Final = 0x4D0
CR4: Final = 0x548
CR3: Final = 0x550
CR0: Final = 0x558
DR7: Final = 0x560
DR6: Final = 0x568
RFLAGS: Final = 0x570
RIP: Final = 0x578
RSP: Final = 0x5D8
RAX: Final = 0x5F8
STAR: Final = 0x600
LSTAR: Final = 0x608
CSTAR: Final = 0x610
SFMASK: Final = 0x618
KERNEL_GS_BASE: Final = 0x620
SYSENTER_CS: Final = 0x628
SYSENTER_ESP: Final = 0x630
SYSENTER_EIP: Final = 0x638
CR2: Final = 0x640

# Exit codes
EXIT_READ_CR0: Final = 0x000
EXIT_WRITE_CR0: Final = 0x010
EXIT_READ_DR0: Final = 0x020
EXIT_WRITE_DR0: Final = 0x030
EXIT_EXCEPTION: Final = 0x040
EXIT_INTR: Final = 0x060
EXIT_NMI: Final = 0x061
EXIT_INIT: Final = 0x063
EXIT_VINTR: Final = 0x064
EXIT_RDTSC: Final = 0x06E
EXIT_RDPMC: Final = 0x06F
EXIT_CPUID: Final = 0x072
EXIT_RSM: Final = 0x073
EXIT_IRET: Final = 0x074
#: INT n, INT3 and INTO.  (Of AMD's processors INT n alone.)
EXIT_SWINT: Final = 0x075
EXIT_INVD: Final = 0x076
EXIT_PAUSE: Final = 0x077
EXIT_HLT: Final = 0x078
EXIT_INVLPGA: Final = 0x07A
EXIT_IOIO: Final = 0x07B
EXIT_MSR: Final = 0x07C
EXIT_TASK_SWITCH: Final = 0x07D
EXIT_SHUTDOWN: Final = 0x07F
EXIT_VMRUN: Final = 0x080
EXIT_VMMCALL: Final = 0x081
EXIT_VMLOAD: Final = 0x082
EXIT_VMSAVE: Final = 0x083
EXIT_STGI: Final = 0x084
EXIT_CLGI: Final = 0x085
EXIT_SKINIT: Final = 0x086
EXIT_RDTSCP: Final = 0x087
EXIT_ICEBP: Final = 0x088
EXIT_WBINVD: Final = 0x089
EXIT_MONITOR: Final = 0x08A
EXIT_MWAIT: Final = 0x08B
EXIT_NPF: Final = 0x400
EXIT_INVALID: Final = (1 << 64) - 1
#: QEMU 7.2 stores the invalid code from a 32-bit value.
EXIT_INVALID_32: Final = (1 << 32) - 1
INVALID: Final = frozenset({EXIT_INVALID, EXIT_INVALID_32})

V_IRQ: Final = 1 << 8
V_IGN_TPR: Final = 1 << 20
V_INTR_MASKING: Final = 1 << 24

EVENT_VALID: Final = 1 << 31
EVENT_HAS_ERROR: Final = 1 << 11
EVENT_INTR: Final = 0 << 8
EVENT_NMI: Final = 2 << 8
EVENT_EXCEPTION: Final = 3 << 8
EVENT_SOFT: Final = 4 << 8

NESTED_PAGING: Final = 1

# Bits of EXIT_INFO_1 of a nested page fault
NPF_PRESENT: Final = 1 << 0
NPF_WRITE: Final = 1 << 1
NPF_FETCH: Final = 1 << 4
#: The fault happened on the access itself (bit 32) or on the guest's page walk (bit 33).
NPF_FINAL: Final = 1 << 32
NPF_WALK: Final = 1 << 33


def intercept(*codes: int) -> int:
    """The 64-bit intercept vector (from EXIT_INTR on) with bits for ``codes`` set."""
    bits = 0
    for code in codes:
        bits |= 1 << (code - EXIT_INTR)
    return bits


#: Every instruction and event that a TD's processor must hand over.
INTERCEPTS: Final = intercept(
    EXIT_INTR,
    EXIT_NMI,
    EXIT_INIT,
    EXIT_RDPMC,
    EXIT_CPUID,
    EXIT_RSM,
    EXIT_INVD,
    EXIT_HLT,
    EXIT_INVLPGA,
    EXIT_IOIO,
    EXIT_MSR,
    EXIT_TASK_SWITCH,
    EXIT_SHUTDOWN,
    EXIT_VMRUN,
    EXIT_VMMCALL,
    EXIT_VMLOAD,
    EXIT_VMSAVE,
    EXIT_STGI,
    EXIT_CLGI,
    EXIT_SKINIT,
    EXIT_ICEBP,
    EXIT_WBINVD,
    EXIT_MONITOR,
    EXIT_MWAIT,
)

#: AMD instructions that an Intel processor does not know.
FOREIGN: Final = frozenset(
    {
        EXIT_INVLPGA,
        EXIT_VMRUN,
        EXIT_VMMCALL,
        EXIT_VMLOAD,
        EXIT_VMSAVE,
        EXIT_STGI,
        EXIT_CLGI,
        EXIT_SKINIT,
        EXIT_RSM,
    }
)
