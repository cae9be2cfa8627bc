"""Running a TD: its vCPUs on the machine's processors, from one TD exit to the next entry.

A :class:`Worker` runs vCPUs on one processor.  With one processor that happens on the caller's thread and
without any lock; with several, each has a thread, and everything outside the guest is done under one lock
(the guests themselves run in parallel).  A vCPU stays where it is until another processor has nothing to
do; then it is flushed (TDH.VP.FLUSH) by the processor that has it, and handed over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from swtdx.vmm.errors import VmmError
from swtdx.vmm.exits import cause
from swtdx.vmm.processor import WAKE_VECTOR, Processor
from swtdx.vmm.result import EndReason, RunResult, RunStats
from swtdx.vmm.td import Td
from swtdx.vmm.tdvmcall import TdvmcallServer
from swtdx.vmm.vcpu import Vcpu, VcpuState
from swtdx.vmm.worker import Worker


class Runner:
    """Runs one TD.  :meth:`run` may be called again after it came back with TIMEOUT.

    Args:
        processors: where the vCPUs run; one for each vCPU is used at most.
        poll: lets the devices do what waits on the host's side; called on a vCPU's thread.
    """

    def __init__(self, td: Td, processors: list[Processor], poll: Callable[[], None] = lambda: None) -> None:
        self.td = td
        self.poll_devices = poll
        self.server: TdvmcallServer | None = None
        self.workers = [Worker(self, cpu) for cpu in processors[: len(td.vcpus)]]
        #: Held by whoever is outside the guest; None with a single worker.
        self.lock = threading.Lock() if len(self.workers) > 1 else None
        #: Machine TSC at which the run times out.
        self.deadline: int | None = None
        self.outcome: tuple[EndReason, str] | None = None
        self._poll_wanted = False
        self._seconds = 0.0
        for vcpu in td.vcpus:
            self._place(vcpu)
            vcpu.woken = self._woken
        td.private.kick = self._kick

    def _place(self, vcpu: Vcpu) -> None:
        worker = next((one for one in self.workers if one.cpu is vcpu.cpu), None)
        if worker is None:
            vcpu.flush()
            worker = self.workers[vcpu.index % len(self.workers)]
        worker.adopt(vcpu)

    # ------------------------------------------------------------------ from any thread
    def wake(self) -> None:
        """Devices have something to do: :attr:`poll_devices` is called soon."""
        self._poll_wanted = True
        self.workers[0].cpu.host.interrupt(WAKE_VECTOR)

    def stop(self, reason: EndReason = EndReason.STOPPED, detail: str = "") -> None:
        """End the run; the first reason given counts."""
        if self.outcome is None:
            self.outcome = (reason, detail)
        for worker in self.workers:
            worker.cpu.host.interrupt(WAKE_VECTOR)

    # ------------------------------------------------------------------ from the workers
    def end(self, reason: EndReason, detail: str) -> None:
        """:meth:`stop`, on a vCPU's thread."""
        self.stop(reason, detail)

    def poll(self, *, before_sleep: bool = False) -> None:
        """Let the devices work, if they asked for it or a vCPU is about to sleep."""
        if self._poll_wanted or before_sleep:
            self._poll_wanted = False
            self.poll_devices()

    def _woken(self, vcpu: Vcpu) -> None:
        """An interrupt waits for ``vcpu``."""
        worker = vcpu.worker
        if vcpu.in_guest:
            worker.cpu.host.interrupt(WAKE_VECTOR)
        elif vcpu.state is not VcpuState.RUNNABLE:
            vcpu.state = VcpuState.RUNNABLE
            worker.queue.append(vcpu)
            if self.lock is not None:
                worker.cpu.host.interrupt(WAKE_VECTOR)

    def _kick(self) -> None:
        """Make every vCPU leave the guest; they wait at the lock until the caller is done."""
        for vcpu in self.td.vcpus:
            if vcpu.in_guest:
                vcpu.worker.cpu.host.interrupt(WAKE_VECTOR)

    def idle_worker(self) -> Worker | None:
        """A worker that has nothing to do."""
        return next((worker for worker in self.workers if worker.idle), None)

    def check_all_deaf(self) -> None:
        """End the run when no vCPU can ever go on."""
        if all(vcpu.state is VcpuState.DEAF and not vcpu.has_interrupt for vcpu in self.td.vcpus):
            self.end(EndReason.HALTED, "nothing can wake the guest any more")

    # ------------------------------------------------------------------ running
    def run(self, timeout: float | None = None) -> RunResult:
        """Run until the guest ends, somebody calls :meth:`stop`, or ``timeout`` seconds have passed."""
        if self.server is None:
            raise VmmError("the runner has no TDVMCALL server")
        clock = self.td.clock
        started = time.perf_counter()
        self.deadline = None if timeout is None else clock.now() + int(timeout * clock.tsc_hz)
        self.outcome = None if self.outcome is None or self.outcome[0] is EndReason.TIMEOUT else self.outcome
        if self.lock is None:
            self.workers[0].run()
        else:
            threads = [
                threading.Thread(target=worker.run, name=f"swtdx processor {worker.cpu.index}", daemon=True)
                for worker in self.workers
            ]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException as error:
                # Ctrl-C, say: no vCPU may run when the caller goes on.
                self.stop(EndReason.STOPPED, type(error).__name__)
                for thread in threads:
                    thread.join()
                raise
        self._seconds += time.perf_counter() - started
        reason, detail = self.outcome or (EndReason.ERROR, "the run ended without a reason")
        return RunResult(reason, detail, stats=self.stats())

    def stats(self) -> RunStats:
        """What the run has taken until now."""
        private, shared = self.td.private, self.td.shared
        server = self.server
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
            tdvmcalls=server.counts if server is not None else {},
            pages=pages,
        )
