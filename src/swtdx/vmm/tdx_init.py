"""Bringing up the TDX module, in the order of life-cycle.md §2: from TDH.SYS.INIT to working PAMTs."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import asdict
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.ranges import without
from swtdx.arch.units import GIB, PAGE
from swtdx.devices.saved import In, Out
from swtdx.machine.host import GeneralProtection, Host
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.errors import VmmError
from swtdx.vmm.hkid import HkidPool
from swtdx.vmm.memory import PageAllocator
from swtdx.vmm.processor import Processor
from swtdx.vmm.saved import get, pairs, put
from swtdx.vmm.sysinfo import SysInfo, read_sysinfo
from swtdx.vmm.tdmr import LOW_MEMORY, Tdmr, build_tdmrs, convertible_memory

_OWNER: Final = "TDX module set-up"


class TdxPlatform:
    """The module after :func:`initialise`: what it is, its TDMRs, the HKIDs, and the memory behind them.

    PAMTs are initialised one GiB at a time, when the allocator runs out of memory that has them: a
    machine of many GiB that runs a small TD does not wait for the rest.
    """

    def __init__(self, cpu: Processor, info: SysInfo, tdmrs: list[Tdmr], hkids: HkidPool) -> None:
        self.info = info
        self.tdmrs = tdmrs
        self.hkids = hkids
        self._cpu = cpu
        #: Memory whose PAMT is not initialised yet, as (base, bytes), ascending.
        self._waiting: list[tuple[int, int]] = []
        self._ready = {tdmr.base: tdmr.base for tdmr in tdmrs}

    def save_state(self, out: Out) -> None:
        """Write down what the module said, what it was given, and what is not initialised yet."""
        put(
            out,
            info=asdict(self.info),
            tdmrs=[asdict(tdmr) for tdmr in self.tdmrs],
            waiting=self._waiting,
            ready=list(self._ready.items()),
        )
        self.hkids.save_state(out)

    @classmethod
    def restored(cls, cpu: Processor, allocator: PageAllocator, section: In) -> TdxPlatform:
        """The one that :meth:`save_state` wrote down; ``allocator`` gets the rest of its memory on demand."""
        fields = get(section)
        tdmrs = [
            Tdmr(one["base"], one["size"], pairs(one["pamts"]), pairs(one["reserved"]))  # type: ignore[arg-type]
            for one in fields["tdmrs"]
        ]
        hkids = HkidPool(0, 2)
        hkids.load_state(section)
        platform = cls(cpu, SysInfo.restored(fields["info"]), tdmrs, hkids)
        platform._ready = {int(base): int(end) for base, end in fields["ready"]}
        platform.prepare(list(pairs(fields["waiting"])), allocator)
        return platform

    def prepare(self, memory: list[tuple[int, int]], allocator: PageAllocator) -> None:
        """Have ``allocator`` hand out ``memory`` (base, bytes) as its PAMT entries get initialised."""
        self._waiting = memory
        allocator.refill = lambda: self._refill(allocator)

    def initialise_all(self, allocator: PageAllocator) -> None:
        """Initialise every PAMT now."""
        while self._refill(allocator):
            pass

    def _refill(self, allocator: PageAllocator) -> bool:
        if not self._waiting:
            return False
        base, size = self._waiting.pop(0)
        tdmr = next(tdmr for tdmr in self.tdmrs if tdmr.base <= base < tdmr.end)
        end = min(base + size, (base & -GIB) + GIB)
        if end < base + size:
            self._waiting.insert(0, (end, base + size - end))
        # A call does a few MiB; the module answers in whole GiBs where the next call goes on.
        while self._ready[tdmr.base] < end:
            status, following = sc.tdh_sys_tdmr_init(self._cpu, tdmr.base)
            if st.code_of(status) == st.TDX_TDMR_ALREADY_INITIALIZED:
                following = tdmr.end
            self._cpu.need(status, f"initialising the PAMT of the TDMR at {tdmr.base:#x}")
            self._ready[tdmr.base] = following
        allocator.add(base, end - base)
        return True


def initialise(
    host: Host, processors: list[Processor], allocator: PageAllocator, memory_limit: int | None = None
) -> TdxPlatform:
    """Initialise the module on every processor, and give it memory.

    Args:
        allocator: gets the memory that the module manages and that is left when the PAMTs are taken.
        memory_limit: convert at most so many bytes, from the lowest address up (whole GiB).

    Raises:
        SeamcallError: a step failed.
        VmmError: the machine has no memory or no HKIDs for TDX.
    """
    for cpu in processors:
        # The firmware may have left it in VMX operation.
        with contextlib.suppress(GeneralProtection):
            cpu.host.vmxon()
    boot = processors[0]
    status, leaf = sc.tdh_sys_init(boot)
    wrong = status == st.TDX_INCORRECT_CPUID_VALUE
    boot.need(status, f"CPUID leaf {leaf & 0xFFFFFFFF:#x}" if wrong else "")
    for cpu in processors:
        cpu.need(sc.tdh_sys_lp_init(cpu), f"processor {cpu.index}")
    hkids = HkidPool(host.shared_keyids + 1, host.private_keyids)

    # No page belongs to anybody yet: the first page of usable memory is our notepad.
    usable = host.memory_map()
    info = read_sysinfo(boot, host.memory, scratch := _scratch(usable))
    memory = _limited(convertible_memory(usable, info.cmrs), memory_limit)
    if not memory:
        raise VmmError("no usable memory lies in a convertible range (CMR); the BIOS gives TDX nothing")
    boundaries = PageAllocator(host.memory.clear)
    for base, size in memory:
        boundaries.add(base, size)
    tdmrs = build_tdmrs(
        memory,
        info.cmrs,
        lambda size, where: boundaries.contiguous(size, "PAMT", where),
        max_tdmrs=info.max_tdmrs,
        max_reserved=info.max_reserved_per_tdmr,
        entry_size=info.pamt_entry_size,
    )
    _configure(boot, host, tdmrs, hkids.global_hkid, scratch)
    for package in range(host.packages):
        # What the hypervisor had cached of the PAMTs must not be written over the module's lines later.
        host.wbinvd(package)
    for cpu in one_per_package(processors):
        cpu.need(sc.tdh_sys_key_config(cpu), f"package {cpu.package}")
    platform = TdxPlatform(boot, info, tdmrs, hkids)
    taken = list(boundaries.owned("PAMT"))
    platform.prepare(without(memory, taken), allocator)
    return platform


def one_per_package(processors: list[Processor]) -> list[Processor]:
    """The first processor of every package."""
    return list({cpu.package: cpu for cpu in reversed(processors)}.values())[::-1]


def _scratch(usable: list[tuple[int, int]]) -> int:
    """Some pages of extended memory, where firmware leaves nothing behind."""
    for base, size in sorted(usable):
        start = (max(base, LOW_MEMORY) + PAGE - 1) & -PAGE
        if start + _SCRATCH_PAGES * PAGE <= base + size:
            return start
    raise VmmError("the machine has no usable memory")


#: The notepad: 64 TDMR_INFOs of 512 bytes (8 pages), and a page for SYS.INFO and pointers.
_SCRATCH_PAGES: Final = 9


def _limited(memory: list[tuple[int, int]], limit: int | None) -> list[tuple[int, int]]:
    if limit is None:
        return memory
    kept = []
    for base, size in memory:
        size = min(size, limit)
        if size <= 0:
            break
        kept.append((base, size))
        limit -= size
    return kept


def _configure(cpu: Processor, host: Host, tdmrs: list[Tdmr], hkid: int, scratch: int) -> None:
    pointers, infos = scratch, scratch + PAGE
    where = []
    for index, tdmr in enumerate(tdmrs):
        encoded = tdmr.encode()
        where.append(infos + index * len(encoded))
        host.memory.write(where[-1], encoded)
    host.memory.write(pointers, struct.pack(f"<{len(where)}Q", *where))
    cpu.need(sc.tdh_sys_config(cpu, pointers, len(where), hkid), f"{len(where)} TDMRs")
    host.memory.clear(scratch, _SCRATCH_PAGES * PAGE)
