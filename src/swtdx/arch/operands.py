"""Operand ids: which operand an OPERAND_INVALID, OPERAND_BUSY, ... speaks about.

Source: include/auto_gen/tdx_error_codes_defs.h of the TDX module 1.5.01.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import regs


class OperandId:
    """Operand ids: the low 32 bits of OPERAND_* and similar codes.

    0..15 are general-purpose registers in x86 encoding order (4, RSP, is never used), 64..99 fields
    of a structure in memory, 128 and above objects that the leaf reaches by itself.
    """

    RAX: Final = regs.RAX
    RCX: Final = regs.RCX
    RDX: Final = regs.RDX
    RBX: Final = regs.RBX
    RBP: Final = regs.RBP
    RSI: Final = regs.RSI
    RDI: Final = regs.RDI
    R8: Final = regs.R8
    R9: Final = regs.R9
    R10: Final = regs.R10
    R11: Final = regs.R11
    R12: Final = regs.R12
    R13: Final = regs.R13
    R14: Final = regs.R14
    R15: Final = regs.R15
    ATTRIBUTES: Final = 64
    XFAM: Final = 65
    EXEC_CONTROLS: Final = 66
    EPTP_CONTROLS: Final = 67
    MAX_VCPUS: Final = 68
    CPUID_CONFIG: Final = 69
    TSC_FREQUENCY: Final = 70
    NUM_L2_VMS: Final = 71
    IA32_ARCH_CAPABILITIES_CONFIG: Final = 72
    PAGE: Final = 95
    TDMR_INFO_PA: Final = 96
    GPA_LIST_ENTRY: Final = 97
    MIG_BUFF_LIST_ENTRY: Final = 98
    NEW_PAGE_LIST_ENTRY: Final = 99
    TDR: Final = 128
    TDCX: Final = 129
    TDVPR: Final = 130
    REG_PAGE: Final = 132
    TDCS: Final = 144
    TDVPS: Final = 145
    SEPT_TREE: Final = 146
    SEPT_ENTRY: Final = 147
    RTMR: Final = 168
    TD_EPOCH: Final = 169
    L2_VAPIC_GPA: Final = 170
    MIGSC: Final = 171
    OP_STATE: Final = 172
    MIG: Final = 173
    SERVTD_BINDINGS: Final = 174
    METADATA_FIELD: Final = 176
    SYS: Final = 184
    TDMR: Final = 185
    KOT: Final = 186
    KET: Final = 187
    WBCACHE: Final = 188


#: Operand name by id.
OPERAND_NAMES: Final[dict[int, str]] = {
    value: name for name, value in vars(OperandId).items() if name[0].isupper()
}
