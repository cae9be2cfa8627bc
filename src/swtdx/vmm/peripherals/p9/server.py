"""The server: a request in, its reply out, and the shared folder changed.

It acts as the user that swtdx runs as: files belong to that user, whatever the guest's user is.  Set-user-id
and device files are not made: what a guest leaves in the folder is no danger for the host's users.

Source: the description of 9P2000.L (:mod:`swtdx.vmm.peripherals.p9.messages`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from swtdx.vmm.peripherals.descriptors import descriptors
from swtdx.vmm.peripherals.errors import PeripheralError
from swtdx.vmm.peripherals.folder import MODE, MOST_BYTES, checked, moment, place
from swtdx.vmm.peripherals.p9.messages import (
    HEAD,
    MOST_NAMES,
    NO_FID,
    Body,
    Kind,
    Malformed,
    text,
)
from swtdx.vmm.peripherals.p9.nodes import Fid, Node, qid

_VERSION: Final = b"9P2000.L"
_FEWEST_BYTES: Final = 4096
#: What a client may ask for when it opens or makes a file (Linux's numbers, which are the protocol's).
_OPEN_FLAGS: Final = os.O_ACCMODE | os.O_TRUNC | os.O_DIRECTORY | os.O_SYNC | os.O_DSYNC
#: Valid bits of SETATTR.
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_ATIME, _SET_MTIME = 1, 2, 4, 8, 16, 32
_SET_ATIME_TO, _SET_MTIME_TO = 128, 256
#: What GETATTR answers: everything but birth time, generation and data version.
_BASIC: Final = 0x7FF
_ATTRIBUTES: Final = struct.Struct("<Q13sIII15Q")
_STATFS: Final = struct.Struct("<IIQQQQQQI")
_V9FS_MAGIC: Final = 0x01021997
_LOCK_SUCCESS: Final = 0
_UNLOCKED: Final = 2
_AT_REMOVEDIR: Final = 0x200


class FileServer:
    """The server (:class:`swtdx.devices.virtio.p9.FileServer`).

    Args:
        path: the folder.
        read_only: refuse all that would change it.

    Raises:
        PeripheralError: there is no such folder.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._read_only = read_only
        try:
            self._root = Node.root(path)
        except OSError as error:
            raise PeripheralError(f"the folder {path} cannot be shared: {error.strerror}") from error
        self._fids: dict[int, Fid] = {}
        self._msize = _FEWEST_BYTES
        # Each is a descriptor or two of ours.
        self._most_fids = descriptors() // 4
        self._handlers: dict[int, Callable[[Body, int], bytes]] = {
            Kind.VERSION: self._version,
            Kind.ATTACH: self._attach,
            Kind.WALK: self._walk,
            Kind.CLUNK: self._clunk,
            Kind.FLUSH: self._flush,
            Kind.GETATTR: self._getattr,
            Kind.STATFS: self._statfs,
            Kind.LOPEN: self._open,
            Kind.READ: self._read,
            Kind.READDIR: self._readdir,
            Kind.READLINK: self._readlink,
            Kind.LOCK: self._lock,
            Kind.GETLOCK: self._getlock,
            Kind.FSYNC: self._fsync,
        }
        self._changers: dict[int, Callable[[Body, int], bytes]] = {
            Kind.LCREATE: self._create,
            Kind.WRITE: self._write,
            Kind.SETATTR: self._setattr,
            Kind.MKDIR: self._mkdir,
            Kind.SYMLINK: self._symlink,
            Kind.LINK: self._link,
            Kind.RENAME: self._rename,
            Kind.RENAMEAT: self._renameat,
            Kind.UNLINKAT: self._unlinkat,
            Kind.REMOVE: self._remove,
        }

    def reset(self) -> None:
        """See :class:`swtdx.devices.virtio.p9.FileServer`."""
        for fid in self._fids.values():
            fid.close()
        self._fids.clear()

    def close(self) -> None:
        """Give everything back."""
        self.reset()
        self._root.close()

    def handle(self, request: bytes, room: int) -> bytes:
        """See :class:`swtdx.devices.virtio.p9.FileServer`."""
        if len(request) < HEAD.size or room < HEAD.size + 4:
            return b""
        size, kind, tag = HEAD.unpack_from(request)
        try:
            if not HEAD.size <= size <= len(request):
                raise Malformed
            body = self._do(kind, Body(request[:size], HEAD.size), room - HEAD.size)
            reply = kind + 1
        except Malformed:
            reply, body = Kind.LERROR + 1, _error(errno.EPROTO)
        except OSError as error:
            reply, body = Kind.LERROR + 1, _error(error.errno or errno.EIO)
        except (OverflowError, ValueError):
            # A number or a name that the host's interfaces do not take.
            reply, body = Kind.LERROR + 1, _error(errno.EINVAL)
        if HEAD.size + len(body) > room:
            reply, body = Kind.LERROR + 1, _error(errno.EMSGSIZE)
        return HEAD.pack(HEAD.size + len(body), reply, tag) + body

    def _do(self, kind: int, body: Body, room: int) -> bytes:
        handler = self._handlers.get(kind)
        if handler is None:
            handler = self._changers.get(kind)
            if handler is None:
                # Also extended attributes, device files, and users that prove who they are.
                raise OSError(errno.EOPNOTSUPP, "not here")
            if self._read_only:
                raise OSError(errno.EROFS, "the folder is shared for reading")
        return handler(body, min(room, self._msize - HEAD.size))

    def _fid(self, number: int) -> Fid:
        fid = self._fids.get(number)
        if fid is None:
            raise OSError(errno.EBADF, "no such fid")
        return fid

    def _opened(self, number: int) -> int:
        file = self._fid(number).file
        if file is None:
            raise OSError(errno.EBADF, "not open")
        return file

    def _new(self, number: int, node: Node) -> None:
        """Let ``number`` stand for ``node``, whose new user it is."""
        old = self._fids.get(number)
        if number == NO_FID or (old is None and len(self._fids) >= self._most_fids):
            node.close()
            raise OSError(errno.EMFILE, "too many fids")
        self._fids[number] = Fid(node)
        if old is not None:
            old.close()

    # ------------------------------------------------------------------ sessions and walking
    def _version(self, body: Body, room: int) -> bytes:
        msize, version = body.number(4), body.text()
        self.reset()
        if msize < _FEWEST_BYTES:
            raise OSError(errno.EINVAL, "messages that short")
        self._msize = min(msize, MOST_BYTES)
        answer = _VERSION if version == _VERSION else b"unknown"
        return self._msize.to_bytes(4, "little") + text(answer)

    def _attach(self, body: Body, room: int) -> bytes:
        number = body.number(4)
        if number in self._fids:
            raise OSError(errno.EINVAL, "a fid that is in use")
        self._new(number, self._root.copy())
        return qid(self._root.stat())

    def _walk(self, body: Body, room: int) -> bytes:
        number, new, count = body.numbers(4, 4, 2)
        names = [body.text() for _ in range(min(count, MOST_NAMES + 1))]
        if count > MOST_NAMES:
            raise OSError(errno.EINVAL, "too many names")
        fid = self._fid(number)
        if fid.file is not None:
            raise OSError(errno.EBUSY, "open")
        if new != number and new in self._fids:
            raise OSError(errno.EINVAL, "a fid that is in use")
        node = fid.node.copy()
        qids: list[bytes] = []
        try:
            for name in names:
                try:
                    following = node.child(name, self._root)
                except OSError:
                    if not qids:
                        raise
                    break
                node.close()
                node = following
                qids.append(qid(node.stat()))
        except BaseException:
            node.close()
            raise
        if len(qids) == len(names):
            self._new(new, node)
        else:
            node.close()
        return len(qids).to_bytes(2, "little") + b"".join(qids)

    def _clunk(self, body: Body, room: int) -> bytes:
        number = body.number(4)
        self._fid(number).close()
        del self._fids[number]
        return b""

    def _flush(self, body: Body, room: int) -> bytes:
        # Requests are answered in turn: what it is about has been.
        body.number(2)
        return b""

    # ------------------------------------------------------------------ looking
    def _getattr(self, body: Body, room: int) -> bytes:
        fid = self._fid(body.number(4))
        about = fid.node.stat()
        times = (about.st_atime_ns, about.st_mtime_ns, about.st_ctime_ns)
        halves = [part for moment in times for part in divmod(max(0, moment), 1_000_000_000)]
        return _ATTRIBUTES.pack(
            _BASIC, qid(about), about.st_mode, about.st_uid, about.st_gid, about.st_nlink, about.st_rdev,
            about.st_size, about.st_blksize, about.st_blocks, *halves, 0, 0, 0, 0,
        )  # fmt: skip

    def _statfs(self, body: Body, room: int) -> bytes:
        fid = self._fid(body.number(4))
        about = os.statvfs(fid.node.fd)
        return _STATFS.pack(
            _V9FS_MAGIC, about.f_bsize, about.f_blocks, about.f_bfree, about.f_bavail, about.f_files,
            about.f_ffree, about.f_fsid & (1 << 64) - 1, about.f_namemax,
        )  # fmt: skip

    def _readlink(self, body: Body, room: int) -> bytes:
        fid = self._fid(body.number(4))
        return text(os.readlink(b"", dir_fd=fid.node.fd))

    def _lock(self, body: Body, room: int) -> bytes:
        # The guest's kernel keeps its own locks; against the host's programs there are none.
        self._fid(body.number(4))
        return bytes([_LOCK_SUCCESS])

    def _getlock(self, body: Body, room: int) -> bytes:
        number, _ = body.numbers(4, 1)
        self._fid(number)
        rest = body.take(8 + 8 + 4) + text(body.text())
        return bytes([_UNLOCKED]) + rest

    # ------------------------------------------------------------------ files
    def _open(self, body: Body, room: int) -> bytes:
        number, flags = body.numbers(4, 4)
        fid = self._fid(number)
        if fid.file is not None:
            raise OSError(errno.EBUSY, "open already")
        flags &= _OPEN_FLAGS
        if self._read_only and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise OSError(errno.EROFS, "the folder is shared for reading")
        fid.file = fid.node.open(flags)
        return qid(os.stat(fid.file)) + bytes(4)

    def _create(self, body: Body, room: int) -> bytes:
        number, name, flags, mode = body.number(4), body.text(), body.number(4), body.number(4)
        fid = self._fid(number)
        if fid.file is not None:
            raise OSError(errno.EBUSY, "open already")
        flags = flags & (_OPEN_FLAGS | os.O_EXCL) & ~os.O_DIRECTORY
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        name = checked(name)
        with contextlib.suppress(FileNotFoundError):
            about = os.stat(name, dir_fd=fid.node.fd, follow_symlinks=False)
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.EEXIST, "not a file")
        file = os.open(name, flags, mode & MODE, dir_fd=fid.node.fd)
        try:
            node = fid.node.child(name, self._root)
        except BaseException:
            os.close(file)
            raise
        # Now a fid stands for the file, no more for the folder.
        fid.node.close()
        fid.node, fid.file = node, file
        return qid(os.stat(file)) + bytes(4)

    def _read(self, body: Body, room: int) -> bytes:
        number, offset, count = body.numbers(4, 8, 4)
        data = os.pread(self._opened(number), min(count, room - 4), place(offset))
        return len(data).to_bytes(4, "little") + data

    def _write(self, body: Body, room: int) -> bytes:
        number, offset, count = body.numbers(4, 8, 4)
        data = body.take(count)
        return os.pwrite(self._opened(number), data, place(offset)).to_bytes(4, "little")

    def _fsync(self, body: Body, room: int) -> bytes:
        file = self._fid(body.number(4)).file
        if file is not None:
            os.fsync(file)
        return b""

    def _setattr(self, body: Body, room: int) -> bytes:
        number, valid, mode, uid, gid, size = body.numbers(4, 4, 4, 4, 4, 8)
        atime, atime_ns, mtime, mtime_ns = body.numbers(8, 8, 8, 8)
        node = self._fid(number).node
        about = node.stat()
        if valid & (_SET_UID | _SET_GID):
            owner = (uid if valid & _SET_UID else -1, gid if valid & _SET_GID else -1)
            # Who is not root cannot give files away, and that is no fault of the guest's.
            with contextlib.suppress(PermissionError):
                os.chown(node.path, *owner)
        if valid & _SET_MODE and not stat.S_ISLNK(about.st_mode):
            os.chmod(node.path, mode & MODE)
        if valid & _SET_SIZE:
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.EINVAL, "not a file")
            os.truncate(node.path, place(size))
        if valid & (_SET_ATIME | _SET_MTIME):
            now = time.time_ns()
            times = [about.st_atime_ns, about.st_mtime_ns]
            if valid & _SET_ATIME:
                times[0] = moment(atime, atime_ns) if valid & _SET_ATIME_TO else now
            if valid & _SET_MTIME:
                times[1] = moment(mtime, mtime_ns) if valid & _SET_MTIME_TO else now
            os.utime(node.path, ns=(times[0], times[1]))
        return b""

    # ------------------------------------------------------------------ folders
    def _readdir(self, body: Body, room: int) -> bytes:
        number, offset, count = body.numbers(4, 8, 4)
        fid = self._fid(number)
        file = self._opened(number)
        if offset == 0 or fid.names is None:
            fid.names = [b".", b"..", *map(os.fsencode, os.listdir(file))]
        entries = []
        left = min(count, room - 4)
        for index, name in enumerate(fid.names[offset:], offset + 1):
            try:
                about = (
                    fid.node.stat() if name in (b".", b"..")
                    else os.stat(name, dir_fd=file, follow_symlinks=False)
                )  # fmt: skip
            except OSError:
                continue  # it has gone meanwhile
            entry = qid(about) + struct.pack("<QB", index, stat.S_IFMT(about.st_mode) >> 12) + text(name)
            if len(entry) > left:
                break
            entries.append(entry)
            left -= len(entry)
        data = b"".join(entries)
        return len(data).to_bytes(4, "little") + data

    def _mkdir(self, body: Body, room: int) -> bytes:
        number, name, mode = body.number(4), checked(body.text()), body.number(4)
        folder = self._fid(number).node.fd
        os.mkdir(name, mode & MODE, dir_fd=folder)
        return qid(os.stat(name, dir_fd=folder, follow_symlinks=False))

    def _symlink(self, body: Body, room: int) -> bytes:
        number, name, target = body.number(4), checked(body.text()), body.text()
        folder = self._fid(number).node.fd
        if b"\0" in target:
            raise OSError(errno.EINVAL, "not a path")
        os.symlink(target, name, dir_fd=folder)
        return qid(os.stat(name, dir_fd=folder, follow_symlinks=False))

    def _link(self, body: Body, room: int) -> bytes:
        folder, number, name = body.number(4), body.number(4), checked(body.text())
        os.link(self._fid(number).node.path, name, dst_dir_fd=self._fid(folder).node.fd, follow_symlinks=True)
        return b""

    def _rename(self, body: Body, room: int) -> bytes:
        # Superseded by RENAMEAT: with a fid alone its old name is not known.
        raise OSError(errno.EOPNOTSUPP, "use RENAMEAT")

    def _renameat(self, body: Body, room: int) -> bytes:
        old, old_name, new, new_name = body.number(4), body.text(), body.number(4), body.text()
        os.rename(
            checked(old_name), checked(new_name),
            src_dir_fd=self._fid(old).node.fd, dst_dir_fd=self._fid(new).node.fd,
        )  # fmt: skip
        return b""

    def _unlinkat(self, body: Body, room: int) -> bytes:
        number, name, flags = body.number(4), checked(body.text()), body.number(4)
        folder = self._fid(number).node.fd
        if flags & _AT_REMOVEDIR:
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
        return b""

    def _remove(self, body: Body, room: int) -> bytes:
        # It also ends the fid; as for RENAME there is a later request that clients use.
        self._clunk(body, room)
        raise OSError(errno.EOPNOTSUPP, "use UNLINKAT")


def _error(number: int) -> bytes:
    return number.to_bytes(4, "little")
