"""Files that a command writes: opened before anything starts, so that a mistake costs no time."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from swtdx.cli.failures import complain
from swtdx.cli.inputs import Unusable


class OutputFile:
    """One of them.  An existing file keeps its contents until the first byte is written.

    Args:
        path: where it is.
        what: what it holds, in words.
        empty: whether a file that did not exist stays, empty, if nothing is written.

    Raises:
        Unusable: it cannot be written.
    """

    def __init__(self, path: str, what: str, *, empty: bool = True) -> None:
        self.path = path
        self._what = what
        self._fresh = True
        #: Whether something could not be written.
        self.failed = False
        self._unwanted = not empty and not os.path.lexists(path)
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Unusable(f"{what} cannot be written to {path}: {error.strerror}") from error

    def write(self, data: bytes) -> None:
        """Write ``data`` behind what was written before.

        When that fails (the disk is full, say) it is told once, :attr:`failed` is set, and what comes then is
        dropped: a guest does not stop for it.
        """
        if self.failed:
            return
        try:
            if self._fresh:
                self._fresh = False
                if stat.S_ISREG(os.fstat(self._fd).st_mode):
                    os.ftruncate(self._fd, 0)
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.failed = True
            complain(f"{self._what} cannot be written to {self.path}: {error.strerror}")

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
                if self._fresh and self._unwanted:
                    os.unlink(self.path)


class Outputs:
    """All of a command's output files; closed together."""

    def __init__(self) -> None:
        self._files: list[OutputFile] = []

    def open(self, path: str | None, what: str, *, empty: bool = True) -> OutputFile | None:
        """A file at ``path`` for ``what``; None without a path.  ``empty`` is :class:`OutputFile`'s.

        Raises:
            Unusable: it cannot be written.
        """
        if path is None:
            return None
        file = OutputFile(path, what, empty=empty)
        self._files.append(file)
        return file

    def writer(self, path: str | None, what: str, *, empty: bool = True) -> Callable[[bytes], None] | None:
        """The ``write`` of :meth:`open`'s file; None without a path.

        Raises:
            Unusable: it cannot be written.
        """
        file = self.open(path, what, empty=empty)
        return None if file is None else file.write

    @property
    def failed(self) -> bool:
        """Whether something could not be written to one of them."""
        return any(file.failed for file in self._files)

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
