"""Bits of control and flag registers, exceptions, segments and the local APIC.

Source: Intel SDM volume 3 (chapters 2, 5, 6, 11) and volume 1 (EFLAGS).
"""

from __future__ import annotations

from typing import Final

# CR0
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_AM: Final = 1 << 18
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31

# CR4
CR4_VME: Final = 1 << 0
CR4_PVI: Final = 1 << 1
CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_PCE: Final = 1 << 8
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_UMIP: Final = 1 << 11
CR4_LA57: Final = 1 << 12
CR4_VMXE: Final = 1 << 13
CR4_SMXE: Final = 1 << 14
CR4_FSGSBASE: Final = 1 << 16
CR4_PCIDE: Final = 1 << 17
CR4_OSXSAVE: Final = 1 << 18
CR4_KL: Final = 1 << 19
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
CR4_PKE: Final = 1 << 22
CR4_CET: Final = 1 << 23
CR4_PKS: Final = 1 << 24
CR4_UINTR: Final = 1 << 25
CR4_LAM_SUP: Final = 1 << 28

# IA32_EFER
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11

#: In CPUID(1).EAX, below family and model.
CPUID_1_EAX_STEPPING: Final = 0xF

# CPUID bits that mirror CR4
#: The legacy region and the header of an XSAVE area, in bytes (SDM volume 1, 13.4).
XSAVE_LEGACY: Final = 576
CPUID_1_ECX_OSXSAVE: Final = 1 << 27
CPUID_7_ECX_OSPKE: Final = 1 << 4

# Entries of page tables
PTE_P: Final = 1 << 0
PTE_W: Final = 1 << 1
PTE_U: Final = 1 << 2
PTE_PS: Final = 1 << 7
PTE_NX: Final = 1 << 63

# Memory types (MTRRs, PAT, EPT)
MEMORY_TYPE_UC: Final = 0
MEMORY_TYPE_WB: Final = 6

#: Bits 51:12: the physical address in an entry of any page table, and of a page in an operand.
FRAME_MASK: Final = (1 << 52) - (1 << 12)

# RFLAGS
RFLAGS_FIXED: Final = 1 << 1
RFLAGS_CF: Final = 1 << 0
RFLAGS_PF: Final = 1 << 2
RFLAGS_AF: Final = 1 << 4
RFLAGS_ZF: Final = 1 << 6
RFLAGS_SF: Final = 1 << 7
RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_DF: Final = 1 << 10
RFLAGS_OF: Final = 1 << 11
RFLAGS_NT: Final = 1 << 14
RFLAGS_RF: Final = 1 << 16
RFLAGS_VM: Final = 1 << 17
RFLAGS_AC: Final = 1 << 18

# Exception vectors
VECTOR_DE: Final = 0
VECTOR_DB: Final = 1
VECTOR_NMI: Final = 2
VECTOR_BP: Final = 3
VECTOR_OF: Final = 4
VECTOR_BR: Final = 5
VECTOR_UD: Final = 6
VECTOR_NM: Final = 7
VECTOR_DF: Final = 8
VECTOR_TS: Final = 10
VECTOR_NP: Final = 11
VECTOR_SS: Final = 12
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14
VECTOR_MF: Final = 16
VECTOR_AC: Final = 17
VECTOR_MC: Final = 18
VECTOR_XM: Final = 19
VECTOR_VE: Final = 20
VECTOR_CP: Final = 21

#: Vectors of exceptions that push an error code.
WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21))
#: Mnemonic of each exception.
EXCEPTIONS: Final[dict[int, str]] = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip

# Page-fault error code
PF_PRESENT: Final = 1 << 0
PF_WRITE: Final = 1 << 1
PF_USER: Final = 1 << 2
PF_RESERVED: Final = 1 << 3
PF_FETCH: Final = 1 << 4

# Segment access rights, as the VMCS holds them
AR_TYPE: Final = 0xF
AR_S: Final = 1 << 4  # code or data
AR_DPL_SHIFT: Final = 5
AR_DPL: Final = 3 << 5
AR_P: Final = 1 << 7
AR_AVL: Final = 1 << 12
AR_L: Final = 1 << 13
AR_DB: Final = 1 << 14
AR_G: Final = 1 << 15
AR_UNUSABLE: Final = 1 << 16

#: Where the local APIC is after reset (IA32_APIC_BASE).
LOCAL_APIC_BASE: Final = 0xFEE0_0000
# Local APIC: offset in the (virtual) APIC page; its x2APIC MSR is 0x800 + offset / 16
APIC_ID: Final = 0x020
APIC_VERSION: Final = 0x030
APIC_TPR: Final = 0x080
APIC_PPR: Final = 0x0A0
APIC_EOI: Final = 0x0B0
APIC_LDR: Final = 0x0D0
APIC_SVR: Final = 0x0F0
APIC_ISR: Final = 0x100  # eight registers, 0x10 apart
APIC_TMR: Final = 0x180
APIC_IRR: Final = 0x200
APIC_ESR: Final = 0x280
APIC_LVT_CMCI: Final = 0x2F0
APIC_ICR: Final = 0x300
APIC_LVT_TIMER: Final = 0x320
APIC_LVT_THERMAL: Final = 0x330
APIC_LVT_PERFMON: Final = 0x340
APIC_LVT_LINT0: Final = 0x350
APIC_LVT_LINT1: Final = 0x360
APIC_LVT_ERROR: Final = 0x370
APIC_INITIAL_COUNT: Final = 0x380
APIC_CURRENT_COUNT: Final = 0x390
APIC_DIVIDE: Final = 0x3E0
APIC_SELF_IPI: Final = 0x3F0
X2APIC_MSR_BASE: Final = 0x800


def x2apic_msr(offset: int) -> int:
    """The x2APIC MSR of the APIC register at ``offset`` bytes of the APIC page."""
    return X2APIC_MSR_BASE + (offset >> 4)
