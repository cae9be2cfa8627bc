"""Linux TDs that have booted once, in files, for the tests of a session."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from swtdx.api.platform import Platform
from swtdx.api.restoring import restore

if TYPE_CHECKING:
    from swtdx.api.linux import LinuxTd

#: Of a TD whose test says nothing of it: what a test of a command needs, in bytes.
_MEMORY: Final = 256 << 20


def boot(options: Mapping[str, Any]) -> LinuxTd:
    """A Linux TD on a platform of its own, which the caller closes."""
    settings = {"memory": _MEMORY, **options}
    platform = Platform(memory=settings["memory"], cpus=settings.get("vcpus", 1))
    try:
        return platform.linux(**settings)
    except BaseException:
        platform.close()
        raise


class Snapshots:
    """Files in ``folder``, made when they are first wanted; a context manager.

    ``shared``: other processes use the folder as well, and the files stay.
    """

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self._folder = folder
        self._shared = shared
        self._made: list[Path] = []

    def td(self, options: Mapping[str, Any]) -> LinuxTd:
        """A TD as ``platform.linux(**options)`` would make, on a platform of its own."""
        text = json.dumps(options, sort_keys=True, default=str)
        path = self._folder / f"swtdx-{hashlib.sha256(text.encode()).hexdigest()[:16]}.td"
        with self._alone(path):
            if not path.exists():
                with boot(options) as td, td.platform:
                    td.save(path)
                self._made.append(path)
        return restore(path)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """No other process makes the same file meanwhile."""
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._shared:
            for path in self._made:
                path.unlink(missing_ok=True)
