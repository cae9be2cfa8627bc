"""The uncore: what all logical processors of a machine share.  Memory, SEAM, time, and the engine.

It is made before the processors and handed to them.  It knows them only as :class:`Agent`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from swtdx.machine.cpu.package import Package
from swtdx.machine.engine.protocol import Engine, Wakeup
from swtdx.machine.memory import PhysicalMemory
from swtdx.machine.random import HardwareRandom
from swtdx.machine.seam import Seam

#: The core crystal clock, Hz.
CRYSTAL_HZ: Final = 25_000_000.0


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What the machine is built of."""

    packages: int = 1
    processors_per_package: int = 2
    memory_bytes: int = 4 << 30
    seed: bytes = b"swtdx"
    engine: str = "qemu"
    options: dict[str, Any] = field(default_factory=dict)


class Agent(Protocol):
    """A logical processor as it is reached from outside: by the rest of the machine, by SEAM software."""

    @property
    def index(self) -> int:
        """Its number in the machine, from 0."""
        ...

    @property
    def x2apic_id(self) -> int:
        """Where interrupts for it are sent."""
        ...

    @property
    def spaces(self) -> Mapping[tuple[int, ...], Any]:
        """Its translation caches by address space."""
        ...

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """CPUID outside a TD: EAX, EBX, ECX, EDX."""
        ...

    def rdmsr(self, index: int) -> int:
        """RDMSR; raises GeneralProtection as the instruction does."""
        ...

    def interrupt(self, vector: int) -> None:
        """An external interrupt arrives at its local APIC."""

    def addresses_changed(self) -> None:
        """TME was activated: physical addresses divide otherwise, and memory lost its contents."""

    @property
    def in_guest(self) -> bool:
        """Whether it runs a guest."""
        ...

    def forget_guests(self) -> None:
        """The VMCSs that are active on it are gone, with the memory that held them; so are translations."""


class Uncore:
    """See the module's docstring.  ``agents`` are the processors, which are added as they are made."""

    def __init__(self, config: MachineConfig, memory: PhysicalMemory, agents: Sequence[Agent]) -> None:
        self.config = config
        self.memory = memory
        self.agents = agents
        self.packages = [Package(number) for number in range(config.packages)]
        self.random = HardwareRandom(config.seed)
        self.seam = Seam(memory.lock)
        self.machine_checks: list[tuple[int, Exception]] = []
        #: Bytes of XSAVE image that guests' extended state takes at most.
        self.xstate_size = 0xC00
        self._engine: Engine | None = None
        memory.subscribe(self._frames_leave)
        #: Where the time-stamp counter goes on from, and its nominal frequency, in a machine that was saved.
        self.resumed: tuple[int, float] | None = None
        if memory.image is not None:
            memory.image.taken = self._frames_taken

    # ------------------------------------------------------------------ engine and time
    @property
    def engine(self) -> Engine:
        """The engine, started on first use.

        Raises:
            EngineError: it cannot be started.
        """
        if self._engine is None:
            self._engine = self._start_engine()
        return self._engine

    def start_engine(self) -> None:
        """Start the engine now (it comes up while other work is done)."""
        _ = self.engine

    def _start_engine(self) -> Engine:
        if self.config.engine == "qemu":
            from swtdx.machine.engine.qemu.engine import QemuEngine

            image = self.memory.image
            return QemuEngine(
                self.memory.frames_fd,
                self.memory.size,
                len(self.agents),
                None if image is None else (image.fd, image.start),
                None if self.resumed is None else self.resumed[0],
            )
        if self.config.engine == "qemu-root":
            from swtdx.machine.engine.qemu.root_engine import RootEngine

            self.memory.here()
            board = self.config.options.get("board", ()), self.config.options.get("board_fds", ())
            return RootEngine(self.memory.frames_fd, self.memory.size, len(self.agents), *board)
        if self.config.engine == "scripted":
            from swtdx.machine.engine.scripted.engine import ScriptedEngine

            # It looks at frames alone.
            self.memory.here()
            return ScriptedEngine(self.memory.frames, self.memory.lock, len(self.agents))
        raise ValueError(f"there is no engine called {self.config.engine!r}; choose qemu or scripted")

    def stop_engine(self) -> None:
        """Stop the engine, if it runs."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def tsc(self) -> int:
        """The time-stamp counter."""
        return self.engine.tsc()

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run the software of several processors, by index, side by side until all of it has returned.

        ``failed`` is told of an exception in one of them, and has to make the others return; then the first
        one is raised.
        """
        self.engine.together(programs, failed)

    def acquire(self, lp: int, lock: threading.Lock) -> None:
        """Have processor ``lp`` take a lock that the software of several shares."""
        if self._engine is None:
            lock.acquire()
        else:
            self._engine.acquire(lp, lock)

    def pause(self, lp: int, seconds: float) -> None:
        """Let processor ``lp`` do nothing for ``seconds`` of the host's time."""
        if self._engine is None:
            time.sleep(seconds)
        else:
            self._engine.pause(lp, seconds)

    def wait(self, lp: int, woken: Wakeup, seconds: float | None) -> bool:
        """Let processor ``lp`` idle until ``woken`` is set (True) or ``seconds`` pass (False).

        Seconds are those of the engine that has been started, which may have a time of its own.
        """
        if self._engine is None:
            return woken.wait(seconds)
        return self._engine.wait(lp, woken, seconds)

    @property
    def tsc_hz(self) -> float:
        """Its nominal frequency in Hz, as CPUID leaf 0x15 reports it: a multiple of the 25 MHz crystal.

        The engine's true rate differs by up to 12.5 MHz; so a TD whose TSC_FREQUENCY is the nominal
        one needs no scaling, and RDTSC stays native.
        """
        if self.resumed is not None:
            return self.resumed[1]
        return round(self.engine.tsc_hz / CRYSTAL_HZ) * CRYSTAL_HZ

    # ------------------------------------------------------------------ frames and the engine
    def frames_mapped(self, hpa: int, size: int) -> None:
        """The engine is about to map these frames for a guest that may execute them."""
        for stale in self.memory.executed(hpa, size):
            self.engine.rewrite(*stale)

    def code_written(self, hpa: int, size: int) -> None:
        """Software outside the engine wrote to frames that a guest may have executed."""
        if self._engine is not None and self.memory.written(hpa, size):
            start = hpa & -8
            self._engine.rewrite(start, (hpa + size + 7 & -8) - start)

    def _frames_leave(self, hpa: int, size: int) -> None:
        """Frames leave the cache: no translation may reach them any more."""
        for agent in self.agents:
            for space in tuple(agent.spaces.values()):
                space.drop(hpa, size)

    def _frames_taken(self, hpa: int, size: int) -> None:
        """Frames were brought in out of a snapshot's file: no translation may reach them there any more."""
        for agent in self.agents:
            for space in tuple(agent.spaces.values()):
                space.unlend(hpa, size)
