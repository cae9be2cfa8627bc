"""What was fetched, kept under the user's cache directory, and checked whenever it is used.

    <cache>/swtdx/<kind>/<name>/manifest.json     and the files that it lists

A directory appears under its name complete or not at all (it is renamed into place), and only while
its writer holds the lock.  The hashes find damage and half-edited files; against an attacker who can write
to the user's cache nothing here helps.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swtdx.guests.errors import CacheError
from swtdx.guests.progress import Reporter

MANIFEST: Final = "manifest.json"
#: Changes when a reader of the old form could not read the new one.
FORMAT: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/swtdx``, by default ``~/.cache/swtdx`` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "swtdx"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A verified entry: its directory, the files in it, and what its writer noted."""

    directory: Path
    files: tuple[str, ...]
    details: Mapping[str, Any]

    def path(self, name: str) -> Path:
        """The file called ``name``."""
        return self.directory / name


class Cache:
    """A directory of entries of several kinds."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def names(self, kind: str) -> list[str]:
        """Names of the entries of ``kind``, sorted; whether one is damaged, :meth:`open` finds out."""
        try:
            # One that is being written is in a folder whose name begins with a dot.
            found = [entry.name for entry in (self.root / kind).iterdir() if entry.is_dir()]
        except OSError:
            return []
        return sorted(name for name in found if _NAME.fullmatch(name))

    def open(self, kind: str, name: str) -> CacheEntry:
        """An entry, after comparing every file with its recorded hash.

        Raises:
            CacheError: there is no such entry, or it is not what was stored.
        """
        directory = self.root / kind / name
        advice = f"remove {directory} and fetch it again"
        try:
            manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
            if manifest["format"] != FORMAT:
                raise CacheError(f"{directory} was written by another version of swtdx: {advice}")
            files: dict[str, str] = manifest["files"]
            details: dict[str, Any] = manifest["details"]
            for file, expected in files.items():
                actual = hashlib.sha256((directory / file).read_bytes()).hexdigest()
                if actual != expected:
                    raise CacheError(
                        f"{directory / file} is damaged (its SHA-256 is not the recorded one): {advice}"
                    )
        except FileNotFoundError as error:
            raise CacheError(f"{error.filename} is missing: {advice}") from error
        except OSError as error:
            raise CacheError(f"{error.filename} cannot be read ({error.strerror}): {advice}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"{directory / MANIFEST} is damaged: {advice}") from error
        return CacheEntry(directory, tuple(files), details)

    def store(
        self, kind: str, name: str, files: Mapping[str, bytes], details: Mapping[str, Any]
    ) -> CacheEntry:
        """Write an entry, replacing one of the same name.  Hold :meth:`lock` meanwhile.

        Args:
            kind: a directory name.
            name: letters, digits and ``._+~-``.
            files: relative path → contents.
            details: anything that JSON can hold.

        Raises:
            CacheError: the directory cannot be written.
        """
        if not _NAME.fullmatch(name) or any(
            ".." in Path(file).parts or Path(file).is_absolute() for file in files
        ):
            raise CacheError(f"{name!r} cannot be the name of a cache entry")
        parent = self.root / kind
        final = parent / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as scratch:
                new = Path(scratch) / "entry"
                new.mkdir()
                for file, data in files.items():
                    path = new / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
                manifest = {"format": FORMAT, "files": hashes, "details": dict(details)}
                (new / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
                if final.exists():
                    final.rename(Path(scratch) / "old")
                new.rename(final)
        except OSError as error:
            raise CacheError(f"cannot write to {parent}: {error.strerror} ({error.filename})") from error
        return CacheEntry(final, tuple(files), dict(details))

    def remove(self, kind: str, name: str) -> None:
        """Forget an entry, damaged or not."""
        shutil.rmtree(self.root / kind / name, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, progress: Reporter) -> Iterator[None]:
        """Keep other processes of this user from fetching at the same time; wait if one does.

        Raises:
            CacheError: the cache directory cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = open(self.root / "lock", "w")  # noqa: SIM115 (closed below, after the yield)
        except OSError as error:
            raise CacheError(
                f"cannot write to {self.root} ({error.strerror}); point XDG_CACHE_HOME to one of your own"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.step("waiting for another swtdx that is fetching")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
