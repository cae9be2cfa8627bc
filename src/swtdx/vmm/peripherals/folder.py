"""What both servers of shared folders ask of a request, and take at most: names, offsets, times, modes."""

from __future__ import annotations

import errno
import os
from typing import Final

#: How a place in a folder is held: links are opened as links.
HOLD: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: Folders inside of each other at most.
DEEPEST: Final = 4096
#: Bytes of a request or a reply at most.
MOST_BYTES: Final = 1 << 20
#: Bits of a mode that a guest may set: never set-user-ID or set-group-ID on the host.
MODE: Final = 0o1777


def checked(name: bytes) -> bytes:
    """``name`` if it is one name in a folder.

    Raises:
        OSError: it is a path, or none.
    """
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name")
    return name


def place(offset: int) -> int:
    """An offset in a file, in bytes, that the host can have.

    Raises:
        OSError: it is too large.
    """
    if offset >= 1 << 63:
        raise OSError(errno.EINVAL, "beyond any file")
    return offset


def moment(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds since 1970 that the host's interfaces take.

    Raises:
        OSError: they do not.
    """
    if seconds >= 1 << 33 or nanoseconds >= 1_000_000_000:
        raise OSError(errno.EINVAL, "not a time")
    return seconds * 1_000_000_000 + nanoseconds
