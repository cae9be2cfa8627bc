"""One processor's share of a run: entering vCPUs, and what has to happen between an exit and an entry."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.exits import ExitReason, ExtendedQualification, is_nmi
from swtdx.arch.guest_map import GUEST_MAP
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import R8, R9, R10, R11, R12, RAX, RCX, RDX
from swtdx.arch.units import PAGE
from swtdx.machine.host import ProcessorFault
from swtdx.vmm import exits
from swtdx.vmm.control import RunControl
from swtdx.vmm.errors import SeamcallError, VmmError
from swtdx.vmm.exits import EptViolation
from swtdx.vmm.private_memory import Verdict
from swtdx.vmm.processor import TIMER_VECTOR, WAKE_VECTOR, Processor
from swtdx.vmm.result import EndReason
from swtdx.vmm.td import Td
from swtdx.vmm.td_exit import Hook, TdExit
from swtdx.vmm.tdvmcall import Action, TdvmcallServer
from swtdx.vmm.vcpu import Vcpu, VcpuState

#: How long a vCPU runs while others wait for its processor, in seconds.
_SLICE: Final = 0.010
#: EPT violations in a row at one page that is there, before the guest counts as stuck.
_STUCK: Final = 64
#: Busy entries in a row before giving up, and the pause between them, in seconds.
_BUSY_LIMIT: Final = 2000
_BUSY_PAUSE: Final = 0.0005
#: How long another thread is given to use the processor before we look whether it is done, in seconds.
_LOAN_PAUSE: Final = 50e-6
# Plain ints: compared at every exit.
_TDCALL: Final = int(ExitReason.TDCALL)
_EPT_VIOLATION: Final = int(ExitReason.EPT_VIOLATION)
_EXTERNAL_INTERRUPT: Final = int(ExitReason.EXTERNAL_INTERRUPT)
_EXCEPTION_OR_NMI: Final = int(ExitReason.EXCEPTION_OR_NMI)
_VP_ENTER: Final = HOST_BY_NAME["TDH.VP.ENTER"].number


class Worker:
    """Runs vCPUs on one processor; to them it is their :class:`swtdx.vmm.vcpu.Place`.

    Args:
        poll: lets the devices do what waits on the host's side.
        workers: all workers of the run, this one too, one for each processor.
    """

    def __init__(
        self,
        cpu: Processor,
        td: Td,
        control: RunControl,
        server: TdvmcallServer,
        poll: Callable[[], None],
        workers: Sequence[Worker],
    ) -> None:
        self.cpu = cpu
        self._td = td
        self._control = control
        self._server = server
        self._poll_devices = poll
        self._workers = workers
        #: Every vCPU that lives here, and those of them that want to run, in turn.
        self.vcpus: list[Vcpu] = []
        self.queue: deque[Vcpu] = deque()
        self.idle = False
        #: Sees each TD exit before it is handled (:mod:`swtdx.vmm.td_exit`).
        self.hook: Hook | None = None
        #: TD exits by VM exit reason.
        self.exits = [0] * 128
        self._slice_end: int | None = None
        #: Busy entries in a row, and which entry of the processor the latest was.
        self._busy = 0
        self._busy_entry = 0

    def adopt(self, vcpu: Vcpu) -> None:
        """Take a vCPU that no other worker has."""
        vcpu.place = self
        self.vcpus.append(vcpu)
        if vcpu.state is VcpuState.RUNNABLE:
            self.queue.append(vcpu)

    def woken(self, vcpu: Vcpu) -> None:
        """A vCPU that lives here has got something to wake up for."""
        if vcpu.state is not VcpuState.RUNNABLE:
            vcpu.state = VcpuState.RUNNABLE
            self.queue.append(vcpu)
            if self._control.lock is not None:
                self.cpu.host.interrupt(WAKE_VECTOR)

    # ------------------------------------------------------------------ scheduling
    def run(self) -> None:
        """Run vCPUs until the run has an outcome."""
        control = self._control
        cpu = self.cpu
        cpu.mutex.acquire()
        if control.lock is not None:
            cpu.host.acquire(control.lock)
        try:
            self.arm()
            while control.outcome is None:
                if cpu.wanted:
                    self._lend()
                vcpu = self._next()
                if vcpu is None:
                    self._sleep()
                else:
                    self._enter(vcpu)
        except VmmError as error:
            control.end(EndReason.ERROR, str(error))
        except BaseException as error:
            control.end(EndReason.ERROR, f"{type(error).__name__}: {error}")
            raise
        finally:
            cpu.host.arm_timer(None, TIMER_VECTOR)
            if control.lock is not None:
                control.lock.release()
            cpu.mutex.release()

    def _lend(self) -> None:
        """Let another thread use the processor's registers."""
        control = self._control
        if control.lock is not None:
            control.lock.release()
        self.cpu.mutex.release()
        while self.cpu.wanted or not self.cpu.mutex.acquire(blocking=False):
            self.cpu.host.pause(_LOAN_PAUSE)
        if control.lock is not None:
            self.cpu.host.acquire(control.lock)

    def _next(self) -> Vcpu | None:
        if not self.queue:
            return None
        vcpu = self.queue.popleft()
        if self.queue:
            other = self._idle_worker()
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
        clock = self._td.clock
        return clock.now() + int(_SLICE * clock.tsc_hz)

    def _sleep(self) -> None:
        """Wait until an interrupt comes: a timer of one of our vCPUs, a device, another processor."""
        control = self._control
        self._poll()
        if self.queue or control.outcome is not None:
            return
        self._slice_end = None
        self.arm()
        self.idle = True
        if control.lock is None:
            self.cpu.host.halt()
        else:
            control.lock.release()
            self.cpu.host.halt()
            self.cpu.host.acquire(control.lock)
        self.idle = False
        self._interrupts()

    def _idle_worker(self) -> Worker | None:
        """A worker that has nothing to do."""
        return next((worker for worker in self._workers if worker.idle), None)

    def _poll(self, *, before_sleep: bool = False) -> None:
        """Let the devices work, if they asked for it or a vCPU is about to sleep."""
        if self._control.poll_due() or before_sleep:
            self._poll_devices()

    # ------------------------------------------------------------------ interrupts and time
    def arm(self) -> None:
        """Set the processor's timer to the earliest thing that is due here."""
        earliest = self._control.deadline
        if self._slice_end is not None and (earliest is None or self._slice_end < earliest):
            earliest = self._slice_end
        for vcpu in self.vcpus:
            deadline = vcpu.apic.deadline
            if deadline is not None and (earliest is None or deadline < earliest):
                earliest = deadline
        self.cpu.host.arm_timer(earliest, TIMER_VECTOR)

    def _interrupts(self) -> None:
        """Take the processor's interrupts and do what they announce."""
        control = self._control
        self.cpu.take_interrupts()
        self.cpu.taken = 0
        now = self._td.clock.now()
        for vcpu in self.vcpus:
            vcpu.apic.fire(now)
        if control.deadline is not None and now >= control.deadline and control.outcome is None:
            control.end(EndReason.TIMEOUT, self._last_words())
        self._poll()
        self.arm()

    def _last_words(self) -> str:
        entries = self.cpu.counts[_VP_ENTER]
        calls = self.exits[_TDCALL]
        return f"after {entries} VM entries and {calls} TDVMCALLs on processor {self.cpu.index}"

    # ------------------------------------------------------------------ the guest
    def _enter(self, vcpu: Vcpu) -> None:
        """Run ``vcpu`` until it halts, has had its time, or the run ends."""
        control = self._control
        cpu = self.cpu
        gpr = cpu.gpr
        counts = cpu.counts
        exit_counts = self.exits
        lock = control.lock
        enter = cpu.host.seamcall
        services = self._server.services
        unknown = self._server.unknown
        tdvpr = vcpu.tdvpr
        gpr[:] = vcpu.regs
        vcpu.cpu = cpu
        vcpu.renotify(cpu)
        while True:
            if vcpu.attention:
                passed = gpr[:]
                vcpu.deliver(cpu)
                gpr[:] = passed
            gpr[RAX] = 0
            gpr[RCX] = tdvpr
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
                        if not lock.acquire(blocking=False):
                            cpu.host.acquire(lock)
                        vcpu.in_guest = False
            except ProcessorFault as fault:
                raise SeamcallError(0, st.SW_ERROR | fault.vector) from fault
            if cpu.trace is not None:
                cpu.trace(cpu.index, passed, gpr[:])
            if self.hook is not None:
                if self._hooked(self.hook, vcpu, passed, answered):
                    continue
                break
            rax = gpr[RAX]
            if rax == _TDCALL:
                exit_counts[_TDCALL] += 1
                service = unknown if gpr[R10] else services.get(gpr[R11], unknown)
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

    def _hooked(self, hook: Hook, vcpu: Vcpu, passed: list[int], answered: bool) -> bool:
        """An exit that ``hook`` is shown first; whether ``vcpu`` goes on here and now."""

        def serve() -> bool:
            rax = self.cpu.gpr[RAX]
            if rax == _TDCALL:
                self.exits[_TDCALL] += 1
                return self._late_call(vcpu)
            if not answered:
                raise SeamcallError(0, st.SW_VMFAILINVALID)
            return self._exit(vcpu, rax, passed)

        found = TdExit(vcpu.index, self.cpu.gpr, serve, lambda why: self._control.end(EndReason.STOPPED, why))
        hook(found)
        found.serve()
        return found.goes_on and self._control.outcome is None

    def _stay_awake(self, vcpu: Vcpu) -> bool:
        """HLT: whether the guest goes on at once; otherwise it is put to sleep.  Keeps ``gpr``."""
        gpr = self.cpu.gpr
        deaf = bool(gpr[R12] & 1)
        self._poll(before_sleep=True)
        if vcpu.attention:
            return True
        if not deaf:
            passed = gpr[:]
            waiting = vcpu.interrupt_in_virtual_apic(self.cpu)
            gpr[:] = passed
            if waiting:
                return True
        vcpu.state = VcpuState.DEAF if deaf else VcpuState.HALTED
        vcpu.apic.halted()
        if deaf:
            self._check_all_deaf()
        return False

    def _check_all_deaf(self) -> None:
        """End the run when no vCPU can ever go on."""
        if all(vcpu.state is VcpuState.DEAF and not vcpu.has_interrupt for vcpu in self._td.vcpus):
            self._control.end(EndReason.HALTED, "nothing can wake the guest any more")

    def _exit(self, vcpu: Vcpu, rax: int, passed: list[int]) -> bool:
        """Handle any exit but a plain TDVMCALL; whether ``vcpu`` goes on here and now."""
        control = self._control
        gpr = self.cpu.gpr
        family = rax >> 32
        reason = rax & 0xFFFF
        if family == 0:
            self.exits[reason & 127] += 1
            if reason == _TDCALL:
                # With a bus lock in the same exit: serve the call the slow way.
                return self._late_call(vcpu)
            if reason == _EPT_VIOLATION:
                self._violation(vcpu, EptViolation(gpr[RCX], gpr[RDX], gpr[R8]))
            elif reason not in exits.HARMLESS:
                control.end(*exits.end_of(rax))
            if reason == _EXCEPTION_OR_NMI and is_nmi(gpr[R9]):
                self.cpu.handle_nmi()
            if reason == _EXTERNAL_INTERRUPT:
                self.cpu.taken |= 1 << (gpr[R9] & 0xFF)  # acknowledged by the exit
                self._interrupts()
                vcpu.renotify(self.cpu)
            return control.outcome is None and not self._preempted(vcpu)
        if family in exits.RETRY:
            # The registers for the guest are passed again; a notification may have been lost on the way.
            entries = self.cpu.counts[_VP_ENTER]
            self._busy = self._busy + 1 if entries == self._busy_entry + 1 else 1
            self._busy_entry = entries
            if self._busy > _BUSY_LIMIT:
                control.end(*exits.end_of(rax))
                return False
            if self._busy > 16:
                self.cpu.host.pause(_BUSY_PAUSE)
            self._interrupts()
            gpr[:] = passed
            vcpu.renotify(self.cpu)
            return control.outcome is None
        control.end(*exits.end_of(rax))
        return False

    def _late_call(self, vcpu: Vcpu) -> bool:
        server = self._server
        gpr = self.cpu.gpr
        service = server.unknown if gpr[R10] else server.services.get(gpr[R11], server.unknown)
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
            # Another vCPU has woken up since we were entered.
            if self._idle_worker() is not None:
                return True
            self._slice_end = self._slice()
            self.arm()
            return False
        if self._td.clock.now() < self._slice_end:
            return False
        self.queue.append(vcpu)
        return True

    # ------------------------------------------------------------------ EPT violations
    def _violation(self, vcpu: Vcpu, violation: EptViolation) -> None:
        td = self._td
        shared_bit = td.config.shared_bit
        if violation.gpa & shared_bit:
            self._shared_violation(vcpu, violation, violation.gpa & ~shared_bit)
            return
        verdict = td.private.resolve(self.cpu, violation.gpa, violation.accept_level)
        if verdict is Verdict.RESOLVED:
            vcpu.stuck_at = -1
            return
        if verdict is Verdict.OUTSIDE:
            self._outside(vcpu, violation)
        elif violation.kind == ExtendedQualification.PENDING_EPT_VIOLATION:
            self._control.end(
                EndReason.BAD_ACCESS,
                f"vCPU {vcpu.index}: {violation.describe(shared_bit)}, which it has not accepted",
            )
        else:
            self._count_stuck(vcpu, violation)

    def _outside(self, vcpu: Vcpu, violation: EptViolation) -> None:
        """A private access where there is no memory ends the run: say what is there, and who did it."""
        where = f"vCPU {vcpu.index}: {violation.describe(self._td.config.shared_bit)}"
        rip = vcpu.guest_rip(self.cpu) if self._td.config.debug else None
        if rip is not None:
            where += f", by the instruction at {rip:#x}"
        device = GUEST_MAP.device_at(violation.gpa)
        if device is None:
            self._control.end(EndReason.BAD_ACCESS, where)
        else:
            self._control.end(EndReason.DEVICE_ACCESS, f"{where}: {device}")

    def _shared_violation(self, vcpu: Vcpu, violation: EptViolation, gpa: int) -> None:
        td = self._td
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
            where = violation.describe(self._td.config.shared_bit)
            self._control.end(
                EndReason.STUCK,
                f"vCPU {vcpu.index}: {where} leaves the TD again and again, with the page in place",
            )
