"""A client of the network block device protocol, as far as a disk needs it.

Fixed newstyle negotiation and simple replies.  The server is a process of ours or of the user's, and may fail
at any time or answer anything: all of that is an OSError, and the guest sees I/O errors from then on.

Source: the description of the protocol that the NetworkBlockDevice project keeps.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final

from swtdx.vmm.peripherals.overlay import take

_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_OPT_GO: Final = 7
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_REP_ERROR: Final = 1 << 31
_INFO_EXPORT: Final = 0
_READ_ONLY: Final = 1 << 1
_CAN_FLUSH: Final = 1 << 2
_CAN_ZERO: Final = 1 << 6

_READ: Final = 0
_WRITE: Final = 1
_DISC: Final = 2
_FLUSH: Final = 3
_ZERO: Final = 6
_NO_HOLE: Final = 1 << 1
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698
#: Bytes of one request at most; servers must take 32 MiB.
_MOST: Final = 8 << 20
#: Option replies longer than this are nonsense, and more of them, too.
_LONGEST_OPTION: Final = 64 << 10
_MOST_OPTIONS: Final = 64
#: Errors of the protocol are Linux's numbers; others are EIO.
_ERRORS: Final = frozenset({errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.ENOTSUP})
#: Seconds that a server may take for one request.
_PATIENCE: Final = 60.0


class NbdImage:
    """An image (:class:`swtdx.devices.virtio.blk.Image`) behind a server.

    Args:
        stream: connected to it; closed at the end.
        export: the name of the image there.
        read_only: never write.
        patience: seconds that the server may take for one request.

    Raises:
        OSError: the server is none, or has no such export.
    """

    def __init__(
        self, stream: socket.socket, export: str = "", *, read_only: bool, patience: float = _PATIENCE
    ) -> None:
        self._stream = stream
        stream.settimeout(patience)
        self._number = 0
        self.size = 0
        self._flags = 0
        #: The stream is not where a request may begin.
        self._broken = False
        #: Bytes of a read that have not come yet.
        self._due = 0
        self._negotiate(export)
        self.read_only = read_only or bool(self._flags & _READ_ONLY)

    def close(self) -> None:
        """Say good-bye."""
        try:
            if not self._broken:
                self._stream.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISC, self._number, 0, 0))
        except OSError:
            pass
        self._stream.close()

    # ------------------------------------------------------------------ negotiation
    def _negotiate(self, export: str) -> None:
        if self._take(16) != _MAGIC + _OPTION_MAGIC:
            raise _nonsense("is no NBD server of the newstyle protocol")
        flags = int.from_bytes(self._take(2), "big")
        if not flags & _FIXED_NEWSTYLE:
            raise _nonsense("does not speak the fixed newstyle protocol")
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._stream.sendall(
            struct.pack(">I", _FIXED_NEWSTYLE | flags & _NO_ZEROES)
            + _OPTION_MAGIC
            + struct.pack(">II", _OPT_GO, len(data))
            + data
        )
        for _ in range(_MOST_OPTIONS):
            magic, option, kind, length = struct.unpack(">QIII", self._take(20))
            if magic != _OPTION_REPLY_MAGIC or option != _OPT_GO or length > _LONGEST_OPTION:
                raise _nonsense("answers with something else than the protocol has")
            data = self._take(length)
            if kind == _REP_ACK:
                if not self.size:
                    raise _nonsense("has an export without a size")
                return
            if kind & _REP_ERROR:
                words = data.decode("utf-8", "replace")
                raise _nonsense(f"refuses the export {export!r}: {words or hex(kind)}")
            if kind == _REP_INFO and len(data) == 12 and data[:2] == bytes(2):
                self.size, self._flags = struct.unpack(">QH", data[2:])
                if self.size >= 1 << 63:
                    raise _nonsense("has an export of an impossible size")
        raise _nonsense("does not come to an end with its answers")

    # ------------------------------------------------------------------ requests
    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views`` from ``offset`` on; past the export's end with zeros.

        Raises:
            OSError: the server fails.
        """
        left = list(views)
        inside = max(0, min(sum(map(len, views)), self.size - offset))
        while inside:
            size = min(inside, _MOST)
            part = take(left, size)
            self._request(_READ, offset, size)
            for view in part:
                self._fill(view)
            offset += size
            inside -= size
        for view in left:
            view[:] = bytes(len(view))

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store ``views`` from ``offset`` on.

        Raises:
            OSError: the server fails.
        """
        left = list(views)
        rest = sum(map(len, views))
        while rest:
            size = min(rest, _MOST)
            self._request(_WRITE, offset, size, take(left, size))
            offset += size
            rest -= size

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make ``length`` bytes zeros.

        Raises:
            OSError: the server fails.
        """
        end = offset + length
        while offset < end:
            size = min(end - offset, _MOST)
            if self._flags & _CAN_ZERO:
                self._request(_ZERO, offset, size, flags=0 if unmap else _NO_HOLE)
            else:
                self.write(offset, [memoryview(bytes(size))])
            offset += size

    def flush(self) -> None:
        """Have the server make everything last.

        Raises:
            OSError: the server fails.
        """
        if self._flags & _CAN_FLUSH:
            self._request(_FLUSH, 0, 0)

    def _request(
        self, kind: int, offset: int, size: int, data: Sequence[memoryview] = (), flags: int = 0
    ) -> None:
        """One request, and the head of its reply."""
        if self._broken:
            raise OSError(errno.EIO, "the NBD server is gone")
        self._number += 1
        self._broken = True
        head = _REQUEST.pack(_REQUEST_MAGIC, flags, kind, self._number, offset, size)
        self._stream.sendall(head)
        for view in data:
            self._stream.sendall(view)
        magic, error, number = _REPLY.unpack(self._take(_REPLY.size))
        if magic != _REPLY_MAGIC or number != self._number:
            raise _nonsense("answers with something else than the protocol has")
        if kind == _READ and not error:
            self._due = size
        else:
            self._broken = False
        if error:
            raise OSError(error if error in _ERRORS else errno.EIO, "the NBD server reports an error")

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            got = self._stream.recv_into(view[done:])
            if not got:
                raise OSError(errno.EIO, "the NBD server has ended")
            done += got
        self._due -= done
        if not self._due:
            self._broken = False

    def _take(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            got = self._stream.recv_into(view[done:])
            if not got:
                raise OSError(errno.EIO, "the NBD server has ended")
            done += got
        return bytes(data)


def _nonsense(what: str) -> OSError:
    return OSError(errno.EPROTO, f"the NBD server {what}")
