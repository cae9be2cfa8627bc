"""The SEAM VMCS of each processor: where SEAMCALL enters the module.

The loader writes these fields (``seam_vmcs_setup.c`` of intel/seam-loader): host state, which SEAMCALL
loads as a VM exit does.  The format of a VMCS in memory is not public; here the fields lie as declared.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Field, Struct
from swtdx.arch.units import PAGE
from swtdx.firmware.seam_layout import (
    LINEAR_CODE,
    LINEAR_DATA,
    LINEAR_STACK,
    LINEAR_SYSINFO,
    SeamLayout,
)
from swtdx.machine.vmx.vmcs import REVISION


class SEAM_VMCS(Struct, size=PAGE, source="seam_vmcs_setup.c; the placement is ours"):
    """Transfer VMCS between the hypervisor and SEAM root mode."""

    revision = Field(0, 4)
    abort = Field(4, 4)
    guest_rip = Field(8, 8, "not canonical: SEAMRET must not use it before SEAMCALL has set it")
    host_cr0 = Field(16, 8)
    host_cr3 = Field(24, 8)
    host_cr4 = Field(32, 8)
    host_efer = Field(40, 8)
    host_pat = Field(48, 8)
    host_rip = Field(56, 8)
    host_rsp = Field(64, 8)
    host_ssp = Field(72, 8)
    host_fs_base = Field(80, 8)
    host_gs_base = Field(88, 8)
    host_cs_selector = Field(96, 2)
    host_ss_selector = Field(98, 2)
    host_tr_selector = Field(100, 2)


_NOT_CANONICAL: Final = 1 << 60
#: PE, MP, ET, NE, WP, PG; PAE, PGE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE, SMEP, SMAP, VMXE.
_CR0: Final = 0x80010033
_CR4: Final = 0x3726A0
_EFER: Final = 0xD00
_PAT: Final = 0x0006060606060606


def build(layout: SeamLayout, x2apic_id: int, rip_offset: int, aslr: int) -> bytes:
    """The page for one processor; ``rip_offset`` is the entry point's offset in the module's code."""
    page = SEAM_VMCS.new()
    stack = (LINEAR_STACK | aslr) + x2apic_id * layout.lp_stack
    values = {
        "revision": REVISION,
        "guest_rip": _NOT_CANONICAL,
        "host_cr0": _CR0,
        "host_cr3": layout.stack - PAGE,
        "host_cr4": _CR4,
        "host_efer": _EFER,
        "host_pat": _PAT,
        "host_rip": (LINEAR_CODE | aslr) + rip_offset,
        "host_rsp": stack + layout.data_stack - 8,
        "host_ssp": stack + layout.lp_stack - 8,
        "host_fs_base": LINEAR_SYSINFO | aslr,
        "host_gs_base": (LINEAR_DATA | aslr) + x2apic_id * layout.tls,
        "host_cs_selector": 8,
        "host_ss_selector": 16,
        "host_tr_selector": 24,
    }
    for name, value in values.items():
        SEAM_VMCS.integer(name).set(page, value)
    return bytes(page)
