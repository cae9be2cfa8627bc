"""The QEMU engine: see ``docs/engine.md`` and :mod:`swtdx.machine.engine.protocol`."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from swtdx.arch.units import PAGE
from swtdx.machine.engine.hosttsc import frequency, host_tsc
from swtdx.machine.engine.protocol import Access, EngineError, Event, Stop
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu import vmcb
from swtdx.machine.engine.qemu.context import QemuContext
from swtdx.machine.engine.qemu.npt import IDENTITY_GPA, NestedTable, PagePool, guest_gpa
from swtdx.machine.engine.qemu.ordering import IN_ORDER, fence
from swtdx.machine.engine.qemu.process import QemuProcess

#: Polls of the mailbox before going to sleep until the doorbell rings (about 60 ns each): at most, and at
#: least.  In between it is what has paid off after the last kind of stop, so that a host without processors
#: to spare does not wait in vain.
SPIN: Final = 1500
_SPIN_LEAST: Final = 50
#: A sleep that took no longer than this, in seconds, would better have been spent polling.
_WORTH_SPINNING: Final = 150e-6
#: Kinds of stops are the values of Stop; undefined instructions (TDCALL) are told apart by RAX[3:0].
_CALL: Final = 32
#: How long to sleep before looking again whether all is well, in seconds.
_NAP: Final = 0.25
#: How long a guest that was told to stop may take before it is told again, in seconds.
_IMPATIENCE: Final = 0.01

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
    vmcb.EXIT_INTR: Stop.INTERRUPT,
    vmcb.EXIT_NMI: Stop.INTERRUPT,
    vmcb.EXIT_INIT: Stop.INTERRUPT,
    **dict.fromkeys(vmcb.FOREIGN, Stop.UNDEFINED),
}


class _Port:
    """One QEMU processor and its mailbox.

    ``lock`` is held while a command is carried out.  Entered as a context, a port makes its guest stop
    first, so that any thread may give a command, or change what the processor translates addresses by.
    """

    __slots__ = (
        "_kick",
        "armed",
        "base",
        "bell",
        "fence",
        "index",
        "last",
        "live",
        "lock",
        "q",
        "seq",
        "spins",
        "w",
        "wanted",
    )

    def __init__(self, process: QemuProcess, index: int) -> None:
        self.index = index
        self.lock = threading.RLock()
        self.fence = fence()
        #: How many threads want the guest to stop.
        self.wanted = 0
        self._kick = partial(process.wake, index, kick=True)
        self.base = at.MAILBOX + index * PAGE
        page = process.memory[self.base : self.base + PAGE]
        self.w = page.cast("I")
        self.q = page.cast("Q")
        self.bell = process.bells[index]
        self.seq = self.w[at.MB_DONE >> 2]
        self.live: QemuContext | None = None
        self.armed: int | None = None
        #: The kind of the last stop, and polls by kind of stop before.
        self.last = 0
        self.spins = [SPIN] * (_CALL + 16)

    def __enter__(self) -> _Port:
        if not self.lock.acquire(blocking=False):
            self.wanted += 1
            try:
                self._kick()
                while not self.lock.acquire(timeout=_IMPATIENCE):
                    self._kick()
            finally:
                self.wanted -= 1
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class QemuEngine:
    """Runs guests on stock QEMU's processors."""

    name = "qemu"
    gpa_bits = 48

    def __init__(self, frames_fd: int, frames_size: int, cpus: int) -> None:
        """Start QEMU; its boot goes on in the background until the first use.

        Raises:
            EngineError: QEMU is missing, too old or does not start.
        """
        self._process = QemuProcess(frames_fd, frames_size, cpus)
        self._pool = PagePool()
        self._contexts = list(
            range(at.CONTEXTS + (at.MAX_CONTEXTS - 1) * at.CONTEXT_SIZE, at.CONTEXTS - 1, -at.CONTEXT_SIZE)
        )
        #: Contexts that have a place there, first come first.
        self._resident: dict[QemuContext, None] = {}
        self._attended: dict[int, QemuContext] = {}
        self._ports: list[_Port] = []
        self._lock = threading.Lock()
        self._host_tsc = host_tsc()
        #: What QEMU's counter lacks of the host's.
        self._tsc_offset = 0
        self._tsc_base = (0, 0)  # (perf_counter_ns, tsc), where the host's cannot be read
        self._tsc_hz = 0.0
        self.runs = 0

    # ------------------------------------------------------------------ start, time
    def _ready(self) -> list[_Port]:
        if self._ports:
            return self._ports
        with self._lock:
            if not self._ports:
                self._process.wait_ready()
                ports = [_Port(self._process, index) for index in range(self._process.cpus)]
                self._calibrate(ports[0])
                self._ports = ports
        return self._ports

    def _calibrate(self, port: _Port) -> None:
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

    def _read_offset(self, port: _Port, read: Callable[[], int]) -> int:
        """The host's counter less QEMU's, from the tightest of a few probes."""
        best: tuple[int, int] | None = None
        for _ in range(8):
            before = read()
            self._command(port, at.CMD_PROBE)
            after = read()
            shown = port.q[at.MB_EXIT_TSC >> 3]
            if best is None or after - before < best[0]:
                # QEMU's was read in between.  Rather a little ahead than behind: a stop that we have
                # seen must not lie in the future.
                best = (after - before, before - shown)
        assert best is not None
        return best[1]

    def _read_tsc(self, port: _Port) -> tuple[int, int]:
        """(perf_counter_ns, TSC) read together: the tightest of a few tries."""
        best: tuple[int, int, int] | None = None
        for _ in range(5):
            before = time.perf_counter_ns()
            self._command(port, at.CMD_PROBE)
            after = time.perf_counter_ns()
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, port.q[at.MB_EXIT_TSC >> 3])
        assert best is not None
        return best[1], best[2]

    def tsc(self) -> int:
        """The time-stamp counter now (extrapolated from the last stop)."""
        if not self._ports:
            self._ready()
        if self._host_tsc is not None:
            return self._host_tsc() - self._tsc_offset
        base, tsc = self._tsc_base
        return tsc + int((time.perf_counter_ns() - base) * self._tsc_hz / 1e9)

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
            self._command(port, at.CMD_PROBE)
            start = at.MB_RESULT >> 2
            return (port.w[start], port.w[start + 1], port.w[start + 2], port.w[start + 3])

    # ------------------------------------------------------------------ contexts and spaces
    def context(self, lp: int) -> QemuContext:
        """A fresh context.  If there is no room for it, one that no processor uses is put aside."""
        self._ready()
        context = QemuContext(self._process.memory, self._room(), self._save)
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
            self._command(port, at.CMD_SAVE)
            context.saved = True

    @contextlib.contextmanager
    def _free_port(self) -> Iterator[_Port]:
        """A processor that is not in a guest, for a command that any can carry out."""
        ports = self._ready()
        # The caller's own processor, if it has one, is outside.
        free = next((port for port in ports if port.lock.acquire(blocking=False)), None)
        if free is None:
            with ports[0]:
                yield ports[0]
            return
        try:
            yield free
        finally:
            free.lock.release()

    @staticmethod
    def _address(port: _Port, context: QemuContext) -> None:
        base = context.base
        port.q[at.MB_VMCB >> 3] = base + at.CTX_VMCB
        port.q[at.MB_GPRS >> 3] = base + at.CTX_GPRS
        port.q[at.MB_EXTRA >> 3] = base + at.CTX_EXTRA

    def _make_live(self, port: _Port, context: QemuContext) -> bool:
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
                self._command(port, at.CMD_LOAD)
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
            port.q[at.MB_SRC >> 3] = where
            port.q[at.MB_DST >> 3] = where
            port.q[at.MB_LEN >> 3] = size
            self._command(port, at.CMD_COPY)

    # ------------------------------------------------------------------ running
    def _command(self, port: _Port, command: int) -> None:
        """Give a command to the stub and wait until it is done."""
        words = port.w
        words[at.MB_CMD >> 2] = command
        port.seq = seq = (port.seq + 1) & 0xFFFFFFFF
        if not IN_ORDER:
            with port.fence:
                pass
        words[at.MB_SEQ >> 2] = seq
        # The stub says that it sleeps and looks for a command: we the other way round.
        with port.fence:
            pass
        if words[at.MB_ASLEEP >> 2]:
            self._process.wake(port.index, kick=False)
        done = at.MB_DONE >> 2
        after, spins = port.last, port.spins
        spin = spins[after]
        for _ in range(spin):
            if words[done] == seq:
                if not IN_ORDER:
                    with port.fence:
                        pass
                return
        before = time.perf_counter()
        self._sleep(port, seq)
        if time.perf_counter() - before < _WORTH_SPINNING:
            spins[after] = SPIN
        else:
            spins[after] = max(_SPIN_LEAST, spin >> 1)

    def _sleep(self, port: _Port, seq: int) -> None:
        """Wait for the doorbell."""
        words = port.w
        done = at.MB_DONE >> 2
        while words[done] != seq:
            words[at.MB_RING >> 2] = 1
            with port.fence:
                pass
            if words[done] == seq:
                break
            readable, _, _ = select.select([port.bell], [], [], _NAP)
            if readable:
                try:
                    if not port.bell.recv(64):
                        self._process.check_alive()
                except BlockingIOError:
                    pass
            elif words[done] != seq:
                self._process.check_alive()
                if words[at.MB_RESULT >> 2] == 0xDEAD:
                    raise EngineError(
                        f"the stub failed on processor {port.index} at {port.q[(at.MB_RESULT + 8) >> 3]:#x}"
                    )
                if words[at.MB_ASLEEP >> 2]:
                    self._process.wake(port.index, kick=False)
        words[at.MB_RING >> 2] = 0
        with port.fence:
            pass

    def run(self, lp: int, context: QemuContext, space: NestedTable, deadline: int | None) -> Event:
        """Run the guest until it stops; see the protocol."""
        port = self._ports[lp]
        is_live = port.live is context and not context.needs_load
        # Not with the lock held: it may need another port's.
        if not is_live and not self._make_live(port, context):
            context.event.stop = Stop.UNLOADABLE
            context.event.tsc = self.tsc()
            return context.event
        while port.wanted:
            time.sleep(0)
        with port.lock:
            return self._run(port, context, space, deadline)

    def _run(self, port: _Port, context: QemuContext, space: NestedTable, deadline: int | None) -> Event:
        event = context.event
        if port.w[at.MB_TIMER_FIRED >> 2]:
            # It fired while the guest was not running: no stop has told of it.
            port.w[at.MB_TIMER_FIRED >> 2] = 0
            port.armed = None
        late = deadline != port.armed and not self._arm(port, deadline)
        # Another processor may have made the cache forget everything since it was to serve this context.
        if late or context.unpaged is not space.identity:
            event.stop = Stop.INTERRUPT
            event.tsc = self.tsc()
            context.nothing_undelivered()
            return event
        context._q[vmcb.NESTED_CR3 >> 3] = space.root
        context.saved = False
        self.runs += 1
        self._command(port, at.CMD_RUN)
        event.tsc = port.q[at.MB_EXIT_TSC >> 3]
        if self._host_tsc is None:
            self._keep_up(event.tsc)
        self._decode(port, context, event)
        port.last = _CALL + (context.gpr[0] & 15) if event.stop is Stop.UNDEFINED else event.stop
        return event

    def _keep_up(self, tsc: int) -> None:
        """An extrapolated counter follows what a stop shows: that must not lie in the future."""
        now = time.perf_counter_ns()
        base, base_tsc = self._tsc_base
        if tsc > base_tsc + (now - base) * self._tsc_hz / 1e9:
            self._tsc_base = (now, tsc)

    def _arm(self, port: _Port, deadline: int | None) -> bool:
        """Set the processor's timer; False when the deadline has passed."""
        count = 0
        if deadline is not None:
            left = deadline - self.tsc()
            if left <= 0:
                return False
            count = max(1, min(int(left * 1e9 / self._tsc_hz), 0xFFFFFFFF))
        port.w[at.MB_TIMER_FIRED >> 2] = 0
        port.w[at.MB_TIMER >> 2] = count
        port.w[at.MB_TIMER_OP >> 2] = 1
        port.armed = deadline
        return True

    def _decode(self, port: _Port, context: QemuContext, event: Event) -> None:
        """Turn the VMCB's exit code into an event."""
        q = context._q
        code = q[vmcb.EXIT_CODE >> 3]
        event.length = 0
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

    def wait(self, lp: int, woken: threading.Event, seconds: float | None) -> bool:
        """Wait for ``woken``, at most ``seconds``: this machine's time is that of the host."""
        return woken.wait(seconds)

    def close(self) -> None:
        """Stop QEMU.  Idempotent."""
        self._process.close()
