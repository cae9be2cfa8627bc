"""Is this a platform that TDX can run on?  The checks of TDH.SYS.INIT, in their order.

Source: ``tdh_sys_init.c`` of the TDX module 1.5.01.  CPUID bits of features that the modelled part has
but the engine cannot execute (``By.ABSENT`` in :mod:`swtdx.machine.cpu.features`) are not insisted upon:
Intel's module would refuse such a processor (docs/fidelity.md).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import msrs
from swtdx.arch import status as st
from swtdx.arch.control_structs import TD_VMCS_BYTES
from swtdx.arch.cpuid_policy import LAST_EXTENDED_LEAF, MIN_NATIVE_BASE_LEAF
from swtdx.arch.cpuid_table import CpuidRow, Quad
from swtdx.arch.msrs import (
    IA32_ARCH_CAPABILITIES,
    IA32_MISC_ENABLE,
    IA32_MISC_PACKAGE_CTLS,
    IA32_MKTME_KEYID_PARTITIONING,
    IA32_MTRRCAP,
    IA32_SMRR2_PHYSBASE,
    IA32_SMRR2_PHYSMASK,
    IA32_SMRR_PHYSBASE,
    IA32_SMRR_PHYSMASK,
    IA32_TME_ACTIVATE,
    IA32_TME_CAPABILITY,
    IA32_WBINVDP,
    IA32_WBNOINVDP,
    IA32_XAPIC_DISABLE_STATUS,
    MISC_ENABLE_LIMIT_CPUID,
    TME_ACTIVATE_LOCK,
)
from swtdx.arch.platform_structs import MAX_HKIDS
from swtdx.arch.regs import R8, R9, R10, RCX, RDX
from swtdx.machine import seamops
from swtdx.machine.cpu.features import Core, absent_word
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.uncore import Agent
from swtdx.module.call import HostCall
from swtdx.module.errors import LeafFailed
from swtdx.module.state import ModuleState

_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")
#: IA32_ARCH_CAPABILITIES bits that must be set (``virt_msr_helpers.h``): RDCL_NO, IRBS_ALL,
#: SKIP_L1DFL_VMENTRY, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, MISC_PACKAGE_CTLS, ENERGY_FILTERING_CTL, DOITM,
#: SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, XAPIC_DISABLE_STATUS.
_ARCH_CAPABILITIES: Final = sum(1 << bit for bit in (0, 1, 3, 5, 6, 8, 10, 11, 12, 13, 14, 15, 21))
#: This one must be clear.
_RSBA: Final = 1 << 2
#: AES-XTS-128, AES-XTS-128 with integrity, AES-XTS-256, AES-XTS-256 with integrity: in TME_CAPABILITY
#: from bit 0 (128-bit at 0 and 1, 256-bit at 2 and 3), in TME_ACTIVATE from bit 48.
_PLAIN: Final = 0b0101
_INTEGRITY: Final = 0b1010
_ACTIVATE_SHIFT: Final = 48

_PROC2: Final = msrs.IA32_VMX_PROCBASED_CTLS2
_PROC3: Final = msrs.IA32_VMX_PROCBASED_CTLS3
#: "ENCLV exiting" is set if the processor has it.
_ENCLV_EXITING: Final = 1 << 28
#: (MSR of allowed settings, initial value, bits that vary, bits whose value the MSR dictates), of a TD's VMCS
#: and of the VMCS of an L2 VM, which the platform must be able to run, too.
_EXIT_AND_ENTRY: Final = (
    (msrs.IA32_VMX_TRUE_EXIT_CTLS, 0x1F3C8204, 0x40001000, 0x00036DFB),
    (msrs.IA32_VMX_TRUE_ENTRY_CTLS, 0x003EC004, 0x00402200, 0xFF8011FB),
)
_CONTROLS: Final = (
    (msrs.IA32_VMX_TRUE_PINBASED_CTLS, 0x00000029, 0x00000080, 0xFFFFFF16),
    (msrs.IA32_VMX_TRUE_PROCBASED_CTLS, 0x91220088, 0x20400C00, 0x04046173),
    (_PROC2, 0x133CB3FA, 0xCC000400, 0x00000000),
    (_PROC3, 0x00000080, 0x00000020, 0xFFFFFFFFFFFFFF40),
    *_EXIT_AND_ENTRY,
)
_L2_CONTROLS: Final = (
    (msrs.IA32_VMX_TRUE_PINBASED_CTLS, 0x00000029, 0x00000000, 0xFFFFFF16),
    (msrs.IA32_VMX_TRUE_PROCBASED_CTLS, 0x91220088, 0x68D81E04, 0x04046173),
    (_PROC2, 0x1338B3FA, 0x0C513E0C, 0x00000000),
    (_PROC3, 0x00000080, 0x0000002E, 0xFFFFFFFFFFFFFF40),
    *_EXIT_AND_ENTRY,
)
_L2_CR0_VARIABLE: Final = 0x8005001F
#: SEAMOPS leaves that TD preserving needs: SEAMDB_GETREF and SEAMDB_REPORT.
_SEAMDB: Final = 1 << 4 | 1 << 5
_EPT_VPID: Final = 0x10106334041
_GUEST_CR0: Final = 0x21
_GUEST_CR4: Final = 0x2040


def _msr(index: int) -> LeafFailed:
    return LeafFailed(st.TDX_INCORRECT_MSR_VALUE | index)


def check_platform(call: HostCall) -> None:
    """All checks of TDH.SYS.INIT on the platform.

    Raises:
        LeafFailed: the first one that fails; RCX, RDX, R8..R10 say more about a CPUID value.
    """
    lp = call.lp
    _check_msrs(lp)
    _check_cpuid(call)
    _check_vmx(lp)
    _check_keys(call.module, lp)
    if not _cmrs_are_valid(call.module):
        raise LeafFailed(st.TDX_CMR_LIST_INVALID)
    _check_smrr(call.module, lp)
    if seamops.capabilities() & _SEAMDB != _SEAMDB:
        raise LeafFailed(st.TDX_INCOMPATIBLE_SEAM_CAPABILITIES)


def _check_msrs(lp: LogicalProcessor) -> None:
    read = lp.rdmsr
    if read(IA32_ARCH_CAPABILITIES) & (_ARCH_CAPABILITIES | _RSBA) != _ARCH_CAPABILITIES:
        raise _msr(IA32_ARCH_CAPABILITIES)
    if read(IA32_XAPIC_DISABLE_STATUS) != 1:
        raise _msr(IA32_XAPIC_DISABLE_STATUS)
    if not read(IA32_MISC_PACKAGE_CTLS) & 1:
        raise _msr(IA32_MISC_PACKAGE_CTLS)
    if not read(msrs.IA32_PERF_CAPABILITIES) >> 13 & 1:
        raise _msr(msrs.IA32_PERF_CAPABILITIES)


def check_boot_nt4(lp: LogicalProcessor) -> None:
    """IA32_MISC_ENABLE must not limit CPUID.

    Raises:
        LeafFailed: LIMIT_CPUID_MAXVAL_SET.
    """
    if lp.rdmsr(IA32_MISC_ENABLE) & MISC_ENABLE_LIMIT_CPUID:
        raise LeafFailed(st.TDX_LIMIT_CPUID_MAXVAL_SET)


# ---------------------------------------------------------------- CPUID
def _check_cpuid(call: HostCall) -> None:
    facts = call.module.facts
    check_boot_nt4(call.lp)
    if facts.native_cpuid(0, 0)[0] < MIN_NATIVE_BASE_LEAF:
        raise LeafFailed(st.TDX_CPUID_LEAF_NOT_SUPPORTED | MIN_NATIVE_BASE_LEAF)
    if facts.native_cpuid(0x80000000, 0)[0] < LAST_EXTENDED_LEAF:
        raise LeafFailed(st.TDX_CPUID_LEAF_NOT_SUPPORTED | LAST_EXTENDED_LEAF)
    for row in call.module.cpuid.rows:
        mask, value = insisted(row, call.lp.model.core)
        native = facts.sampled[row.index]
        if any(native[n] & mask[n] != value[n] for n in range(4)):
            raise _cpuid_failure(call, row, mask, value)
    if not facts.native_cpuid(0x15, 0)[1]:
        raise LeafFailed(st.TDX_CPUID_LEAF_NOT_SUPPORTED | 0x15)
    _check_topology(call)


def insisted(row: CpuidRow, core: Core) -> tuple[Quad, Quad]:
    """(mask, value) that a row insists on, without the bits of such cores that the engine cannot have."""
    subleaf = 0 if row.subleaf == 0xFFFFFFFF else row.subleaf
    absent = [absent_word(row.leaf, subleaf, register, core) for register in _REGISTERS]
    mask = [bits & ~missing for bits, missing in zip(row.verify_mask, absent, strict=True)]
    value = [bits & ~missing for bits, missing in zip(row.verify_value, absent, strict=True)]
    return (mask[0], mask[1], mask[2], mask[3]), (value[0], value[1], value[2], value[3])


def _cpuid_failure(call: HostCall, row: CpuidRow, mask: Quad, value: Quad) -> LeafFailed:
    call.keep_outputs = True
    gpr = call.gpr
    gpr[RCX] = row.leaf | row.subleaf << 32
    gpr[RDX] = mask[0] | mask[1] << 32
    gpr[R8] = mask[2] | mask[3] << 32
    gpr[R9] = value[0] | value[1] << 32
    gpr[R10] = value[2] | value[3] << 32
    return LeafFailed(st.TDX_INCORRECT_CPUID_VALUE)


def _check_topology(call: HostCall) -> None:
    """Leaf 0x1F in order of level types; the last level cache is the package's."""
    facts = call.module.facts
    sharing = facts.native_cpuid(4, 3)[0] >> 14 & 0xFFF
    previous, shift, core_seen = 0, 0, False
    for subleaf in range(6):
        eax, _, ecx, _ = facts.native_cpuid(0x1F, subleaf)
        level = ecx >> 8 & 0xFF
        if not level:
            break
        if level <= previous or level >= 6:
            raise LeafFailed(st.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
        previous, shift = level, eax & 0x1F
        core_seen |= level == 2
    if not core_seen:
        raise LeafFailed(st.TDX_CPUID_LEAF_NOT_SUPPORTED)
    if shift and sharing >> shift - 1 != 1:
        raise LeafFailed(st.TDX_INVALID_WBINVD_SCOPE)


# ---------------------------------------------------------------- VMX
def _allows(index: int, setting: int, initial: int, variable: int, unknown: int) -> bool:
    if index == _PROC3:  # 64 controls that may be 1
        must, may = 0, setting
    else:
        must, may = setting & 0xFFFFFFFF, setting >> 32
    if index == _PROC2 and not may & _ENCLV_EXITING:
        initial &= ~_ENCLV_EXITING
    return not (must & ~(initial | unknown) or ~may & initial or (must | ~may) & variable)


def _check_vmx(lp: LogicalProcessor) -> None:
    read = lp.rdmsr
    basic = read(msrs.IA32_VMX_BASIC)
    if basic >> 32 & 0x1FFF > TD_VMCS_BYTES or not basic >> 54 & 1 or not basic >> 55 & 1:
        raise _msr(msrs.IA32_VMX_BASIC)
    _check_controls(lp, _CONTROLS)
    misc = read(msrs.IA32_VMX_MISC)
    if misc >> 5 & 1 == 0 or misc >> 6 & 3 != 3 or not misc >> 14 & 1 or misc >> 16 & 0x1FF < 4:
        raise _msr(msrs.IA32_VMX_MISC)
    if not misc >> 29 & 1:
        raise _msr(msrs.IA32_VMX_MISC)
    if ~read(msrs.IA32_VMX_EPT_VPID_CAP) & _EPT_VPID:
        raise _msr(msrs.IA32_VMX_EPT_VPID_CAP)
    if read(msrs.IA32_VMX_CR0_FIXED0) & ~0x80000001 & ~_GUEST_CR0:
        raise _msr(msrs.IA32_VMX_CR0_FIXED0)
    if ~read(msrs.IA32_VMX_CR0_FIXED1) & _GUEST_CR0:
        raise _msr(msrs.IA32_VMX_CR0_FIXED1)
    if read(msrs.IA32_VMX_CR4_FIXED0) & ~_GUEST_CR4:
        raise _msr(msrs.IA32_VMX_CR4_FIXED0)
    if ~read(msrs.IA32_VMX_CR4_FIXED1) & _GUEST_CR4:
        raise _msr(msrs.IA32_VMX_CR4_FIXED1)
    _check_controls(lp, _L2_CONTROLS)
    if (read(msrs.IA32_VMX_CR0_FIXED0) & ~0x80000001 | ~read(msrs.IA32_VMX_CR0_FIXED1)) & _L2_CR0_VARIABLE:
        raise _msr(msrs.IA32_VMX_CR0_FIXED0)


def _check_controls(lp: LogicalProcessor, controls: tuple[tuple[int, int, int, int], ...]) -> None:
    for index, initial, variable, unknown in controls:
        if not _allows(index, lp.rdmsr(index), initial, variable, unknown):
            raise _msr(index)


# ---------------------------------------------------------------- keys and memory
def _check_keys(module: ModuleState, lp: LogicalProcessor) -> None:
    read = lp.rdmsr
    activate = read(IA32_TME_ACTIVATE)
    if not activate & TME_ACTIVATE_LOCK:
        raise _msr(IA32_TME_ACTIVATE)
    wanted = _PLAIN if module.sysinfo.without_integrity else _INTEGRITY
    if not read(IA32_TME_CAPABILITY) & wanted:
        raise _msr(IA32_TME_CAPABILITY)
    if not activate >> _ACTIVATE_SHIFT & wanted:
        raise _msr(IA32_TME_ACTIVATE)
    partitioning = read(IA32_MKTME_KEYID_PARTITIONING)
    if (partitioning & 0xFFFFFFFF) + (partitioning >> 32) >= MAX_HKIDS:
        raise LeafFailed(st.TDX_NUM_ACTIVATED_HKIDS_NOT_SUPPORTED | MAX_HKIDS)
    if read(IA32_WBNOINVDP) != read(IA32_WBINVDP):
        raise _msr(IA32_WBNOINVDP)


def _cmrs_are_valid(module: ModuleState) -> bool:
    end = 0
    for base, size in module.sysinfo.cmrs:
        last = base + size - 1
        if (base | size) & 0xFFF or last >> module.hpa_bits or (end and base < end):
            return False
        end = last
    return True


def _check_smrr(module: ModuleState, lp: LogicalProcessor) -> None:
    """SMRR, and SMRR2 if there is one, must be locked, well formed, and apart from every CMR."""
    capabilities = lp.rdmsr(IA32_MTRRCAP)
    if not capabilities >> 11 & 1:
        raise LeafFailed(st.TDX_SMRR_NOT_SUPPORTED)
    if not capabilities >> 14 & 1:
        raise LeafFailed(st.TDX_SMRR_LOCK_NOT_SUPPORTED)
    ranges = [(lp.rdmsr(base), lp.rdmsr(mask)) for base, mask in smrrs(module, lp)]
    for number, (_, mask) in enumerate(ranges):
        if not mask >> 10 & 1:
            raise LeafFailed(st.TDX_SMRR_NOT_LOCKED | number)
    for number, (base, mask) in enumerate(ranges):
        if not mask >> 11 & 1:
            continue
        address = mask & 0xFFFFF000
        lowest = address & -address
        if not address or address != 0x100000000 - lowest or base & 0xFFFFF000 & ~address:
            raise LeafFailed(st.TDX_INVALID_SMRR_CONFIGURATION | number)
        start = base & 0xFFFFF000
        for cmr_number, (cmr, size) in enumerate(module.sysinfo.cmrs):
            if start < cmr + size and cmr < start + lowest:
                raise LeafFailed(st.TDX_SMRR_OVERLAPS_CMR | number | cmr_number << 8)


def smrrs(module: ModuleState, lp: Agent) -> tuple[tuple[int, int], ...]:
    """The MSRs (base, mask) of SMRR, and of SMRR2 if MCHECK and IA32_MTRRCAP know it."""
    if module.sysinfo.has_smrr2 and lp.rdmsr(IA32_MTRRCAP) >> 13 & 1:
        return (IA32_SMRR_PHYSBASE, IA32_SMRR_PHYSMASK), (IA32_SMRR2_PHYSBASE, IA32_SMRR2_PHYSMASK)
    return ((IA32_SMRR_PHYSBASE, IA32_SMRR_PHYSMASK),)


# ---------------------------------------------------------------- agreement of processors
#: MSRs that must hold on every processor what they held on the one of TDH.SYS.INIT, in order.
_SAME_MSRS: Final = (
    msrs.IA32_CORE_CAPABILITIES, IA32_ARCH_CAPABILITIES, IA32_MISC_PACKAGE_CTLS, IA32_XAPIC_DISABLE_STATUS,
)  # fmt: skip
_SAME_VMX: Final = (
    msrs.IA32_VMX_BASIC,
    msrs.IA32_VMX_TRUE_PINBASED_CTLS,
    msrs.IA32_VMX_TRUE_PROCBASED_CTLS,
    msrs.IA32_VMX_PROCBASED_CTLS2,
    msrs.IA32_VMX_PROCBASED_CTLS3,
    msrs.IA32_VMX_TRUE_EXIT_CTLS,
    msrs.IA32_VMX_TRUE_ENTRY_CTLS,
    msrs.IA32_VMX_MISC,
    msrs.IA32_VMX_EPT_VPID_CAP,
    msrs.IA32_VMX_CR0_FIXED0,
    msrs.IA32_VMX_CR0_FIXED1,
    msrs.IA32_VMX_CR4_FIXED0,
    msrs.IA32_VMX_CR4_FIXED1,
    msrs.IA32_PERF_CAPABILITIES,
    IA32_TME_CAPABILITY,
    IA32_TME_ACTIVATE,
    IA32_MKTME_KEYID_PARTITIONING,
    IA32_WBINVDP,
    IA32_WBNOINVDP,
)


def check_processor(call: HostCall) -> None:
    """This processor is like the first one (``tdh_sys_lp_init.c``).

    Raises:
        LeafFailed: INCONSISTENT_MSR, INCONSISTENT_CPUID_FIELD, LIMIT_CPUID_MAXVAL_SET.
    """
    lp, first = call.lp, call.module.machine.agents[0]
    _same_msrs(lp, first, _SAME_MSRS)
    check_boot_nt4(lp)
    for row in call.module.cpuid.rows:
        here = lp.cpuid(row.leaf, 0 if row.subleaf == 0xFFFFFFFF else row.subleaf)
        there = call.module.facts.sampled[row.index]
        if any((here[n] ^ there[n]) & row.verify_same[n] for n in range(4)):
            call.keep_outputs = True
            call.gpr[RCX] = row.leaf | row.subleaf << 32
            call.gpr[RDX] = row.verify_same[0] | row.verify_same[1] << 32
            call.gpr[R8] = row.verify_same[2] | row.verify_same[3] << 32
            raise LeafFailed(st.TDX_INCONSISTENT_CPUID_FIELD)
    call.module.check_tsc_adjust(lp)
    _same_msrs(lp, first, (IA32_MTRRCAP, *(each for pair in smrrs(call.module, first) for each in pair)))
    _same_msrs(lp, first, _SAME_VMX)


def _same_msrs(lp: LogicalProcessor, first: Agent, indices: tuple[int, ...]) -> None:
    for index in indices:
        if lp.rdmsr(index) != first.rdmsr(index):
            raise LeafFailed(st.TDX_INCONSISTENT_MSR | index)
