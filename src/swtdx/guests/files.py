"""Reading what a guest is started with: whole files of the user's, never something without an end."""

from __future__ import annotations

import stat
from pathlib import Path

from swtdx.guests.errors import GuestError


def read_file(path: Path, wanted: str, largest: int, failure: type[GuestError] = GuestError) -> bytes:
    """The bytes of the file ``path``.

    Args:
        path: where.
        wanted: what it should be, for messages: ``a bzImage``.
        largest: bytes beyond which it cannot be that.
        failure: what to raise.

    Raises:
        GuestError: of the kind ``failure``: it is a folder, a pipe or a device, or too large.
        OSError: it cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise failure(f"{path} is a {_kind(about.st_mode)}; give the file of {wanted}")
    if about.st_size > largest:
        raise failure(f"{path} has {about.st_size} bytes: that is too large for {wanted}")
    return path.read_bytes()


def _kind(mode: int) -> str:
    """What a file that is no regular one is."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
