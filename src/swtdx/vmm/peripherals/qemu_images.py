"""Disk images in formats of other hypervisors, read and written by QEMU's own tools: no parser of ours.

``qemu-nbd`` (or ``qemu-storage-daemon``) has the image open and serves it on a Unix socket in a folder that
no one else can enter.  Images of untrusted origin may name other files of the host as their backing file;
QEMU opens those, as it does for any VM.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swtdx.vmm.peripherals.errors import PeripheralError
from swtdx.vmm.peripherals.helper import Helper
from swtdx.vmm.peripherals.nbd import NbdImage

#: Seconds until the server must answer.
_PATIENCE: Final = 20.0
_LOOK_AGAIN: Final = 0.005


class QemuImage(NbdImage):
    """An image (:class:`swtdx.devices.virtio.blk.Image`) in a format that QEMU knows.

    Args:
        path: the image.
        format: as QEMU calls it.
        read_only: never write.

    Raises:
        PeripheralError: there is no tool, or it cannot open the image; its own words follow.
    """

    def __init__(self, path: Path, format: str, *, read_only: bool) -> None:
        folder = Path(tempfile.mkdtemp(prefix="swtdx-nbd-"))
        self._helper: Helper | None = None
        try:
            address = folder / "s"
            self._helper = Helper(_command(path.absolute(), format, address, read_only))
            stream = _connected(self._helper, address, path)
            try:
                super().__init__(stream, read_only=read_only)
            except (OSError, PeripheralError):
                stream.close()
                # It may listen before it looks at the image, and hang up then.
                self._helper.wait()
                if self._helper.ended:
                    raise _refused(self._helper, path) from None
                raise
            except BaseException:
                stream.close()
                raise
        except OSError as error:
            self._end()
            raise PeripheralError(f"the disk {path}: {error.strerror or error}") from error
        except BaseException:
            self._end()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _end(self) -> None:
        if self._helper is not None:
            self._helper.close()

    def close(self) -> None:
        """Say good-bye, and wait until the image is closed."""
        super().close()
        if self._helper is not None:
            self._helper.wait()
        self._end()


def _command(path: Path, format: str, address: Path, read_only: bool) -> Sequence[str]:
    """The words that serve an image."""
    tool = shutil.which("qemu-nbd")
    if tool is not None:
        # It ends when its only client has gone.
        words = [tool, f"--format={format}", f"--socket={address}", "--cache=writeback", "--discard=unmap"]
        return [*words, *(["--read-only"] if read_only else []), "--", str(path)]
    tool = shutil.which("qemu-storage-daemon")
    if tool is None:
        raise PeripheralError(
            f"the disk {path} has the format {format}, which qemu-nbd reads; it is not installed "
            "(Debian, Ubuntu: package qemu-utils). Or convert the image: qemu-img convert -O raw"
        )
    on_off = "on" if read_only else "off"
    name = str(path).replace(",", ",,")
    return [
        tool,
        "--blockdev", f"driver=file,node-name=file,filename={name},read-only={on_off},discard=unmap",
        "--blockdev", f"driver={format},node-name=disk,file=file,read-only={on_off},discard=unmap",
        "--nbd-server", f"addr.type=unix,addr.path={address}",
        "--export", f"type=nbd,id=disk,node-name=disk,name=,writable={'off' if read_only else 'on'}",
    ]  # fmt: skip


def _refused(helper: Helper, path: Path) -> PeripheralError:
    return PeripheralError(f"the disk {path} cannot be opened by {helper.name}: {helper.words()}")


def _connected(helper: Helper, address: Path, path: Path) -> socket.socket:
    """A connection to the server, once it listens."""
    end = time.monotonic() + _PATIENCE
    stream = socket.socket(socket.AF_UNIX)
    try:
        while True:
            try:
                stream.connect(str(address))
                return stream
            except OSError:
                if helper.ended:
                    raise _refused(helper, path) from None
                if time.monotonic() > end:
                    raise PeripheralError(f"{helper.name} does not answer for the disk {path}") from None
            time.sleep(_LOOK_AGAIN)
    except BaseException:
        stream.close()
        raise
