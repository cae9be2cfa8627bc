"""Folders on their way into a guest and out of it, as tar archives."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path


def pack(folder: Path) -> bytes:
    """An archive of what is in ``folder``; everything belongs to root.

    Raises:
        OSError: something cannot be read.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, ".", filter=_as_root)
    return archive.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def unpack(archive: bytes, target: Path) -> None:
    """Make the folders, files and links of an archive that is not trusted, in ``target``.

    Nothing is written outside ``target``, whatever the archive's names and links say; devices, owners, and
    all permissions but those of the user are left out.

    Raises:
        OSError: it is no archive, something in it would be outside, or it cannot be stored.
    """
    target.mkdir(parents=True, exist_ok=True)
    root = target.resolve()
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                _one(tar, member, root)
    except tarfile.TarError as error:
        raise OSError(f"the guest's archive cannot be read: {error}") from None


def _one(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    name = Path(member.name)
    if name == Path():
        return
    # Links that are on the way already are followed here.
    path = (root / name).parent.resolve() / name.name
    if not path.is_relative_to(root) or ".." in name.parts:
        raise OSError(f"the guest's archive would write outside the folder: {member.name!r}")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.is_file():
        path.unlink()
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.isfile() and (data := tar.extractfile(member)) is not None:
        with data, open(path, "wb") as out:
            shutil.copyfileobj(data, out)
        path.chmod(0o600 | member.mode & 0o777 & ~0o022)
