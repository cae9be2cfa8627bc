"""One processor's share of a run: entering vCPUs, and what has to happen between an exit and an entry."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from swtdx.arch import status as st
from swtdx.arch.exits import ExitReason, ExtendedQualification
from swtdx.machine.host import ProcessorFault
from swtdx.vmm import exits
from swtdx.vmm.errors import SeamcallError, VmmError
from swtdx.vmm.exits import EptViolation
from swtdx.vmm.memory import PAGE
from swtdx.vmm.private_memory import Verdict
from swtdx.vmm.processor import TIMER_VECTOR, WAKE_VECTOR, Processor
from swtdx.vmm.result import EndReason
from swtdx.vmm.tdvmcall import Action
from swtdx.vmm.vcpu import Vcpu, VcpuState

if TYPE_CHECKING:
    from swtdx.vmm.run import Runner

#: How long a vCPU runs while others wait for its processor, in seconds.
_SLICE: Final = 0.010
#: EPT violations in a row at one page that is there, before the guest counts as stuck.
_STUCK: Final = 64
#: Busy entries in a row before giving up, and the pause between them, in seconds.
_BUSY_LIMIT: Final = 2000
_BUSY_PAUSE: Final = 0.0005
# Plain ints: compared at every exit.
_TDCALL: Final = int(ExitReason.TDCALL)
_EPT_VIOLATION: Final = int(ExitReason.EPT_VIOLATION)
_EXTERNAL_INTERRUPT: Final = int(ExitReason.EXTERNAL_INTERRUPT)
#: The leaf number of TDH.VP.ENTER.
_VP_ENTER: Final = 0


class Worker:
    """Runs vCPUs on one processor."""

    def __init__(self, runner: Runner, cpu: Processor) -> None:
        self.runner = runner
        self.cpu = cpu
        #: Every vCPU that lives here, and those of them that want to run, in turn.
        self.vcpus: list[Vcpu] = []
        self.queue: deque[Vcpu] = deque()
        self.idle = False
        #: TD exits by VM exit reason.
        self.exits = [0] * 128
        self._slice_end: int | None = None
        #: Busy entries in a row, and which entry of the processor the latest was.
        self._busy = 0
        self._busy_entry = 0

    def adopt(self, vcpu: Vcpu) -> None:
        """Take a vCPU that no other worker has."""
        vcpu.worker = self
        vcpu.apic.changed = self.arm
        self.vcpus.append(vcpu)
        if vcpu.state is VcpuState.RUNNABLE:
            self.queue.append(vcpu)

    # ------------------------------------------------------------------ scheduling
    def run(self) -> None:
        """Run vCPUs until the runner has an outcome."""
        runner = self.runner
        cpu = self.cpu
        cpu.mutex.acquire()
        if runner.lock is not None:
            runner.lock.acquire()
        try:
            self.arm()
            while runner.outcome is None:
                if cpu.wanted:
                    self._lend()
                vcpu = self._next()
                if vcpu is None:
                    self._sleep()
                else:
                    self._enter(vcpu)
        except VmmError as error:
            runner.end(EndReason.ERROR, str(error))
        except BaseException as error:
            runner.end(EndReason.ERROR, f"{type(error).__name__}: {error}")
            raise
        finally:
            cpu.host.arm_timer(None, TIMER_VECTOR)
            if runner.lock is not None:
                runner.lock.release()
            cpu.mutex.release()

    def _lend(self) -> None:
        """Let another thread use the processor's registers."""
        runner = self.runner
        if runner.lock is not None:
            runner.lock.release()
        self.cpu.mutex.release()
        while self.cpu.wanted:
            time.sleep(0)
        self.cpu.mutex.acquire()
        if runner.lock is not None:
            runner.lock.acquire()

    def _next(self) -> Vcpu | None:
        if not self.queue:
            return None
        vcpu = self.queue.popleft()
        if self.queue:
            other = self.runner.idle_worker()
            if other is not None:
                self._hand_over(self.queue.pop(), other)
        if self.queue:
            self._slice_end = self._slice()
            self.arm()
        else:
            self._slice_end = None
        return vcpu

    def _hand_over(self, vcpu: Vcpu, other: Worker) -> None:
        vcpu.flush()
        self.vcpus.remove(vcpu)
        other.adopt(vcpu)
        other.idle = False
        other.cpu.host.interrupt(WAKE_VECTOR)

    def _slice(self) -> int:
        clock = self.runner.td.clock
        return clock.now() + int(_SLICE * clock.tsc_hz)

    def _sleep(self) -> None:
        """Wait until an interrupt comes: a timer of one of our vCPUs, a device, another processor."""
        runner = self.runner
        runner.poll()
        if self.queue or runner.outcome is not None:
            return
        self._slice_end = None
        self.arm()
        self.idle = True
        if runner.lock is None:
            self.cpu.host.halt()
        else:
            runner.lock.release()
            self.cpu.host.halt()
            runner.lock.acquire()
        self.idle = False
        self._interrupts()

    # ------------------------------------------------------------------ interrupts and time
    def arm(self) -> None:
        """Set the processor's timer to the earliest thing that is due here."""
        earliest = self.runner.deadline
        if self._slice_end is not None and (earliest is None or self._slice_end < earliest):
            earliest = self._slice_end
        for vcpu in self.vcpus:
            deadline = vcpu.apic.deadline
            if deadline is not None and (earliest is None or deadline < earliest):
                earliest = deadline
        self.cpu.host.arm_timer(earliest, TIMER_VECTOR)

    def _interrupts(self) -> None:
        """Take the processor's interrupts and do what they announce."""
        runner = self.runner
        self.cpu.take_interrupts()
        self.cpu.taken = 0
        now = runner.td.clock.now()
        for vcpu in self.vcpus:
            vcpu.apic.fire(now)
        if runner.deadline is not None and now >= runner.deadline and runner.outcome is None:
            runner.end(EndReason.TIMEOUT, self._last_words())
        runner.poll()
        self.arm()

    def _last_words(self) -> str:
        entries = self.cpu.counts[_VP_ENTER]
        calls = self.exits[_TDCALL]
        return f"after {entries} VM entries and {calls} TDVMCALLs on processor {self.cpu.index}"

    # ------------------------------------------------------------------ the guest
    def _enter(self, vcpu: Vcpu) -> None:
        """Run ``vcpu`` until it halts, has had its time, or the run ends."""
        runner = self.runner
        cpu = self.cpu
        gpr = cpu.gpr
        counts = cpu.counts
        exit_counts = self.exits
        lock = runner.lock
        enter = cpu.host.seamcall
        assert runner.server is not None
        services = runner.server.services
        unknown = runner.server.unknown
        tdvpr = vcpu.tdvpr
        gpr[:] = vcpu.regs
        vcpu.cpu = cpu
        vcpu.renotify(cpu)
        while True:
            if vcpu.attention:
                passed = gpr[:]
                vcpu.deliver(cpu)
                gpr[:] = passed
            gpr[0] = 0
            gpr[1] = tdvpr
            passed = gpr[:]
            counts[0] += 1
            try:
                if lock is None:
                    answered = enter()
                else:
                    vcpu.in_guest = True
                    lock.release()
                    try:
                        answered = enter()
                    finally:
                        lock.acquire()
                        vcpu.in_guest = False
            except ProcessorFault as fault:
                raise SeamcallError(0, st.SW_ERROR | fault.vector) from fault
            if cpu.trace is not None:
                cpu.trace(cpu.index, passed, gpr[:])
            rax = gpr[0]
            if rax == _TDCALL:
                exit_counts[_TDCALL] += 1
                service = unknown if gpr[10] else services.get(gpr[11], unknown)
                service.count += 1
                action = service.serve(vcpu, gpr)
                if action is None:
                    continue
                if action is Action.HALT and self._stay_awake(vcpu):
                    continue
                break
            if not answered:
                raise SeamcallError(0, st.SW_VMFAILINVALID)
            if not self._exit(vcpu, rax, passed):
                break
        vcpu.regs = gpr[:]
        if vcpu.state is VcpuState.RUNNABLE and vcpu not in self.queue:
            self.queue.appendleft(vcpu)

    def _stay_awake(self, vcpu: Vcpu) -> bool:
        """HLT: whether the guest goes on at once; otherwise it is put to sleep.  Keeps ``gpr``."""
        gpr = self.cpu.gpr
        deaf = bool(gpr[12] & 1)
        runner = self.runner
        runner.poll(before_sleep=True)
        if vcpu.attention:
            return True
        if not deaf:
            passed = gpr[:]
            waiting = vcpu.interrupt_in_virtual_apic(self.cpu)
            gpr[:] = passed
            if waiting:
                return True
        vcpu.state = VcpuState.DEAF if deaf else VcpuState.HALTED
        if deaf:
            runner.check_all_deaf()
        return False

    def _exit(self, vcpu: Vcpu, rax: int, passed: list[int]) -> bool:
        """Handle any exit but a plain TDVMCALL; whether ``vcpu`` goes on here and now."""
        runner = self.runner
        gpr = self.cpu.gpr
        family = rax >> 32
        reason = rax & 0xFFFF
        if family == 0:
            self.exits[reason & 127] += 1
            if reason == _TDCALL:
                # With a bus lock in the same exit: serve the call the slow way.
                return self._late_call(vcpu)
            if reason == _EPT_VIOLATION:
                self._violation(vcpu, EptViolation(gpr[1], gpr[2], gpr[8]))
            elif reason not in exits.HARMLESS:
                runner.end(*exits.end_of(rax))
            if reason == _EXTERNAL_INTERRUPT:
                self._interrupts()
                vcpu.renotify(self.cpu)
            return runner.outcome is None and not self._preempted(vcpu)
        if family in exits.RETRY:
            # The registers for the guest are passed again; a notification may have been lost on the way.
            entries = self.cpu.counts[_VP_ENTER]
            self._busy = self._busy + 1 if entries == self._busy_entry + 1 else 1
            self._busy_entry = entries
            if self._busy > _BUSY_LIMIT:
                runner.end(*exits.end_of(rax))
                return False
            if self._busy > 16:
                time.sleep(_BUSY_PAUSE)
            self._interrupts()
            gpr[:] = passed
            vcpu.renotify(self.cpu)
            return runner.outcome is None
        runner.end(*exits.end_of(rax))
        return False

    def _late_call(self, vcpu: Vcpu) -> bool:
        server = self.runner.server
        assert server is not None
        gpr = self.cpu.gpr
        service = server.unknown if gpr[10] else server.services.get(gpr[11], server.unknown)
        service.count += 1
        action = service.serve(vcpu, gpr)
        return action is None or (action is Action.HALT and self._stay_awake(vcpu))

    def _preempted(self, vcpu: Vcpu) -> bool:
        """Whether ``vcpu`` has to make room: for other vCPUs, or for another thread."""
        if self.cpu.wanted:
            return True
        if not self.queue:
            return False
        if self._slice_end is None:
            # Somebody has woken up since we were entered.
            if self.runner.idle_worker() is not None:
                return True
            self._slice_end = self._slice()
            self.arm()
            return False
        if self.runner.td.clock.now() < self._slice_end:
            return False
        self.queue.append(vcpu)
        return True

    # ------------------------------------------------------------------ EPT violations
    def _violation(self, vcpu: Vcpu, violation: EptViolation) -> None:
        td = self.runner.td
        shared_bit = td.config.shared_bit
        if violation.gpa & shared_bit:
            self._shared_violation(vcpu, violation, violation.gpa & ~shared_bit)
            return
        verdict = td.private.resolve(self.cpu, violation.gpa, violation.accept_level)
        if verdict is Verdict.RESOLVED:
            vcpu.stuck_at = -1
            return
        if verdict is Verdict.OUTSIDE:
            self.runner.end(EndReason.BAD_ACCESS, f"vCPU {vcpu.index}: {violation.describe(shared_bit)}")
        elif violation.kind == ExtendedQualification.PENDING_EPT_VIOLATION:
            self.runner.end(
                EndReason.BAD_ACCESS,
                f"vCPU {vcpu.index}: {violation.describe(shared_bit)}, which it has not accepted",
            )
        else:
            self._count_stuck(vcpu, violation)

    def _shared_violation(self, vcpu: Vcpu, violation: EptViolation, gpa: int) -> None:
        td = self.runner.td
        page = gpa & -PAGE
        if td.shared.translate(gpa) is not None:
            self._count_stuck(vcpu, violation)
        elif td.private.in_ram(page, page + PAGE):
            td.shared.map(page, PAGE)
        else:
            # Not memory: from now on the guest gets a #VE here, and asks for MMIO.
            td.shared.add_hole(page, td.private.ram)
            self._count_stuck(vcpu, violation)

    def _count_stuck(self, vcpu: Vcpu, violation: EptViolation) -> None:
        """Nothing was to be done: another vCPU was faster, or the guest goes round in circles."""
        if vcpu.stuck_at != violation.gpa:
            vcpu.stuck_at, vcpu.stuck_count = violation.gpa, 0
        vcpu.stuck_count += 1
        if vcpu.stuck_count > _STUCK:
            where = violation.describe(self.runner.td.config.shared_bit)
            self.runner.end(
                EndReason.STUCK,
                f"vCPU {vcpu.index}: {where} leaves the TD again and again, with the page in place",
            )
