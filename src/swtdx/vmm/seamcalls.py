"""The host-side leaves of the TDX module as Python functions: operands in, status and outputs out.

Each function puts its operands into the registers of ``cpu``, executes SEAMCALL under the retry policy
of :meth:`Processor.call`, and returns the 64-bit status, in a tuple with the output registers where the
leaf has any.  Nothing here raises; ``cpu.need(status)`` does.  Addresses are HPAs without KeyID bits
unless said otherwise; "info" is the pair (RCX, RDX) of a leaf that walks the Secure EPT: the entry where
the walk stopped, and its level and state.

Numbers, registers and operands come from the leaf tables (:mod:`.leaf_call`); a line here says which
outputs the hypervisor looks at.  The names in parentheses are those of the operands, after ``cpu``.

Source: docs/reference/seamcall.md §2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from swtdx.arch import status as st
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import RCX
from swtdx.vmm.leaf_call import leaf_call
from swtdx.vmm.processor import PATIENT, PAUSE, Processor

Returned = TypeVar("Returned")
#: Functions of so many operands, after the processor.
Op0 = Callable[[Processor], Returned]
Op1 = Callable[[Processor, int], Returned]
Op2 = Callable[[Processor, int, int], Returned]
Op3 = Callable[[Processor, int, int, int], Returned]
Op4 = Callable[[Processor, int, int, int, int], Returned]
#: The status, and so many output registers.
Out1 = tuple[int, int]
Out2 = tuple[int, int, int]
Out3 = tuple[int, int, int, int]

_CACHE_WB: Final = HOST_BY_NAME["TDH.PHYMEM.CACHE.WB"].number

# ------------------------------------------------------------------ the module
#: Start initialising the module: status, and CPUID leaf | subleaf << 32 after INCORRECT_CPUID_VALUE.
tdh_sys_init: Final[Op0[Out1]] = leaf_call("TDH.SYS.INIT", "RCX")
#: Initialise this logical processor.
tdh_sys_lp_init: Final[Op0[int]] = leaf_call("TDH.SYS.LP.INIT")
#: (info_pa, cmrs_pa) TDSYSINFO_STRUCT to ``info_pa`` (1024 bytes), 32 CMR_INFOs to ``cmrs_pa``: status,
#: bytes, entries.
tdh_sys_info: Final[Op2[Out2]] = leaf_call("TDH.SYS.INFO", "RDX", "R9")
#: (field) Read a module field: status, next field id, value.
tdh_sys_rd: Final[Op1[Out2]] = leaf_call("TDH.SYS.RD", "RDX", "R8")
#: (list_pa, first) Fill the 4 KiB metadata list at ``list_pa``: status, next field id (all ones at the
#: end).
tdh_sys_rdall: Final[Op2[Out1]] = leaf_call("TDH.SYS.RDALL", "R8")
#: (pointers_pa, count, hkid) Give the module its TDMRs (array of ``count`` addresses of TDMR_INFO) and the
#: global HKID.
tdh_sys_config: Final[Op3[int]] = leaf_call("TDH.SYS.CONFIG")
#: Program the global key on this package.
tdh_sys_key_config: Final[Op0[int]] = leaf_call("TDH.SYS.KEY.CONFIG")
#: (base) Initialise the next part of a TDMR's PAMT: status, first address not initialised (1 GiB units).
tdh_sys_tdmr_init: Final[Op1[Out1]] = leaf_call("TDH.SYS.TDMR.INIT", "RDX")

# ------------------------------------------------------------------ TDs
#: (tdr, hkid) Make the page ``tdr`` the root of a new TD with private key ``hkid``.
tdh_mng_create: Final[Op2[int]] = leaf_call("TDH.MNG.CREATE")
#: (tdr) Program the TD's key on this package.
tdh_mng_key_config: Final[Op1[int]] = leaf_call("TDH.MNG.KEY.CONFIG")
#: (page, tdr) Give the TD a page for its control structure.
tdh_mng_addcx: Final[Op2[int]] = leaf_call("TDH.MNG.ADDCX")
#: (tdr, params_pa) Initialise the TD from TD_PARAMS: status, and CPUID leaf | subleaf << 32 of a bad
#: CPUID_CONFIG.
tdh_mng_init: Final[Op2[Out1]] = leaf_call("TDH.MNG.INIT", "RCX")
#: (tdr, field) Read a TDR or TDCS field: status, value.
tdh_mng_rd: Final[Op2[Out1]] = leaf_call("TDH.MNG.RD", "R8")
#: (tdr, field, value, mask) Write the ``mask`` bits of a TDR or TDCS field: status, old value.
tdh_mng_wr: Final[Op4[Out1]] = leaf_call("TDH.MNG.WR", "R8")
#: (tdr) Declare every vCPU flushed; the key is on its way out.
tdh_mng_vpflushdone: Final[Op1[int]] = leaf_call("TDH.MNG.VPFLUSHDONE")
#: (tdr) Give the TD's HKID back.
tdh_mng_key_freeid: Final[Op1[int]] = leaf_call("TDH.MNG.KEY.FREEID")

# ------------------------------------------------------------------ vCPUs
#: (tdvpr, tdr) Make the page ``tdvpr`` the root of a new vCPU.
tdh_vp_create: Final[Op2[int]] = leaf_call("TDH.VP.CREATE")
#: (page, tdvpr) Give the vCPU a page for its state.
tdh_vp_addcx: Final[Op2[int]] = leaf_call("TDH.VP.ADDCX")
#: (tdvpr, value) Initialise the vCPU; the guest starts with ``value`` in RCX and R8.
tdh_vp_init: Final[Op2[int]] = leaf_call("TDH.VP.INIT")
#: (tdvpr, value, x2apic_id) The same on a module with TOPOLOGY_ENUM, which tells the guest the x2APIC id.
tdh_vp_init_x2apic: Final[Op3[int]] = leaf_call("TDH.VP.INIT", version=1)
#: (tdvpr) Write the vCPU back from this processor, so that another may run it.
tdh_vp_flush: Final[Op1[int]] = leaf_call("TDH.VP.FLUSH")
#: (tdvpr, field) Read a TDVPS field: status, value.  Associates the vCPU with this processor.
tdh_vp_rd: Final[Op2[Out1]] = leaf_call("TDH.VP.RD", "R8")
#: (tdvpr, field, value, mask) Write the ``mask`` bits of a TDVPS field: status, old value.  Associates the
#: vCPU as well.
tdh_vp_wr: Final[Op4[Out1]] = leaf_call("TDH.VP.WR", "R8")

# ------------------------------------------------------------------ private memory
#: (gpa, level, tdr, page) Put ``page`` below the Secure EPT entry of ``gpa`` at ``level`` (1..): status,
#: info.
tdh_mem_sept_add: Final[Op4[Out2]] = leaf_call("TDH.MEM.SEPT.ADD", "RCX", "RDX")
#: (gpa, tdr, page, source_pa) Copy 4 KiB from ``source_pa`` (may carry a shared KeyID) into ``page`` and
#: map it: status, info.
tdh_mem_page_add: Final[Op4[Out2]] = leaf_call("TDH.MEM.PAGE.ADD", "RCX", "RDX")
#: (gpa, tdr) Extend MRTD by 256 bytes of a page that was added: status, info.
tdh_mr_extend: Final[Op2[Out2]] = leaf_call("TDH.MR.EXTEND", "RCX", "RDX")
#: (tdr) Close MRTD; from now on the TD can run.
tdh_mr_finalize: Final[Op1[int]] = leaf_call("TDH.MR.FINALIZE")
#: (gpa, level, tdr, page) Map a pending page of 4 KiB (level 0) or 2 MiB (level 1): status, info.
tdh_mem_page_aug: Final[Op4[Out2]] = leaf_call("TDH.MEM.PAGE.AUG", "RCX", "RDX")
#: (gpa, level, tdr) Forbid new translations of a range: status, info.
tdh_mem_range_block: Final[Op3[Out2]] = leaf_call("TDH.MEM.RANGE.BLOCK", "RCX", "RDX")
#: (gpa, level, tdr) Undo a block: status, info.
tdh_mem_range_unblock: Final[Op3[Out2]] = leaf_call("TDH.MEM.RANGE.UNBLOCK", "RCX", "RDX")
#: (tdr) Begin a new TLB epoch.
tdh_mem_track: Final[Op1[int]] = leaf_call("TDH.MEM.TRACK")
#: (gpa, level, tdr) Take a blocked and tracked page away: status, the page's HPA (or info), RDX.
tdh_mem_page_remove: Final[Op3[Out2]] = leaf_call("TDH.MEM.PAGE.REMOVE", "RCX", "RDX")
#: (gpa, level, tdr) Take an empty Secure EPT page away: status, its HPA (or info), RDX.
tdh_mem_sept_remove: Final[Op3[Out2]] = leaf_call("TDH.MEM.SEPT.REMOVE", "RCX", "RDX")
#: (gpa, level, tdr, sept_page) Split a blocked and tracked large page into 512, mapped by ``sept_page``:
#: status, info.
tdh_mem_page_demote: Final[Op4[Out2]] = leaf_call("TDH.MEM.PAGE.DEMOTE", "RCX", "RDX")
#: (gpa, level, tdr) Merge 512 pages into one large one: status, HPA of the freed Secure EPT page (or info),
#: RDX.
tdh_mem_page_promote: Final[Op3[Out2]] = leaf_call("TDH.MEM.PAGE.PROMOTE", "RCX", "RDX")
#: (gpa, tdr, page) Move a blocked and tracked 4 KiB page to ``page``: status, HPA of the old page (or
#: info), RDX.
tdh_mem_page_relocate: Final[Op3[Out2]] = leaf_call("TDH.MEM.PAGE.RELOCATE", "RCX", "RDX")
#: (gpa, level, tdr) Read a Secure EPT entry: status, architectural entry, level and state.
tdh_mem_sept_rd: Final[Op3[Out2]] = leaf_call("TDH.MEM.SEPT.RD", "RCX", "RDX")
#: (gpa, tdr) Read 8 bytes of a debug TD's private memory: status, data.
tdh_mem_rd: Final[Op2[Out1]] = leaf_call("TDH.MEM.RD", "R8")
#: (gpa, tdr, value) Write 8 bytes of a debug TD's private memory: status, old data.
tdh_mem_wr: Final[Op3[Out1]] = leaf_call("TDH.MEM.WR", "R8")

# ------------------------------------------------------------------ physical memory
#: (page) What the module knows of a page: status, page type, owner's TDR, size level.
tdh_phymem_page_rdmd: Final[Op1[Out3]] = leaf_call("TDH.PHYMEM.PAGE.RDMD", "RCX", "RDX", "R8")
#: (page) Take a page of a TD in teardown back: status, page type, owner's TDR, size level.
tdh_phymem_page_reclaim: Final[Op1[Out3]] = leaf_call("TDH.PHYMEM.PAGE.RECLAIM", "RCX", "RDX", "R8")
#: (pa) Flush a free page's lines; ``pa`` carries the HKID they were cached under.
tdh_phymem_page_wbinvd: Final[Op1[int]] = leaf_call("TDH.PHYMEM.PAGE.WBINVD")


def tdh_phymem_cache_wb(cpu: Processor) -> int:
    """Write back this package's caches for every HKID that is being freed; resumes until it is done."""
    resume = 0
    for _ in range(PATIENT):
        cpu.gpr[RCX] = resume
        status = cpu.call_once(_CACHE_WB)
        code = status & st.CODE_MASK
        if code == st.TDX_INTERRUPTED_RESUMABLE:
            cpu.take_interrupts()
            resume = 1
        elif code == st.TDX_OPERAND_BUSY:
            cpu.host.pause(PAUSE)
        else:
            break
    return status
