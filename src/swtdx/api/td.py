"""What all TDs of the public interface have: the machine they run on, hooks at their exits, their end."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Self

from swtdx.devices.dma import DmaError
from swtdx.vmm.errors import VmmError
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.td_exit import Hook
from swtdx.vmm.td_exit import TdExit as Exit

if TYPE_CHECKING:
    from swtdx.api.platform import Platform
    from swtdx.vmm.machine_io import MachineIo
    from swtdx.vmm.run import Runner
    from swtdx.vmm.td import Td as InnerTd

__all__ = ["EndReason", "Exit", "Hook", "RunResult", "Td", "TdEnded"]

#: Exits that are remembered to show how a run came to its end.
_LAST: Final = 40


class TdEnded(VmmError):
    """A TD has ended and cannot do what it was asked for; ``result`` says how, None if it was closed."""

    def __init__(self, message: str, result: RunResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class Td:
    """A trust domain on a platform.  Made by ``platform.scripted(...)`` or ``platform.linux(...)``.

    A context manager: :meth:`close` gives its memory and its key back.
    """

    def __init__(self, platform: Platform, td: InnerTd, io: MachineIo, runner: Runner) -> None:
        self.platform = platform
        self._td = td
        self._io = io
        self._runner = runner
        self._hooks: list[Hook] = []
        self._last: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=_LAST)
        self._console = bytearray()
        self._closed = False
        #: How its latest run ended; None before the first.
        self.result: RunResult | None = None
        for worker in runner.workers:
            worker.hook = self._exit

    # ------------------------------------------------------------------ exits
    def on_exit(self, hook: Hook) -> Hook:
        """Have ``hook`` called with every TD exit of this TD, before the hypervisor handles it.

        Several are called in the order in which they came; those of the platform's hypervisor come first.
        Usable as a decorator.  What a hook raises ends the run and comes out of it.
        """
        self._hooks.append(hook)
        return hook

    def remove_hook(self, hook: Hook) -> None:
        """Do not call ``hook`` any more.  Nothing happens if it was none."""
        self._hooks = [one for one in self._hooks if one is not hook]

    def _exit(self, exit: Exit) -> None:
        self._last.append((exit.vcpu, exit.registers))
        for hook in (*self.platform.hooks, *self._hooks):
            if exit.handled and not exit.goes_on:
                return
            hook(exit)

    def last_exits(self) -> list[str]:
        """The latest TD exits in words, at most 40, the last one last."""
        return [str(Exit(vcpu, list(gpr), bool, _nowhere)) for vcpu, gpr in self._last]

    # ------------------------------------------------------------------ what can be seen from outside
    @property
    def console(self) -> bytes:
        """What the guest has printed on its console and its serial port."""
        return bytes(self._console)

    @property
    def tdr(self) -> int:
        """HPA of the TD's root page, which SEAMCALLs name it by.

        Raises:
            TdEnded: the TD was closed.
        """
        self._need_open()
        return self._td.root

    @property
    def vcpus(self) -> list[int]:
        """HPAs of its vCPUs' root pages (TDVPR), by index."""
        self._need_open()
        return [vcpu.tdvpr for vcpu in self._td.vcpus]

    def hpa(self, gpa: int) -> int | None:
        """Where the hypervisor has put the page of a GPA, private or shared; None if there is none."""
        self._need_open()
        shared_bit = self._td.config.shared_bit
        if gpa & shared_bit:
            return self._td.shared.translate(gpa & ~shared_bit)
        page, offset = gpa & -4096, gpa & 4095
        private = self._td.private
        if page in private.small:
            return private.small[page] + offset
        block = gpa & -(2 << 20)
        return private.large[block] + gpa - block if block in private.large else None

    def read_shared(self, gpa: int, size: int) -> bytes:
        """Memory that the TD shares, as its devices read it; ``gpa`` without the shared bit.

        Raises:
            ValueError: some of it is not shared.
        """
        self._need_open()
        try:
            return self._io.dma.read(gpa, size)
        except DmaError as error:
            raise ValueError(str(error)) from None

    def write_shared(self, gpa: int, data: bytes) -> None:
        """Store bytes in memory that the TD shares.

        Raises:
            ValueError: some of it is not shared; nothing was stored.
        """
        self._need_open()
        try:
            self._io.dma.write(gpa, data)
        except DmaError as error:
            raise ValueError(str(error)) from None

    def debug_read(self, gpa: int, size: int) -> bytes:
        """Private memory of a TD with ATTRIBUTES.DEBUG, by TDH.MEM.RD.

        Raises:
            VmmError: it is not a debug TD, or there is no page.
        """
        self._need_open()
        return self._td.debug_read(gpa, size)

    def interrupt(self, vector: int, vcpu: int = 0) -> None:
        """Post an external interrupt to a vCPU (31 to 255; the module lets no other in)."""
        self._need_open()
        self._td.vcpus[vcpu].post(vector)

    def stop(self, why: str = "stopped") -> None:
        """End the run that is going on, from any thread or hook."""
        self._runner.stop(EndReason.STOPPED, why)

    # ------------------------------------------------------------------ the end
    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def _need_open(self) -> None:
        if self._closed:
            raise TdEnded("the TD was closed")

    def close(self) -> None:
        """Take the TD down: pages and key go back to the hypervisor.  Idempotent.

        Raises:
            VmmError: the module does not let go of something.
        """
        if not self._closed:
            self._closed = True
            self.platform.forget(self)
            self._td.teardown()

    def lost(self) -> None:
        """The machine is switched off, and the TD is gone with it."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nowhere(_why: str) -> None:
    """For exits that are only shown."""
