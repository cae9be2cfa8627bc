"""TD_PARAMS: from what the host asks for to what the TDCS holds (``tdh_mng_init.c`` of 1.5.01; for the
topology of a TD, ``helpers.c`` of later public versions).

The checks come in the module's order, and each failure names the operand.
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import cpuid_policy as policy
from swtdx.arch import msr_policy
from swtdx.arch import status as st
from swtdx.arch.control_structs import CPUID_FLAGS, TDCS, TDCS_MIN_PAGES, TDR
from swtdx.arch.cpuid_table import (
    OLD_TOPOLOGY_LEAF,
    OLD_TOPOLOGY_SUBLEAVES,
    TOPOLOGY_LEAF,
    TOPOLOGY_SUBLEAVES,
    CpuidTable,
)
from swtdx.arch.operands import OperandId
from swtdx.arch.platform_structs import (
    HP_LOCK_TIMEOUT_USEC,
    TD_PARAMS,
    TSC_FREQUENCY_MAX,
    TSC_FREQUENCY_MIN,
    TSC_FREQUENCY_UNIT_HZ,
)
from swtdx.arch.td_config import XFAM_FIXED1
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import MEMORY_TYPE_WB
from swtdx.machine.processor import LogicalProcessor
from swtdx.module import virtual_msrs
from swtdx.module.errors import LeafFailed
from swtdx.module.exits.msr import features
from swtdx.module.globals import SYS
from swtdx.module.objects.td import TDCS_MSR_BITMAPS, TDCS_SEPT_ROOT, Td
from swtdx.module.state import ModuleState

_QUAD: Final = struct.Struct("<4I")
_FLAG_INDEX: Final = {name: index for index, name in enumerate(CPUID_FLAGS)}


def _invalid(operand: int) -> LeafFailed:
    return LeafFailed(st.TDX_OPERAND_INVALID | operand)


def configure(module: ModuleState, lp: LogicalProcessor, td: Td, params: bytes) -> None:
    """Check TD_PARAMS and fill the TDCS.

    Raises:
        LeafFailed: as the reference lists for TDH.MNG.INIT; RCX names a bad CPUID leaf.
    """
    tdcs = td.tdcs
    _attributes_and_xfam(module, tdcs, params)
    _sizes(module, td, params)
    _flags_and_ept(module, td, params)
    _time(module, lp, tdcs, params)
    if not TD_PARAMS.reserved_1.get(params) == bytes(38):
        raise _invalid(OperandId.RDX)
    for name in ("mrconfigid", "mrowner", "mrownerconfig"):
        getattr(TDCS, name).set(tdcs, getattr(TD_PARAMS, name).get(params))
    if TD_PARAMS.msr_config_ctls.get(params) & ~1 or any(TD_PARAMS.reserved_2.get(params)):
        raise _invalid(OperandId.RDX)
    _cpuid(module, tdcs, params)
    _arch_capabilities(module, tdcs, params)
    _msr_bitmaps_and_virtual_msrs(module, td)


def _attributes_and_xfam(module: ModuleState, tdcs: memoryview, params: bytes) -> None:
    attributes = TD_PARAMS.attributes.get(params)
    if attributes & ~module.attributes_fixed0:
        raise _invalid(OperandId.ATTRIBUTES)
    TDCS.attributes.set(tdcs, attributes)
    TDCS.td_ctls.set(tdcs, attributes >> 28 & 1)
    xfam = TD_PARAMS.xfam.get(params)
    avx512 = xfam >> 5 & 7
    if (
        xfam & ~module.xfam_fixed0
        or xfam & XFAM_FIXED1 != XFAM_FIXED1
        or avx512 not in (0, 7)
        or (avx512 and not xfam >> 2 & 1)
        or xfam >> 11 & 3 in (1, 2)
        or xfam >> 17 & 3 in (1, 2)
    ):
        raise _invalid(OperandId.XFAM)
    TDCS.xfam.set(tdcs, xfam)
    _xbuff(module, tdcs, xfam)


def _xbuff(module: ModuleState, tdcs: memoryview, xfam: int) -> None:
    """XBUFF size and component offsets (compact format, SDM volume 1, 13.4.3)."""
    offset = 576
    for component in range(2, 19):
        if xfam >> component & 1:
            size, _, ecx, _ = module.native_cpuid(0xD, component)
            if ecx & 2:
                offset = offset + 63 & -64
            TDCS.xbuff_offsets.set(tdcs, component, offset)
            offset += size
    TDCS.xbuff_size.set(tdcs, offset)


def _sizes(module: ModuleState, td: Td, params: bytes) -> None:
    tdcs = td.tdcs
    max_vcpus = TD_PARAMS.max_vcpus.get(params)
    if not 1 <= max_vcpus <= module.features.max_vcpus:
        raise _invalid(OperandId.MAX_VCPUS)
    TDCS.max_vcpus.set(tdcs, max_vcpus)
    # This build has no TD partitioning: a TD has no L2 VMs.
    if TD_PARAMS.num_l2_vms.get(params):
        raise _invalid(OperandId.NUM_L2_VMS)
    if TDR.num_tdcx.get(td.tdr) < TDCS_MIN_PAGES:
        raise LeafFailed(st.TDX_TDCS_NOT_ALLOCATED)
    TDCS.num_l2_vms.set(tdcs, 0)
    if any(TD_PARAMS.reserved_0.get(params)):
        raise _invalid(OperandId.RDX)


def _flags_and_ept(module: ModuleState, td: Td, params: bytes) -> None:
    tdcs = td.tdcs
    flags = TD_PARAMS.config_flags.get(params)
    if flags & ~module.features.config_flags_fixed0:
        raise _invalid(OperandId.EXEC_CONTROLS)
    gpaw = flags & 1
    controls = TD_PARAMS.eptp_controls.get(params)
    levels = controls >> 3 & 7
    highest = 4 if module.five_level_ept else 3
    if (
        controls & ~0x3F
        or controls & 7 != MEMORY_TYPE_WB
        or not 3 <= levels <= highest
        or (gpaw and levels < 4)
    ):
        raise _invalid(OperandId.EPTP_CONTROLS)
    root = TDR.tdcx_pa.get(td.tdr, TDCS_SEPT_ROOT) & (1 << module.hpa_bits) - 1
    TDCS.eptp.set(tdcs, controls | root)
    TDCS.config_flags.set(tdcs, flags)
    TDCS.gpaw.set(tdcs, gpaw)


def _time(module: ModuleState, lp: LogicalProcessor, tdcs: memoryview, params: bytes) -> None:
    frequency = TD_PARAMS.tsc_frequency.get(params)
    if not TSC_FREQUENCY_MIN <= frequency <= TSC_FREQUENCY_MAX:
        raise _invalid(OperandId.TSC_FREQUENCY)
    TDCS.tsc_frequency.set(tdcs, frequency)
    module.check_tsc_adjust(lp)
    native = SYS.tsc_hz.get(module.data.sys)
    multiplier = (frequency * TSC_FREQUENCY_UNIT_HZ << 48) // native
    TDCS.tsc_multiplier.set(tdcs, multiplier)
    # The virtual TSC starts from 0 now.
    TDCS.tsc_offset.set(tdcs, -(lp.machine.tsc() * multiplier >> 48) & MASK64)
    TDCS.hp_lock_timeout.set(tdcs, HP_LOCK_TIMEOUT_USEC[2] * native // 1_000_000)


# ---------------------------------------------------------------- CPUID
def _cpuid(module: ModuleState, tdcs: memoryview, params: bytes) -> None:
    table = module.cpuid
    for row in table.rows:
        native = module.sampled_cpuid(row.index)
        values = [native[n] & ~row.cleared[n] | row.fixed1[n] for n in range(4)]
        if row.config is not None:
            _configured(table, row.config, native, values, params)
        _derive(module, tdcs, row.leaf, row.subleaf, values, params)
        _QUAD.pack_into(tdcs, _values_at(row.index), *values)
        TDCS.cpuid_valid.set(tdcs, row.index, 0 if row.faulting else 1)
    if module.features.topology:
        _topology(module, tdcs)
        # Until TDH.VP.INIT is not told a vCPU's x2APIC id.
        TDCS.topology_enum_configured.set(tdcs, 1)
    if any(params[TD_PARAMS.cpuid_config.offset + 16 * len(table.configs) :]):
        raise _invalid(OperandId.RDX)


def _configured(
    table: CpuidTable, index: int, native: tuple[int, ...], values: list[int], params: bytes
) -> None:
    """Apply the host's configuration of one leaf.

    Raises:
        LeafFailed: a bit is set that cannot be configured; RCX names the leaf.
    """
    config = table.configs[index]
    for n in range(4):
        wanted = TD_PARAMS.cpuid_config.get(params, 4 * index + n)
        if wanted & ~(config.direct[n] | config.allow[n]):
            raise LeafFailed(
                st.TDX_OPERAND_INVALID | OperandId.CPUID_CONFIG, config.leaf | config.subleaf << 32
            )
        values[n] &= ~(config.direct[n] | config.allow[n])
        values[n] |= wanted & config.direct[n] | wanted & config.allow[n] & native[n]


def _derive(
    module: ModuleState, tdcs: memoryview, leaf: int, subleaf: int, values: list[int], params: bytes
) -> None:
    """What depends on XFAM, ATTRIBUTES and other parameters."""
    xfam, attributes = TDCS.xfam.get(tdcs), TDCS.attributes.get(tdcs)
    for row_leaf, row_subleaf, needed, mask in policy.XFAM_BITS:
        if (row_leaf, row_subleaf) == (leaf, subleaf) and xfam & needed != needed:
            for n in range(4):
                values[n] &= ~mask[n]
    unless = policy.ZERO_UNLESS.get((leaf, subleaf))
    if unless is not None and not _has(tdcs, unless):
        values[:] = [0, 0, 0, 0]
    if leaf == 1:
        signature = module.sysinfo.package_signature(0)
        values[0] = values[0] or signature
        if values[0] != signature:
            # Only a TD that can migrate may be told that it runs on another part.
            raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.CPUID_CONFIG, leaf | subleaf << 32)
        _flag(tdcs, "monitor_mwait", values[2] >> 3)
        _flag(tdcs, "dca", values[2] >> 18)
        _flag(tdcs, "tsc_deadline", values[2] >> 24)
    elif (leaf, subleaf) == (7, 0):
        _leaf_7(tdcs, values, attributes)
    elif (leaf, subleaf) == (7, 2):
        _flag(tdcs, "ddpd", values[3] >> 3)
        TDCS.ia32_spec_ctrl_mask.set(tdcs, 0 if values[3] >> 3 & 1 else 1 << 8)
    elif (leaf, subleaf) == (0xD, 0):
        values[2] = _xsave_size(module, xfam)
    elif (leaf, subleaf) == (0xD, 1):
        values[0] &= ~(1 << 4)
        _flag(tdcs, "xfd", 0)
    elif leaf == 0x15:
        values[1] = TD_PARAMS.tsc_frequency.get(params)
    elif leaf == 0x80000008:
        la57 = TDCS.cpuid_flags.get(tdcs, _FLAG_INDEX["la57"])
        values[0] = values[0] & ~0xFF00 | (57 if la57 else 48) << 8


def _leaf_7(tdcs: memoryview, values: list[int], attributes: int) -> None:
    hle, rtm = values[1] >> 4 & 1, values[1] >> 11 & 1
    if hle != rtm:
        raise _invalid(OperandId.CPUID_CONFIG)
    if hle:
        raise LeafFailed(st.TDX_INCORRECT_MSR_VALUE | 0x10A)
    values[2] = values[2] & ~(1 << 31 | 1 << 23) | (attributes >> 30 & 1) << 31
    _flag(tdcs, "tsx", 0)
    _flag(tdcs, "waitpkg", values[2] >> 5)
    _flag(tdcs, "tme", values[2] >> 13)
    _flag(tdcs, "la57", values[2] >> 16)
    _flag(tdcs, "mktme", values[3] >> 18)


# ---------------------------------------------------------------- topology
#: Level types of leaf 0x1F, ECX[15:8] (SDM volume 2, CPUID): threads, cores; modules, tiles and dies follow.
_INVALID_LEVEL, _THREADS, _CORES, _LEVELS = 0, 1, 2, 6


def _topology(module: ModuleState, tdcs: memoryview) -> None:
    """Check leaf 0x1F as it was configured, the processor's own if that is all 0; derive leaf 0xB from it.

    Raises:
        LeafFailed: CPUID_LEAF_1F_FORMAT_UNRECOGNIZED.
    """
    unrecognized = LeafFailed(st.TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
    rows = [_row(module.cpuid, TOPOLOGY_LEAF, subleaf) for subleaf in range(TOPOLOGY_SUBLEAVES)]
    levels = [_QUAD.unpack_from(tdcs, _values_at(row)) for row in rows]
    if not any(levels[0]):
        if any(any(level) for level in levels):
            raise unrecognized
        levels = [module.sampled_cpuid(row) for row in rows]
        for row, level in zip(rows, levels, strict=True):
            _QUAD.pack_into(tdcs, _values_at(row), *level)
    kind, cores, threads, last = _INVALID_LEVEL, False, None, levels[0]
    for subleaf, level in enumerate(levels):
        before, kind = kind, level[2] >> 8 & 0xFF
        if kind == _INVALID_LEVEL:
            if not subleaf or not cores:
                raise unrecognized
            continue
        if not before < kind < _LEVELS or level[2] & 0xFF != subleaf or (kind == _THREADS and subleaf):
            raise unrecognized
        if kind == _THREADS:
            threads = level
        cores = cores or kind == _CORES
        last = level
    old = [threads] if threads is not None else []
    # Leaf 0xB knows no more than threads and cores: its cores are whatever is the last level here.
    old.append((last[0], last[1], _CORES << 8 | len(old), last[3]))
    for subleaf in range(OLD_TOPOLOGY_SUBLEAVES):
        value = old[subleaf] if subleaf < len(old) else (0, 0, 0, 0)
        _QUAD.pack_into(tdcs, _values_at(_row(module.cpuid, OLD_TOPOLOGY_LEAF, subleaf)), *value)


def _row(table: CpuidTable, leaf: int, subleaf: int) -> int:
    row = table.lookup(leaf, subleaf)
    assert row is not None
    return row.index


def _values_at(row: int) -> int:
    return TDCS.cpuid_values.offset + _QUAD.size * row


def _flag(tdcs: memoryview, name: str, value: int) -> None:
    TDCS.cpuid_flags.set(tdcs, _FLAG_INDEX[name], value & 1)


def _has(tdcs: memoryview, unless: policy.ZeroUnless) -> bool:
    if unless.what == "xfam":
        return int(TDCS.xfam.get(tdcs)) & unless.mask == unless.mask
    if unless.what == "attributes":
        return int(TDCS.attributes.get(tdcs)) & unless.mask == unless.mask
    if unless.what == "monitor":
        return bool(TDCS.cpuid_flags.get(tdcs, _FLAG_INDEX["monitor_mwait"]))
    return False


def _xsave_size(module: ModuleState, xfam: int) -> int:
    """Size of the standard-format XSAVE area of every component in XFAM."""
    size = 576
    for component in range(2, 19):
        if xfam >> component & 1:
            length, offset, _, _ = module.native_cpuid(0xD, component)
            size = max(size, offset + length)
    return size


# ---------------------------------------------------------------- MSRs
def _arch_capabilities(module: ModuleState, tdcs: memoryview, params: bytes) -> None:
    value = virtual_msrs.arch_capabilities(
        module.arch_capabilities,
        TD_PARAMS.ia32_arch_capabilities_config.get(params),
        given=bool(TD_PARAMS.msr_config_ctls.get(params) & 1),
        tsx=bool(TDCS.cpuid_flags.get(tdcs, _FLAG_INDEX["tsx"])),
    )
    if value is None:
        raise _invalid(OperandId.IA32_ARCH_CAPABILITIES_CONFIG)
    TDCS.virt_ia32_arch_capabilities.set(tdcs, value)


def _msr_bitmaps_and_virtual_msrs(module: ModuleState, td: Td) -> None:
    tdcs = td.tdcs
    td.pages[TDCS_MSR_BITMAPS][:] = msr_policy.bitmap(features(tdcs))
    for name, value in virtual_msrs.vmx_msrs(module, tdcs).items():
        getattr(TDCS, f"virt_ia32_vmx_{name}").set(tdcs, value)
