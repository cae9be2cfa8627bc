"""Shared folders by requests of a guest's making: nothing leads out, and nothing is done that is refused.

What Linux's own virtiofs does with them is in ``tests/boot/test_peripherals.py``.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtdx.vmm.errors import VmmError
from swtdx.vmm.peripherals.fuse.messages import IN_HEADER, Op
from swtdx.vmm.peripherals.fuse.server import FuseServer
from swtdx.vmm.peripherals.p9.messages import Kind
from swtdx.vmm.peripherals.p9.server import FileServer

ROOM = 65536
NO_FID = 0xFFFF_FFFF


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with things in it, and a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    shared = tmp_path / "shared"
    (shared / "below" / "deep").mkdir(parents=True)
    (shared / "file").write_text("contents")
    (shared / "out").symlink_to("../secret")
    (shared / "up").symlink_to("..")
    os.mkfifo(shared / "fifo")
    return shared


class Fuse:
    """A client of FUSE."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.server = FuseServer(folder, read_only=read_only)
        assert self.ask(Op.INIT, 0, struct.pack("<IIII", 7, 38, 65536, 0xFFFF_FFFF))[0] == 0

    def ask(self, op: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """(error, body) of the reply."""
        head = IN_HEADER.pack(IN_HEADER.size + len(body), op, 77, node, 0, 0, 0, 0)
        reply = self.server.handle(head + body, ROOM)
        length, error, unique = struct.unpack_from("<IiQ", reply)
        assert (length, unique) == (len(reply), 77)
        return -error, reply[16:]

    def look(self, node: int, name: bytes) -> int:
        error, body = self.ask(Op.LOOKUP, node, name + b"\0")
        assert not error, os.strerror(error)
        return int.from_bytes(body[:8], "little")

    def open(self, node: int, flags: int = os.O_RDONLY) -> tuple[int, int]:
        """(error, handle)"""
        error, body = self.ask(Op.OPEN, node, struct.pack("<II", flags, 0))
        return error, int.from_bytes(body[:8], "little")


@pytest.fixture
def fuse(folder: Path) -> Iterator[Fuse]:
    client = Fuse(folder)
    yield client
    client.server.close()


def test_fuse_reads(fuse: Fuse) -> None:
    error, handle = fuse.open(fuse.look(1, b"file"))
    assert not error
    assert fuse.ask(Op.READ, 0, struct.pack("<QQI20x", handle, 3, 100)) == (0, b"tents")
    assert fuse.ask(Op.RELEASE, 0, struct.pack("<QIIQ", handle, 0, 0, 0))[0] == 0
    assert fuse.ask(Op.READ, 0, struct.pack("<QQI20x", handle, 3, 100))[0] == errno.EBADF


@pytest.mark.parametrize("name", [b"..", b".", b"", b"below/deep", b"../secret", b"/etc/passwd"])
def test_fuse_takes_names_not_paths(fuse: Fuse, name: bytes) -> None:
    for op, before in ((Op.LOOKUP, b""), (Op.UNLINK, b""), (Op.MKDIR, bytes(8)), (Op.CREATE, bytes(16))):
        assert fuse.ask(op, 1, before + name + b"\0")[0] == errno.EINVAL


def test_fuse_follows_no_link(fuse: Fuse, folder: Path) -> None:
    out, up = fuse.look(1, b"out"), fuse.look(1, b"up")
    assert fuse.open(out)[0] == errno.ELOOP
    assert fuse.ask(Op.LOOKUP, up, b"secret\0")[0] == errno.ENOTDIR
    assert fuse.ask(Op.READLINK, out) == (0, b"../secret")
    create = struct.pack("<IIII", os.O_WRONLY, 0o644, 0, 0)
    assert fuse.ask(Op.CREATE, 1, create + b"out\0")[0] == errno.EEXIST
    # A folder that becomes a link after the guest has looked at it.
    below = fuse.look(1, b"below")
    deep = fuse.look(below, b"deep")
    (folder / "below").rename(folder.parent / "elsewhere")
    (folder / "below").symlink_to(folder.parent / "elsewhere")
    assert fuse.ask(Op.MKDIR, deep, bytes(8) + b"new\0")[0] == errno.ENOTDIR
    assert fuse.ask(Op.LOOKUP, below, b"deep\0")[0] in (errno.ESTALE, errno.ENOTDIR)
    assert not list((folder.parent / "elsewhere" / "deep").iterdir())


def test_fuse_does_not_wait_for_a_fifo(fuse: Fuse) -> None:
    assert fuse.open(fuse.look(1, b"fifo"))[0] == errno.EACCES


def test_fuse_makes_nothing_dangerous(fuse: Fuse, folder: Path) -> None:
    assert fuse.ask(Op.MKNOD, 1, struct.pack("<IIII", 0o020666, 0x103, 0, 0) + b"null\0")[0] == errno.EPERM
    create = struct.pack("<IIII", os.O_RDWR, 0o106755, 0, 0)
    error, body = fuse.ask(Op.CREATE, 1, create + b"suid\0")
    assert not error
    node = int.from_bytes(body[:8], "little")
    chmod = struct.pack("<I4xQQ8xQQ8xII4xI4xII4x", 1, 0, 0, 0, 0, 0, 0, 0o6755, 0, 0)
    assert fuse.ask(Op.SETATTR, node, chmod)[0] == 0
    assert (folder / "suid").stat().st_mode & 0o7777 == 0o755


def test_a_file_without_a_name_is_there_while_it_is_open(fuse: Fuse) -> None:
    node = fuse.look(1, b"file")
    handle = fuse.open(node, os.O_RDWR)[1]
    assert fuse.ask(Op.UNLINK, 1, b"file\0")[0] == 0
    error, body = fuse.ask(Op.GETATTR, node, bytes(16))
    assert not error
    assert struct.unpack_from("<Q", body, 24)[0] == len("contents")
    assert fuse.ask(Op.READ, 0, struct.pack("<QQI20x", handle, 0, 100)) == (0, b"contents")


def test_fuse_read_only(folder: Path) -> None:
    client = Fuse(folder, read_only=True)
    for op, body in (
        (Op.UNLINK, b"file\0"),
        (Op.MKDIR, bytes(8) + b"new\0"),
        (Op.RENAME, struct.pack("<Q", 1) + b"file\0new\0"),
        (Op.CREATE, struct.pack("<IIII", os.O_WRONLY, 0o644, 0, 0) + b"new\0"),
    ):
        assert client.ask(op, 1, body)[0] == errno.EROFS
    assert client.open(client.look(1, b"file"), os.O_RDWR)[0] == errno.EROFS
    assert client.open(client.look(1, b"file"), os.O_RDONLY | os.O_TRUNC)[0] == errno.EROFS
    client.server.close()
    assert (folder / "file").read_text() == "contents"


class NineP:
    """A client of 9P2000.L, attached as fid 0."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.server = FileServer(folder, read_only=read_only)
        assert self.ask(Kind.VERSION, struct.pack("<I", 65536) + text(b"9P2000.L"))[0] == 0
        attach = struct.pack("<II", 0, NO_FID) + text(b"") + text(b"") + bytes(4)
        assert self.ask(Kind.ATTACH, attach)[0] == 0

    def ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        """(error, body) of the reply."""
        reply = self.server.handle(struct.pack("<IBH", 7 + len(body), kind, 9) + body, ROOM)
        size, answer, tag = struct.unpack_from("<IBH", reply)
        assert (size, tag) == (len(reply), 9)
        if answer == Kind.LERROR + 1:
            return int.from_bytes(reply[7:11], "little"), b""
        assert answer == kind + 1
        return 0, reply[7:]

    def walk(self, new: int, *names: bytes) -> tuple[int, int]:
        """(error, names walked) from the root."""
        body = struct.pack("<IIH", 0, new, len(names)) + b"".join(map(text, names))
        error, reply = self.ask(Kind.WALK, body)
        return error, int.from_bytes(reply[:2], "little")


def text(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data


@pytest.fixture
def nine(folder: Path) -> Iterator[NineP]:
    client = NineP(folder)
    yield client
    client.server.close()


def test_9p_reads_and_writes(nine: NineP, folder: Path) -> None:
    assert nine.walk(1, b"below", b"deep", b"..", b"..", b"file") == (0, 5)
    assert nine.ask(Kind.LOPEN, struct.pack("<II", 1, os.O_RDWR))[0] == 0
    assert nine.ask(Kind.READ, struct.pack("<IQI", 1, 3, 100)) == (0, struct.pack("<I", 5) + b"tents")
    assert nine.ask(Kind.WRITE, struct.pack("<IQI", 1, 0, 3) + b"CON")[0] == 0
    assert (folder / "file").read_text() == "CONtents"
    error, body = nine.ask(Kind.GETATTR, struct.pack("<IQ", 1, 0x7FF))
    about = (folder / "file").stat()
    assert not error
    assert struct.unpack_from("<IIIQQQ", body, 21) == (
        about.st_mode, about.st_uid, about.st_gid, about.st_nlink, about.st_rdev, about.st_size,
    )  # fmt: skip
    assert nine.walk(2) == (0, 0)
    assert nine.ask(Kind.LOPEN, struct.pack("<II", 2, os.O_RDONLY | os.O_DIRECTORY))[0] == 0
    error, listing = nine.ask(Kind.READDIR, struct.pack("<IQI", 2, 0, 8192))
    for name in (b"file", b"below", b"out", b"up", b"fifo"):
        assert text(name) in listing


def test_9p_does_not_leave_the_folder(nine: NineP, folder: Path) -> None:
    assert nine.walk(1, b"..", b"..", b"secret") == (0, 2), "'..' of the root is the root"
    assert nine.walk(1, b"up", b"secret") == (0, 1)
    for name in (b"../secret", b"/etc/passwd", b"", b"."):
        assert nine.walk(1, name) == (errno.EINVAL, 0)
    assert nine.walk(1, b"out") == (0, 1)
    assert nine.ask(Kind.LOPEN, struct.pack("<II", 1, os.O_RDONLY))[0] == errno.ELOOP
    assert nine.walk(2, b"fifo") == (0, 1)
    assert nine.ask(Kind.LOPEN, struct.pack("<II", 2, os.O_RDONLY))[0] == errno.EACCES
    # A folder that the host moves away is no way out either.
    assert nine.walk(3, b"below", b"deep") == (0, 2)
    (folder / "below").rename(folder.parent / "elsewhere")
    body = struct.pack("<IIH", 3, 4, 2) + text(b"..") + text(b"..")
    assert nine.ask(Kind.WALK, body)[0] == errno.EACCES


def test_9p_read_only(folder: Path) -> None:
    client = NineP(folder, read_only=True)
    assert client.ask(Kind.MKDIR, struct.pack("<I", 0) + text(b"new") + bytes(8))[0] == errno.EROFS
    assert client.ask(Kind.UNLINKAT, struct.pack("<I", 0) + text(b"file") + bytes(4))[0] == errno.EROFS
    assert client.walk(1, b"file") == (0, 1)
    assert client.ask(Kind.LOPEN, struct.pack("<II", 1, os.O_RDWR))[0] == errno.EROFS
    client.server.close()


@pytest.mark.parametrize("server", [FuseServer, FileServer])
def test_a_folder_that_is_not_there(server: type[FuseServer] | type[FileServer], tmp_path: Path) -> None:
    with pytest.raises(VmmError, match="absent cannot be shared: No such file"):
        server(tmp_path / "absent", read_only=False)
