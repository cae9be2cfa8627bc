"""A network as the host's user has it, by ``passt``: no root, no bridge, ports forwarded into the guest.

passt translates between frames and the host's own sockets.  It gives the guest an address by DHCP, QEMU's
10.0.2.15 with 10.0.2.2 as its gateway, and frames of up to 64 KiB.  It runs as a process of its own and gets
one end of a pair of sockets, on which each frame follows its length (4 bytes, big-endian).

Source: ``passt(1)``; QEMU's ``-netdev stream`` has the same form.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from swtdx.vmm.peripherals.config import Forward, NetConfig
from swtdx.vmm.peripherals.errors import PeripheralError
from swtdx.vmm.peripherals.helper import Helper
from swtdx.vmm.peripherals.watch import READABLE, WRITABLE, Watch

#: What QEMU's user network gives out.
GUEST_ADDRESS: Final = "10.0.2.15"
_GATEWAY: Final = "10.0.2.2"
_NETMASK: Final = "255.255.255.0"
#: No frame is longer; a longer one is no frame.
_LONGEST: Final = 128 << 10
_BUFFER: Final = 1 << 20
#: Seconds for passt to say what it gives the guest, or that it cannot.
_PATIENCE: Final = 5.0
_LOOK_AGAIN: Final = 0.005


class Passt:
    """The network (:class:`swtdx.devices.virtio.net.Network`).

    Args:
        config: which ports are forwarded.

    Raises:
        PeripheralError: passt is missing, or cannot work; its own words follow.
    """

    def __init__(self, config: NetConfig) -> None:
        tool = shutil.which("passt")
        if tool is None:
            raise PeripheralError(
                "--net user needs passt, which is not installed (Debian, Ubuntu: package passt)"
            )
        _check_free(config.forwards)
        self._stream, far = socket.socketpair()
        self._watch = Watch()
        try:
            with far:
                far.set_inheritable(True)
                self._helper = Helper(_command(tool, far.fileno(), config.forwards), (far.fileno(),))
            _await(self._helper)
        except BaseException:
            self._watch.close()
            self._stream.close()
            raise
        self._stream.setblocking(False)
        self._unsent = b""
        self._buffer = bytearray(_BUFFER)
        self._start = self._end = 0
        self._gone = False

    def close(self) -> None:
        """End it."""
        self._watch.close()
        self._stream.close()
        self._helper.close()

    def connect(self, wake: Callable[[], None]) -> None:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        self._watch.wake = wake

    def send(self, frame: Sequence[memoryview]) -> bool:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        if self._gone:
            return True
        if self._unsent and not self._finish():
            return False
        size = sum(map(len, frame))
        try:
            done = self._stream.sendmsg([size.to_bytes(4, "big"), *frame])
        except BlockingIOError:
            self._watch.arm(self._stream.fileno(), READABLE | WRITABLE)
            return False
        except OSError:
            self._gone = True
            return True
        if done < size + 4:
            self._unsent = b"".join((size.to_bytes(4, "big"), *frame))[done:]
        return True

    def _finish(self) -> bool:
        """Send the rest of a frame; whether it is all sent."""
        try:
            self._unsent = self._unsent[self._stream.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._gone = True
            self._unsent = b""
        if self._unsent:
            self._watch.arm(self._stream.fileno(), READABLE | WRITABLE)
        return not self._unsent

    def receive(self) -> memoryview | None:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        while not self._gone:
            have = self._end - self._start
            if have >= 4:
                start = self._start + 4
                size = int.from_bytes(self._buffer[self._start : start], "big")
                if size > _LONGEST:
                    self._gone = True
                    return None
                if have >= 4 + size:
                    self._start = start + size
                    return memoryview(self._buffer)[start : start + size]
            if not self._more():
                break
        return None

    def _more(self) -> bool:
        """Read as much as there is; whether there was any."""
        have = self._end - self._start
        if self._start:
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have
        try:
            got = self._stream.recv_into(memoryview(self._buffer)[self._end :])
        except BlockingIOError:
            self._watch.arm(self._stream.fileno(), READABLE | (WRITABLE if self._unsent else 0))
            return False
        except OSError:
            got = 0
        self._end += got
        self._gone = self._gone or not got
        return got > 0


def _await(helper: Helper) -> None:
    """Wait until passt has said how it is configured.

    Raises:
        PeripheralError: it has ended instead.
    """
    end = time.monotonic() + _PATIENCE
    while not any(line.startswith("DHCP") for line in helper.lines()) and time.monotonic() < end:
        if helper.ended:
            words = "; ".join(line for line in helper.lines() if "syslog" not in line)
            helper.close()
            raise PeripheralError(f"passt cannot work here: {words}")
        time.sleep(_LOOK_AGAIN)


def _command(tool: str, fd: int, forwards: Sequence[Forward]) -> list[str]:
    """passt's words."""
    words = [
        tool, "--foreground", "--stderr", "--ipv4-only", "--fd", str(fd),
        "--address", GUEST_ADDRESS, "--netmask", _NETMASK, "--gateway", _GATEWAY,
    ]  # fmt: skip
    for forward in forwards:
        option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        words += [option, f"{forward.host_address}/{forward.host_port}:{forward.guest_port}"]
    return words


def _check_free(forwards: Sequence[Forward]) -> None:
    """Find out which port is taken: passt would say it less plainly, or go on without."""
    for forward in forwards:
        family = socket.AF_INET6 if ":" in forward.host_address else socket.AF_INET
        kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as probe:
            with contextlib.suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((forward.host_address, forward.host_port))
            except OSError as error:
                raise PeripheralError(
                    f"port {forward.host_port} ({forward.protocol}) of {forward.host_address} cannot be "
                    f"forwarded: {error.strerror}; choose another one"
                ) from error
