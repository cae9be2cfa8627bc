"""Writing "newc" cpio archives, the format of a Linux initramfs; the same entries give the same bytes.

Source: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``: a 110-byte header of ASCII
hexadecimal fields, the name with its NUL padded to 4 bytes, the data padded to 4 bytes; ``TRAILER!!!``
ends an archive; archives may follow one another, with zero bytes between them, and a later entry of
the same name wins.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = "070701"
_TRAILER: Final = "TRAILER!!!"
#: Archives are padded to whole blocks of 512 bytes, as cpio itself does.
BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path without a leading slash, its whole ``st_mode``, and its contents.

    ``device`` is (major, minor) of a device node.  A symbolic link's contents are its target.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link at ``path`` to ``target``."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """A whole archive, ended and padded to :data:`BLOCK`: sorted by path, owned by root, dated 1970.

    Raises:
        ValueError: a path is absolute, climbs out with "..", contains NUL, or appears twice.
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    out = bytearray()
    previous = None
    for inode, entry in enumerate(ordered, start=1):
        parts = entry.path.split("/")
        if "\0" in entry.path or ".." in parts or "" in parts:
            raise ValueError(f"{entry.path!r} cannot be a path inside an initramfs")
        if entry.path == previous:
            raise ValueError(f"{entry.path!r} is in the archive twice")
        previous = entry.path
        _append(out, inode, entry)
    _append(out, 0, Entry(_TRAILER, 0))
    out.extend(bytes(-len(out) % BLOCK))
    return bytes(out)


def _append(out: bytearray, inode: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out.extend(_MAGIC.encode())
    out.extend("".join(f"{value:08x}" for value in fields).encode())
    out.extend(name)
    out.extend(bytes(-len(out) % 4))
    out.extend(entry.data)
    out.extend(bytes(-len(out) % 4))
