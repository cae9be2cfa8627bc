"""VMCS fields: names, encodings, widths, and a dense index for each.

Source: Intel SDM volume 3, appendix B ("Field Encoding in VMCS"); SHARED_EPTP and HKID from the TDX
module 1.5.01 sources.  Bits 14:13 of an encoding give the width (0: 16, 1: 64, 2: 32 bits, 3:
natural), bits 11:10 the type (0 control, 1 read-only exit information, 2 guest state, 3 host state).
"""

from __future__ import annotations

from typing import Final

# 16-bit
VPID: Final = 0x0000
POSTED_INTERRUPT_NOTIFICATION_VECTOR: Final = 0x0002
EPTP_INDEX: Final = 0x0004
HLAT_PREFIX_SIZE: Final = 0x0006
GUEST_ES_SELECTOR: Final = 0x0800
GUEST_CS_SELECTOR: Final = 0x0802
GUEST_SS_SELECTOR: Final = 0x0804
GUEST_DS_SELECTOR: Final = 0x0806
GUEST_FS_SELECTOR: Final = 0x0808
GUEST_GS_SELECTOR: Final = 0x080A
GUEST_LDTR_SELECTOR: Final = 0x080C
GUEST_TR_SELECTOR: Final = 0x080E
GUEST_INTERRUPT_STATUS: Final = 0x0810
PML_INDEX: Final = 0x0812
GUEST_UINV: Final = 0x0814
# 64-bit controls
IO_BITMAP_A: Final = 0x2000
IO_BITMAP_B: Final = 0x2002
MSR_BITMAP: Final = 0x2004
EXIT_MSR_STORE_ADDRESS: Final = 0x2006
EXIT_MSR_LOAD_ADDRESS: Final = 0x2008
ENTRY_MSR_LOAD_ADDRESS: Final = 0x200A
EXECUTIVE_VMCS_POINTER: Final = 0x200C
PML_ADDRESS: Final = 0x200E
TSC_OFFSET: Final = 0x2010
VIRTUAL_APIC_PAGE: Final = 0x2012
APIC_ACCESS_PAGE: Final = 0x2014
POSTED_INTERRUPT_DESCRIPTOR: Final = 0x2016
VM_FUNCTION_CONTROLS: Final = 0x2018
EPTP: Final = 0x201A
EOI_EXIT_BITMAP_0: Final = 0x201C
EOI_EXIT_BITMAP_1: Final = 0x201E
EOI_EXIT_BITMAP_2: Final = 0x2020
EOI_EXIT_BITMAP_3: Final = 0x2022
EPTP_LIST_ADDRESS: Final = 0x2024
VMREAD_BITMAP: Final = 0x2026
VMWRITE_BITMAP: Final = 0x2028
VE_INFORMATION_ADDRESS: Final = 0x202A
XSS_EXITING_BITMAP: Final = 0x202C
ENCLS_EXITING_BITMAP: Final = 0x202E
TSC_MULTIPLIER: Final = 0x2032
PROCBASED_CTLS3: Final = 0x2034
ENCLV_EXITING_BITMAP: Final = 0x2036
LOW_PASID_DIRECTORY: Final = 0x2038
HIGH_PASID_DIRECTORY: Final = 0x203A
SHARED_EPTP: Final = 0x203C
PCONFIG_EXITING_BITMAP: Final = 0x203E
HLAT_POINTER: Final = 0x2040
SPEC_CTRL_MASK: Final = 0x204A
SPEC_CTRL_SHADOW: Final = 0x204C
# 64-bit exit information
GUEST_PHYSICAL_ADDRESS: Final = 0x2400
# 64-bit guest state
VMCS_LINK_POINTER: Final = 0x2800
GUEST_DEBUGCTL: Final = 0x2802
GUEST_PAT: Final = 0x2804
GUEST_EFER: Final = 0x2806
GUEST_PERF_GLOBAL_CTRL: Final = 0x2808
GUEST_PDPTE0: Final = 0x280A
GUEST_PDPTE1: Final = 0x280C
GUEST_PDPTE2: Final = 0x280E
GUEST_PDPTE3: Final = 0x2810
GUEST_BNDCFGS: Final = 0x2812
GUEST_RTIT_CTL: Final = 0x2814
GUEST_LBR_CTL: Final = 0x2816
GUEST_PKRS: Final = 0x2818
# 32-bit controls
PIN_BASED_CONTROLS: Final = 0x4000
PROC_BASED_CONTROLS: Final = 0x4002
EXCEPTION_BITMAP: Final = 0x4004
PAGE_FAULT_MASK: Final = 0x4006
PAGE_FAULT_MATCH: Final = 0x4008
CR3_TARGET_COUNT: Final = 0x400A
EXIT_CONTROLS: Final = 0x400C
EXIT_MSR_STORE_COUNT: Final = 0x400E
EXIT_MSR_LOAD_COUNT: Final = 0x4010
ENTRY_CONTROLS: Final = 0x4012
ENTRY_MSR_LOAD_COUNT: Final = 0x4014
ENTRY_INTERRUPTION_INFO: Final = 0x4016
ENTRY_EXCEPTION_ERROR_CODE: Final = 0x4018
ENTRY_INSTRUCTION_LENGTH: Final = 0x401A
TPR_THRESHOLD: Final = 0x401C
SECONDARY_CONTROLS: Final = 0x401E
PLE_GAP: Final = 0x4020
PLE_WINDOW: Final = 0x4022
INSTRUCTION_TIMEOUT_CONTROL: Final = 0x4024
HKID: Final = 0x4026
# 32-bit exit information
VM_INSTRUCTION_ERROR: Final = 0x4400
EXIT_REASON: Final = 0x4402
EXIT_INTERRUPTION_INFO: Final = 0x4404
EXIT_INTERRUPTION_ERROR_CODE: Final = 0x4406
IDT_VECTORING_INFO: Final = 0x4408
IDT_VECTORING_ERROR_CODE: Final = 0x440A
EXIT_INSTRUCTION_LENGTH: Final = 0x440C
EXIT_INSTRUCTION_INFO: Final = 0x440E
# 32-bit guest state
GUEST_ES_LIMIT: Final = 0x4800
GUEST_CS_LIMIT: Final = 0x4802
GUEST_SS_LIMIT: Final = 0x4804
GUEST_DS_LIMIT: Final = 0x4806
GUEST_FS_LIMIT: Final = 0x4808
GUEST_GS_LIMIT: Final = 0x480A
GUEST_LDTR_LIMIT: Final = 0x480C
GUEST_TR_LIMIT: Final = 0x480E
GUEST_GDTR_LIMIT: Final = 0x4810
GUEST_IDTR_LIMIT: Final = 0x4812
GUEST_ES_ACCESS_RIGHTS: Final = 0x4814
GUEST_CS_ACCESS_RIGHTS: Final = 0x4816
GUEST_SS_ACCESS_RIGHTS: Final = 0x4818
GUEST_DS_ACCESS_RIGHTS: Final = 0x481A
GUEST_FS_ACCESS_RIGHTS: Final = 0x481C
GUEST_GS_ACCESS_RIGHTS: Final = 0x481E
GUEST_LDTR_ACCESS_RIGHTS: Final = 0x4820
GUEST_TR_ACCESS_RIGHTS: Final = 0x4822
GUEST_INTERRUPTIBILITY: Final = 0x4824
GUEST_ACTIVITY_STATE: Final = 0x4826
GUEST_SMBASE: Final = 0x4828
GUEST_SYSENTER_CS: Final = 0x482A
PREEMPTION_TIMER_VALUE: Final = 0x482E
# natural-width controls
CR0_GUEST_HOST_MASK: Final = 0x6000
CR4_GUEST_HOST_MASK: Final = 0x6002
CR0_READ_SHADOW: Final = 0x6004
CR4_READ_SHADOW: Final = 0x6006
CR3_TARGET_VALUE_0: Final = 0x6008
CR3_TARGET_VALUE_1: Final = 0x600A
CR3_TARGET_VALUE_2: Final = 0x600C
CR3_TARGET_VALUE_3: Final = 0x600E
# natural-width exit information
EXIT_QUALIFICATION: Final = 0x6400
IO_RCX: Final = 0x6402
IO_RSI: Final = 0x6404
IO_RDI: Final = 0x6406
IO_RIP: Final = 0x6408
GUEST_LINEAR_ADDRESS: Final = 0x640A
# natural-width guest state
GUEST_CR0: Final = 0x6800
GUEST_CR3: Final = 0x6802
GUEST_CR4: Final = 0x6804
GUEST_ES_BASE: Final = 0x6806
GUEST_CS_BASE: Final = 0x6808
GUEST_SS_BASE: Final = 0x680A
GUEST_DS_BASE: Final = 0x680C
GUEST_FS_BASE: Final = 0x680E
GUEST_GS_BASE: Final = 0x6810
GUEST_LDTR_BASE: Final = 0x6812
GUEST_TR_BASE: Final = 0x6814
GUEST_GDTR_BASE: Final = 0x6816
GUEST_IDTR_BASE: Final = 0x6818
GUEST_DR7: Final = 0x681A
GUEST_RSP: Final = 0x681C
GUEST_RIP: Final = 0x681E
GUEST_RFLAGS: Final = 0x6820
GUEST_PENDING_DEBUG_EXCEPTIONS: Final = 0x6822
GUEST_SYSENTER_ESP: Final = 0x6824
GUEST_SYSENTER_EIP: Final = 0x6826
GUEST_S_CET: Final = 0x6828
GUEST_SSP: Final = 0x682A
GUEST_INTERRUPT_SSP_TABLE_ADDR: Final = 0x682C
# host state (type 3)
HOST_ES_SELECTOR: Final = 0x0C00
HOST_CS_SELECTOR: Final = 0x0C02
HOST_SS_SELECTOR: Final = 0x0C04
HOST_DS_SELECTOR: Final = 0x0C06
HOST_FS_SELECTOR: Final = 0x0C08
HOST_GS_SELECTOR: Final = 0x0C0A
HOST_TR_SELECTOR: Final = 0x0C0C
HOST_PAT: Final = 0x2C00
HOST_EFER: Final = 0x2C02
HOST_PERF_GLOBAL_CTRL: Final = 0x2C04
HOST_PKRS: Final = 0x2C06
HOST_SYSENTER_CS: Final = 0x4C00
HOST_CR0: Final = 0x6C00
HOST_CR3: Final = 0x6C02
HOST_CR4: Final = 0x6C04
HOST_FS_BASE: Final = 0x6C06
HOST_GS_BASE: Final = 0x6C08
HOST_TR_BASE: Final = 0x6C0A
HOST_GDTR_BASE: Final = 0x6C0C
HOST_IDTR_BASE: Final = 0x6C0E
HOST_SYSENTER_ESP: Final = 0x6C10
HOST_SYSENTER_EIP: Final = 0x6C12
HOST_RSP: Final = 0x6C14
HOST_RIP: Final = 0x6C16
HOST_S_CET: Final = 0x6C18
HOST_SSP: Final = 0x6C1A
HOST_INTERRUPT_SSP_TABLE_ADDR: Final = 0x6C1C

#: Field name by encoding, in order of encoding.
NAMES: Final[dict[int, str]] = dict(
    sorted(
        (value, name)
        for name, value in tuple(globals().items())
        if isinstance(value, int) and name.isupper() and not name.startswith("_")
    )
)

#: Position of each field in a dense array, by encoding.  A VMCS region stores 8 bytes a field in
#: this order, from byte :data:`REGION_FIELDS` on (the real format is unpublished; ours is modelled).
INDEX: Final[dict[int, int]] = {encoding: index for index, encoding in enumerate(NAMES)}

#: Byte offset of the first field in a VMCS region; before it the revision id and the abort word.
REGION_FIELDS: Final = 64

_WIDTHS: Final = (16, 64, 32, 64)


def width(encoding: int) -> int:
    """Width of a field in bits (natural-width fields have 64).

    Raises:
        KeyError: no such field is declared.
    """
    if encoding not in NAMES:
        raise KeyError(f"VMCS field {encoding:#06x} is not declared")
    return _WIDTHS[encoding >> 13 & 3]


def is_guest_state(encoding: int) -> bool:
    """Whether the field is guest state (type 2), which VM entry loads and VM exit saves."""
    return encoding >> 10 & 3 == 2
