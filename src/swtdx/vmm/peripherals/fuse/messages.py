"""Messages of FUSE: numbers, and the forms of requests and replies.  Everything is little-endian.

Source: Linux's ``include/uapi/linux/fuse.h``, protocol 7.31.
"""

from __future__ import annotations

import enum
import os
import struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 31
ROOT: Final = 1

#: len, opcode, unique, nodeid, uid, gid, pid, extensions
IN_HEADER: Final = struct.Struct("<IIQQIIII")
#: len, error, unique
OUT_HEADER: Final = struct.Struct("<IiQ")

#: major, minor, max_readahead, flags
INIT_IN: Final = struct.Struct("<IIII")
#: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages
INIT_OUT: Final = struct.Struct("<IIIIHHIIH34x")
#: ino, size, blocks, three times, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
_ATTRIBUTES: Final = struct.Struct("<QQQQQQIIIIIIIIII")
#: nodeid, generation, entry_valid, attr_valid, their nanoseconds
_ENTRY: Final = struct.Struct("<QQQQII")
#: attr_valid, its nanoseconds
_ATTRIBUTES_OUT: Final = struct.Struct("<QI4x")
#: fh, open_flags
OPEN_OUT: Final = struct.Struct("<QI4x")
#: flags, open_flags
OPEN_IN: Final = struct.Struct("<II")
#: flags, mode, umask, open_flags
CREATE_IN: Final = struct.Struct("<IIII")
#: fh, offset, size
READ_IN: Final = struct.Struct("<QQI20x")
WRITE_IN: Final = READ_IN
WRITE_OUT: Final = struct.Struct("<I4x")
#: getattr_flags, fh
GETATTR_IN: Final = struct.Struct("<I4xQ")
#: valid, fh, size, atime, mtime, their nanoseconds, mode, uid, gid
SETATTR_IN: Final = struct.Struct("<I4xQQ8xQQ8xII4xI4xII4x")
#: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT: Final = struct.Struct("<QQQQQIII28x")
#: ino, off, namelen, type
DIRENT: Final = struct.Struct("<QQII")
FORGET: Final = struct.Struct("<QQ")

FLAG_ASYNC_READ: Final = 1 << 0
FLAG_BIG_WRITES: Final = 1 << 5
FLAG_PARALLEL_DIROPS: Final = 1 << 18
FLAG_MAX_PAGES: Final = 1 << 22

GETATTR_FH: Final = 1


class Op(enum.IntEnum):
    """Opcodes."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45
    SYNCFS = 50


class Valid(enum.IntFlag):
    """What SETATTR sets."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


def attributes(about: os.stat_result) -> bytes:
    """``struct fuse_attr``."""
    times = [
        divmod(max(0, when), 10**9) for when in (about.st_atime_ns, about.st_mtime_ns, about.st_ctime_ns)
    ]
    return _ATTRIBUTES.pack(
        about.st_ino, about.st_size, about.st_blocks, *(seconds for seconds, _ in times),
        *(part for _, part in times), about.st_mode, about.st_nlink & 0xFFFF_FFFF, about.st_uid, about.st_gid,
        about.st_rdev & 0xFFFF_FFFF, about.st_blksize & 0xFFFF_FFFF, 0,
    )  # fmt: skip


def entry(node: int, about: os.stat_result) -> bytes:
    """``struct fuse_entry_out``, good for now only: the host may change things."""
    return _ENTRY.pack(node, 0, 0, 0, 0, 0) + attributes(about)


def attributes_out(about: os.stat_result) -> bytes:
    """``struct fuse_attr_out``; as for :func:`entry` it is good for now only."""
    return _ATTRIBUTES_OUT.pack(0, 0) + attributes(about)
