"""TDH.SYS.*: bringing the module up, and what it says of itself (TDH.SYS.CONFIG has a file of its own)."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.cpuid_table import CpuidConfigRow, Quad
from swtdx.arch.msrs import (
    IA32_MKTME_KEYID_PARTITIONING,
    IA32_SEAMRR_PHYS_BASE,
    IA32_SEAMRR_PHYS_MASK,
    IA32_TSC_ADJUST,
)
from swtdx.arch.operands import OperandId
from swtdx.arch.platform_structs import (
    CMR_INFO,
    CPUID_CONFIG,
    MAX_CMRS,
    MAX_PKGS,
    MAX_RESERVED_PER_TDMR,
    MAX_TDMRS,
    PAMT_ENTRY_BYTES,
    TDSYSINFO_STRUCT,
    VENDOR_INTEL,
)
from swtdx.arch.regs import R8, R9, RCX, RDX
from swtdx.arch.states import SysState
from swtdx.arch.td_config import ATTRIBUTES_FIXED1, XFAM_FIXED1
from swtdx.arch.units import NULL_PA, PAGE
from swtdx.machine.memory import SEAM
from swtdx.module import locks, version
from swtdx.module.call import HostCall
from swtdx.module.checks import shared_buffer
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import LP_DATA, SYS
from swtdx.module.host.platform_checks import check_platform, check_processor
from swtdx.module.register import host_leaf
from swtdx.module.state import ModuleState

TDCS_BYTES: Final = 6 * PAGE
TDVPS_BYTES: Final = 6 * PAGE
_SEAMRR_BITS: Final = 0x000FFFFFFE000000


def own_global(call: HostCall) -> None:
    """The module's global lock, exclusively.

    Raises:
        LeafFailed: SYS_BUSY.
    """
    if not locks.can_own(call.module.data.sys, SYS.sys_lock.offset):
        raise LeafFailed(st.TDX_SYS_BUSY)


def need_lp_init(call: HostCall) -> None:
    """TDH.SYS.LP.INIT must have been done on this processor.

    Raises:
        LeafFailed: SYS_LP_INIT_NOT_DONE.
    """
    view, at = call.module.data.lp(call.lp.index)
    if not LP_DATA.initialised.get(view, at):
        raise LeafFailed(st.TDX_SYS_LP_INIT_NOT_DONE)


@host_leaf("TDH.SYS.INIT")
def sys_init(call: HostCall) -> int:
    """Check the platform, once."""
    module, lp = call.module, call.lp
    own_global(call)
    if call.inputs[RCX]:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    sys = module.data.sys
    if SYS.sys_state.get(sys) != SysState.SYSINIT_PENDING:
        raise LeafFailed(st.TDX_SYS_INIT_NOT_PENDING)
    check_platform(call)
    partitioning = lp.rdmsr(IA32_MKTME_KEYID_PARTITIONING)
    SYS.first_private_hkid.set(sys, (partitioning & 0xFFFFFFFF) + 1)
    SYS.num_private_hkids.set(sys, partitioning >> 32)
    SYS.num_lps.set(sys, module.sysinfo.processors)
    SYS.num_packages.set(sys, module.sysinfo.packages)
    SYS.tsc_adjust.set(sys, lp.rdmsr(IA32_TSC_ADJUST))
    SYS.tsc_hz.set(sys, module.facts.tsc_hz)
    mask = lp.rdmsr(IA32_SEAMRR_PHYS_MASK) & _SEAMRR_BITS
    SYS.seamrr_base.set(sys, lp.rdmsr(IA32_SEAMRR_PHYS_BASE) & mask)
    SYS.seamrr_size.set(sys, mask & -mask)
    SYS.sys_state.set(sys, SysState.SYSINIT_DONE)
    return st.TDX_SUCCESS


@host_leaf("TDH.SYS.LP.INIT")
def sys_lp_init(call: HostCall) -> int:
    """Check that this processor is like the first, once on each."""
    module, lp = call.module, call.lp
    sys = module.data.sys
    if not locks.can_share(sys, SYS.sys_lock.offset):
        raise LeafFailed(st.TDX_SYS_BUSY)
    if SYS.sys_state.get(sys) != SysState.SYSINIT_DONE:
        raise LeafFailed(st.TDX_SYS_LP_INIT_NOT_PENDING)
    view, at = module.data.lp(lp.index)
    if LP_DATA.initialised.get(view, at):
        raise LeafFailed(st.TDX_SYS_LP_INIT_DONE)
    check_processor(call)
    if lp.package >= MAX_PKGS:
        raise LeafFailed(st.TDX_INVALID_PKG_ID | lp.package)
    for space in lp.spaces.values():
        space.flush()
    LP_DATA.last_tdvpr.set(view, NULL_PA, at)
    LP_DATA.initialised.set(view, 1, at)
    SYS.lps_initialised.set(sys, SYS.lps_initialised.get(sys) + 1)
    return st.TDX_SUCCESS


@host_leaf("TDH.SYS.INFO")
def sys_info(call: HostCall) -> int:
    """TDSYSINFO_STRUCT and the CMRs."""
    module, i = call.module, call.inputs
    need_lp_init(call)
    shared_buffer(module, i[RCX], TDSYSINFO_STRUCT.size, OperandId.RCX)
    if i[RDX] < TDSYSINFO_STRUCT.size:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    shared_buffer(module, i[R8], MAX_CMRS * CMR_INFO.size, OperandId.R8)
    if i[R9] < MAX_CMRS:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R9)
    module.memory.write(i[RCX], td_sysinfo(module), SEAM)
    cmrs = bytearray(MAX_CMRS * CMR_INFO.size)
    for index in range(MAX_CMRS):
        base, size = module.sysinfo.cmr(index)
        CMR_INFO.base.set(cmrs, base, index * CMR_INFO.size)
        CMR_INFO.size_.set(cmrs, size, index * CMR_INFO.size)
    module.memory.write(i[R8], cmrs, SEAM)
    call.gpr[RDX], call.gpr[R9] = TDSYSINFO_STRUCT.size, MAX_CMRS
    return st.TDX_SUCCESS


def td_sysinfo(module: ModuleState) -> bytes:
    """TDSYSINFO_STRUCT, 1024 bytes."""
    info = TDSYSINFO_STRUCT.new()
    for name, value in (
        ("vendor_id", VENDOR_INTEL),
        ("build_date", version.BUILD_DATE),
        ("build_num", version.BUILD_NUM),
        ("minor_version", version.MINOR_VERSION),
        ("major_version", version.MAJOR_VERSION),
        ("sys_rd", 1),
        ("max_tdmrs", MAX_TDMRS),
        ("max_reserved_per_tdmr", MAX_RESERVED_PER_TDMR),
        ("pamt_entry_size", PAMT_ENTRY_BYTES),
        ("tdcs_base_size", TDCS_BYTES),
        ("tdvps_base_size", TDVPS_BYTES),
        ("attributes_fixed0", module.attributes_fixed0),
        ("attributes_fixed1", ATTRIBUTES_FIXED1),
        ("xfam_fixed0", module.xfam_fixed0),
        ("xfam_fixed1", XFAM_FIXED1),
        ("num_cpuid_config", len(module.cpuid.configs)),
    ):
        getattr(TDSYSINFO_STRUCT, name).set(info, value)
    at = TDSYSINFO_STRUCT.cpuid_config.offset
    for row in module.cpuid.configs:
        CPUID_CONFIG.leaf.set(info, row.leaf, at)
        CPUID_CONFIG.subleaf.set(info, row.subleaf, at)
        for register, mask in zip(("eax", "ebx", "ecx", "edx"), configurable(module, row), strict=True):
            getattr(CPUID_CONFIG, register).set(info, mask, at)
        at += CPUID_CONFIG.size
    return bytes(info)


def configurable(module: ModuleState, row: CpuidConfigRow) -> Quad:
    """Bits of a leaf that the host may set: direct ones, and allowed ones that the processor has."""
    native = module.sampled_cpuid(module.cpuid.row_of_config[row.index])
    eax, ebx, ecx, edx = (row.direct[n] | row.allow[n] & native[n] for n in range(4))
    return eax, ebx, ecx, edx


@host_leaf("TDH.SYS.KEY.CONFIG")
def sys_key_config(call: HostCall) -> int:
    """The global private key, on each package."""
    module, lp = call.module, call.lp
    own_global(call)
    sys = module.data.sys
    if SYS.sys_state.get(sys) != SysState.SYSCONFIG_DONE:
        raise LeafFailed(st.TDX_SYS_KEY_CONFIG_NOT_PENDING)
    done = SYS.configured_packages.get(sys)
    if done >> lp.package & 1:
        return st.TDX_KEY_CONFIGURED
    module.program_key(lp, SYS.global_hkid.get(sys))
    done |= 1 << lp.package
    SYS.configured_packages.set(sys, done)
    if done == (1 << SYS.num_packages.get(sys)) - 1:
        SYS.sys_state.set(sys, SysState.READY)
    return st.TDX_SUCCESS


@host_leaf("TDH.SYS.DISABLE")
def sys_disable(call: HostCall) -> int:
    """Give all memory back, cleared, and be as after loading: TDs, their keys and the PAMTs are gone."""
    module = call.module
    own_global(call)
    if any(agent.in_guest for agent in module.machine.agents):
        raise LeafFailed(st.TDX_SYS_BUSY)
    for agent in module.machine.agents:
        agent.forget_guests()
    for base, size in module.pamt.taken():
        # As MOVDIR64B with KeyID 0 does it: what was there under a private key is gone, and so is poison.
        module.memory.direct_zero(base, size, SEAM)
    module.data.clear()
    module.data.tdmrs_changed()
    module.forget_all()
    return st.TDX_SUCCESS


@host_leaf("TDH.SYS.LP.SHUTDOWN")
def sys_lp_shutdown(call: HostCall) -> int:
    """Deprecated: does nothing."""
    del call
    return st.TDX_SUCCESS
