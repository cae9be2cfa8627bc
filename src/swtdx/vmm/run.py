"""Running a TD: its vCPUs on the machine's processors, from one TD exit to the next entry.

A :class:`Worker` runs vCPUs on one processor.  With one processor that happens without any lock; with
several the machine runs them side by side, and everything outside the guest is done under one lock (the
guests themselves run in parallel).  A vCPU stays where it is until another processor has nothing to
do; then it is flushed (TDH.VP.FLUSH) by the processor that has it, and handed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from swtdx.vmm.control import RunControl
from swtdx.vmm.exits import cause
from swtdx.vmm.processor import Processor
from swtdx.vmm.result import EndReason, RunResult, RunStats
from swtdx.vmm.td import Td
from swtdx.vmm.tdvmcall import TdvmcallServer
from swtdx.vmm.vcpu import Vcpu
from swtdx.vmm.worker import Worker


class Runner:
    """Runs one TD.  :meth:`run` may be called again after it came back with TIMEOUT or PAUSED.

    Args:
        processors: where the vCPUs run; one for each vCPU is used at most.
        control: steers the run; what may end it or wake it has the same one.
        server: serves the guest's TDVMCALLs.
        poll: lets the devices do what waits on the host's side; called on a vCPU's thread.
    """

    def __init__(
        self,
        td: Td,
        processors: list[Processor],
        control: RunControl,
        server: TdvmcallServer,
        poll: Callable[[], None],
    ) -> None:
        self.td = td
        self.control = control
        self.server = server
        used = processors[: len(td.vcpus)]
        control.place(used)
        self.workers: list[Worker] = []
        self.workers += (Worker(cpu, td, control, server, poll, self.workers) for cpu in used)
        self._seconds = 0.0
        for vcpu in td.vcpus:
            self._place(vcpu)

    def _place(self, vcpu: Vcpu) -> None:
        worker = next((one for one in self.workers if one.cpu is vcpu.cpu), None)
        if worker is None:
            vcpu.flush()
            worker = self.workers[vcpu.index % len(self.workers)]
        worker.adopt(vcpu)

    def stop(self, reason: EndReason = EndReason.STOPPED, detail: str = "") -> None:
        """End the run, from any thread; the first reason given counts."""
        self.control.end(reason, detail)

    # ------------------------------------------------------------------ running
    def run(self, timeout: float | None = None) -> RunResult:
        """Run until the guest ends, :meth:`stop` is called, or ``timeout`` seconds have passed."""
        clock = self.td.clock
        started = time.perf_counter()
        self.control.start(None if timeout is None else clock.now() + int(timeout * clock.tsc_hz))
        self.td.hypervisor.host.together(
            {worker.cpu.index: worker.run for worker in self.workers},
            # Ctrl-C, say: no vCPU may run when the caller goes on.
            lambda error: self.stop(EndReason.STOPPED, type(error).__name__),
        )
        self._seconds += time.perf_counter() - started
        reason, detail = self.control.outcome or (EndReason.ERROR, "the run ended without a reason")
        return RunResult(reason, detail, stats=self.stats())

    def stats(self) -> RunStats:
        """What the run has taken until now."""
        private, shared = self.td.private, self.td.shared
        pages = {name: count for name, count in private.counts.items() if count}
        pages["private_4k"], pages["private_2m"] = len(private.small), len(private.large)
        pages["shared_4k"], pages["shared_2m"] = len(shared.small), len(shared.large)
        exits: dict[str, int] = {}
        for worker in self.workers:
            for reason, count in enumerate(worker.exits):
                if count:
                    name = cause(reason)
                    exits[name] = exits.get(name, 0) + count
        return RunStats(
            wall_seconds=self._seconds,
            exits=exits,
            seamcalls=self.td.hypervisor.stats,
            tdvmcalls=self.server.counts,
            pages=pages,
        )
