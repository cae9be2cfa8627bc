"""The QEMU process of a machine whose root world is machine code: its board is that software's, too."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final

from swtdx.arch.units import PAGE
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.ordering import fence
from swtdx.machine.engine.qemu.process import QemuProcess, interrupt_message

#: The data of an interrupt message that is an NMI: delivery mode 4 (SDM volume 3, section 11.11.2).
_NMI: Final = 4 << 8


class RootProcess(QemuProcess):
    """See the module's docstring.

    Local APICs, I/O APIC, interrupt controllers, timers and clock are the root world's own; ``devices`` are
    more words of QEMU's command line, for what else it is to have.  So a processor is woken, and stopped, by
    the one interrupt that cannot be masked.
    """

    stub: ClassVar[str] = "root_stub.bin"

    def __init__(
        self, frames_fd: int, frames_size: int, cpus: int, devices: Sequence[str], fds: Sequence[int]
    ) -> None:
        """``fds``: open files that ``devices`` name by number.

        Raises:
            EngineError: see :class:`QemuProcess`.
        """
        self._devices = list(devices)
        self.more_fds = tuple(fds)
        self._owed_lock = threading.Lock()
        self._fence: AbstractContextManager[Any] = fence()
        self._nmis = [interrupt_message(cpu, _NMI) for cpu in range(cpus)]
        super().__init__(frames_fd, frames_size, cpus)

    def _command(
        self, path: str, frames_fd: int, rom: int, kick: socket.socket, bells: list[socket.socket]
    ) -> list[str]:
        command = super()._command(path, frames_fd, rom, kick, bells)
        board = command.index("-machine") + 1
        # What is on the board without being asked for, and could store into memory by itself.
        command[board] += ",sata=off,smbus=off"
        return command + self._devices

    def wake(self, cpu: int, *, kick: bool) -> None:
        """Send an NMI to processor ``cpu``, unless one is on its way: see ``isr_nmi`` in ``stub.S``.

        With ``kick`` the processor leaves the guest, or does not enter it at the next RUN.
        """
        mailbox = at.MAILBOX + cpu * PAGE
        with self._owed_lock:
            if kick:
                struct.pack_into("<I", self.memory, mailbox + at.MB_KICKED, 1)
            # The stub looks the other way round: it says that the NMI has come, then looks who wants what.
            with self._fence:
                pass
            if struct.unpack_from("<I", self.memory, mailbox + at.MB_OWED)[0]:
                return
            struct.pack_into("<I", self.memory, mailbox + at.MB_OWED, 1)
            self._send(self._nmis[cpu])
