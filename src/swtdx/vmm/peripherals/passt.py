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
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from swtdx.vmm.peripherals.config import Forward, NetConfig
from swtdx.vmm.peripherals.errors import PeripheralError
from swtdx.vmm.peripherals.helper import Helper
from swtdx.vmm.peripherals.watch import WRITABLE, Watch

#: What QEMU's user network gives out.
GUEST_ADDRESS: Final = "10.0.2.15"
_GATEWAY: Final = "10.0.2.2"
_NETMASK: Final = "255.255.255.0"
#: No frame is longer; a longer one is no frame.
_LONGEST: Final = 128 << 10
#: Bytes that are read at once, and how many wait for the guest before no more are read.
_PIECE: Final = 256 << 10
_MOST_HELD: Final = 8 << 20
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
        for end in (self._stream, far):
            # As much as the host allows: what does not fit passt drops, and sends again much later.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_HELD)
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
        self._unsent = b""
        self._gone = False
        #: What has been read: pieces of the stream, and of those that :meth:`receive` has taken the rest.
        self._pieces: list[memoryview] = []
        self._held = 0
        self._closing = False
        self._changed = threading.Condition()
        self._rest = memoryview(b"")
        self._reader = threading.Thread(target=self._read, name="passt", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._reader.join()
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
            done = self._stream.sendmsg([size.to_bytes(4, "big"), *frame], (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._watch.arm(self._stream.fileno(), WRITABLE)
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
            self._unsent = self._unsent[self._stream.send(self._unsent, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            pass
        except OSError:
            self._gone = True
            self._unsent = b""
        if self._unsent:
            self._watch.arm(self._stream.fileno(), WRITABLE)
        return not self._unsent

    def receive(self) -> memoryview | None:
        """See :class:`swtdx.devices.virtio.net.Network`."""
        while not self._gone:
            rest = self._rest
            if len(rest) >= 4:
                end = 4 + int.from_bytes(rest[:4], "big")
                if end > _LONGEST:
                    self._gone = True
                    break
                if len(rest) >= end:
                    self._rest = rest[end:]
                    return rest[4:end]
            with self._changed:
                if not self._pieces:
                    break
                pieces, self._pieces, self._held = self._pieces, [], 0
                self._changed.notify()
            self._rest = memoryview(b"".join((rest, *pieces)))
        return None

    def _read(self) -> None:
        """Read all that comes, on a thread of its own: passt drops what is not read at once."""
        while True:
            piece = memoryview(bytearray(_PIECE))
            try:
                got = self._stream.recv_into(piece)
            except OSError:
                got = 0
            if not got:
                return
            with self._changed:
                while self._held > _MOST_HELD and not self._closing:
                    self._changed.wait()
                first = not self._pieces
                self._pieces.append(piece[:got])
                self._held += got
            if first:
                self._watch.wake()


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
