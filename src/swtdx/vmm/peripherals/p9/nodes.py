"""Places in a shared folder that a client holds, each by a descriptor: names are looked up one at a time.

No path is ever put together, so neither ``..``, nor a symbolic link, nor a folder that is moved meanwhile
leads out: ``..`` is taken only where the shared folder lies above, and links are opened as links
(O_NOFOLLOW), which the client reads and follows itself, inside of what it sees.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from swtdx.vmm.peripherals.folder import DEEPEST, HOLD, checked
from swtdx.vmm.peripherals.p9.messages import QID, QID_DIRECTORY, QID_LINK


class Node:
    """A place: an O_PATH descriptor of its own."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def root(cls, path: Path) -> Node:
        """The shared folder itself.

        Raises:
            OSError: it is none.
        """
        return cls(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def copy(self) -> Node:
        """The same place once more.

        Raises:
            OSError: there are too many descriptors.
        """
        return Node(os.dup(self.fd))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def child(self, name: bytes, root: Node) -> Node:
        """What ``name`` is in this folder; ``..`` ends at ``root``.

        Raises:
            OSError: there is no such name, or this is no folder.
        """
        if name == b"..":
            return self._parent(root)
        return Node(os.open(checked(name), HOLD, dir_fd=self.fd))

    def _parent(self, root: Node) -> Node:
        top = root.stat()
        if os.path.samestat(self.stat(), top):
            return self.copy()
        parent = Node(os.open(b"..", HOLD, dir_fd=self.fd))
        try:
            parent._check_inside(top)
        except BaseException:
            parent.close()
            raise
        return parent

    def _check_inside(self, top: os.stat_result) -> None:
        """Go up until the root; a folder that the host has moved away does not lead there."""
        at = self.copy()
        try:
            for _ in range(DEEPEST):
                here = at.stat()
                if os.path.samestat(here, top):
                    return
                above = Node(os.open(b"..", HOLD, dir_fd=at.fd))
                at.close()
                at = above
                if os.path.samestat(here, at.stat()):
                    break
        finally:
            at.close()
        raise OSError(errno.EACCES, "no longer in the shared folder")

    def stat(self) -> os.stat_result:
        """What it is.

        Raises:
            OSError: the host's disk fails.
        """
        return os.stat(self.fd)

    @property
    def path(self) -> str:
        """A name by which the kernel finds exactly this place."""
        return f"/proc/self/fd/{self.fd}"

    def open(self, flags: int) -> int:
        """A descriptor to read or write with.

        Raises:
            OSError: it is neither a file nor a folder (a FIFO could keep us waiting for ever), or may not be
            opened.
        """
        mode = self.stat().st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "a symbolic link")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EACCES, "neither a file nor a folder")
        return os.open(self.path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


@dataclass(slots=True)
class Fid:
    """What a client's number stands for."""

    node: Node
    #: The descriptor, once it is open.
    file: int | None = None
    #: The folder's names, from when reading it began.
    names: list[bytes] | None = None

    def close(self) -> None:
        """Forget it."""
        if self.file is not None:
            os.close(self.file)
            self.file = None
        self.node.close()


def qid(about: os.stat_result) -> bytes:
    """What tells one file from all others: its device and number."""
    kind = QID_DIRECTORY if stat.S_ISDIR(about.st_mode) else QID_LINK if stat.S_ISLNK(about.st_mode) else 0
    version = about.st_mtime_ns // 1_000_000 & 0xFFFF_FFFF
    return QID.pack(kind, version, (about.st_dev << 48 ^ about.st_ino) & (1 << 64) - 1)
