"""Files of a shared folder that the guest knows, each by the folder that it is in and its name there.

A descriptor is opened when it is needed, from the shared folder downwards, a name at a time and never through
a symbolic link: nothing leads out of the folder, and a guest that has looked at a million files holds no
descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from swtdx.vmm.peripherals.folder import DEEPEST, HOLD
from swtdx.vmm.peripherals.fuse.messages import ROOT


@dataclass(slots=True)
class Inode:
    """A file that the guest knows.

    ``key`` tells it from all others; ``lookups`` is how often the guest was told of it; ``files`` are its
    handles.
    """

    parent: int
    name: bytes
    key: tuple[int, int]
    lookups: int = 0
    files: set[int] = field(default_factory=set)


class Inodes:
    """The table.

    Args:
        path: the shared folder.

    Raises:
        OSError: it is none.
    """

    def __init__(self, path: Path) -> None:
        self.root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._known: dict[int, Inode] = {}
        self._by_key: dict[tuple[int, int], int] = {}
        self._next = ROOT
        self.reset()

    def reset(self) -> None:
        """Forget all but the folder itself."""
        top = os.stat(self.root)
        self._known = {ROOT: Inode(ROOT, b"", (top.st_dev, top.st_ino), lookups=1)}
        self._by_key = {self._known[ROOT].key: ROOT}
        self._next = ROOT + 1

    def close(self) -> None:
        """Give the folder back."""
        os.close(self.root)

    def get(self, number: int) -> Inode:
        """What the guest calls ``number``.

        Raises:
            OSError: nothing.
        """
        inode = self._known.get(number)
        if inode is None:
            raise OSError(errno.ESTALE, "no such inode")
        return inode

    def told(self, parent: int, name: bytes, about: os.stat_result) -> int:
        """The number of a file that the guest is told of, which is ``name`` in ``parent``."""
        key = (about.st_dev, about.st_ino)
        number = self._by_key.get(key)
        if number is None:
            number = self._next
            self._next += 1
            self._known[number] = Inode(parent, name, key)
            self._by_key[key] = number
        inode = self._known[number]
        if number != ROOT:
            inode.parent, inode.name = parent, name
        inode.lookups += 1
        return number

    def moved(self, parent: int, name: bytes) -> None:
        """What the guest knows is ``name`` in ``parent`` now."""
        with self.held(parent) as folder:
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        number = self._by_key.get((about.st_dev, about.st_ino), ROOT)
        if number != ROOT:
            self._known[number].parent, self._known[number].name = parent, name

    def forget(self, number: int, lookups: int) -> None:
        """The guest has forgotten ``lookups`` of the times that it was told."""
        inode = self._known.get(number)
        if inode is None or number == ROOT:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0:
            del self._known[number]
            self._by_key.pop(inode.key, None)

    def _names(self, number: int) -> list[bytes]:
        """The names that lead from the shared folder to ``number``."""
        names = []
        while number != ROOT:
            inode = self.get(number)
            names.append(inode.name)
            number = inode.parent
            if len(names) > DEEPEST:
                raise OSError(errno.ELOOP, "folders inside of each other")
        return names[::-1]

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[int]:
        """An O_PATH descriptor of ``number`` for a while.

        Raises:
            OSError: it is not there any more, or something else is in its place.
        """
        if number == ROOT:
            yield self.root
            return
        at = os.dup(self.root)
        try:
            for name in self._names(number):
                below = os.open(name, HOLD, dir_fd=at)
                os.close(at)
                at = below
            about = os.stat(at)
            if (about.st_dev, about.st_ino) != self.get(number).key:
                raise OSError(errno.ESTALE, "another file has its name")
            yield at
        finally:
            os.close(at)


def magic(fd: int) -> str:
    """A name by which the kernel finds exactly what ``fd`` holds."""
    return f"/proc/self/fd/{fd}"


def opened(fd: int, flags: int) -> int:
    """A descriptor to read or write what ``fd`` holds with.

    Raises:
        OSError: it is neither a file nor a folder (a FIFO could keep us waiting for ever), or may not be
        opened.
    """
    mode = os.stat(fd).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "a symbolic link")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EACCES, "neither a file nor a folder")
    return os.open(magic(fd), flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
