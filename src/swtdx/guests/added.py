"""Files and folders of the user's own for a guest's initramfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests import cpio
from swtdx.guests.errors import GuestError

#: Where files go when the user does not say: the command's working directory.
HOME: Final = "root"
#: Paths that are links to folders or folders themselves in every guest of ours.
_RESERVED: Final = ("swtdx", "init", "dev", "proc", "sys", "tmp")


@dataclass(frozen=True, slots=True)
class Addition:
    """``source`` on the host goes to ``target`` in the guest (absolute, or empty for /root/NAME)."""

    source: Path
    target: str = ""

    @classmethod
    def parse(cls, text: str) -> Addition:
        """``SRC[:DST]``; a source that has a colon in its name is taken as it is if it exists.

        Raises:
            GuestError: ``DST`` is not an absolute path.
        """
        if os.path.lexists(text):
            return cls(Path(text))
        source, colon, target = text.rpartition(":")
        if not colon or not source:
            return cls(Path(text))
        if not target.startswith("/"):
            raise GuestError(f"{text!r}: the place in the guest must be an absolute path, not {target!r}")
        return cls(Path(source), target)

    @property
    def place(self) -> str:
        """The path in the archive, without a leading slash."""
        name = self.source.resolve().name if self.source.name in ("", "..", ".") else self.source.name
        target = self.target or f"/{HOME}/{name}"
        if target.endswith("/"):
            target += name
        return os.path.normpath(target).lstrip("/")


def entries(additions: Iterable[Addition]) -> list[cpio.Entry]:
    """What to put into the archive: the files with their permissions, links as links, and the folders above.

    Owners are left out: everything belongs to root in the guest.

    Raises:
        GuestError: a source cannot be read or is a device, two sources want the same place, or a place is
            one that the guest needs itself.
    """
    found: dict[str, cpio.Entry] = {}
    for addition in additions:
        place = addition.place
        if not place or place.split("/")[0] in _RESERVED:
            raise GuestError(f"{addition.source} cannot go to /{place}: that is the guest's own place")
        for entry in _walk(addition.source, place):
            before = found.get(entry.path)
            if before is not None and not (stat.S_ISDIR(before.mode) and stat.S_ISDIR(entry.mode)):
                raise GuestError(f"two of the files to add would be /{entry.path} in the guest")
            found[entry.path] = entry
    above = {parent for path in found for parent in _above(path)}
    return list(found.values()) + [cpio.directory(path) for path in sorted(above - found.keys())]


def _above(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _walk(source: Path, place: str) -> Iterator[cpio.Entry]:
    try:
        # What the user names is followed; links inside a folder stay links.
        about = source.stat()
        yield _entry(source, place, about)
        if not stat.S_ISDIR(about.st_mode):
            return
        for folder, names, files in os.walk(source, onerror=_fail):
            inside = os.path.relpath(folder, source)
            for name in sorted(names + files):
                path = Path(folder, name)
                relative = name if inside == "." else f"{inside}/{name}"
                yield _entry(path, f"{place}/{relative}", path.lstat())
    except OSError as error:
        raise GuestError(f"{error.filename or source} cannot be read: {error.strerror}") from error


def _fail(error: OSError) -> None:
    raise error


def _entry(path: Path, place: str, about: os.stat_result) -> cpio.Entry:
    permissions = stat.S_IMODE(about.st_mode)
    if stat.S_ISLNK(about.st_mode):
        return cpio.symlink(place, str(path.readlink()))
    if stat.S_ISDIR(about.st_mode):
        return cpio.directory(place, permissions)
    if stat.S_ISREG(about.st_mode):
        return cpio.regular(place, path.read_bytes(), permissions)
    raise GuestError(f"{path} is neither a file nor a folder nor a link, and cannot be added to a guest")
