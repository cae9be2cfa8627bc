"""The host-side leaves of the TDX module as Python functions: operands in, status and outputs out.

Each function puts its operands into the registers of ``cpu``, executes SEAMCALL under the retry policy
of :meth:`Processor.call`, and returns the 64-bit status, in a tuple with the output registers where the
leaf has any.  Nothing here raises; ``cpu.need(status)`` does.  Addresses are HPAs without KeyID bits
unless said otherwise; "info" is the pair (RCX, RDX) of a leaf that walks the Secure EPT: the entry where
the walk stopped, and its level and state.

Source: shared/reference/seamcall.md §2.
"""

from __future__ import annotations

import time
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.units import MASK64
from swtdx.vmm.processor import PATIENT, PAUSE, Processor


def _number(name: str) -> int:
    return HOST_BY_NAME[name].number


# Plain ints: a TD is built by tens of thousands of calls.
_SYS_INIT: Final = _number("TDH.SYS.INIT")
_SYS_LP_INIT: Final = _number("TDH.SYS.LP.INIT")
_SYS_INFO: Final = _number("TDH.SYS.INFO")
_SYS_RD: Final = _number("TDH.SYS.RD")
_SYS_RDALL: Final = _number("TDH.SYS.RDALL")
_SYS_CONFIG: Final = _number("TDH.SYS.CONFIG")
_SYS_KEY_CONFIG: Final = _number("TDH.SYS.KEY.CONFIG")
_SYS_TDMR_INIT: Final = _number("TDH.SYS.TDMR.INIT")
_MNG_CREATE: Final = _number("TDH.MNG.CREATE")
_MNG_KEY_CONFIG: Final = _number("TDH.MNG.KEY.CONFIG")
_MNG_ADDCX: Final = _number("TDH.MNG.ADDCX")
_MNG_INIT: Final = _number("TDH.MNG.INIT")
_MNG_RD: Final = _number("TDH.MNG.RD")
_MNG_WR: Final = _number("TDH.MNG.WR")
_MNG_VPFLUSHDONE: Final = _number("TDH.MNG.VPFLUSHDONE")
_MNG_KEY_FREEID: Final = _number("TDH.MNG.KEY.FREEID")
_VP_CREATE: Final = _number("TDH.VP.CREATE")
_VP_ADDCX: Final = _number("TDH.VP.ADDCX")
_VP_INIT: Final = _number("TDH.VP.INIT")
_VP_FLUSH: Final = _number("TDH.VP.FLUSH")
_VP_RD: Final = _number("TDH.VP.RD")
_VP_WR: Final = _number("TDH.VP.WR")
_MEM_SEPT_ADD: Final = _number("TDH.MEM.SEPT.ADD")
_MEM_PAGE_ADD: Final = _number("TDH.MEM.PAGE.ADD")
_MR_EXTEND: Final = _number("TDH.MR.EXTEND")
_MR_FINALIZE: Final = _number("TDH.MR.FINALIZE")
_MEM_PAGE_AUG: Final = _number("TDH.MEM.PAGE.AUG")
_MEM_RANGE_BLOCK: Final = _number("TDH.MEM.RANGE.BLOCK")
_MEM_RANGE_UNBLOCK: Final = _number("TDH.MEM.RANGE.UNBLOCK")
_MEM_TRACK: Final = _number("TDH.MEM.TRACK")
_MEM_PAGE_REMOVE: Final = _number("TDH.MEM.PAGE.REMOVE")
_MEM_SEPT_REMOVE: Final = _number("TDH.MEM.SEPT.REMOVE")
_MEM_PAGE_DEMOTE: Final = _number("TDH.MEM.PAGE.DEMOTE")
_MEM_PAGE_PROMOTE: Final = _number("TDH.MEM.PAGE.PROMOTE")
_MEM_PAGE_RELOCATE: Final = _number("TDH.MEM.PAGE.RELOCATE")
_MEM_SEPT_RD: Final = _number("TDH.MEM.SEPT.RD")
_MEM_RD: Final = _number("TDH.MEM.RD")
_MEM_WR: Final = _number("TDH.MEM.WR")
_PHYMEM_PAGE_RDMD: Final = _number("TDH.PHYMEM.PAGE.RDMD")
_PHYMEM_PAGE_RECLAIM: Final = _number("TDH.PHYMEM.PAGE.RECLAIM")
_PHYMEM_CACHE_WB: Final = _number("TDH.PHYMEM.CACHE.WB")
_PHYMEM_PAGE_WBINVD: Final = _number("TDH.PHYMEM.PAGE.WBINVD")

# ------------------------------------------------------------------ the module


def tdh_sys_init(cpu: Processor) -> tuple[int, tuple[int, int, int, int, int]]:
    """Start initialising the module; on INCORRECT_CPUID_VALUE RCX, RDX, R8, R9, R10 say what."""
    g = cpu.gpr
    g[1] = 0
    status = cpu.call(_SYS_INIT)
    return status, (g[1], g[2], g[8], g[9], g[10])


def tdh_sys_lp_init(cpu: Processor) -> int:
    """Initialise this logical processor."""
    return cpu.call(_SYS_LP_INIT)


def tdh_sys_info(cpu: Processor, info_pa: int, cmrs_pa: int) -> tuple[int, int, int]:
    """TDSYSINFO_STRUCT to ``info_pa`` (1024 bytes), 32 CMR_INFOs to ``cmrs_pa``: status, bytes, entries."""
    g = cpu.gpr
    g[1], g[2], g[8], g[9] = info_pa, 1024, cmrs_pa, 32
    status = cpu.call(_SYS_INFO)
    return status, g[2], g[9]


def tdh_sys_rd(cpu: Processor, field: int) -> tuple[int, int, int]:
    """Read a module field: status, next field id, value."""
    g = cpu.gpr
    g[2] = field
    status = cpu.call(_SYS_RD)
    return status, g[2], g[8]


def tdh_sys_rdall(cpu: Processor, list_pa: int, first: int = MASK64) -> tuple[int, int]:
    """Fill the 4 KiB metadata list at ``list_pa``: status, next field id (all ones at the end)."""
    g = cpu.gpr
    g[2], g[8] = list_pa, first
    status = cpu.call(_SYS_RDALL)
    return status, g[8]


def tdh_sys_config(cpu: Processor, pointers_pa: int, count: int, hkid: int) -> int:
    """Give the module its TDMRs (array of ``count`` addresses of TDMR_INFO) and the global HKID."""
    g = cpu.gpr
    g[1], g[2], g[8] = pointers_pa, count, hkid
    return cpu.call(_SYS_CONFIG)


def tdh_sys_key_config(cpu: Processor) -> int:
    """Program the global key on this package."""
    return cpu.call(_SYS_KEY_CONFIG)


def tdh_sys_tdmr_init(cpu: Processor, base: int) -> tuple[int, int]:
    """Initialise the next part of a TDMR's PAMT: status, first address not initialised (1 GiB units)."""
    g = cpu.gpr
    g[1] = base
    status = cpu.call(_SYS_TDMR_INIT)
    return status, g[2]


# ------------------------------------------------------------------ TDs


def tdh_mng_create(cpu: Processor, tdr: int, hkid: int) -> int:
    """Make the page ``tdr`` the root of a new TD with private key ``hkid``."""
    g = cpu.gpr
    g[1], g[2] = tdr, hkid
    return cpu.call(_MNG_CREATE)


def tdh_mng_key_config(cpu: Processor, tdr: int) -> int:
    """Program the TD's key on this package."""
    cpu.gpr[1] = tdr
    return cpu.call(_MNG_KEY_CONFIG)


def tdh_mng_addcx(cpu: Processor, page: int, tdr: int) -> int:
    """Give the TD a page for its control structure."""
    g = cpu.gpr
    g[1], g[2] = page, tdr
    return cpu.call(_MNG_ADDCX)


def tdh_mng_init(cpu: Processor, tdr: int, params_pa: int) -> tuple[int, int]:
    """Initialise the TD from TD_PARAMS: status, and CPUID leaf | subleaf << 32 of a bad CPUID_CONFIG."""
    g = cpu.gpr
    g[1], g[2] = tdr, params_pa
    status = cpu.call(_MNG_INIT)
    return status, g[1]


def tdh_mng_rd(cpu: Processor, tdr: int, field: int) -> tuple[int, int]:
    """Read a TDR or TDCS field: status, value."""
    g = cpu.gpr
    g[1], g[2] = tdr, field
    status = cpu.call(_MNG_RD)
    return status, g[8]


def tdh_mng_wr(cpu: Processor, tdr: int, field: int, value: int, mask: int) -> tuple[int, int]:
    """Write the ``mask`` bits of a TDR or TDCS field: status, old value."""
    g = cpu.gpr
    g[1], g[2], g[8], g[9] = tdr, field, value, mask
    status = cpu.call(_MNG_WR)
    return status, g[8]


def tdh_mng_vpflushdone(cpu: Processor, tdr: int) -> int:
    """Declare every vCPU flushed; the key is on its way out."""
    cpu.gpr[1] = tdr
    return cpu.call(_MNG_VPFLUSHDONE)


def tdh_mng_key_freeid(cpu: Processor, tdr: int) -> int:
    """Give the TD's HKID back."""
    cpu.gpr[1] = tdr
    return cpu.call(_MNG_KEY_FREEID)


# ------------------------------------------------------------------ vCPUs


def tdh_vp_create(cpu: Processor, tdvpr: int, tdr: int) -> int:
    """Make the page ``tdvpr`` the root of a new vCPU."""
    g = cpu.gpr
    g[1], g[2] = tdvpr, tdr
    return cpu.call(_VP_CREATE)


def tdh_vp_addcx(cpu: Processor, page: int, tdvpr: int) -> int:
    """Give the vCPU a page for its state."""
    g = cpu.gpr
    g[1], g[2] = page, tdvpr
    return cpu.call(_VP_ADDCX)


def tdh_vp_init(cpu: Processor, tdvpr: int, value: int) -> int:
    """Initialise the vCPU; the guest starts with ``value`` in RCX and R8."""
    g = cpu.gpr
    g[1], g[2] = tdvpr, value
    return cpu.call(_VP_INIT)


def tdh_vp_flush(cpu: Processor, tdvpr: int) -> int:
    """Write the vCPU back from this processor, so that another may run it."""
    cpu.gpr[1] = tdvpr
    return cpu.call(_VP_FLUSH)


def tdh_vp_rd(cpu: Processor, tdvpr: int, field: int) -> tuple[int, int]:
    """Read a TDVPS field: status, value.  Associates the vCPU with this processor."""
    g = cpu.gpr
    g[1], g[2] = tdvpr, field
    status = cpu.call(_VP_RD)
    return status, g[8]


def tdh_vp_wr(cpu: Processor, tdvpr: int, field: int, value: int, mask: int) -> tuple[int, int]:
    """Write the ``mask`` bits of a TDVPS field: status, old value.  Associates the vCPU as well."""
    g = cpu.gpr
    g[1], g[2], g[8], g[9] = tdvpr, field, value, mask
    status = cpu.call(_VP_WR)
    return status, g[8]


# ------------------------------------------------------------------ private memory


def tdh_mem_sept_add(cpu: Processor, gpa: int, level: int, tdr: int, page: int) -> tuple[int, int, int]:
    """Put ``page`` below the Secure EPT entry of ``gpa`` at ``level`` (1..): status, info."""
    g = cpu.gpr
    g[1], g[2], g[8] = gpa | level, tdr, page
    status = cpu.call(_MEM_SEPT_ADD)
    return status, g[1], g[2]


def tdh_mem_page_add(cpu: Processor, gpa: int, tdr: int, page: int, source_pa: int) -> tuple[int, int, int]:
    """Copy 4 KiB from ``source_pa`` (may carry a shared KeyID) into ``page`` and map it: status, info."""
    g = cpu.gpr
    g[1], g[2], g[8], g[9] = gpa, tdr, page, source_pa
    status = cpu.call(_MEM_PAGE_ADD)
    return status, g[1], g[2]


def tdh_mr_extend(cpu: Processor, gpa: int, tdr: int) -> tuple[int, int, int]:
    """Extend MRTD by 256 bytes of a page that was added: status, info."""
    g = cpu.gpr
    g[1], g[2] = gpa, tdr
    status = cpu.call(_MR_EXTEND)
    return status, g[1], g[2]


def tdh_mr_finalize(cpu: Processor, tdr: int) -> int:
    """Close MRTD; from now on the TD can run."""
    cpu.gpr[1] = tdr
    return cpu.call(_MR_FINALIZE)


def tdh_mem_page_aug(cpu: Processor, gpa: int, level: int, tdr: int, page: int) -> tuple[int, int, int]:
    """Map a pending page of 4 KiB (level 0) or 2 MiB (level 1): status, info."""
    g = cpu.gpr
    g[1], g[2], g[8] = gpa | level, tdr, page
    status = cpu.call(_MEM_PAGE_AUG)
    return status, g[1], g[2]


def tdh_mem_range_block(cpu: Processor, gpa: int, level: int, tdr: int) -> tuple[int, int, int]:
    """Forbid new translations of a range: status, info."""
    g = cpu.gpr
    g[1], g[2] = gpa | level, tdr
    status = cpu.call(_MEM_RANGE_BLOCK)
    return status, g[1], g[2]


def tdh_mem_range_unblock(cpu: Processor, gpa: int, level: int, tdr: int) -> tuple[int, int, int]:
    """Undo a block: status, info."""
    g = cpu.gpr
    g[1], g[2] = gpa | level, tdr
    status = cpu.call(_MEM_RANGE_UNBLOCK)
    return status, g[1], g[2]


def tdh_mem_track(cpu: Processor, tdr: int) -> int:
    """Begin a new TLB epoch."""
    cpu.gpr[1] = tdr
    return cpu.call(_MEM_TRACK)


def tdh_mem_page_remove(cpu: Processor, gpa: int, level: int, tdr: int) -> tuple[int, int, int]:
    """Take a blocked and tracked page away: status, the page's HPA (or info), RDX."""
    g = cpu.gpr
    g[1], g[2] = gpa | level, tdr
    status = cpu.call(_MEM_PAGE_REMOVE)
    return status, g[1], g[2]


def tdh_mem_sept_remove(cpu: Processor, gpa: int, level: int, tdr: int) -> tuple[int, int, int]:
    """Take an empty Secure EPT page away: status, its HPA (or info), RDX."""
    g = cpu.gpr
    g[1], g[2] = gpa | level, tdr
    status = cpu.call(_MEM_SEPT_REMOVE)
    return status, g[1], g[2]


def tdh_mem_page_demote(
    cpu: Processor, gpa: int, level: int, tdr: int, sept_page: int
) -> tuple[int, int, int]:
    """Split a blocked and tracked large page into 512, mapped by ``sept_page``: status, info."""
    g = cpu.gpr
    g[1], g[2], g[8], g[9], g[10], g[11] = gpa | level, tdr, sept_page, MASK64, MASK64, MASK64
    status = cpu.call(_MEM_PAGE_DEMOTE)
    return status, g[1], g[2]


def tdh_mem_page_promote(cpu: Processor, gpa: int, level: int, tdr: int) -> tuple[int, int, int]:
    """Merge 512 pages into one large one: status, HPA of the freed Secure EPT page (or info), RDX."""
    g = cpu.gpr
    g[1], g[2] = gpa | level, tdr
    status = cpu.call(_MEM_PAGE_PROMOTE)
    return status, g[1], g[2]


def tdh_mem_page_relocate(cpu: Processor, gpa: int, tdr: int, page: int) -> tuple[int, int, int]:
    """Move a blocked and tracked 4 KiB page to ``page``: status, HPA of the old page (or info), RDX."""
    g = cpu.gpr
    g[1], g[2], g[8] = gpa, tdr, page
    status = cpu.call(_MEM_PAGE_RELOCATE)
    return status, g[1], g[2]


def tdh_mem_sept_rd(cpu: Processor, gpa: int, level: int, tdr: int) -> tuple[int, int, int]:
    """Read a Secure EPT entry: status, architectural entry, level and state."""
    g = cpu.gpr
    g[1], g[2] = gpa | level, tdr
    status = cpu.call(_MEM_SEPT_RD)
    return status, g[1], g[2]


def tdh_mem_rd(cpu: Processor, gpa: int, tdr: int) -> tuple[int, int]:
    """Read 8 bytes of a debug TD's private memory: status, data."""
    g = cpu.gpr
    g[1], g[2] = gpa, tdr
    status = cpu.call(_MEM_RD)
    return status, g[8]


def tdh_mem_wr(cpu: Processor, gpa: int, tdr: int, value: int) -> tuple[int, int]:
    """Write 8 bytes of a debug TD's private memory: status, old data."""
    g = cpu.gpr
    g[1], g[2], g[8] = gpa, tdr, value
    status = cpu.call(_MEM_WR)
    return status, g[8]


# ------------------------------------------------------------------ physical memory


def tdh_phymem_page_rdmd(cpu: Processor, page: int) -> tuple[int, int, int, int]:
    """What the module knows of a page: status, page type, owner's TDR, size level."""
    g = cpu.gpr
    g[1] = page
    status = cpu.call(_PHYMEM_PAGE_RDMD)
    return status, g[1], g[2], g[8]


def tdh_phymem_page_reclaim(cpu: Processor, page: int) -> tuple[int, int, int, int]:
    """Take a page of a TD in teardown back: status, page type, owner's TDR, size level."""
    g = cpu.gpr
    g[1] = page
    status = cpu.call(_PHYMEM_PAGE_RECLAIM)
    return status, g[1], g[2], g[8]


def tdh_phymem_cache_wb(cpu: Processor) -> int:
    """Write back this package's caches for every HKID that is being freed; resumes until it is done."""
    resume = 0
    for _ in range(PATIENT):
        cpu.gpr[1] = resume
        status = cpu.call_once(_PHYMEM_CACHE_WB)
        code = status & st.CODE_MASK
        if code == st.TDX_INTERRUPTED_RESUMABLE:
            cpu.take_interrupts()
            resume = 1
        elif code == st.TDX_OPERAND_BUSY:
            time.sleep(PAUSE)
        else:
            break
    return status


def tdh_phymem_page_wbinvd(cpu: Processor, pa: int) -> int:
    """Flush a free page's lines; ``pa`` carries the HKID they were cached under."""
    cpu.gpr[1] = pa
    return cpu.call(_PHYMEM_PAGE_WBINVD)
