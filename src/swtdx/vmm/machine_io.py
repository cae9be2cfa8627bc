"""A TD's devices, connected to the run loop: ports and MMIO in, interrupts and DMA out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from swtdx.devices.board import Board, BoardConfig, build_board
from swtdx.devices.dma import DmaError
from swtdx.devices.msi import MsiRouter
from swtdx.machine.host import HostMemory
from swtdx.vmm.memory import PAGE
from swtdx.vmm.processor import Processor
from swtdx.vmm.quote import QuoteRequests, QuoteService
from swtdx.vmm.result import EndReason
from swtdx.vmm.run import Runner
from swtdx.vmm.shared_ept import SharedEpt
from swtdx.vmm.td import Td
from swtdx.vmm.tdvmcall import TdvmcallServer


class SharedDma:
    """Guest memory as devices reach it: only what the guest has shared (:class:`swtdx.devices.dma.Dma`).

    It serves nothing until :meth:`attach`.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._translate: Callable[[int], int | None] = lambda _gpa: None

    def attach(self, shared: SharedEpt) -> None:
        """The TD exists now, and this is its shared memory."""
        self._translate = shared.translate

    def _pieces(self, gpa: int, length: int) -> list[tuple[int, int]]:
        """(HPA, bytes) of the pages that a range touches.

        Raises:
            DmaError: one of them is not shared.
        """
        pieces = []
        at, left = gpa, length
        while left > 0:
            hpa = self._translate(at)
            if hpa is None:
                raise DmaError(gpa, length)
            part = min(left, PAGE - at % PAGE)
            pieces.append((hpa, part))
            at += part
            left -= part
        return pieces

    def read(self, gpa: int, length: int) -> bytes:
        """``length`` bytes at ``gpa``, which has no shared bit.

        Raises:
            DmaError: some of it is not shared.
        """
        if gpa % PAGE + length <= PAGE:
            hpa = self._translate(gpa)
            if hpa is None:
                raise DmaError(gpa, length)
            return self._memory.read(hpa, length)
        return b"".join(self._memory.read(hpa, part) for hpa, part in self._pieces(gpa, length))

    def write(self, gpa: int, data: bytes) -> None:
        """Store ``data`` at ``gpa``; all of it or nothing.

        Raises:
            DmaError: some of it is not shared.
        """
        length = len(data)
        if gpa % PAGE + length <= PAGE:
            hpa = self._translate(gpa)
            if hpa is None:
                raise DmaError(gpa, length)
            self._memory.write(hpa, data)
            return
        done = 0
        for hpa, part in self._pieces(gpa, length):
            self._memory.write(hpa, data[done : done + part])
            done += part


class MachineIo:
    """The board of a TD that does not exist yet; :meth:`connect` makes it run with one.

    The board comes first because its ACPI tables are part of what the TD is built of.
    """

    def __init__(
        self,
        memory: HostMemory,
        config: BoardConfig,
        *,
        console_out: Callable[[bytes], None],
        serial_out: Callable[[bytes], None] | None = None,
        quote_service: QuoteService | None = None,
    ) -> None:
        self.dma = SharedDma(memory)
        self._quote_service = quote_service
        self._runner: Runner | None = None
        self._router: MsiRouter | None = None
        self.board: Board = build_board(
            config,
            self.dma,
            self._send_msi,
            console_out=console_out,
            serial_out=serial_out,
            power_off=lambda: self._end(EndReason.POWER_OFF),
            restart=lambda: self._end(EndReason.RESTART),
            wake=self._wake,
        )

    def _send_msi(self, address: int, data: int) -> None:
        if self._router is not None:
            self._router.deliver(address, data)

    def _end(self, reason: EndReason) -> None:
        if self._runner is not None:
            self._runner.end(reason, "")

    def _wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()

    def connect(self, td: Td, processors: list[Processor], mmio: Iterable[tuple[int, int]]) -> Runner:
        """A runner for ``td`` with these devices.

        Args:
            mmio: (GPA, bytes) of what is devices, where the guest gets a #VE at once.
        """
        self.dma.attach(td.shared)
        for base, size in mmio:
            td.shared.add_mmio(base, size)
        self._router = MsiRouter({vcpu.index: vcpu.post for vcpu in td.vcpus})
        runner = Runner(td, processors)
        quotes = QuoteRequests(self._quote_service, self.dma.read, self.dma.write, runner.wake)

        def poll() -> None:
            self.board.poll()
            quotes.poll()

        runner.poll_devices = poll
        runner.server = TdvmcallServer(td, self.board, self.dma, quotes, runner.end)
        self._runner = runner
        return runner
