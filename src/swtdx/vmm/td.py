"""A TD: built of pages in KVM's order, and taken down again from wherever its life has got to.

Sources: life-cycle.md §4 and §6; Linux arch/x86/kvm/vmx/tdx.c (order of calls, the VMCS fields that KVM
sets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.units import MASK64, PAGE
from swtdx.arch.vmx_controls import PIN_PROCESS_POSTED
from swtdx.devices.saved import In, Out
from swtdx.vmm import fields
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.errors import SeamcallError, VmmError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.private_memory import PrivateMemory
from swtdx.vmm.processor import NOTIFICATION_VECTOR, Processor
from swtdx.vmm.saved import get, put
from swtdx.vmm.shared_ept import SharedEpt
from swtdx.vmm.td_params import TdConfig
from swtdx.vmm.tdx_init import one_per_package
from swtdx.vmm.vcpu import PID_SIZE, Vcpu

_PIDS_PER_PAGE: Final = PAGE // PID_SIZE
#: TDH.MNG.INIT does not take a CPUID configuration; RCX says which leaf it is.
_CPUID_REFUSED: Final = st.with_operand(st.TDX_OPERAND_INVALID, st.OperandId.CPUID_CONFIG)


@dataclass(frozen=True, slots=True)
class InitialPage:
    """4 KiB of a TD's first memory: its GPA, contents, and whether MRTD covers the contents."""

    gpa: int
    data: bytes
    measured: bool = True


class GuestClock:
    """The guest's TSC against the machine's: guest = (machine * multiplier >> 48) + offset."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._host = hypervisor.host
        self.offset = 0
        self.multiplier = 1 << 48
        self.now = hypervisor.host.tsc

    @property
    def tsc_hz(self) -> float:
        """Frequency of the machine's TSC."""
        return self._host.tsc_hz

    def guest_time(self, host_tsc: int) -> int:
        """The guest's TSC when the machine's is ``host_tsc``."""
        return (host_tsc * self.multiplier >> 48) + self.offset & MASK64

    def host_deadline(self, guest_tsc: int) -> int:
        """The machine's TSC when the guest's reaches ``guest_tsc``; now if that is in the past.

        As hardware does it, both are compared as unsigned 64-bit numbers.
        """
        now = self.now()
        ahead = guest_tsc - self.guest_time(now)
        return now + -(-(ahead << 48) // self.multiplier) if ahead > 0 else now


def _bad_cpuid(leaf: int) -> str:
    return f"CPUID leaf {leaf & 0xFFFFFFFF:#x} subleaf {leaf >> 32:#x}"


class Td:
    """One TD.  :meth:`build` makes one that is ready to run; :meth:`teardown` gives everything back."""

    def __init__(self, hypervisor: Hypervisor, config: TdConfig, name: str, cpu: Processor) -> None:
        self.hypervisor = hypervisor
        self.config = config
        self.name = name
        self.clock = GuestClock(hypervisor)
        self.vcpus: list[Vcpu] = []
        self.finalized = False
        self._allocator = hypervisor.allocator
        #: The processor on which the TD is managed.
        self.cpu = cpu
        #: HPA of the root page, once the module has it.
        self.tdr: int | None = None
        self.hkid: int | None = None
        #: HPAs of the TDCS pages that it was given, in order.
        self.tdcs: list[int] = []
        self._pids: list[int] = []
        self._private: PrivateMemory | None = None
        self._shared: SharedEpt | None = None

    # ------------------------------------------------------------------ snapshots
    def save_state(self, out: Out) -> None:
        """Write down what the hypervisor knows of it."""
        self.config.save_state(out)
        put(
            out,
            name=self.name,
            cpu=self.cpu.index,
            tdr=self.root,
            hkid=self.hkid,
            tdcs=self.tdcs,
            pids=self._pids,
            finalized=self.finalized,
            offset=self.clock.offset,
            multiplier=self.clock.multiplier,
            vcpus=[(vcpu.tdvpr, vcpu.pid) for vcpu in self.vcpus],
        )
        self.private.save_state(out)
        self.shared.save_state(out)
        for vcpu in self.vcpus:
            vcpu.save_state(out)

    @classmethod
    def restored(cls, hypervisor: Hypervisor, section: In) -> Td:
        """The TD that :meth:`save_state` wrote down; it is on the machine as it was."""
        config = TdConfig.restored(section)
        known = get(section)
        td = cls(hypervisor, config, known["name"], hypervisor.processors[known["cpu"]])
        td.tdr, td.hkid = int(known["tdr"]), int(known["hkid"])
        td.tdcs, td._pids = list(known["tdcs"]), list(known["pids"])
        td.finalized = bool(known["finalized"])
        td.clock.offset, td.clock.multiplier = int(known["offset"]), int(known["multiplier"])
        td._private = td._private_memory(td.tdr, td.hkid)
        td._private.load_state(section)
        td._shared = td._shared_memory(section)
        memory = hypervisor.host.memory
        for index, (tdvpr, pid) in enumerate(known["vcpus"]):
            vcpu = Vcpu(index, tdvpr, pid, memory, td.clock, lambda: list(td.vcpus), fresh=False)
            td.vcpus.append(vcpu)
        for vcpu in td.vcpus:
            vcpu.load_state(section, hypervisor.processors)
        return td

    def _private_memory(self, tdr: int, hkid: int) -> PrivateMemory:
        hkid_bits = hkid << self.hypervisor.host.keyid_shift
        return PrivateMemory(tdr, self._allocator, hkid_bits, self.config.ept_levels, self.name, self._kick)

    def _shared_memory(self, saved: In | None = None) -> SharedEpt:
        config, memory = self.config, self.hypervisor.host.memory
        return SharedEpt(memory, self._allocator, config.ept_levels, config.shared_bit, self.name, saved)

    # ------------------------------------------------------------------ parts
    @property
    def private(self) -> PrivateMemory:
        """The TD's private memory.

        Raises:
            VmmError: the TD does not exist (yet, or any more).
        """
        if self._private is None:
            raise VmmError(f"{self.name} does not exist")
        return self._private

    @property
    def shared(self) -> SharedEpt:
        """The TD's shared memory; raises as :attr:`private`."""
        if self._shared is None:
            raise VmmError(f"{self.name} does not exist")
        return self._shared

    @property
    def root(self) -> int:
        """HPA of the TDR page; raises as :attr:`private`."""
        if self.tdr is None:
            raise VmmError(f"{self.name} does not exist")
        return self.tdr

    # ------------------------------------------------------------------ building
    @classmethod
    def build(
        cls,
        hypervisor: Hypervisor,
        config: TdConfig,
        pages: Iterable[InitialPage],
        *,
        ram: Iterable[tuple[int, int]] = (),
        entry_value: int = 0,
        processors: list[Processor] | None = None,
        name: str = "TD",
    ) -> Td:
        """A finalized TD.

        Args:
            pages: its first memory, in the order in which MRTD measures it.
            ram: [start, end) GPAs where it gets private memory on demand.
            entry_value: what every vCPU finds in RCX and R8 (by convention the address of a TD HOB).
            processors: where its vCPUs will run, in turn; all of the hypervisor's by default.

        Raises:
            SeamcallError, ConfigError, OutOfMemory, NoHkid: it cannot be built; nothing of it is left.
        """
        use = processors or hypervisor.processors
        td = cls(hypervisor, config, hypervisor.unique_name(name), use[0])
        try:
            with td.cpu.borrowed():
                td.create()
                td.add_vcpus(entry_value, use)
                td.private.ram = list(ram)
                td.add_pages(pages)
                td.finalize()
        except BaseException as cause:
            try:
                td.teardown()
            except VmmError as error:
                cause.add_note(f"its teardown failed too: {error}")
            raise
        return td

    def create(self) -> None:
        """From nothing to a TD with its key, its control structure and its parameters."""
        hypervisor, cpu = self.hypervisor, self.cpu
        platform = hypervisor.platform
        params = self.config.params(platform.info, hypervisor.host.tsc_hz)
        tdr = self._allocator.page(self.name)
        try:
            self.hkid = platform.hkids.take()
            cpu.need(sc.tdh_mng_create(cpu, tdr, self.hkid), f"HKID {self.hkid}")
        except VmmError:
            self._allocator.free(tdr, clear=False)
            if self.hkid is not None:
                platform.hkids.give_back(self.hkid)
                self.hkid = None
            raise
        self.tdr = tdr
        for package_cpu in one_per_package(hypervisor.processors):
            with package_cpu.borrowed():
                package_cpu.need(sc.tdh_mng_key_config(package_cpu, tdr), f"package {package_cpu.package}")
        for _ in range(platform.info.tdcs_pages):
            self._give(self.tdcs, lambda page: sc.tdh_mng_addcx(cpu, page, tdr))
        self._private = self._private_memory(tdr, self.hkid)
        self._shared = self._shared_memory()
        self._init(params)

    def _kick(self) -> None:
        """Make every vCPU leave the guest; they wait at the run loop's lock until the caller is done."""
        for vcpu in self.vcpus:
            vcpu.kick()

    def _init(self, params: bytes) -> None:
        cpu, tdr = self.cpu, self.root
        buffer = self._allocator.page(f"TD_PARAMS of {self.name}")
        try:
            self.hypervisor.host.memory.write(buffer, params)
            status, cpuid = sc.tdh_mng_init(cpu, tdr, buffer)
            cpu.need(status, _bad_cpuid(cpuid) if status == _CPUID_REFUSED else "")
        finally:
            self._allocator.free(buffer)
        status, self.clock.offset = sc.tdh_mng_rd(cpu, tdr, fields.TSC_OFFSET)
        cpu.need(status)
        status, self.clock.multiplier = sc.tdh_mng_rd(cpu, tdr, fields.TSC_MULTIPLIER)
        cpu.need(status)

    def _give(self, pages: list[int], call: Callable[[int], int]) -> None:
        """Allocate a page and give it to the module by ``call``; note it in ``pages`` if it was taken."""
        page = self._allocator.page(self.name)
        try:
            self.cpu.need(call(page))
        except VmmError:
            self._allocator.free(page, clear=False)
            raise
        pages.append(page)

    def add_vcpus(self, entry_value: int, processors: list[Processor]) -> None:
        """Create the configured number of vCPUs, each on the processor that will run it first.

        Raises:
            SeamcallError, OutOfMemory: it cannot be done.
        """
        for index in range(self.config.vcpus):
            self._add_vcpu(index, entry_value, processors[index % len(processors)])

    def _pid(self, index: int) -> int:
        page, slot = divmod(index, _PIDS_PER_PAGE)
        while page >= len(self._pids):
            self._pids.append(self._allocator.page(f"interrupt descriptors of {self.name}"))
        return self._pids[page] + slot * PID_SIZE

    def _add_vcpu(self, index: int, entry_value: int, cpu: Processor) -> None:
        tdr = self.root
        root: list[int] = []
        pid = self._pid(index)
        self._give(root, lambda page: sc.tdh_vp_create(self.cpu, page, tdr))
        vcpu = Vcpu(index, root[0], pid, self.hypervisor.host.memory, self.clock, lambda: list(self.vcpus))
        self.vcpus.append(vcpu)
        for _ in range(self.hypervisor.platform.info.tdvps_pages - 1):
            self._give(vcpu.pages, lambda page: sc.tdh_vp_addcx(self.cpu, page, vcpu.tdvpr))
        with cpu.borrowed():
            if self.hypervisor.platform.info.topology:
                status = sc.tdh_vp_init_x2apic(cpu, vcpu.tdvpr, entry_value, index)
            else:
                status = sc.tdh_vp_init(cpu, vcpu.tdvpr, entry_value)
            cpu.need(status, f"vCPU {index}")
            vcpu.cpu = cpu
            self._connect(vcpu, cpu)

    def _connect(self, vcpu: Vcpu, cpu: Processor) -> None:
        """Tell the vCPU where its interrupts and its shared memory are."""
        for field, value, mask in (
            (fields.NOTIFICATION_VECTOR, NOTIFICATION_VECTOR, 0xFFFF),
            (fields.PID_ADDRESS, vcpu.pid, MASK64 & ~0x3F),
            (fields.PIN_BASED_CONTROLS, PIN_PROCESS_POSTED, PIN_PROCESS_POSTED),
            (fields.SHARED_EPTP, self.shared.root, 0x000FFFFFFFFFF000),
        ):
            status, _ = sc.tdh_vp_wr(cpu, vcpu.tdvpr, field, value, mask)
            cpu.need(status, f"field {field:#x} of vCPU {vcpu.index}")

    def add_pages(self, pages: Iterable[InitialPage]) -> None:
        """Add the TD's first pages, each measured right after it was added, as KVM does.

        Raises:
            SeamcallError, OutOfMemory: it cannot be done.
        """
        staging = self._allocator.page(f"initial pages of {self.name}")
        try:
            for page in pages:
                if len(page.data) > PAGE:
                    raise VmmError(f"an initial page holds 4096 bytes, not {len(page.data)}")
                self.hypervisor.host.memory.write(staging, page.data.ljust(PAGE, b"\0"))
                self.private.add(self.cpu, page.gpa, staging, measured=page.measured)
        finally:
            self._allocator.free(staging)

    def finalize(self) -> None:
        """TDH.MR.FINALIZE: MRTD is complete, vCPUs can be entered.

        Raises:
            SeamcallError: the module refuses.
        """
        self.cpu.need(sc.tdh_mr_finalize(self.cpu, self.root))
        self.finalized = True

    # ------------------------------------------------------------------ looking in
    def debug_read(self, gpa: int, size: int) -> bytes:
        """Private memory of a debug TD.

        Raises:
            SeamcallError: it is not a debug TD, or there is no page.
        """
        start, end = gpa & -8, (gpa + size + 7) & -8
        data = bytearray()
        with self.cpu.borrowed():
            for at in range(start, end, 8):
                status, value = sc.tdh_mem_rd(self.cpu, at, self.root)
                self.cpu.need(status, f"GPA {at:#x}")
                data += value.to_bytes(8, "little")
        return bytes(data[gpa - start : gpa - start + size])

    # ------------------------------------------------------------------ the end
    def teardown(self) -> None:
        """Give every page, the HKID and all shared memory back.  Idempotent; no vCPU may be running.

        Raises:
            SeamcallError: the module does not let go of something; what it keeps is not used again.
        """
        if self.tdr is None:
            return
        tdr, cpu = self.tdr, self.cpu
        for vcpu in self.vcpus:
            vcpu.flush()
        with cpu.borrowed():
            cpu.need(sc.tdh_mng_vpflushdone(cpu, tdr))
        for package_cpu in one_per_package(self.hypervisor.processors):
            with package_cpu.borrowed():
                package_cpu.need(sc.tdh_phymem_cache_wb(package_cpu), f"package {package_cpu.package}")
        with cpu.borrowed():
            cpu.need(sc.tdh_mng_key_freeid(cpu, tdr))
            self._reclaim_all(tdr)
        if self.hkid is not None:
            self.hypervisor.platform.hkids.give_back(self.hkid)
            self.hkid = None

    def _reclaim_all(self, tdr: int) -> None:
        allocator = self._allocator
        refused: SeamcallError | None = None
        pages = list(self.tdcs)
        for vcpu in self.vcpus:
            pages += vcpu.pages
        if self._private is not None:
            pages += self._private.assigned_pages()
        for page in pages:
            try:
                self._reclaim(page)
            except SeamcallError as error:
                refused = refused or error
                allocator.give(page, f"lost by {self.name}")
        if self._private is not None:
            for page in self._private.spare_pages():
                allocator.free(page)
            self._private.forget()
            self._private = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        for page in self._pids:
            allocator.free(page)
        self._pids.clear()
        self.tdcs.clear()
        self.vcpus.clear()
        self.tdr = None
        if refused is not None:
            raise refused
        self._reclaim_root(tdr)

    def _reclaim(self, page: int) -> None:
        status, _, _, _ = sc.tdh_phymem_page_reclaim(self.cpu, page)
        self.cpu.need(status, f"page {page:#x}")
        self._allocator.free(page)

    def _reclaim_root(self, tdr: int) -> None:
        """The TDR goes last; it is encrypted with the module's own key, which CACHE.WB did not flush."""
        cpu = self.cpu
        status, _, _, _ = sc.tdh_phymem_page_reclaim(cpu, tdr)
        cpu.need(status, "the TDR")
        host = self.hypervisor.host
        key = self.hypervisor.platform.hkids.global_hkid << host.keyid_shift
        cpu.need(sc.tdh_phymem_page_wbinvd(cpu, tdr | key), "the TDR")
        self._allocator.free(tdr)
