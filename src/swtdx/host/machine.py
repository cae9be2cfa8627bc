"""The machine with an operating system on it: from the firmware to its power-off."""

from __future__ import annotations

import functools
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from swtdx.guests.kernel import KernelImage
from swtdx.host import loader
from swtdx.host.lines import Lines, Sink
from swtdx.host.ports import HostPorts
from swtdx.machine.engine.qemu.root_engine import RootEngine
from swtdx.machine.machine import MachineConfig
from swtdx.machine.root.world import RootWorld
from swtdx.platform import Platform, PlatformConfig

#: What every host kernel here is told.  The machine's time-stamp counter is as steady as the host's; nothing
#: on the board could judge it.
CMDLINE: Final = "console=ttyS0,115200 tsc=reliable"
#: How often a processor that waits to be started looks into the mailbox, in seconds.
_LOOK: Final = 0.002
#: The mailbox: command (u16), APIC id (u32 at 4), wakeup vector (u64 at 8); command 1 wakes.
_WAKE: Final = 1


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The machine that a host gets: ``memory`` in bytes, ``processors`` in one package."""

    memory: int = 2 << 30
    processors: int = 1
    seed: bytes = b"swtdx"


@dataclass(frozen=True, slots=True)
class HostEnd:
    """How a host's run ended.

    ``why`` is "power off", "reset", "triple fault" or "timeout"; ``seconds`` is from the kernel's first
    instruction on; ``stops`` says how often the engine left the host's code, by kind, on all processors.
    """

    why: str
    seconds: float
    stops: Counter[str] = field(default_factory=Counter)


class HostMachine:
    """A machine whose firmware has run, ready for :meth:`run`.  Also a context manager.

    ``sinks`` take what the host sends over its serial lines: the console first.

    Raises:
        FirmwareError, EngineError, ValueError: as :meth:`Platform.boot`.
    """

    def __init__(self, config: HostConfig, sinks: Sequence[Sink]) -> None:
        self.lines = Lines(sinks)
        options = {"board": self.lines.devices, "board_fds": self.lines.fds}
        try:
            self.platform = Platform.boot(
                PlatformConfig(
                    machine=MachineConfig(
                        processors_per_package=config.processors,
                        memory_bytes=config.memory,
                        seed=config.seed,
                        engine="qemu-root",
                        options=options,
                    ),
                    start_engine=True,
                )
            )
        except BaseException:
            self.lines.close()
            raise
        self.lines.start()
        self._worlds: list[RootWorld] = []
        self._why: str | None = None
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ running
    def run(self, kernel: KernelImage, initrd: bytes, cmdline: str, timeout: float | None = None) -> HostEnd:
        """Boot ``kernel``; return when the host has ended, or after ``timeout`` seconds.

        Raises:
            HostError: kernel and initrd do not fit.
            EngineError: QEMU failed.
        """
        machine = self.platform.machine
        entry = loader.load(machine, kernel, initrd, cmdline)
        ports = HostPorts(self.end)
        engine = machine.engine
        assert isinstance(engine, RootEngine), "it is what was asked for"
        engine.stop_at_ports(ports.stopping)
        self._worlds = [RootWorld(lp, loader.BOARD, ports) for lp in machine.processors]
        programs = {}
        for world in self._worlds:
            first = world is self._worlds[0]
            programs[world.lp.index] = (
                functools.partial(self._first, world, entry)
                if first
                else functools.partial(self._other, world)
            )
        timer = threading.Timer(timeout, self.end, ("timeout",)) if timeout is not None else None
        started = time.monotonic()
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            machine.together(programs, lambda _: self.end("failure"))
        finally:
            if timer is not None:
                timer.cancel()
        stops: Counter[str] = Counter()
        for world in self._worlds:
            stops.update({stop.name: count for stop, count in world.stops.items()})
        return HostEnd(self._why or "failure", time.monotonic() - started, stops)

    def end(self, why: str) -> None:
        """The host has ended, or is to.  Any thread may call; the first reason counts."""
        with self._lock:
            if self._why is None:
                self._why = why
        for world in self._worlds:
            world.stop(why)

    def _execute(self, world: RootWorld) -> None:
        world.run()
        if world.ended == "triple fault":
            self.end(world.ended)

    def _first(self, world: RootWorld, entry: loader.Entry) -> None:
        world.start(entry.rip, page_table=loader.PML4, gdt=loader.GDT, rsi=entry.rsi)
        self._execute(world)

    def _other(self, world: RootWorld) -> None:
        """Wait in the firmware's loop until the operating system starts this processor."""
        memory, lp = self.platform.machine.memory, world.lp
        while self._why is None:
            command, apic, vector = struct.unpack("<HxxIQ", memory.read(loader.MAILBOX, 16))
            if command == _WAKE and apic == lp.x2apic_id:
                memory.write(loader.MAILBOX, bytes(2))
                world.start(vector, page_table=loader.PML4, gdt=loader.GDT)
                self._execute(world)
                return
            lp.pause(_LOOK)

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Free everything.  Idempotent."""
        self.platform.close()
        self.lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
