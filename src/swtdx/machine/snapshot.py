"""Snapshot files: named, versioned, checksummed sections in one file that appears whole or not at all.

Layout, all integers little-endian::

    0   8  magic "SWTDXSNP"
    8   4  container version (1)
    12  4  number of sections
    16  8  offset of the table of sections (they lie between byte 64 and here, without gaps)
    24  8  size of the table; the file ends behind it
    32 32  SHA-256 of the table
    64     contents of the sections

and each entry of the table: name length (2), section version (4), offset (8), size (8), SHA-256 of the
contents (32), name (UTF-8). Nothing in a file depends on when or where it was written, and nothing in it
is code. Snapshots contain the machine's keys: a reader of the file can read the TDs.

A snapshot may end with an *image*: the machine's frames, which are mapped instead of read
(:mod:`swtdx.machine.memory.image`).  It lies behind the table, from the next multiple of 2 MiB to the end of
the file, with holes where frames are zeros; the last section, ``image place``, says how long it is.  Its
bytes are not checksummed: reading all of them would take longer than the machine takes to go on.

Writing and reading::

    with SnapshotWriter("machine.snap") as snapshot, snapshot.section("clock", version=1) as section:
        section.u64(12345)

    with Snapshot("machine.snap") as snapshot:
        section = snapshot.section("clock", version=1)
        ticks = section.u64()
        section.end()
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

MAGIC: Final = b"SWTDXSNP"
CONTAINER_VERSION: Final = 1
#: Of an image in the file.
IMAGE_ALIGNMENT: Final = 2 << 20
_PLACE: Final = "image place"

_HEADER: Final = struct.Struct("<8sIIQQ32s")
_ENTRY: Final = struct.Struct("<HIQQ32s")
_STEP: Final = 1 << 20
#: A table larger than this is not one of ours.
_MAX_TABLE: Final = 1 << 20


class SnapshotError(ValueError):
    """A snapshot cannot be read or written; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    version: int
    offset: int
    size: int
    digest: bytes


class SectionWriter:
    """Appends to one section. Integers are unsigned and little-endian."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append raw bytes, whose number the reader must know."""
        self._file.write(data)
        self._hash.update(data)
        self.size += memoryview(data).nbytes

    def u8(self, value: int) -> None:
        """Append one byte."""
        self._integer(value, 1)

    def u16(self, value: int) -> None:
        """Append a 16-bit integer."""
        self._integer(value, 2)

    def u32(self, value: int) -> None:
        """Append a 32-bit integer."""
        self._integer(value, 4)

    def u64(self, value: int) -> None:
        """Append a 64-bit integer."""
        self._integer(value, 8)

    def blob(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes with their number in front (8 bytes)."""
        self.u64(memoryview(data).nbytes)
        self.write(data)

    def text(self, value: str) -> None:
        """Append a string."""
        self.blob(value.encode())

    def _integer(self, value: int, size: int) -> None:
        try:
            self.write(value.to_bytes(size, "little"))
        except OverflowError:
            raise SnapshotError(f"{value:#x} does not fit in {size} bytes of a snapshot") from None

    def digest(self) -> bytes:
        """SHA-256 of what was written so far."""
        return self._hash.digest()


class SnapshotWriter:
    """Writes a snapshot; a context manager.

    The file appears at ``path`` when the block ends well, replacing what was there; after an exception
    nothing has changed.

    Raises:
        SnapshotError: the directory cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._entries: list[_Entry] = []
        self._open = False
        self._image: tuple[int, Iterable[tuple[int, bytes]]] | None = None
        try:
            descriptor, self._temporary = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent
            )
        except OSError as error:
            raise SnapshotError(f"cannot write {self.path}: {error.strerror}") from error
        self._file: BinaryIO = os.fdopen(descriptor, "w+b")
        self._file.write(bytes(_HEADER.size))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):  # it was renamed
                os.unlink(self._temporary)

    @contextlib.contextmanager
    def section(self, name: str, version: int) -> Iterator[SectionWriter]:
        """A new section; fill it inside the block.

        Raises:
            SnapshotError: the name is used already, or another section is still open.
        """
        if self._open or any(entry.name == name for entry in self._entries):
            raise SnapshotError(f"{self.path}: section {name!r} twice, or inside another section")
        self._open = True
        offset = self._file.tell()
        writer = SectionWriter(self._file)
        yield writer
        self._open = False
        self._entries.append(_Entry(name, version, offset, writer.size, writer.digest()))

    def append_image(self, size: int, parts: Iterable[tuple[int, bytes]]) -> None:
        """End the file with an image of ``size`` bytes: zeros but for ``parts``, as (offset, bytes)."""
        self._image = size, parts

    def _finish(self) -> None:
        if self._image is not None:
            with self.section(_PLACE, 1) as section:
                section.u64(self._image[0])
        table = bytearray()
        for entry in self._entries:
            name = entry.name.encode()
            table += _ENTRY.pack(len(name), entry.version, entry.offset, entry.size, entry.digest) + name
        offset = self._file.tell()
        self._file.write(table)
        if self._image is not None:
            size, parts = self._image
            start = _image_start(offset + len(table))
            self._file.truncate(start + size)
            for at, data in parts:
                self._file.seek(start + at)
                self._file.write(data)
        self._file.seek(0)
        digest = hashlib.sha256(table).digest()
        header = (MAGIC, CONTAINER_VERSION, len(self._entries), offset, len(table), digest)
        self._file.write(_HEADER.pack(*header))
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._temporary, self.path)


def _image_start(end: int) -> int:
    """Where the image of a file begins whose table ends at ``end``."""
    return -(-end // IMAGE_ALIGNMENT) * IMAGE_ALIGNMENT


class SectionReader:
    """Reads one section from its start, in the order in which it was written."""

    def __init__(self, snapshot: Path, entry: _Entry, file: BinaryIO) -> None:
        self._label = f"{snapshot}: section {entry.name!r}"
        self._file = file
        self._at = entry.offset
        self._end = entry.offset + entry.size

    def fail(self, why: str) -> SnapshotError:
        """An error that names this section, for contents that make no sense: ``raise section.fail(...)``."""
        return SnapshotError(f"{self._label}: {why}")

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self._end - self._at

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes.

        Raises:
            SnapshotError: the section has fewer.
        """
        if not 0 <= size <= self.remaining:
            raise self.fail(f"{size} more bytes expected, {self.remaining} left")
        self._file.seek(self._at)
        data = self._file.read(size)
        if len(data) != size:
            raise self.fail("the file became shorter while it was read")
        self._at += size
        return data

    def u8(self) -> int:
        """The next byte."""
        return self.read(1)[0]

    def u16(self) -> int:
        """The next 16-bit integer."""
        return int.from_bytes(self.read(2), "little")

    def u32(self) -> int:
        """The next 32-bit integer."""
        return int.from_bytes(self.read(4), "little")

    def u64(self) -> int:
        """The next 64-bit integer."""
        return int.from_bytes(self.read(8), "little")

    def blob(self) -> bytes:
        """The next bytes that were written with their number."""
        return self.read(self.u64())

    def text(self) -> str:
        """The next string."""
        try:
            return self.blob().decode()
        except UnicodeDecodeError:
            raise self.fail("a name is not UTF-8") from None

    def end(self) -> None:
        """Check that all was read.

        Raises:
            SnapshotError: something is left over.
        """
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes left over")


class Snapshot:
    """A snapshot file, opened for reading; a context manager.

    Opening verifies the whole file, so what is read later is what was written.

    Raises:
        SnapshotError: not a snapshot, another container version, truncated, or corrupted.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise SnapshotError(f"cannot read {self.path}: {error.strerror}") from error
        try:
            self._image_at: int | None = None
            self._entries = {entry.name: entry for entry in self._verify()}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def sections(self) -> tuple[str, ...]:
        """The names of the sections, in the order of the file."""
        return tuple(self._entries)

    def section(self, name: str, version: int) -> SectionReader:
        """The section ``name``, which must be of ``version``.

        Raises:
            SnapshotError: there is no such section, or it has another version.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise SnapshotError(
                f"{self.path}: there is no section {name!r}; it has {', '.join(self._entries)}"
            )
        if entry.version != version:
            raise SnapshotError(
                f"{self.path}: section {name!r} has version {entry.version}, and this swtdx reads "
                f"version {version}; save the machine again with this swtdx, or load it with the other"
            )
        return SectionReader(self.path, entry, self._file)

    def image(self) -> tuple[int, int, int]:
        """The image: a new descriptor of the file, where in it the image begins, and its size in bytes.

        Raises:
            SnapshotError: the snapshot has none.
        """
        if self._image_at is None:
            raise SnapshotError(f"{self.path}: the snapshot has no image of frames")
        section = self.section(_PLACE, 1)
        return os.dup(self._file.fileno()), self._image_at, section.u64()

    def _check_image(self, place: _Entry, length: int, end: int) -> None:
        """The file has to be as long as its image makes it."""
        size = SectionReader(self.path, place, self._file).u64()
        self._image_at = _image_start(end)
        if length != self._image_at + size:
            raise SnapshotError(
                f"{self.path}: truncated: {length} bytes, but with its image the file has "
                f"{self._image_at + size}"
            )

    def _verify(self) -> list[_Entry]:
        length = os.fstat(self._file.fileno()).st_size
        raw = self._file.read(_HEADER.size)
        if raw[:8] != MAGIC[: len(raw[:8])] or not raw:
            raise SnapshotError(f"{self.path}: this is not a swtdx snapshot")
        if len(raw) < _HEADER.size:
            raise SnapshotError(f"{self.path}: truncated inside the header, after {length} bytes")
        _, version, count, offset, size, digest = _HEADER.unpack(raw)
        if version != CONTAINER_VERSION:
            raise SnapshotError(
                f"{self.path}: snapshot format {version}, and this swtdx reads format {CONTAINER_VERSION}"
            )
        if size > _MAX_TABLE or offset + size > length:
            raise SnapshotError(
                f"{self.path}: truncated: {length} bytes, but the header promises {offset + size}"
            )
        self._file.seek(offset)
        table = self._file.read(size)
        if hashlib.sha256(table).digest() != digest:
            raise SnapshotError(f"{self.path}: the table of sections is corrupted")
        entries = self._parse(table, count)
        at = _HEADER.size
        for entry in entries:
            if entry.offset != at or entry.offset + entry.size > offset:
                raise SnapshotError(f"{self.path}: section {entry.name!r} lies outside its place")
            at += entry.size
            if self._digest(entry) != entry.digest:
                raise SnapshotError(f"{self.path}: section {entry.name!r} is corrupted")
        place = next((entry for entry in entries if entry.name == _PLACE), None)
        if place is not None and at == offset:
            self._check_image(place, length, offset + size)
        elif at != offset or offset + size != length:
            raise SnapshotError(f"{self.path}: {length - at - size} bytes belong to no section")
        return entries

    def _parse(self, table: bytes, count: int) -> list[_Entry]:
        entries: list[_Entry] = []
        at = 0
        while at < len(table):
            try:
                length, version, offset, size, digest = _ENTRY.unpack_from(table, at)
                name = table[at + _ENTRY.size : at + _ENTRY.size + length].decode()
            except (struct.error, UnicodeDecodeError):
                raise SnapshotError(f"{self.path}: the table of sections makes no sense") from None
            entries.append(_Entry(name, version, offset, size, digest))
            at += _ENTRY.size + length
        if len(entries) != count:
            raise SnapshotError(f"{self.path}: {len(entries)} sections, but the header promises {count}")
        return entries

    def _digest(self, entry: _Entry) -> bytes:
        digest = hashlib.sha256()
        self._file.seek(entry.offset)
        left = entry.size
        while left:
            part = self._file.read(min(_STEP, left))
            if not part:
                break
            digest.update(part)
            left -= len(part)
        return digest.digest()
