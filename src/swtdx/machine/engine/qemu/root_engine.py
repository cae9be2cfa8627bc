"""The QEMU engine of a machine whose root world is machine code, and runs on it beside the TDs.

A processor runs the root world's context or a TD's, by the same VMRUN; a TD starts inside of a SEAMCALL of
the root world's, so nothing is nested twice.  QEMU's local APIC, its timer and all interrupts belong to the
root world: while that runs they are delivered without us; while a TD runs they end it, and what the
processor's microcode does then (acknowledge one, process posted interrupts) is done here for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from swtdx.arch.units import PAGE
from swtdx.machine.engine.protocol import Event, Stop
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu import vmcb
from swtdx.machine.engine.qemu.context import QemuContext
from swtdx.machine.engine.qemu.engine import QemuEngine
from swtdx.machine.engine.qemu.npt import NestedTable
from swtdx.machine.engine.qemu.port import Port
from swtdx.machine.engine.qemu.process import QemuProcess
from swtdx.machine.engine.qemu.root_context import RootContext
from swtdx.machine.engine.qemu.root_process import RootProcess
from swtdx.machine.engine.qemu.root_table import Outside, RootTable

_NMIS: Final = at.MB_NMIS >> 2
_VECTOR: Final = at.MB_VECTOR >> 2
_FAILED: Final = at.MB_FAILED >> 2
_LOAD_FIRST: Final = at.MB_LOAD_FIRST >> 2
_OLD_VMCB: Final = at.MB_OLD_VMCB >> 3
_OLD_EXTRA: Final = at.MB_OLD_EXTRA >> 3
_IOPM_SIZE: Final = 3 * PAGE


class RootEngine(QemuEngine):
    """See the module's docstring."""

    name = "qemu"

    def __init__(
        self,
        frames_fd: int,
        frames_size: int,
        cpus: int,
        devices: Sequence[str] = (),
        fds: Sequence[int] = (),
    ) -> None:
        """``devices``: more words for QEMU's command line, and ``fds`` the files they name by number.

        Raises:
            EngineError: QEMU is missing, too old or does not start.
        """
        self._extra = (devices, fds)
        super().__init__(frames_fd, frames_size, cpus)
        #: The I/O permission map of the root world: which ports stop.
        self._ports_map = self._consecutive(3)
        self._process.memory[self._ports_map : self._ports_map + _IOPM_SIZE] = bytes(_IOPM_SIZE)
        self._ones = self._pool.take()
        self._process.memory[self._ones : self._ones + PAGE] = b"\xff" * PAGE
        self.stop_at_ports(range(at.DOORBELL_PORT, at.DOORBELL_PORT + cpus))
        #: Interrupts that end a TD, by processor, are handed to these: the vector, or None for an NMI.
        self.interrupted: dict[int, Callable[[int | None], None]] = {}
        #: The interrupt that was acknowledged while a TD ran, until somebody ends it.
        self._acknowledged: dict[int, int] = {}

    def _start_process(
        self, frames_fd: int, frames_size: int, cpus: int, image: tuple[int, int] | None
    ) -> QemuProcess:
        assert image is None, "all frames are in the machine's own file"
        devices, fds = self._extra
        return RootProcess(frames_fd, frames_size, cpus, devices, fds)

    def _consecutive(self, count: int) -> int:
        """Pages of the pool that lie side by side; where the first is."""
        pages = sorted(self._pool.take() for _ in range(count))
        assert pages[-1] - pages[0] == (count - 1) * PAGE, "the pool is fresh"
        return pages[0]

    # ------------------------------------------------------------------ the root world
    def root_context(self, lp: int) -> RootContext:
        """The registers of ``lp``'s root world, as after reset but for what the caller writes."""
        self._ready()
        context = RootContext(self._process.memory, self._room(), self._save)
        context.use_ports(self._ports_map)
        self._resident[context] = None
        self._attended[-1 - lp] = context
        return context

    def root_space(self, lp: int) -> RootTable:
        """The translations of ``lp``'s root world, empty."""
        return RootTable(self._process, self._pool, Outside(self._ready()[lp], root=True), self._ones)

    def stop_at_ports(self, ports: Sequence[int]) -> None:
        """Accesses of the root world to these I/O ports stop; all others are QEMU's own."""
        for port in ports:
            self._process.memory[self._ports_map + (port >> 3)] |= 1 << (port & 7)

    # ------------------------------------------------------------------ the engine's protocol
    def space(self, lp: int) -> NestedTable:
        """A fresh translation cache for TDs."""
        return NestedTable(self._process, self._pool, Outside(self._ready()[lp], root=False))

    def run(self, lp: int, context: QemuContext, space: NestedTable, deadline: int | None) -> Event:
        """Run the root world or a TD until it stops; see the protocol."""
        pending = self._acknowledged.pop(lp, None)
        if pending is not None and not context.root:
            # The TD goes on: it was a posted interrupt's notification, which no software ends.
            with self._ports[lp] as port:
                port.command(at.CMD_EOI)
        timer: threading.Timer | None = None
        if deadline is not None:
            left = (deadline - self.tsc()) / self.tsc_hz
            timer = threading.Timer(max(left, 0), self.kick, (lp,))
            timer.daemon = True
            timer.start()
        port = self._ports[lp]
        try:
            event = super().run(lp, context, space, None)
        finally:
            if timer is not None:
                timer.cancel()
        if port.q[_OLD_VMCB] or port.w[_LOAD_FIRST]:
            self._did_not_run(port, context)
        elif port.w[_FAILED]:
            # The processor does not take what the context holds.
            port.w[_FAILED] = 0
            port.live = context.live_on = None
            context.needs_load = True
            event.stop = Stop.UNLOADABLE
        return event

    def _make_live(self, port: Port, context: QemuContext) -> bool:
        """Give the processor to ``context``; the next RUN saves and loads what is to be.

        A TD's entry and its exit thus cost a command each.
        """
        previous = port.live
        if context.live_on not in (None, port.index):
            return super()._make_live(port, context)
        with port:
            if previous is not None and previous is not context:
                if not previous.saved:
                    port.q[_OLD_EXTRA] = previous.base + at.CTX_EXTRA
                    port.q[_OLD_VMCB] = previous.base + at.CTX_VMCB
                    previous.saved = True
                previous.live_on = None
                previous.needs_load = True
            self._address(port, context)
            port.w[_LOAD_FIRST] = int(context.needs_load)
            context.needs_load = False
            port.w[at.MB_DR7 >> 2] = context.armed
            port.live = context
            context.live_on = port.index
        return True

    def _did_not_run(self, port: Port, context: QemuContext) -> None:
        """What RUN was to save first is saved now, and what it was to load is still to be loaded."""
        old, extra = port.q[_OLD_VMCB], port.q[_OLD_EXTRA]
        port.q[_OLD_VMCB] = 0
        port.w[_LOAD_FIRST] = 0
        with port:
            if old:
                port.q[at.MB_VMCB >> 3], port.q[at.MB_EXTRA >> 3] = old, extra
                port.command(at.CMD_SAVE)
        port.live = context.live_on = None
        context.needs_load = True

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run the software of several processors; see the protocol.

        One that is idle halts in its own code: only what the host says tells whether cores are scarce.
        """

        def alone(index: int, body: Callable[[], None]) -> Callable[[], None]:
            def program() -> None:
                self._ports[index].guests = 1
                self._ports[index].look()
                body()

            return program

        super().together({index: alone(index, body) for index, body in programs.items()}, failed)

    def _decode(self, port: Port, context: QemuContext, event: Event, code: int) -> None:
        """Turn the VMCB's exit code into an event, and take the interrupt that it was for."""
        super()._decode(port, context, event, code)
        if code == vmcb.EXIT_INTR and not context.root:
            port.command(at.CMD_ACK)
            vector = port.w[_VECTOR]
            if vector:
                self._acknowledged[port.index] = vector
                self._tell(port.index, vector)
        elif code == vmcb.EXIT_NMI and port.w[_NMIS]:
            port.w[_NMIS] = 0
            self._tell(port.index, None)

    def _tell(self, lp: int, vector: int | None) -> None:
        listener = self.interrupted.get(lp)
        if listener is not None:
            listener(vector)
