"""The QEMU engine: see ``docs/engine.md`` and :mod:`swtdx.machine.engine.protocol`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from swtdx.machine.engine.hosttsc import frequency, host_tsc
from swtdx.machine.engine.protocol import Access, Event, Stop, Wakeup
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu import vmcb
from swtdx.machine.engine.qemu.context import QemuContext
from swtdx.machine.engine.qemu.hub import Hub, current
from swtdx.machine.engine.qemu.npt import IDENTITY_GPA, NestedTable, PagePool, guest_gpa
from swtdx.machine.engine.qemu.ordering import IN_ORDER
from swtdx.machine.engine.qemu.port import CALL, LOOK_EVERY, Port
from swtdx.machine.engine.qemu.process import QemuProcess
from swtdx.machine.engine.qemu.slices import short_slices
from swtdx.machine.engine.threads import run_threads

#: Words and quadwords of the mailbox.
_KICKED: Final = at.MB_KICKED >> 2
_TIMER_FIRED: Final = at.MB_TIMER_FIRED >> 2
_EXIT_TSC: Final = at.MB_EXIT_TSC >> 3
_DONE: Final = at.MB_DONE >> 2
_SEQ: Final = at.MB_SEQ >> 2
_CMD: Final = at.MB_CMD >> 2
_SPIN: Final = at.MB_SPIN >> 2
_ASLEEP: Final = at.MB_ASLEEP >> 2
_EXIT_CODE: Final = vmcb.EXIT_CODE >> 3
_NESTED_CR3: Final = vmcb.NESTED_CR3 >> 3
_RUN: Final = at.CMD_RUN
_UNDEFINED: Final = Stop.UNDEFINED
_UD: Final = vmcb.EXIT_EXCEPTION + 6
#: Between two tries to take a lock, in seconds.
_BRIEFLY: Final = 20e-6

_SIMPLE: Final = {
    vmcb.EXIT_CPUID: Stop.CPUID,
    vmcb.EXIT_HLT: Stop.HLT,
    vmcb.EXIT_INVD: Stop.INVD,
    vmcb.EXIT_WBINVD: Stop.WBINVD,
    vmcb.EXIT_MONITOR: Stop.MONITOR,
    vmcb.EXIT_MWAIT: Stop.MWAIT,
    vmcb.EXIT_RDPMC: Stop.RDPMC,
    vmcb.EXIT_RDTSC: Stop.RDTSC,
    vmcb.EXIT_RDTSCP: Stop.RDTSCP,
    vmcb.EXIT_SHUTDOWN: Stop.SHUTDOWN,
    vmcb.EXIT_TASK_SWITCH: Stop.TASK_SWITCH,
    vmcb.EXIT_ICEBP: Stop.ICEBP,
    vmcb.EXIT_PAUSE: Stop.PAUSE,
    vmcb.EXIT_SWINT: Stop.SOFTWARE_INTERRUPT,
    vmcb.EXIT_IRET: Stop.IRET,
    vmcb.EXIT_INTR: Stop.INTERRUPT,
    vmcb.EXIT_NMI: Stop.INTERRUPT,
    vmcb.EXIT_INIT: Stop.INTERRUPT,
    **dict.fromkeys(vmcb.FOREIGN, Stop.UNDEFINED),
}
#: Those that say nothing else.
_PLAIN: Final[dict[int, Stop]] = {code: stop for code, stop in _SIMPLE.items() if stop is not Stop.INTERRUPT}


class QemuEngine:
    """Runs guests on stock QEMU's processors."""

    name = "qemu"
    gpa_bits = 48

    def __init__(
        self,
        frames_fd: int,
        frames_size: int,
        cpus: int,
        image: tuple[int, int] | None = None,
        tsc: int | None = None,
    ) -> None:
        """Start QEMU; its boot goes on in the background until the first use.

        Args:
            image: a snapshot's file with frames (:class:`QemuProcess`).
            tsc: what the time-stamp counter goes on from; 0 or so by default.

        Raises:
            EngineError: QEMU is missing, too old or does not start.
        """
        self._process = self._start_process(frames_fd, frames_size, cpus, image)
        self._pool = PagePool()
        self._contexts = list(
            range(at.CONTEXTS + (at.MAX_CONTEXTS - 1) * at.CONTEXT_SIZE, at.CONTEXTS - 1, -at.CONTEXT_SIZE)
        )
        #: Contexts that have a place there, first come first.
        self._resident: dict[QemuContext, None] = {}
        self._attended: dict[int, QemuContext] = {}
        self._ports: list[Port] = []
        self._lock = threading.Lock()
        self._host_tsc = host_tsc()
        #: What QEMU's counter lacks of the host's.
        self._tsc_offset = 0
        self._tsc_base = (0, 0)  # (perf_counter_ns, tsc), where the host's cannot be read
        self._tsc_hz = 0.0
        #: What the machine's counter is to begin with, and how far it then is ahead of QEMU's.
        self._tsc_from = tsc
        self._ahead = 0
        #: The TSC of the latest stop.
        self._latest = 0
        self.runs = 0

    # ------------------------------------------------------------------ start, time
    def _start_process(
        self, frames_fd: int, frames_size: int, cpus: int, image: tuple[int, int] | None
    ) -> QemuProcess:
        return QemuProcess(frames_fd, frames_size, cpus, image)

    def _ready(self) -> list[Port]:
        if self._ports:
            return self._ports
        with self._lock:
            if not self._ports:
                self._process.wait_ready()
                # Guests are threads of their own by now.
                self._process.answer_soon()
                ports = [Port(self._process, index) for index in range(self._process.cpus)]
                self._calibrate(ports[0])
                self._go_on(ports[0])
                for port in ports:
                    port.set_times(self._tsc_hz)
                self._ports = ports
        return self._ports

    def _calibrate(self, port: Port) -> None:
        """Relate QEMU's TSC to the host's, or to ``perf_counter_ns`` by two readings 20 ms apart."""
        if self._host_tsc is not None:
            self._tsc_hz = frequency(self._host_tsc)
            self._tsc_offset = self._read_offset(port, self._host_tsc)
            return
        first = self._read_tsc(port)
        time.sleep(0.02)
        second = self._read_tsc(port)
        self._tsc_base = second
        self._tsc_hz = (second[1] - first[1]) * 1e9 / (second[0] - first[0])

    def _go_on(self, port: Port) -> None:
        """Let the machine's counter go on from where another engine's was."""
        if self._tsc_from is None:
            return
        self._ahead = self._tsc_from - self._read_tsc(port)[1]
        self._latest = self._tsc_from
        self._tsc_offset -= self._ahead
        self._tsc_base = (self._tsc_base[0], self._tsc_base[1] + self._ahead)

    def _read_offset(self, port: Port, read: Callable[[], int]) -> int:
        """The host's counter less QEMU's, from the tightest of a few probes."""
        best: tuple[int, int] | None = None
        for _ in range(8):
            before = read()
            port.command(at.CMD_PROBE)
            after = read()
            shown = port.q[at.MB_PROBE_TSC >> 3]
            if best is None or after - before < best[0]:
                # QEMU's was read in between.  Rather a little ahead than behind: a stop that we have
                # seen must not lie in the future.
                best = (after - before, before - shown)
        assert best is not None
        return best[1]

    def _read_tsc(self, port: Port) -> tuple[int, int]:
        """(perf_counter_ns, TSC) read together: the tightest of a few tries."""
        best: tuple[int, int, int] | None = None
        for _ in range(5):
            before = time.perf_counter_ns()
            port.command(at.CMD_PROBE)
            after = time.perf_counter_ns()
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, port.q[at.MB_PROBE_TSC >> 3])
        assert best is not None
        return best[1], best[2]

    def tsc(self) -> int:
        """The time-stamp counter now (extrapolated where the host's cannot be read).

        It follows what stops show: one that was seen must not lie in the future. QEMU's counter runs ahead of
        the host's where two cores' counters differ, for it never goes back (``cpu_get_ticks``).
        """
        if not self._ports:
            self._ready()
        if self._host_tsc is not None:
            now = self._host_tsc() - self._tsc_offset
        else:
            base, tsc = self._tsc_base
            now = tsc + int((time.perf_counter_ns() - base) * self._tsc_hz / 1e9)
        lack = self._latest - now
        if lack <= 0:
            return now
        if self._host_tsc is not None:
            self._tsc_offset -= lack
        else:
            self._tsc_base = (base, tsc + lack)
        return now + lack

    @property
    def version(self) -> str:
        """QEMU, and which."""
        return "QEMU {}.{}".format(*self._process.version)

    @property
    def tsc_hz(self) -> float:
        """Frequency of the time-stamp counter in Hz, as measured."""
        self._ready()
        return self._tsc_hz

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """CPUID as QEMU's processor executes it (EAX, EBX, ECX, EDX): what the engine can do."""
        with self._free_port() as port:
            port.q[at.MB_SRC >> 3] = leaf
            port.q[at.MB_DST >> 3] = subleaf
            port.command(at.CMD_PROBE)
            start = at.MB_RESULT >> 2
            return (port.w[start], port.w[start + 1], port.w[start + 2], port.w[start + 3])

    # ------------------------------------------------------------------ contexts and spaces
    def context(self, lp: int) -> QemuContext:
        """A fresh context.  If there is no room for it, one that no processor uses is put aside."""
        self._ready()
        context = QemuContext(self._process.memory, self._room(), self._save, self._ahead)
        self._resident[context] = None
        return context

    def _room(self) -> int:
        """Where a context can be, in engine memory."""
        if self._contexts:
            return self._contexts.pop()
        attended = self._attended.values()
        idle = next(each for each in self._resident if each.live_on is None and each not in attended)
        del self._resident[idle]
        return idle.park()

    def attend(self, lp: int, context: QemuContext) -> None:
        """Processor ``lp`` is going to use ``context``; give it its place in engine memory back."""
        self._attended[lp] = context
        if context.parked:
            context.unpark(self._room())
            self._resident[context] = None

    def release(self, context: QemuContext) -> None:
        """Free a context."""
        for port in self._ports:
            if port.live is context:
                port.live = None
        if not context.parked:
            del self._resident[context]
            self._contexts.append(context.base)

    def space(self, lp: int) -> NestedTable:
        """A fresh translation cache."""
        return NestedTable(self._process, self._pool, self._ready()[lp])

    def _save(self, context: QemuContext) -> None:
        """Bring live state to the context's pages."""
        assert context.live_on is not None
        with self._ports[context.live_on] as port:
            self._address(port, context)
            port.command(at.CMD_SAVE)
            context.saved = True

    @contextlib.contextmanager
    def _free_port(self) -> Iterator[Port]:
        """A processor that is not in a guest, for a command that any can carry out."""
        ports = self._ready()
        # The caller's own processor, if it has one, is outside.
        free = next((port for port in ports if self._take_free(port)), None)
        if free is None:
            with ports[0]:
                yield ports[0]
            return
        try:
            yield free
        finally:
            free.lock.release()

    @staticmethod
    def _take_free(port: Port) -> bool:
        if not port.lock.acquire(blocking=False):
            return False
        if port.w[_DONE] == port.seq:
            return True
        port.lock.release()
        return False

    @staticmethod
    def _address(port: Port, context: QemuContext) -> None:
        base = context.base
        port.q[at.MB_VMCB >> 3] = base + at.CTX_VMCB
        port.q[at.MB_GPRS >> 3] = base + at.CTX_GPRS
        port.q[at.MB_EXTRA >> 3] = base + at.CTX_EXTRA

    def _make_live(self, port: Port, context: QemuContext) -> bool:
        """Give the processor to ``context``: save what it held, load what this one needs.

        False: the context holds something that the processor does not take.
        """
        previous = port.live
        if previous is not None and previous is not context:
            if not previous.saved:
                self._save(previous)
            previous.live_on = None
            previous.needs_load = True
        if context.live_on is not None and context.live_on != port.index:
            if not context.saved:
                self._save(context)
            self._ports[context.live_on].live = None
            context.needs_load = True
        with port:
            self._address(port, context)
            if context.needs_load:
                port.command(at.CMD_LOAD)
                if port.w[at.MB_FAILED >> 2]:
                    port.w[at.MB_FAILED >> 2] = 0
                    port.live = context.live_on = None
                    return False
                context.needs_load = False
            port.w[at.MB_DR7 >> 2] = context.armed
            port.live = context
            context.live_on = port.index
        return True

    # ------------------------------------------------------------------ code that Python wrote
    def rewrite(self, hpa: int, size: int) -> None:
        """Let QEMU write ``size`` bytes at ``hpa`` onto themselves.

        QEMU does not see Python's writes; its own write makes it drop code translated from there.
        """
        where = self._process.physical(hpa)
        with self._free_port() as port:
            port.q[at.MB_DST >> 3] = where
            port.q[at.MB_LEN >> 3] = size
            port.command(at.CMD_REWRITE)

    # ------------------------------------------------------------------ running
    def run(self, lp: int, context: QemuContext, space: NestedTable, deadline: int | None) -> Event:
        """Run the guest until it stops; see the protocol."""
        port = self._ports[lp]
        # Not with the lock held: it may need another port's.
        if (port.live is not context or context.needs_load) and not self._make_live(port, context):
            context.event.stop = Stop.UNLOADABLE
            context.event.tsc = self.tsc()
            return context.event
        event = context.event
        lock, words = port.lock, port.w
        with lock:
            if words[_TIMER_FIRED]:
                # It fired while the guest was not running: no stop has told of it.
                words[_TIMER_FIRED] = 0
                port.armed = None
            late = deadline != port.armed and not self._arm(port, deadline)
            # Another processor may have made the cache forget everything since it was to serve this context.
            if late or context.unpaged is not space.identity:
                event.stop = Stop.INTERRUPT
                event.tsc = self.tsc()
                context.nothing_undelivered()
                return event
            if context.yields is not port.crowded:
                context.yield_at_pause(port.crowded)
            if context.doubts is not port.doubts:
                context.doubt_interrupts(port.doubts)
            context.q[_NESTED_CR3] = space.root
            context.saved = False
            self.runs += 1
            # Port.start, in the busiest place of all.
            port.runs = runs = port.runs + 1
            if not runs & LOOK_EVERY:
                port.look()
            words[_CMD] = _RUN
            words[_SPIN] = port.stub_polls
            port.seq = seq = (port.seq + 1) & 0xFFFFFFFF
            if not IN_ORDER:
                with port.fence:
                    pass
            words[_SEQ] = seq
            with port.fence:
                pass
            if words[_ASLEEP]:
                port.wake()
        program = port.program
        if program is None or program is not current(port):
            port.wait()
        else:
            program.wait_for_guest()
        # Another thread that has made it stop may still be at work with the port.
        with lock:
            event.tsc = tsc = port.q[_EXIT_TSC] + self._ahead
            if tsc > self._latest:
                self._latest = tsc
            code = context.q[_EXIT_CODE]
            if code == _UD and not context.unpaged:
                event.stop = _UNDEFINED
                event.length = 0
                port.last = CALL + (context.gpr[0] & 15)
            else:
                self._decode(port, context, event, code)
                stop = event.stop
                port.last = CALL + (context.gpr[0] & 15) if stop is _UNDEFINED else stop
        return event

    def _arm(self, port: Port, deadline: int | None) -> bool:
        """Set the processor's timer; False when the deadline has passed."""
        if deadline is None:
            port.q[at.MB_DEADLINE >> 3] = 0
        elif deadline <= self.tsc():
            return False
        else:
            port.q[at.MB_DEADLINE >> 3] = deadline - self._ahead
        port.w[at.MB_TIMER_FIRED >> 2] = 0
        port.w[at.MB_TIMER_OP >> 2] = 1
        port.armed = deadline
        return True

    def _decode(self, port: Port, context: QemuContext, event: Event, code: int) -> None:
        """Turn the VMCB's exit code into an event."""
        event.length = 0
        plain = _PLAIN.get(code)
        if plain is not None and not context.unpaged:
            event.stop = plain
            return
        q = context.q
        if context.unpaged and q[vmcb.CR3 >> 3] != IDENTITY_GPA and code not in vmcb.INVALID:
            # QEMU does not stop at a task switch, and this one has loaded CR3 over our stand-in.
            q[vmcb.CR3 >> 3] = IDENTITY_GPA
            event.stop = Stop.TASK_SWITCH
            return
        if code == vmcb.EXIT_EXCEPTION + 6:
            event.stop = Stop.UNDEFINED
            return
        simple = _SIMPLE.get(code)
        if simple is not None:
            event.stop = simple
            if simple is Stop.INTERRUPT:
                words = port.w
                words[at.MB_KICKED >> 2] = 0
                if words[at.MB_TIMER_FIRED >> 2]:
                    words[at.MB_TIMER_FIRED >> 2] = 0
                    port.armed = None
        elif code == vmcb.EXIT_MSR:
            event.stop = Stop.WRMSR if q[vmcb.EXIT_INFO_1 >> 3] else Stop.RDMSR
        elif code == vmcb.EXIT_NPF:
            info = q[vmcb.EXIT_INFO_1 >> 3]
            event.stop = Stop.MISS
            event.gpa = q[vmcb.EXIT_INFO_2 >> 3]
            if context.unpaged:
                event.gpa = guest_gpa(event.gpa)
            if info & vmcb.NPF_WALK:
                event.access = Access.READ | Access.WALK
            elif info & vmcb.NPF_WRITE:
                event.access = Access.WRITE
            elif info & vmcb.NPF_FETCH:
                event.access = Access.FETCH
            else:
                event.access = Access.READ
        elif code == vmcb.EXIT_IOIO:
            event.stop = Stop.IO
            info = q[vmcb.EXIT_INFO_1 >> 3]
            event.length = q[vmcb.EXIT_INFO_2 >> 3] - q[vmcb.RIP >> 3]
            event.qualification = (
                (info >> 4 & 7) - 1 | (info & 1) << 3 | (info & 0xC) << 2 | info & 0xFFFF0000
            )
        elif code < vmcb.EXIT_READ_DR0:
            event.stop = Stop.CR_ACCESS
            event.qualification = code
        elif code < vmcb.EXIT_EXCEPTION:
            event.stop = Stop.DR_ACCESS
        elif vmcb.EXIT_EXCEPTION <= code < vmcb.EXIT_EXCEPTION + 32:
            event.stop = Stop.EXCEPTION
            event.vector = code - vmcb.EXIT_EXCEPTION
            event.error_code = q[vmcb.EXIT_INFO_1 >> 3] & 0xFFFFFFFF
            # Of a #PF: QEMU leaves CR2 as it was.
            event.qualification = q[vmcb.EXIT_INFO_2 >> 3]
        else:
            event.stop = Stop.DEAD
            event.qualification = code

    def kick(self, lp: int) -> None:
        """Interrupt a processor; any thread may call."""
        if self._ports:
            self._process.wake(lp, kick=True)

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run the software of several processors; see the protocol."""
        ports = self._ready()
        with short_slices():
            if len(programs) == 1:
                run_threads(programs, failed)
            else:
                Hub().run(ports, programs, failed)

    def acquire(self, lp: int, lock: threading.Lock) -> None:
        """Take a lock that programs share: one that has it may be waiting for its guest."""
        program = current(self._ports[lp]) if self._ports else None
        if program is None:
            lock.acquire()
            return
        while not lock.acquire(blocking=False):
            program.wait(Wakeup(), _BRIEFLY)

    def pause(self, lp: int, seconds: float) -> None:
        """Let the host's time pass."""
        program = current(self._ports[lp]) if self._ports else None
        if program is None:
            time.sleep(seconds)
        else:
            program.wait(Wakeup(), seconds)

    def wait(self, lp: int, woken: Wakeup, seconds: float | None) -> bool:
        """Wait for ``woken``, at most ``seconds``: this machine's time is that of the host."""
        if not self._ports:
            return woken.wait(seconds)
        port = self._ports[lp]
        port.park()
        program = current(port)
        return woken.wait(seconds) if program is None else program.idle(woken, seconds)

    def close(self) -> None:
        """Stop QEMU.  Idempotent."""
        self._process.close()
