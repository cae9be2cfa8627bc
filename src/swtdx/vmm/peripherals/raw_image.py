"""A disk image as it is: a file, or a block device."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from swtdx.vmm.peripherals.errors import PeripheralError

#: Views for one preadv or pwritev (IOV_MAX of Linux).
_MOST_VIEWS: Final = 1024
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 0x10
#: Zeros that are written where a file system cannot make them without.
_ZEROS: Final = bytes(1 << 20)
_UNABLE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENODEV)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


class RawImage:
    """The image (:class:`swtdx.devices.virtio.blk.Image`); holes stay holes.

    Args:
        path: an existing file or block device.
        read_only: it is opened so.

    Raises:
        PeripheralError: it cannot be opened, or another TD writes to it.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.read_only = read_only
        try:
            self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
        except OSError as error:
            raise PeripheralError(f"the disk {path} cannot be opened: {error.strerror}") from error
        try:
            self._check(path, read_only)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            if not self.size:
                raise PeripheralError(f"the disk {path} is empty: make it larger, as by truncate -s 1G")
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def over(cls, fd: int) -> RawImage:
        """The image in a file that is open already, even one without a name."""
        return cls(Path(f"/proc/self/fd/{fd}"), read_only=False)

    def _check(self, path: Path, read_only: bool) -> None:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise PeripheralError(f"the disk {path} is neither a file nor a block device")
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PeripheralError(
                f"the disk {path} is in use by another TD; two that write would destroy it: "
                "give each a copy, or snapshot=on"
            ) from None
        except OSError:
            pass  # a file system without locks

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views`` from ``offset`` on; past the end of the file with zeros.

        Raises:
            OSError: the file cannot be read.
        """
        left = _move(views, offset, lambda part, at: os.preadv(self._fd, part, at))
        for view in left:
            view[:] = bytes(len(view))

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store ``views`` from ``offset`` on.

        Raises:
            OSError: the file cannot be written.
        """
        if _move(views, offset, lambda part, at: os.pwritev(self._fd, part, at)):
            raise OSError(errno.EIO, "nothing could be written")

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make ``length`` bytes zeros; with ``unmap`` they become a hole.

        Raises:
            OSError: the file cannot be written.
        """
        modes = (_PUNCH_HOLE | _KEEP_SIZE,) if unmap else (_ZERO_RANGE | _KEEP_SIZE,)
        for mode in modes:
            if _libc.fallocate(self._fd, mode, offset, length) == 0:
                return
            code = ctypes.get_errno()
            if code not in _UNABLE:
                raise OSError(code, os.strerror(code))
        for at in range(offset, offset + length, len(_ZEROS)):
            part = memoryview(_ZEROS)[: min(len(_ZEROS), offset + length - at)]
            self.write(at, [part])

    def flush(self) -> None:
        """fsync.

        Raises:
            OSError: the data may be lost.
        """
        os.fsync(self._fd)


def _move(
    views: Sequence[memoryview], offset: int, call: Callable[[Sequence[memoryview], int], int]
) -> list[memoryview]:
    """Move all of ``views`` by calls that may stop short; what is left at the end of the file."""
    left = list(views)
    while left:
        part = left[:_MOST_VIEWS]
        wanted = sum(map(len, part))
        done = call(part, offset)
        offset += done
        if done == wanted:
            del left[:_MOST_VIEWS]
            continue
        if not done:
            return left
        while done:
            first = left[0]
            if done < len(first):
                left[0] = first[done:]
                break
            done -= len(first)
            del left[0]
    return left
