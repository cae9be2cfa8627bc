"""TDH.SYS.CONFIG and TDH.SYS.TDMR.INIT: which memory the module manages, and the PAMTs for it.

Source: ``tdh_sys_config.c``, ``tdh_sys_tdmr_init.c`` and ``pamt_manager.c`` of the TDX module 1.5.01;
the order of the checks is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from swtdx.arch import status as st
from swtdx.arch.operands import OperandId
from swtdx.arch.platform_structs import (
    MAX_RESERVED_PER_TDMR,
    MAX_TDMRS,
    PAMT_ENTRY_BYTES,
    TDMR_INFO,
    TDMR_INFO_ALIGNMENT,
)
from swtdx.arch.ranges import Range
from swtdx.arch.regs import R8, RCX, RDX
from swtdx.arch.states import KotState, PageType, SysState
from swtdx.arch.units import HUGE_PAGE, LARGE_PAGE, PAGE
from swtdx.machine.memory import SEAM
from swtdx.module.call import HostCall
from swtdx.module.checks import shared_buffer
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import KOT_ENTRY, SYS, TDMR
from swtdx.module.host.sys import own_global
from swtdx.module.objects.pamt import TYPE_SHIFT
from swtdx.module.register import host_leaf
from swtdx.module.state import ModuleState

_RSVD: Final = int(PageType.RSVD)
#: 4-KiB PAMT entries that one TDH.SYS.TDMR.INIT initialises: 4 MiB of the TDMR.
_ENTRIES: Final = 1024
#: Page sizes as details of a status name them.
_4K, _2M, _1G = 0, 1, 2
_GRANULES: Final = (PAGE, LARGE_PAGE, HUGE_PAGE)


@dataclass(frozen=True, slots=True)
class TdmrInfo:
    """TDMR_INFO.  ``pamts`` are (base, bytes) by page size; ``reserved`` all 16 slots of (offset, bytes)."""

    base: int
    size: int
    pamts: tuple[Range, Range, Range]
    reserved: tuple[Range, ...]

    @classmethod
    def decode(cls, data: bytes) -> TdmrInfo:
        """From the 320 bytes of the structure."""
        pairs = [
            (getattr(TDMR_INFO, f"pamt_{size}_base"), getattr(TDMR_INFO, f"pamt_{size}_size"))
            for size in ("4k", "2m", "1g")
        ]
        first, second, third = ((base.get(data), size.get(data)) for base, size in pairs)
        words = TDMR_INFO.rsvd_areas.all(data)
        return cls(
            TDMR_INFO.tdmr_base.get(data),
            TDMR_INFO.tdmr_size.get(data),
            (first, second, third),
            tuple(zip(words[::2], words[1::2], strict=True)),
        )

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.base + self.size

    def available(self) -> list[Range]:
        """[start, end) of what is not reserved; the reserved areas must be in order."""
        found, at = [], self.base
        for offset, size in self.reserved:
            if not size:
                break
            if self.base + offset > at:
                found.append((at, self.base + offset))
            at = self.base + offset + size
        if at < self.end:
            found.append((at, self.end))
        return found


def _failed(status: int, *info: int) -> LeafFailed:
    """A status whose details are bytes, lowest first (``api_error_with_multiple_info``)."""
    return LeafFailed(status | sum(value << 8 * place for place, value in enumerate(info)))


@host_leaf("TDH.SYS.CONFIG")
def sys_config(call: HostCall) -> int:
    """Take the TDMRs and the global private HKID."""
    module, i = call.module, call.inputs
    own_global(call)
    sys = module.data.sys
    complete = SYS.lps_initialised.get(sys) == SYS.num_lps.get(sys)
    if SYS.sys_state.get(sys) != SysState.SYSINIT_DONE or not complete:
        raise LeafFailed(st.TDX_SYS_CONFIG_NOT_PENDING)
    pointers, count, hkid = i[RCX], i[RDX], i[R8]
    shared_buffer(module, pointers, TDMR_INFO_ALIGNMENT, OperandId.RCX)
    if not 1 <= count <= MAX_TDMRS:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RDX)
    first = SYS.first_private_hkid.get(sys)
    if not first <= hkid < first + SYS.num_private_hkids.get(sys):
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.R8)
    addresses = np.frombuffer(module.memory.read(pointers, 8 * count, SEAM), dtype="<u8")
    infos: list[TdmrInfo] = []
    for address in addresses.tolist():
        shared_buffer(module, address, TDMR_INFO_ALIGNMENT, OperandId.RCX)
        infos.append(TdmrInfo.decode(module.memory.read(address, TDMR_INFO.size, SEAM)))
        _check(module, infos)
    for index, info in enumerate(infos):
        _store(module, index, info)
    SYS.num_tdmrs.set(sys, count)
    SYS.global_hkid.set(sys, hkid)
    view, at = module.data.kot(hkid)
    KOT_ENTRY.state.set(view, KotState.RESERVED, at)
    SYS.sys_state.set(sys, SysState.SYSCONFIG_DONE)
    module.data.tdmrs_changed()
    return st.TDX_SUCCESS


def _store(module: ModuleState, index: int, info: TdmrInfo) -> None:
    view, at = module.data.tdmr(index)
    TDMR.base.set(view, info.base, at)
    TDMR.size_.set(view, info.size, at)
    for name, (base, _) in zip(("pamt_4k", "pamt_2m", "pamt_1g"), info.pamts, strict=True):
        getattr(TDMR, name).set(view, base, at)
    TDMR.initialised.set(view, info.base, at)
    used = [area for area in info.reserved if area[1]]
    TDMR.num_reserved.set(view, len(used), at)
    for number, word in enumerate(word for area in used for word in area):
        TDMR.reserved.set(view, number, word, at)


# ---------------------------------------------------------------- checks
def _check(module: ModuleState, infos: list[TdmrInfo]) -> None:
    """Check the last of ``infos`` by itself and against the ones before it."""
    index = len(infos) - 1
    info = infos[index]
    limit = 1 << module.hpa_bits
    if info.end >= 1 << 64:
        raise _failed(st.TDX_INVALID_TDMR, index)
    if index and info.base < infos[index - 1].end:
        raise _failed(st.TDX_NON_ORDERED_TDMR, index)
    if (info.base | info.size) % HUGE_PAGE or not info.size or info.end > limit:
        raise _failed(st.TDX_INVALID_TDMR, index)
    _check_reserved(index, info)
    _check_pamts(module, infos, limit)
    for start, end in info.available():
        if not _in_cmr(module, start, end):
            raise _failed(st.TDX_TDMR_OUTSIDE_CMRS, index)


def _check_reserved(index: int, info: TdmrInfo) -> None:
    previous = 0
    for number, (offset, size) in enumerate(info.reserved):
        if not size:
            if number + 1 < MAX_RESERVED_PER_TDMR and info.reserved[number + 1][1]:
                raise _failed(st.TDX_NON_ORDERED_RESERVED_IN_TDMR, index, number)
            continue
        if offset + size > 1 << 64:
            raise _failed(st.TDX_INVALID_RESERVED_IN_TDMR, index, number)
        if number and offset < previous:
            raise _failed(st.TDX_NON_ORDERED_RESERVED_IN_TDMR, index, number)
        if (offset | size) % PAGE or offset + size > info.size:
            raise _failed(st.TDX_INVALID_RESERVED_IN_TDMR, index, number)
        previous = offset + size


def _check_pamts(module: ModuleState, infos: list[TdmrInfo], limit: int) -> None:
    index = len(infos) - 1
    info = infos[index]
    for size in (_1G, _2M, _4K):
        base, length = info.pamts[size]
        needed = info.size // _GRANULES[size] * PAMT_ENTRY_BYTES
        if (base | length) % PAGE or base + length > limit or length < needed:
            raise _failed(st.TDX_INVALID_PAMT, index, size)
    for other, earlier in enumerate(infos[:-1]):
        for size in (_4K, _2M, _1G):
            if any(_overlap(info.pamts[size], pamt) for pamt in earlier.pamts):
                raise _failed(st.TDX_PAMT_OVERLAP, index, size, other)
    for size, others in ((_4K, (_2M, _1G)), (_2M, (_1G,))):
        if any(_overlap(info.pamts[size], info.pamts[other]) for other in others):
            raise _failed(st.TDX_PAMT_OVERLAP, index, size, index)
    for other, earlier in enumerate(infos):
        _pamts_reserved(index, info, other, earlier)
        if other < index:
            _pamts_reserved(other, earlier, index, info)
    for size in (_1G, _2M, _4K):
        base, length = info.pamts[size]
        if not _in_cmr(module, base, base + length):
            raise _failed(st.TDX_PAMT_OUTSIDE_CMRS, index, size)


def _pamts_reserved(owner: int, info: TdmrInfo, inside: int, tdmr: TdmrInfo) -> None:
    """The PAMTs of TDMR ``owner`` must not lie in memory that TDMR ``inside`` manages."""
    for size in (_4K, _2M, _1G):
        base, length = info.pamts[size]
        for start, end in tdmr.available():
            if _overlap((base, length), (start, end - start)):
                raise _failed(st.TDX_PAMT_OVERLAP, owner, size, inside)


def _overlap(first: Range, second: Range) -> bool:
    return first[0] < second[0] + second[1] and second[0] < first[0] + first[1]


def _in_cmr(module: ModuleState, start: int, end: int) -> bool:
    """Whether [start, end) lies in convertible memory; CMRs that touch count as one."""
    joined_base = joined_end = -1
    for base, size in module.sysinfo.cmrs:
        if base != joined_end:
            joined_base = base
        joined_end = base + size
        if joined_base <= start and end <= joined_end:
            return True
    return False


# ---------------------------------------------------------------- PAMT
@host_leaf("TDH.SYS.TDMR.INIT")
def sys_tdmr_init(call: HostCall) -> int:
    """Initialise the PAMT entries of the next 4 MiB of a TDMR."""
    module = call.module
    base = call.inputs[RCX]
    if base % HUGE_PAGE or base >> module.hpa_bits:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    tdmr = next((each for each in module.data.tdmrs() if each.base == base), None)
    if tdmr is None:
        raise LeafFailed(st.TDX_OPERAND_INVALID | OperandId.RCX)
    view, at = module.data.tdmr(tdmr.index)
    if TDMR.mutex.get(view, at):
        raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.RCX)
    start = TDMR.initialised.get(view, at)
    if start >= tdmr.end:
        return st.TDX_TDMR_ALREADY_INITIALIZED
    key = module.global_keyid_bits
    offset = start - base
    entries = tdmr.pamt_4k + offset // PAGE * PAMT_ENTRY_BYTES | key
    reserved = _reserved_entries(view, at, offset)
    if reserved is None:
        module.memory.direct_zero(entries, _ENTRIES * PAMT_ENTRY_BYTES, SEAM)
    else:
        module.memory.direct_store(entries, reserved, SEAM)
    for table, granule in ((tdmr.pamt_2m, LARGE_PAGE), (tdmr.pamt_1g, HUGE_PAGE)):
        _free_nodes(module, table | key, offset, granule)
    # Our window to the table may be gone: the stores above can push pages out of the cache.
    view, at = module.data.tdmr(tdmr.index)
    TDMR.initialised.set(view, start + _ENTRIES * PAGE, at)
    module.data.tdmrs_changed()
    call.gpr[RDX] = start + _ENTRIES * PAGE & -HUGE_PAGE
    return st.TDX_SUCCESS


def _reserved_entries(view: memoryview, at: int, offset: int) -> bytes | None:
    """The 4-KiB entries of [offset, offset + 4 MiB) of a TDMR; None if all are free."""
    end = offset + _ENTRIES * PAGE
    entries: np.ndarray | None = None
    for number in range(TDMR.num_reserved.get(view, at)):
        start = TDMR.reserved.get(view, 2 * number, at)
        stop = start + TDMR.reserved.get(view, 2 * number + 1, at)
        if start >= end or stop <= offset:
            continue
        if entries is None:
            entries = np.zeros((_ENTRIES, 2), dtype="<u8")
        first, last = max(start, offset) - offset, min(stop, end) - offset
        entries[first // PAGE : last // PAGE, 0] = _RSVD << TYPE_SHIFT
    return None if entries is None else entries.tobytes()


def _free_nodes(module: ModuleState, table: int, offset: int, granule: int) -> None:
    """The entries of the larger pages that begin in these 4 MiB: NDA.

    The first entry of a page of the table zeroes that page, which also gives its lines their key (Intel's
    module does so line by line; our windows are whole pages).
    """
    first = -(-offset // granule)
    last = -(-(offset + _ENTRIES * PAGE) // granule)
    for entry in range(first, last):
        where = table + entry * PAMT_ENTRY_BYTES
        if where % PAGE == 0:
            module.memory.direct_zero(where, PAGE, SEAM)
