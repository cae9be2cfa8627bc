"""Serving TDVMCALLs: what a TD asks of its hypervisor, by the GHCI.

A handler gets the vCPU and the processor's registers, which hold what the guest selected, and changes
those that carry the answer: R10 is the status, R11 and up are outputs (ghci.md §1 and §2).  It returns
None when the guest can go on at once.  This is the hypervisor's busiest code: plain ints, no objects.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Protocol

from swtdx.arch import ghci
from swtdx.arch.msrs import IA32_TSC_DEADLINE
from swtdx.arch.regs import R10, R11, R12, R13, R14, R15
from swtdx.arch.units import MASK32, PAGE
from swtdx.devices.bus import BusError, MmioSpace, PortSpace
from swtdx.devices.saved import In, Out
from swtdx.vmm import cpuid, fatal
from swtdx.vmm.conversion import Conversion
from swtdx.vmm.errors import OutOfMemory, VmmError
from swtdx.vmm.msrs import Msrs
from swtdx.vmm.quote import QuoteRequests
from swtdx.vmm.result import EndReason
from swtdx.vmm.saved import get, put
from swtdx.vmm.td import Td
from swtdx.vmm.vcpu import Vcpu

_INVALID: Final = ghci.INVALID_OPERAND
_OFFERED: Final = ghci.INFO_GET_QUOTE | ghci.INFO_SETUP_EVENT_NOTIFY_INTERRUPT
#: KVM's answer to a hypercall that does not exist, in R10: -KVM_ENOSYS.
VENDOR_UNKNOWN: Final = (1 << 64) - 1000
_MMIO_SIZES: Final = (1, 2, 4, 8)


class Action(enum.Enum):
    """What the run loop has to do after a TDVMCALL, other than enter again."""

    HALT = enum.auto()
    #: The run is over; the outcome is recorded.
    END = enum.auto()


Handler = Callable[[Vcpu, list[int]], Action | None]


class Service:
    """A sub-function: its handler, and how often it was called."""

    __slots__ = ("count", "serve")

    def __init__(self, serve: Handler) -> None:
        self.serve = serve
        self.count = 0


class Buses(Protocol):
    """Where the guest's port and MMIO accesses go."""

    @property
    def ports(self) -> PortSpace:
        """The port space."""

    @property
    def mmio(self) -> MmioSpace:
        """The addresses that are devices."""


class SharedMemory(Protocol):
    """The guest's shared memory by GPA without the shared bit; see :class:`swtdx.devices.dma.Dma`."""

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes of shared memory."""

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes in shared memory."""


class TdvmcallServer:
    """The handlers of one TD.

    Args:
        end: records the outcome of the run.
        quotes: GetQuote requests.
    """

    def __init__(
        self,
        td: Td,
        buses: Buses,
        shared: SharedMemory,
        quotes: QuoteRequests,
        end: Callable[[EndReason, str], None],
    ) -> None:
        self._td = td
        self._shared_bit = td.config.shared_bit
        self._gpa_limit = 2 * td.config.shared_bit
        self._memory = shared
        self._quotes = quotes
        self._end = end
        self._conversion = Conversion(td)
        #: The vCPU that wants to hear of events.
        self._notified: Vcpu | None = None
        self._msrs = {vcpu.index: Msrs(vcpu) for vcpu in td.vcpus}
        self._l2 = td.hypervisor.platform.info.l2
        self._translate = td.shared.translate
        self._in = buses.ports.read
        self._out = buses.ports.write
        self._mmio_read = buses.mmio.read
        self._mmio_write = buses.mmio.write
        #: By R11.
        self.services = {
            number: Service(handler)
            for number, handler in (
                (ghci.IO, self.io),
                (ghci.WRMSR, self.wrmsr),
                (ghci.MMIO, self.mmio),
                (ghci.HLT, self.hlt),
                (ghci.RDMSR, self.rdmsr),
                (ghci.CPUID, self.cpuid),
                (ghci.WBINVD, self.wbinvd),
                (ghci.MAP_GPA, self.map_gpa),
                (ghci.GET_TD_VMCALL_INFO, self.get_info),
                (ghci.GET_QUOTE, self.get_quote),
                (ghci.REPORT_FATAL_ERROR, self.fatal_error),
                (ghci.SETUP_EVENT_NOTIFY_INTERRUPT, self.event_notify),
            )
        }
        #: Calls of sub-functions that do not exist, and of other interfaces (R10 not 0).
        self.unknown = Service(self.unsupported)

    def save_state(self, out: Out) -> None:
        """Write down what guests have asked for.

        Raises:
            VmmError: a quote is being made; it would never come.
        """
        if self._quotes.busy:
            raise VmmError("a quote is being made for the TD, which no snapshot can hold: save it later")
        put(out, notified=None if self._notified is None else self._notified.index)
        for vcpu in self._td.vcpus:
            self._msrs[vcpu.index].save_state(out)

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote."""
        notified = get(section)["notified"]
        self._notified = None if notified is None else self._td.vcpus[int(notified)]
        for vcpu in self._td.vcpus:
            self._msrs[vcpu.index].load_state(section)

    @property
    def counts(self) -> dict[str, int]:
        """TDVMCALLs by name of the sub-function."""
        counts = {ghci.CALLS[number].name: service.count for number, service in self.services.items()}
        counts["unknown"] = self.unknown.count
        return {name: count for name, count in counts.items() if count}

    # ------------------------------------------------------------------ instructions
    def io(self, _vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """IN and OUT: R12 size, R13 direction, R14 port, R15 value; R11 the value read."""
        try:
            if gpr[R13] == 0:
                gpr[R11] = self._in(gpr[R14], gpr[R12])
            elif gpr[R13] == 1:
                self._out(gpr[R14], gpr[R12], gpr[R15])
            else:
                gpr[R10] = _INVALID
                return None
        except BusError:
            gpr[R10] = _INVALID
            return None
        gpr[R10] = 0
        return None

    def mmio(self, _vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """An access to a shared GPA: R12 size, R13 direction, R14 GPA, R15 value; R11 the value read."""
        gpa = gpr[R14]
        size = gpr[R12]
        if not self._shared_bit <= gpa < self._gpa_limit or size not in _MMIO_SIZES or gpr[R13] > 1:
            gpr[R10] = _INVALID
            return None
        gpa -= self._shared_bit
        try:
            if self._translate(gpa) is not None:
                self._shared_access(gpr, gpa, size)
            elif gpr[R13]:
                self._mmio_write(gpa, size, gpr[R15])
            else:
                gpr[R11] = self._mmio_read(gpa, size)
        except ValueError:
            gpr[R10] = _INVALID
            return None
        gpr[R10] = 0
        return None

    def _shared_access(self, gpr: list[int], gpa: int, size: int) -> None:
        """A guest may use this call for memory that it shares; then it is memory."""
        if gpa % PAGE + size > PAGE:
            raise ValueError("the access leaves the page")
        if gpr[R13]:
            self._memory.write(gpa, (gpr[R15] & (1 << 8 * size) - 1).to_bytes(size, "little"))
        else:
            gpr[R11] = int.from_bytes(self._memory.read(gpa, size), "little")

    def rdmsr(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """RDMSR: R12 the MSR; R11 its value."""
        value = self._msrs[vcpu.index].read(gpr[R12])
        if value is None:
            gpr[R10] = _INVALID
        else:
            gpr[R11] = value
            gpr[R10] = 0
        return None

    def wrmsr(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """WRMSR: R12 the MSR, R13 the value."""
        msr = gpr[R12]
        if msr == IA32_TSC_DEADLINE:
            # Four writes of five: the guest's timer.
            vcpu.apic.write_deadline(gpr[R13])
            gpr[R10] = 0
            return None
        gpr[R10] = 0 if self._msrs[vcpu.index].write(msr, gpr[R13]) else _INVALID
        return None

    def cpuid(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """CPUID: R12 EAX, R13 ECX; R12..R15 the results."""
        gpr[R12 : R15 + 1] = cpuid.answer(
            gpr[R12] & MASK32, gpr[R13] & MASK32, vcpu.index, len(self._td.vcpus), self._l2
        )
        gpr[R10] = 0
        return None

    def hlt(self, _vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """HLT: R12 says whether interrupts are disabled; the run loop waits."""
        gpr[R10] = 0
        return Action.HALT

    def wbinvd(self, _vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """WBINVD (R12 = 0) or WBNOINVD (1): nothing to do, devices here see the caches."""
        gpr[R10] = 0 if gpr[R12] <= 1 else _INVALID
        return None

    # ------------------------------------------------------------------ services
    def map_gpa(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """MapGPA: R12 first GPA, whose shared bit says what to become, R13 bytes; R11 where to go on.

        The order of checks is KVM's: INVALID_OPERAND for a range that cannot be, then ALIGN_ERROR.
        """
        start, size = gpr[R12], gpr[R13]
        end = start + size
        shared = self._shared_bit
        gpr[R11] = start
        if size == 0 or end > self._gpa_limit or (start ^ (end - 1)) & shared:
            gpr[R10] = _INVALID
            return None
        if (start | size) % PAGE:
            gpr[R10] = ghci.ALIGN_ERROR
            return None
        plain, plain_end = start & ~shared, ((end - 1) & ~shared) + 1
        cpu = vcpu.cpu
        assert cpu is not None
        saved = gpr[:]
        if not start & shared and not self._td.private.in_ram(plain, plain_end):
            gpr[R10] = _INVALID  # devices cannot become private memory
            return None
        try:
            if start & shared:
                done = self._conversion.to_shared(cpu, plain, plain_end)
            else:
                done = self._conversion.to_private(cpu, plain, plain_end)
        except OutOfMemory as error:
            self._end(EndReason.ERROR, str(error))
            return Action.END
        finally:
            gpr[:] = saved
        gpr[R11] = done | start & shared
        gpr[R10] = ghci.SUCCESS if done == plain_end else ghci.RETRY
        return None

    def get_info(self, _vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """GetTdVmCallInfo: R12 leaf; R11..R14 what is supported beyond the base set."""
        which = gpr[R12]
        if which > 1:
            gpr[R10] = _INVALID
            return None
        gpr[R10:R15] = (0, _OFFERED if which else 0, 0, 0, 0)
        return None

    def event_notify(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """SetupEventNotifyInterrupt: R12 a vector, 32..255; as in QEMU the latest call counts."""
        if ghci.LOWEST_EVENT_VECTOR <= gpr[R12] <= 255:
            vcpu.event_vector = gpr[R12]
            self._notified = vcpu
            gpr[R10] = 0
        else:
            gpr[R10] = _INVALID
        return None

    def get_quote(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """GetQuote: R12 GPA of a shared buffer, R13 its bytes."""
        gpa, size = gpr[R12], gpr[R13]
        shared = self._shared_bit
        if not gpa & shared or gpa + size > self._gpa_limit:
            gpr[R10] = _INVALID
        else:
            gpr[R10] = self._quotes.submit(self._notified or vcpu, gpa - shared, size)
        return None

    def fatal_error(self, vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """ReportFatalError: the guest gives up; see :mod:`swtdx.vmm.fatal`."""
        message = fatal.describe(gpr, lambda gpa, size: self._memory.read(gpa & ~self._shared_bit, size))
        self._end(EndReason.FATAL_ERROR, f"vCPU {vcpu.index}: {message}")
        return Action.END

    def unsupported(self, _vcpu: Vcpu, gpr: list[int]) -> Action | None:
        """A sub-function that does not exist here, or a hypercall of another interface."""
        gpr[R10] = VENDOR_UNKNOWN if gpr[R10] else ghci.SUBFUNC_UNSUPPORTED
        return None
