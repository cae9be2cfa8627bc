"""The server: a request in, its reply out, and the shared folder changed.

It acts as the user that swtdx runs as: files belong to that user, whatever the guest's user is.  Set-user-id
and device files are not made: what a guest leaves in the folder is no danger for the host's users.  Nothing
is cached in the guest beyond the moment, for the host may change what is in the folder.

Source: Linux's ``include/uapi/linux/fuse.h`` and ``Documentation/filesystems/fuse.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.vmm.peripherals.descriptors import descriptors
from swtdx.vmm.peripherals.errors import PeripheralError
from swtdx.vmm.peripherals.folder import MODE, MOST_BYTES, checked, moment, place
from swtdx.vmm.peripherals.fuse import messages as fuse
from swtdx.vmm.peripherals.fuse.inodes import Inodes, magic, opened
from swtdx.vmm.peripherals.fuse.messages import Op, Valid

_FLAGS: Final = fuse.FLAG_ASYNC_READ | fuse.FLAG_BIG_WRITES | fuse.FLAG_PARALLEL_DIROPS | fuse.FLAG_MAX_PAGES
_OPEN_FLAGS: Final = os.O_ACCMODE | os.O_TRUNC | os.O_DIRECTORY | os.O_SYNC | os.O_DSYNC
_NO_REPLY: Final = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)


@dataclass(slots=True)
class _File:
    """An open file or folder: its descriptor, whose it is, and a folder's names from when it was read."""

    fd: int
    inode: int
    names: list[bytes] | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """A request: which inode it is about, what follows its header, and how much its reply may hold."""

    node: int
    body: bytes
    room: int

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        """The fields at the body's start.

        Raises:
            OSError: it is too short.
        """
        if len(self.body) < form.size:
            raise OSError(errno.EINVAL, "too short")
        return form.unpack_from(self.body)

    def names(self, count: int, after: int = 0) -> list[bytes]:
        """The names that follow ``after`` bytes, each with a zero behind it.

        Raises:
            OSError: there are fewer.
        """
        found = self.body[after:].split(b"\0")
        if len(found) <= count - 1 or len(self.body) < after:
            raise OSError(errno.EINVAL, "too short")
        return found[:count]


class FuseServer:
    """The server (:class:`swtdx.devices.virtio.fs.FuseServer`).

    Args:
        path: the folder.
        read_only: refuse all that would change it.

    Raises:
        PeripheralError: there is no such folder.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._read_only = read_only
        try:
            self._inodes = Inodes(path)
        except OSError as error:
            raise PeripheralError(f"the folder {path} cannot be shared: {error.strerror}") from error
        self._files: dict[int, _File] = {}
        self._next_file = 1
        self._most_files = descriptors() // 4
        self._lookers: dict[int, Callable[[_Call], bytes]] = {
            Op.INIT: self._init,
            Op.DESTROY: self._destroy,
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.INTERRUPT: lambda _call: b"",
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.STATFS: self._statfs,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.FLUSH: lambda _call: b"",
            Op.RELEASE: self._release,
            Op.FSYNC: self._fsync,
            Op.OPENDIR: self._open,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._release,
            Op.FSYNCDIR: lambda _call: b"",
            Op.SYNCFS: lambda _call: b"",
        }
        self._changers: dict[int, Callable[[_Call], bytes]] = {
            Op.SETATTR: self._setattr,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self._link,
            Op.WRITE: self._write,
            Op.CREATE: self._create,
        }

    def reset(self) -> None:
        """See :class:`swtdx.devices.virtio.fs.FuseServer`."""
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
        self._inodes.reset()

    def close(self) -> None:
        """Give everything back."""
        self.reset()
        self._inodes.close()

    def handle(self, request: bytes, room: int) -> bytes:
        """See :class:`swtdx.devices.virtio.fs.FuseServer`."""
        if len(request) < fuse.IN_HEADER.size:
            return b""
        length, op, unique, node, *_ = fuse.IN_HEADER.unpack_from(request)
        silent = op in _NO_REPLY
        if room < fuse.OUT_HEADER.size and not silent:
            return b""
        body = request[fuse.IN_HEADER.size : max(fuse.IN_HEADER.size, min(length, len(request)))]
        error = 0
        try:
            reply = self._do(op, _Call(node, body, room - fuse.OUT_HEADER.size))
            if len(reply) > room - fuse.OUT_HEADER.size:
                raise OSError(errno.EIO, "no room for the reply")
        except OSError as failure:
            reply, error = b"", failure.errno or errno.EIO
        except (OverflowError, ValueError):
            reply, error = b"", errno.EINVAL  # a number or a name that the host's interfaces do not take
        if silent:
            return b""
        return fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size + len(reply), -error, unique) + reply

    def _do(self, op: int, call: _Call) -> bytes:
        looker = self._lookers.get(op)
        if looker is not None:
            return looker(call)
        changer = self._changers.get(op)
        if changer is None:
            # Extended attributes, locks, IOCTL and more: the guest's kernel does without.
            raise OSError(errno.ENOSYS, "not here")
        if self._read_only:
            raise OSError(errno.EROFS, "the folder is shared for reading")
        return changer(call)

    # ------------------------------------------------------------------ sessions
    def _init(self, call: _Call) -> bytes:
        major, _, readahead, flags = call.take(fuse.INIT_IN)
        if major < fuse.MAJOR:
            raise OSError(errno.EPROTO, "too old a protocol")
        self.reset()
        return fuse.INIT_OUT.pack(
            fuse.MAJOR, fuse.MINOR, readahead, flags & _FLAGS, 0, 0, MOST_BYTES, 1, MOST_BYTES >> 12
        )

    def _destroy(self, call: _Call) -> bytes:
        self.reset()
        return b""

    def _forget(self, call: _Call) -> bytes:
        (lookups,) = call.take(struct.Struct("<Q"))
        self._inodes.forget(call.node, lookups)
        return b""

    def _batch_forget(self, call: _Call) -> bytes:
        count, _ = call.take(struct.Struct("<II"))
        items = call.body[8 : 8 + count * fuse.FORGET.size]
        for number, lookups in fuse.FORGET.iter_unpack(items[: len(items) // 16 * 16]):
            self._inodes.forget(number, lookups)
        return b""

    # ------------------------------------------------------------------ looking
    def _entry(self, parent: int, name: bytes, folder: int) -> bytes:
        """Tell the guest of ``name`` in ``parent``, whose descriptor is ``folder``."""
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return fuse.entry(self._inodes.told(parent, name, about), about)

    def _lookup(self, call: _Call) -> bytes:
        name = checked(call.names(1)[0])
        with self._inodes.held(call.node) as folder:
            return self._entry(call.node, name, folder)

    def _stat(self, number: int) -> os.stat_result:
        """What an inode is; of one whose name is gone by a handle, if there is any."""
        try:
            with self._inodes.held(number) as fd:
                return os.stat(fd)
        except OSError:
            for handle in self._inodes.get(number).files:
                return os.stat(self._files[handle].fd)
            raise

    def _getattr(self, call: _Call) -> bytes:
        flags, handle = call.take(fuse.GETATTR_IN)
        if flags & fuse.GETATTR_FH:
            return fuse.attributes_out(os.stat(self._file(handle).fd))
        return fuse.attributes_out(self._stat(call.node))

    def _readlink(self, call: _Call) -> bytes:
        with self._inodes.held(call.node) as fd:
            return os.readlink(b"", dir_fd=fd)

    def _statfs(self, call: _Call) -> bytes:
        about = os.statvfs(self._inodes.root)
        return fuse.STATFS_OUT.pack(
            about.f_blocks, about.f_bfree, about.f_bavail, about.f_files, about.f_ffree, about.f_bsize,
            about.f_namemax, about.f_frsize,
        )  # fmt: skip

    # ------------------------------------------------------------------ files
    def _file(self, handle: int) -> _File:
        file = self._files.get(handle)
        if file is None:
            raise OSError(errno.EBADF, "no such handle")
        return file

    def _add_file(self, inode: int, fd: int) -> bytes:
        if len(self._files) >= self._most_files:
            os.close(fd)
            raise OSError(errno.EMFILE, "too many open files")
        handle = self._next_file
        self._next_file += 1
        self._files[handle] = _File(fd, inode)
        with contextlib.suppress(OSError):
            self._inodes.get(inode).files.add(handle)
        return fuse.OPEN_OUT.pack(handle, 0)

    def _open(self, call: _Call) -> bytes:
        flags, _ = call.take(fuse.OPEN_IN)
        if self._read_only and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise OSError(errno.EROFS, "the folder is shared for reading")
        with self._inodes.held(call.node) as held:
            return self._add_file(call.node, opened(held, flags & _OPEN_FLAGS))

    def _create(self, call: _Call) -> bytes:
        flags, mode, _, _ = call.take(fuse.CREATE_IN)
        name = checked(call.names(1, fuse.CREATE_IN.size)[0])
        flags = flags & (_OPEN_FLAGS | os.O_EXCL) & ~os.O_DIRECTORY
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        with self._inodes.held(call.node) as folder:
            with contextlib.suppress(FileNotFoundError):
                about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(errno.EEXIST, "not a file")
            fd = os.open(name, flags, mode & MODE, dir_fd=folder)
            about = os.stat(fd)
            number = self._inodes.told(call.node, name, about)
        return fuse.entry(number, about) + self._add_file(number, fd)

    def _read(self, call: _Call) -> bytes:
        handle, offset, size = call.take(fuse.READ_IN)
        return os.pread(self._file(handle).fd, min(size, call.room), place(offset))

    def _write(self, call: _Call) -> bytes:
        handle, offset, size = call.take(fuse.WRITE_IN)
        data = memoryview(call.body)[fuse.WRITE_IN.size :]
        if len(data) < size:
            raise OSError(errno.EINVAL, "too short")
        return fuse.WRITE_OUT.pack(os.pwrite(self._file(handle).fd, data[:size], place(offset)))

    def _release(self, call: _Call) -> bytes:
        (handle,) = call.take(struct.Struct("<Q"))
        file = self._file(handle)
        del self._files[handle]
        os.close(file.fd)
        with contextlib.suppress(OSError):
            self._inodes.get(file.inode).files.discard(handle)
        return b""

    def _fsync(self, call: _Call) -> bytes:
        (handle,) = call.take(struct.Struct("<Q"))
        os.fsync(self._file(handle).fd)
        return b""

    def _setattr(self, call: _Call) -> bytes:
        valid, handle, size, atime, mtime, atime_ns, mtime_ns, mode, uid, gid = call.take(fuse.SETATTR_IN)
        with contextlib.ExitStack() as during:
            if valid & Valid.FH:
                fd = self._file(handle).fd
            else:
                fd = during.enter_context(self._inodes.held(call.node))
            about = os.stat(fd)
            where = magic(fd)
            if valid & (Valid.UID | Valid.GID):
                # Who is not root cannot give files away, and that is no fault of the guest's.
                with contextlib.suppress(PermissionError):
                    os.chown(where, uid if valid & Valid.UID else -1, gid if valid & Valid.GID else -1)
            if valid & Valid.MODE and not stat.S_ISLNK(about.st_mode):
                os.chmod(where, mode & MODE)
            if valid & Valid.SIZE:
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(errno.EINVAL, "not a file")
                os.truncate(where, place(size))
            if valid & (Valid.ATIME | Valid.MTIME):
                now = time.time_ns()
                times = [about.st_atime_ns, about.st_mtime_ns]
                if valid & Valid.ATIME:
                    times[0] = now if valid & Valid.ATIME_NOW else moment(atime, atime_ns)
                if valid & Valid.MTIME:
                    times[1] = now if valid & Valid.MTIME_NOW else moment(mtime, mtime_ns)
                os.utime(where, ns=(times[0], times[1]))
            return fuse.attributes_out(os.stat(fd))

    # ------------------------------------------------------------------ folders
    def _readdir(self, call: _Call) -> bytes:
        handle, offset, size = call.take(fuse.READ_IN)
        file = self._file(handle)
        if offset == 0 or file.names is None:
            file.names = [b".", b"..", *map(os.fsencode, os.listdir(file.fd))]
        entries = []
        left = min(size, call.room)
        for index, name in enumerate(file.names[offset:], offset + 1):
            try:
                about = os.stat(b"." if name == b".." else name, dir_fd=file.fd, follow_symlinks=False)
            except OSError:
                continue  # it has gone meanwhile
            entry = fuse.DIRENT.pack(about.st_ino, index, len(name), stat.S_IFMT(about.st_mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(entry) > left:
                break
            entries.append(entry)
            left -= len(entry)
        return b"".join(entries)

    def _mkdir(self, call: _Call) -> bytes:
        mode, _ = call.take(struct.Struct("<II"))
        name = checked(call.names(1, 8)[0])
        with self._inodes.held(call.node) as folder:
            os.mkdir(name, mode & MODE, dir_fd=folder)
            return self._entry(call.node, name, folder)

    def _mknod(self, call: _Call) -> bytes:
        mode, _, _ = call.take(struct.Struct("<III4x"))
        name = checked(call.names(1, 16)[0])
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise OSError(errno.EPERM, "no devices, FIFOs and sockets")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._inodes.held(call.node) as folder:
            os.close(os.open(name, flags, mode & MODE, dir_fd=folder))
            return self._entry(call.node, name, folder)

    def _symlink(self, call: _Call) -> bytes:
        name, target = call.names(2)
        with self._inodes.held(call.node) as folder:
            os.symlink(target, checked(name), dir_fd=folder)
            return self._entry(call.node, name, folder)

    def _link(self, call: _Call) -> bytes:
        (old,) = call.take(struct.Struct("<Q"))
        name = checked(call.names(1, 8)[0])
        with self._inodes.held(old) as source, self._inodes.held(call.node) as folder:
            os.link(magic(source), name, dst_dir_fd=folder, follow_symlinks=True)
            return self._entry(call.node, name, folder)

    def _unlink(self, call: _Call) -> bytes:
        with self._inodes.held(call.node) as folder:
            os.unlink(checked(call.names(1)[0]), dir_fd=folder)
        return b""

    def _rmdir(self, call: _Call) -> bytes:
        with self._inodes.held(call.node) as folder:
            os.rmdir(checked(call.names(1)[0]), dir_fd=folder)
        return b""

    def _rename(self, call: _Call) -> bytes:
        (target,) = call.take(struct.Struct("<Q"))
        return self._move(call.node, target, *call.names(2, 8))

    def _rename2(self, call: _Call) -> bytes:
        target, flags = call.take(struct.Struct("<QI4x"))
        if flags:
            raise OSError(errno.EINVAL, "a plain rename is all there is")
        return self._move(call.node, target, *call.names(2, 16))

    def _move(self, source: int, target: int, old: bytes, new: bytes) -> bytes:
        with self._inodes.held(source) as from_, self._inodes.held(target) as to:
            os.rename(checked(old), checked(new), src_dir_fd=from_, dst_dir_fd=to)
        self._inodes.moved(target, new)
        return b""
