"""Reading Debian packages without dpkg and without writing anything.

A package is an ``ar`` archive of ``debian-binary``, ``control.tar.*`` and ``data.tar.*`` (deb(5));
nothing in it is trusted to name a place in the file system.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, cast

import zstandard

from swtdx.guests.errors import PackageError

_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER_BYTES: Final = 60


def read_deb(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files of a package that ``wanted`` asks for.

    Args:
        path: the ``.deb``.
        wanted: called with each file's path, without a leading ``./`` or ``/``.

    Returns:
        path → contents.  A hard link to a file that came before has that file's contents.

    Raises:
        PackageError: not a package, cut short, or compressed in an unknown way.
    """
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            for name, size in _ar_members(file, path):
                if not name.startswith("data.tar"):
                    continue
                stream = _decompressed(name, _Window(file, size), path)
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for member in tar:
                        inner = member.name.removeprefix("./").lstrip("/")
                        if not (member.isreg() or member.islnk()) or not wanted(inner):
                            continue
                        if member.islnk():
                            target = member.linkname.removeprefix("./").lstrip("/")
                            if target in found:
                                found[inner] = found[target]
                            continue
                        contents = tar.extractfile(member)
                        assert contents is not None  # it is a regular file
                        found[inner] = contents.read()
                return found
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error}") from error
    except (tarfile.TarError, lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise PackageError(f"{path} is damaged: {error}") from error
    raise PackageError(f"{path} has no data.tar: it is not a binary package")


class _Window(io.RawIOBase):
    """The next ``size`` bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__()
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        data = self._file.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _ar_members(file: IO[bytes], path: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each member; the file stands at its first byte.  Source: deb(5), ar(5)."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise PackageError(f"{path} is not a Debian package: it does not start with !<arch>")
    while header := file.read(_AR_HEADER_BYTES):
        if len(header) < _AR_HEADER_BYTES or header[58:] != b"`\n":
            raise PackageError(f"{path} is damaged: a member's header is cut short")
        try:
            size = int(header[48:58])
        except ValueError as error:
            raise PackageError(f"{path} is damaged: a member has no size") from error
        start = file.tell()
        yield header[:16].decode("ascii", "replace").strip().rstrip("/"), size
        file.seek(start + size + size % 2)


def _decompressed(name: str, raw: io.RawIOBase, path: Path) -> IO[bytes]:
    source = io.BufferedReader(raw, 1 << 20)
    suffix = name.removeprefix("data.tar")
    openers: dict[str, Callable[[IO[bytes]], object]] = {
        "": lambda file: file,
        ".xz": lzma.open,
        ".lzma": lzma.open,
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".zst": lambda file: zstandard.ZstdDecompressor().stream_reader(file),
    }
    if suffix not in openers:
        raise PackageError(f"{path}: {name} is compressed in a way that swtdx does not know")
    return cast(IO[bytes], openers[suffix](source))
