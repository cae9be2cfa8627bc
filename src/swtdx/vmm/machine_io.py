"""A TD's devices, connected to the run loop: ports and MMIO in, interrupts and DMA out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from swtdx.arch.units import PAGE
from swtdx.devices.board import Board, BoardConfig, build_board
from swtdx.devices.dma import DmaError, Segment, T
from swtdx.devices.msi import MsiRouter
from swtdx.devices.saved import In, Out
from swtdx.machine.host import HostMemory
from swtdx.vmm.control import RunControl
from swtdx.vmm.memory import BLOCK
from swtdx.vmm.processor import Processor
from swtdx.vmm.quote import QuoteRequests, QuoteService
from swtdx.vmm.result import EndReason
from swtdx.vmm.run import Runner
from swtdx.vmm.shared_ept import SharedEpt
from swtdx.vmm.td import Td
from swtdx.vmm.tdvmcall import TdvmcallServer


class SharedDma:
    """Guest memory as devices reach it: only what the guest has shared (:class:`swtdx.devices.dma.Dma`)."""

    def __init__(self, memory: HostMemory, shared: SharedEpt) -> None:
        self._memory = memory
        self._translate = shared.translate
        self._small = shared.small
        self._large = shared.large

    def _pieces(self, segments: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """(HPA, bytes) of what ``segments`` touch, as few as possible.

        Raises:
            DmaError: some of it is not shared.
        """
        pieces: list[tuple[int, int]] = []
        small, large = self._small, self._large
        start = end = 0
        for gpa, length in segments:
            at, left = gpa, length
            while left > 0:
                hpa = small.get(at >> 12)
                if hpa is not None:
                    offset = at & PAGE - 1
                    part = PAGE - offset
                else:
                    hpa = large.get(at >> 21)
                    if hpa is None:
                        raise DmaError(gpa, length)
                    offset = at & BLOCK - 1
                    part = BLOCK - offset
                if part > left:
                    part = left
                hpa += offset
                if hpa == end:
                    end += part
                else:
                    if start < end:
                        pieces.append((start, end - start))
                    start, end = hpa, hpa + part
                at += part
                left -= part
        if start < end:
            pieces.append((start, end - start))
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
        return b"".join(self._memory.read(hpa, part) for hpa, part in self._pieces(((gpa, length),)))

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
        for hpa, part in self._pieces(((gpa, length),)):
            self._memory.write(hpa, data[done : done + part])
            done += part

    def transfer(self, segments: Iterable[Segment], move: Callable[[list[memoryview]], T]) -> T:
        """See :meth:`swtdx.devices.dma.Dma.transfer`.

        Raises:
            DmaError: some of it is not shared.
        """
        return self._memory.transfer(self._pieces(segments), move)


class MachineIo:
    """The devices of one TD, and who answers its TDVMCALLs.

    Args:
        td: what they belong to, built.
        config: what is on the board; the TD's ACPI tables should say the same.
        control: steers the TD's run.
        console_out, serial_out: take what the guest prints (:func:`swtdx.devices.board.build_board`).
        quote_service: answers GetQuote; None if there is no quoting service.
        mmio: (GPA, bytes) of what is devices, where the guest gets a #VE at once.
    """

    def __init__(
        self,
        td: Td,
        config: BoardConfig,
        control: RunControl | None = None,
        *,
        console_out: Callable[[bytes], None],
        serial_out: Callable[[bytes], None] | None = None,
        quote_service: QuoteService | None = None,
        mmio: Iterable[tuple[int, int]] = (),
    ) -> None:
        control = RunControl() if control is None else control
        self._td = td
        self.control = control
        self.dma = SharedDma(td.hypervisor.host.memory, td.shared)
        for base, size in mmio:
            td.shared.add_mmio(base, size)
        router = MsiRouter({vcpu.index: vcpu.post for vcpu in td.vcpus})

        def send_msi(address: int, data: int) -> None:
            router.deliver(address, data)

        self.board: Board = build_board(
            config,
            self.dma,
            send_msi,
            console_out=console_out,
            serial_out=serial_out,
            power_off=lambda: control.end(EndReason.POWER_OFF),
            restart=lambda: control.end(EndReason.RESTART),
            wake=control.wake,
        )
        self._quotes = QuoteRequests(quote_service, self.dma.read, self.dma.write, control.wake)
        self.server = TdvmcallServer(td, self.board, self.dma, self._quotes, control.end)

    def save_state(self, out: Out) -> None:
        """Write down the devices, and what the guest has asked for.

        Raises:
            VmmError, BoardError: see :meth:`Launch.save_state`.
        """
        self.server.save_state(out)
        self.board.save_state(out)

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote."""
        self.server.load_state(section)
        self.board.load_state(section)

    def poll(self) -> None:
        """Let the devices do what waits on the host's side.  On a vCPU's thread."""
        self.board.poll()
        self._quotes.poll()

    def runner(self, processors: list[Processor]) -> Runner:
        """What runs the TD with these devices on ``processors``, from now on."""
        return Runner(self._td, processors, self.control, self.server, self.poll)
