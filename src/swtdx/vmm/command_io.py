"""The user's end of one command's streams: the channels of :mod:`swtdx.guests.exec_channels`.

What the guest prints besides (kernel messages, the serial port) goes to a log.  A guest whose kernel has no
virtio console ports sends the command's output over its console, between markers
(:mod:`swtdx.guests.exec_protocol`); that is understood too.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from swtdx.devices.virtio.ports import PortConfig, VirtioPorts
from swtdx.guests import exec_channels as channels
from swtdx.guests.exec_protocol import ExecStream
from swtdx.vmm.console import write_all

#: Input that may wait for the guest, in bytes, before no more is read.
_AHEAD: Final = 1 << 20
#: Seconds between looks whether the guest has taken its input.
_LOOK: Final = 0.02


@dataclass(slots=True)
class CommandIo:
    """Where a command's streams lead.

    Args:
        token: of the markers that a guest without ports puts around the output.
        stdout: takes the command's standard output; may raise OSError when that is closed.
        stderr: takes its standard error; None merges that into ``stdout``.
        stdin: a file descriptor to read the command's input from, to its end; None: there is no input.
        files: for each file that the job asks for, what takes its bytes, piece by piece.
        ended: called, on a vCPU's thread, when the command has ended and all has come that it has to send.
    """

    token: str
    stdout: Callable[[bytes], None]
    stderr: Callable[[bytes], None] | None = None
    stdin: int | None = None
    files: Sequence[Callable[[bytes], None]] = field(default_factory=tuple)
    ended: Callable[[], None] = lambda: None


class CommandStreams:
    """What has come of a command.

    Args:
        io: where its streams lead.
        log: takes what else the guest prints.
        broken: told in words when one of the user's ends is closed.
    """

    def __init__(self, io: CommandIo, log: Callable[[bytes], None], broken: Callable[[str], None]) -> None:
        self._io = io
        self._log = log
        self._broken = broken
        self._markers = ExecStream(io.token)
        self.control = channels.ControlStream(
            len(io.files), lambda number, data: self._to_user(io.files[number], data, "file")
        )

    def ports(self) -> tuple[PortConfig, ...]:
        """The channels to put on the board."""
        io = self._io
        ports = [PortConfig(channels.OUT, self._out)]
        if io.stderr is not None:
            ports.append(PortConfig(channels.ERR, self._err))
        if io.stdin is not None:
            ports.append(PortConfig(channels.IN, lambda _data: None))
        # The guest waits for this one, and then expects the others.
        ports.append(PortConfig(channels.CTL, self._ctl))
        return tuple(ports)

    def _ctl(self, data: bytes) -> None:
        self.control.feed(data)
        if self.control.status is not None:
            self._io.ended()

    def _out(self, data: bytes) -> None:
        self._to_user(self._io.stdout, data, "output")

    def _err(self, data: bytes) -> None:
        if self._io.stderr is not None:
            self._to_user(self._io.stderr, data, "error output")

    def _to_user(self, write: Callable[[bytes], None], data: bytes, what: str) -> None:
        try:
            write(data)
        except OSError as error:
            self._broken(f"the command's {what} was closed ({error.strerror})")

    def console(self, data: bytes) -> None:
        """What the guest prints on its console or serial port."""
        output = self._markers.feed(data)
        if output:
            self._to_user(self._io.stdout, output, "output")
        self._pass_log()

    def _pass_log(self) -> None:
        log = self._markers.take_log()
        if log:
            self._log(log)

    def finish(self) -> int | None:
        """The run is over; the command's exit status, or None if it did not end."""
        rest = self._markers.finish()
        if rest:
            self._to_user(self._io.stdout, rest, "output")
        self._pass_log()
        return self.control.status if self.control.status is not None else self._markers.status

    def missing_files(self) -> dict[int, str]:
        """Files that did not come, by number, and why."""
        came, why = self.control.files, self.control.missing
        if not self.control.started:
            why = dict.fromkeys(range(len(self._io.files)), "the guest's kernel has no virtio console ports")
        return {
            number: why.get(number, "the command did not end")
            for number in range(len(self._io.files))
            if number not in came
        }

    @contextlib.contextmanager
    def attached(self, device: VirtioPorts | None) -> Iterator[None]:
        """Carry the command's input to ``device`` for as long as the context lasts."""
        if self._io.stdin is None or device is None:
            yield
            return
        stop, stopped = os.pipe()
        thread = threading.Thread(
            target=_carry, args=(self._io.stdin, device, stop), name="swtdx stdin", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            os.write(stopped, b"!")
            thread.join()
            os.close(stop)
            os.close(stopped)


def _carry(source: int, device: VirtioPorts, stop: int) -> None:
    """Read ``source`` to its end, no faster than the guest takes it."""
    while True:
        full = device.pending_at(channels.IN) >= _AHEAD
        ready, _, _ = select.select([stop] if full else [source, stop], [], [], _LOOK if full else None)
        if stop in ready:
            return
        if full:
            continue
        try:
            data = os.read(source, 65536)
        except OSError:
            data = b""
        if not data:
            device.end(channels.IN)
            return
        device.send_to(channels.IN, data)


def to_descriptor(descriptor: int) -> Callable[[bytes], None]:
    """A writer to a file descriptor; it raises OSError when that is closed."""
    return lambda data: write_all(descriptor, data)
